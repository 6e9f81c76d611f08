//! The lines of the control protocol, version 1.
//!
//! Owns: requests, progress, replies, errors, and their JSON.
//! Does not own: transport (`server`, `client`), the body of a status ([`super::status`]).
//!
//! ```text
//! ▶ {"v":1,"id":1,"op":"flush","args":{"paths":["a"],"wait":"all","timeout_seconds":null}}
//! ◀ {"id":1,"progress":{"phase":"draining","targets":[…]}}       any number
//! ◀ {"id":1,"ok":{…}}   or   {"id":1,"error":{"kind":"timeout","message":"…","hint":"…"}}
//! ```

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version in every request.
pub const VERSION: u32 = 1;
/// Bytes of a line at most, its newline included: a request that names thousands of paths fits.
pub const LINE_MAX: usize = 4 << 20;

/// One line from a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// Chosen by the client; repeated in every answer.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub op: Op,
}

/// What can be asked of a daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", content = "args", rename_all = "snake_case")]
pub enum Op {
    /// Answered by [`super::Status`].
    Status {},
    /// Where the bytes of these files are. Answered by a list of [`Whereis`].
    Whereis {
        /// Relative to the root of the filesystem.
        paths: Vec<Path>,
    },
    /// Wait until files are as safe as asked. Answered by [`Flushed`].
    Flush(Flush),
    /// Drain, unmount, drain the rest, end (D7). Answered by [`Unmounted`].
    Umount(Umount),
    /// Check the copies on targets. Answered by a list of [`crate::scrub::Report`].
    Scrub(Scrub),
    /// What that would cost. Answered by a list of [`crate::scrub::Cost`].
    ScrubCost(Scrub),
    /// A new mount on the same state directory asks a daemon that is only draining to end at once (D7).
    /// Answered by null, and an error of kind `busy` while the filesystem is mounted.
    HandOver {},
    /// Change the set of targets while it is in use. Answered by [`Said`].
    Target(TargetOp),
    /// Read the configuration again; one that is invalid changes nothing. Answered by [`Said`].
    Reload {},
    /// Remove from targets what nothing needs any more, or only say what would go. Answered by [`Said`].
    Gc {
        /// Say it only.
        dry_run: bool,
    },
}

/// Arguments of [`Op::Target`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetOp {
    /// One more target, filled from this machine and the other targets.
    Add {
        /// Its name.
        name: String,
        /// Where it is, without secrets; null: as the configuration says by now.
        uri: Option<String>,
        /// The place of a known target was lost for good and is empty: begin anew there.
        fresh: bool,
    },
    /// A target goes. What lies there stays there.
    Remove {
        /// Which.
        name: String,
        /// Although it is out of reach, or holds the only copy of something.
        force: bool,
    },
    /// Send nothing to a target for now.
    Pause {
        /// Which.
        name: String,
        /// Until then, in seconds since 1970; null: until it is resumed.
        until: Option<i64>,
    },
    /// A paused target goes on; a blocked one is asked again at once, with credentials read anew.
    Resume {
        /// Which.
        name: String,
    },
    /// Another place takes the part of a target: it moved, or is filled anew.
    Replace {
        /// Which.
        name: String,
        /// Where it is from now on; null: as the configuration says by now.
        uri: Option<String>,
        /// Although the old place holds the only copy of something.
        force: bool,
    },
    /// This mount's state counts on a target that another one wrote to; what the other wrote is discarded.
    Adopt {
        /// Which.
        name: String,
    },
}

/// What was done, in lines for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Each a sentence without a full stop.
    pub lines: Vec<String>,
}

/// Arguments of [`Op::Flush`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flush {
    /// Relative to the root of the filesystem; a directory stands for everything in it. An empty path is the root.
    pub paths: Vec<Path>,
    /// How safe is safe enough.
    pub wait: Wait,
    /// Seconds after which to give up with an error of kind `timeout`; null = never.
    pub timeout_seconds: Option<u64>,
}

/// Arguments of [`Op::Umount`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Umount {
    /// Seconds for the first drain; null = as long as it takes.
    pub timeout_seconds: Option<u64>,
    /// Unmount although not everything is on every target, and although programs use it.
    pub force: bool,
}

/// Arguments of [`Op::Scrub`] and [`Op::ScrubCost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// How thorough.
    pub level: crate::scrub::Level,
    /// Names of targets; none = all.
    pub targets: Vec<String>,
    /// Upload bad copies again.
    pub repair: bool,
    /// Bytes per second to read at most; null = as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// How many targets must hold something before a waiter goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// On the local disk, durably.
    Local,
    /// On this many targets.
    Count(u32),
    /// On more than half of the targets.
    Quorum,
    /// On every target.
    All,
}

/// A path as bytes: text where it is UTF-8, else `{"b64":"…"}`, as in FORMATS.md.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Path(pub Vec<u8>);

/// Where the bytes of one file are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereis {
    /// As asked.
    pub path: Path,
    /// The inode.
    pub inode: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of it that are on the local disk.
    pub local_bytes: u64,
    /// One entry for each target, in the order of the configuration.
    pub targets: Vec<WhereisTarget>,
}

/// What one target has of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereisTarget {
    /// Name of the target.
    pub name: String,
    /// Whether a restore from it alone would bring this file as it is now.
    pub state: CopyState,
    /// Bytes it still lacks.
    pub pending_bytes: u64,
}

/// The state of a file on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// All its bytes and the journal that names them are there.
    Safe,
    /// On its way.
    Pending,
    /// Nothing of the file is there and nothing is on its way.
    Absent,
}

/// The answer to [`Op::Flush`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// The journal place up to which the wait held.
    pub seq: u64,
}

/// The answer to [`Op::Umount`]: unmounted and every target whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmounted {
    /// The last place of the journal, which every target holds.
    pub seq: u64,
}

/// How far a long request has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// One entry for each target that is waited for.
    pub targets: Vec<TargetProgress>,
}

/// The steps of a long request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Files are being hashed and committed.
    Sealing,
    /// Targets are being filled.
    Draining,
    /// The filesystem is being unmounted.
    Unmounting,
    /// Copies are being checked; what is pending is not checked yet.
    Scrubbing,
}

/// How far one target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetProgress {
    /// Name of the target.
    pub name: String,
    /// Bytes of chunks that it still lacks.
    pub pending_bytes: u64,
    /// Objects that it still lacks.
    pub pending_objects: u64,
    /// Records of the journal that it still lacks.
    pub pending_records: u64,
    /// True when it holds everything that is waited for.
    pub done: bool,
    /// Why it does not get on, if it does not.
    pub reason: Option<String>,
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// What, which object, why: lower case, no full stop.
    pub message: String,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Few kinds: what the caller can do differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense: exit code 2.
    Usage,
    /// It failed: exit code 1.
    Failed,
    /// Something is in use that must not be: exit code 1.
    Busy,
    /// No such file or target: exit code 1.
    NotFound,
    /// Not drained in time; the data is safe locally and stays queued: exit code 3.
    Timeout,
    /// No daemon answers: exit code 1.
    Unreachable,
    /// Bad copies were found and are not good again: exit code 4.
    Findings,
}

impl Error {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), hint: None }
    }

    /// A plain failure without a hint.
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message)
    }

    /// The same error with the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }
}

/// One line from the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Of the request.
    pub id: u64,
    /// What is said.
    #[serde(flatten)]
    pub body: ReplyBody,
}

/// What a reply says: progress may come many times, one of the others ends the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyBody {
    /// How far it has come.
    Progress(Progress),
    /// Done.
    Ok(serde_json::Value),
    /// Failed.
    Error(Error),
}

impl Path {
    /// The path as the operating system takes it.
    pub fn to_path(&self) -> std::path::PathBuf {
        OsString::from_vec(self.0.clone()).into()
    }
}

impl From<&std::path::Path> for Path {
    fn from(path: &std::path::Path) -> Path {
        Path(path.as_os_str().as_bytes().to_vec())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Bytes<'a> {
    Text(std::borrow::Cow<'a, str>),
    Base64 { b64: String },
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Bytes::Text(text.into()),
            Err(_) => Bytes::Base64 { b64: STANDARD.encode(&self.0) },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Path, D::Error> {
        match Bytes::deserialize(deserializer)? {
            Bytes::Text(text) => Ok(Path(text.into_owned().into_bytes())),
            Bytes::Base64 { b64 } => STANDARD.decode(b64).map(Path).map_err(serde::de::Error::custom),
        }
    }
}

/// `aws lacks 3.0 MiB in 1 object, 12 records (connection refused)`.
impl fmt::Display for TargetProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.lacks())
    }
}

impl TargetProgress {
    /// What it lacks, in words.
    pub fn lacks(&self) -> String {
        if self.done {
            return "whole".into();
        }
        let count = |number: u64, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
        let mut parts = Vec::new();
        if self.pending_objects > 0 || self.pending_bytes > 0 {
            let bytes = bytesize::ByteSize(self.pending_bytes).display().iec();
            parts.push(format!("{bytes} in {}", count(self.pending_objects, "object")));
        }
        if self.pending_records > 0 {
            parts.push(count(self.pending_records, "record"));
        }
        if parts.is_empty() {
            parts.push("nothing that is sealed".into());
        }
        let reason = self.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!("lacks {}{reason}", parts.join(", "))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Local => "local".fmt(f),
            Wait::Count(1) => "one".fmt(f),
            Wait::Count(count) => count.fmt(f),
            Wait::Quorum => "quorum".fmt(f),
            Wait::All => "all".fmt(f),
        }
    }
}

impl std::str::FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Wait, String> {
        match text {
            "local" => Ok(Wait::Local),
            "one" => Ok(Wait::Count(1)),
            "quorum" => Ok(Wait::Quorum),
            "all" => Ok(Wait::All),
            number => match number.parse() {
                Ok(count) if count >= 1 => Ok(Wait::Count(count)),
                _ => Err(format!("{text:?} is not local, one, quorum, all or a number of targets")),
            },
        }
    }
}

impl Serialize for Wait {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Wait, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug>(value: T, json: &str) {
        assert_eq!(serde_json::to_string(&value).unwrap(), json);
        assert_eq!(serde_json::from_str::<T>(json).unwrap(), value);
    }

    #[test]
    fn requests_look_as_decided() {
        check(Request { v: 1, id: 1, op: Op::Status {} }, r#"{"v":1,"id":1,"op":"status","args":{}}"#);
        check(
            Request {
                v: 1,
                id: 2,
                op: Op::Flush(Flush {
                    paths: vec![Path(b"a\xff".to_vec())],
                    wait: Wait::Count(1),
                    timeout_seconds: None,
                }),
            },
            r#"{"v":1,"id":2,"op":"flush","args":{"paths":[{"b64":"Yf8="}],"wait":"one","timeout_seconds":null}}"#,
        );
    }

    #[test]
    fn replies_look_as_decided() {
        check(Reply { id: 1, body: ReplyBody::Ok(serde_json::Value::Null) }, r#"{"id":1,"ok":null}"#);
        check(
            Reply { id: 1, body: ReplyBody::Error(Error::new(ErrorKind::Timeout, "m").hint("h")) },
            r#"{"id":1,"error":{"kind":"timeout","message":"m","hint":"h"}}"#,
        );
        check(
            Reply { id: 1, body: ReplyBody::Progress(Progress { phase: Phase::Draining, targets: vec![] }) },
            r#"{"id":1,"progress":{"phase":"draining","targets":[]}}"#,
        );
    }

    #[test]
    fn a_wait_is_a_word_or_a_number_above_zero() {
        for good in ["local", "one", "quorum", "all", "2", "3"] {
            assert_eq!(good.parse::<Wait>().unwrap().to_string(), good);
        }
        for bad in ["", "0", "-1", "both"] {
            assert!(bad.parse::<Wait>().is_err(), "{bad}");
        }
    }
}
