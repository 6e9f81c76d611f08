//! `tandemfs status`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::{self, bytes, count, span};
use super::{Outcome, reach};
use crate::control::Op;
use crate::control::registry::Entry;
use crate::control::status::{self, AttentionKind, Health, Mode};

/// Say whether the data is safe, what waits, which target is ill, and what to do
#[derive(Debug, Args)]
pub struct Status {
    /// Where it is mounted; without it, every mounted TandemFS of this user
    mountpoint: Option<PathBuf>,
    /// One JSON object per filesystem, each on a line of its own
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let entries = match &self.mountpoint {
            Some(mountpoint) => vec![reach::mounted_at(mountpoint)?],
            None => reach::all()?,
        };
        loop {
            let shown = self.show(&entries)?;
            if self.watch && !self.json && std::io::stdout().is_terminal() {
                // Home, and clear what an earlier, longer text left behind.
                output::print(&format!("\x1b[H\x1b[2J{shown}"))?;
            } else {
                output::print(&shown)?;
            }
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn show(&self, entries: &[Entry]) -> Result<String, crate::control::Error> {
        let mut shown = String::new();
        let mut failure = None;
        for entry in entries {
            match reach::connect(entry).and_then(|mut client| client.call(Op::Status {}, |_| ())) {
                Ok(status) if self.json => {
                    shown += &serde_json::to_string::<status::Status>(&status).expect("a status is plain data");
                    shown.push('\n');
                }
                Ok(status) => shown += &text(&status),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            // One dead daemon among several does not hide what the others say.
            Some(error) => output::print(&shown).and(Err(error)),
            None => Ok(shown),
        }
    }
}

/// The status as people read it, in the order in which they ask.
fn text(status: &status::Status) -> String {
    let filesystem = &status.filesystem;
    let mut text = format!("{} on {}: ", filesystem.name, filesystem.mountpoint);
    if status.safe {
        text += "safe, every target holds everything\n";
    } else {
        text += "not yet on every target\n";
        let waiting = &status.unreplicated;
        text += &format!("  waiting: {}, {}", count(waiting.files, "file"), bytes(waiting.bytes));
        if waiting.oldest_seconds > 0 {
            text += &format!(", the oldest for {}", span(waiting.oldest_seconds));
        }
        text.push('\n');
    }
    let width = status.targets.iter().map(|target| target.name.len()).max().unwrap_or(0);
    for target in &status.targets {
        text += &target_text(target, width);
    }
    let cache = &status.cache;
    text += &format!("  local: {}", bytes(cache.used_bytes));
    if let Some(limit) = cache.limit_bytes {
        text += &format!(" of {}", bytes(limit));
    }
    text += &format!(", {} of it must stay until every target has it\n", bytes(cache.pinned_bytes));
    text += &garbage_text(&status.garbage);
    if let Some(why) = &filesystem.no_passthrough {
        text += &format!("  no passthrough, so large files are slower: {why}\n");
    }
    for attention in &status.attention {
        text += &attention_text(attention);
    }
    text
}

/// Less than this in nearly empty chunks is nobody's business.
const GARBAGE_MIN: u64 = 1 << 20;

fn garbage_text(garbage: &status::Garbage) -> String {
    if garbage.sparse_bytes < GARBAGE_MIN {
        return String::new();
    }
    let (chunks, live) = (count(garbage.sparse_chunks, "chunk"), bytes(garbage.sparse_live_bytes));
    let mut text = format!("  rewriting: {} in {chunks} of which {live} are in use", bytes(garbage.sparse_bytes));
    if let Some(held) = &garbage.held {
        text += &format!("; not now: {held}");
    }
    text + "\n"
}

fn target_text(target: &status::Target, width: usize) -> String {
    let mut facts = vec![state(target).to_owned()];
    if target.pending_objects > 0 || target.pending_bytes > 0 {
        facts.push(format!("lacks {} in {}", bytes(target.pending_bytes), count(target.pending_objects, "object")));
    } else if target.lag_seconds > 0 {
        facts.push("lacks the newest records".into());
    }
    if target.lag_seconds > 0 {
        facts.push(format!("{} behind", span(target.lag_seconds)));
    }
    if let Some(resync) = &target.resync {
        let percent = (100 * resync.placed_bytes).checked_div(resync.total_bytes).unwrap_or(0);
        facts.push(format!("resyncing {percent} %"));
        if let Some(seconds) = resync.estimate_seconds {
            facts.push(format!("about {} left", span(seconds)));
        }
    }
    match &target.whole_as_of {
        // How long ago is what matters then.
        Some(_) if target.resync.is_some() && target.lag_seconds > 0 => {
            facts.push(format!("whole as of {} ago", span(target.lag_seconds)));
        }
        Some(moment) if target.lag_seconds > 0 || target.mode != Mode::Follow => {
            facts.push(format!("whole as of {moment}"));
        }
        None => facts.push("holds no whole state yet".into()),
        Some(_) => {}
    }
    facts.push(format!("{} placed", bytes(target.placed_bytes)));
    let mut text = format!("  {:<width$}  {}\n", target.name, facts.join(", "));
    let indent = " ".repeat(width + 4);
    let ill = target.health != Health::Healthy || target.mode != Mode::Follow;
    for reason in target.reason.iter().chain(target.last_error.iter().filter(|_| ill && target.reason.is_none())) {
        text += &format!("{indent}{reason}\n");
    }
    if let Some(hint) = &target.hint {
        text += &format!("{indent}hint: {hint}\n");
    }
    text
}

/// One word: what hinders most comes first.
fn state(target: &status::Target) -> &'static str {
    match (target.mode, target.health) {
        (Mode::Fenced, _) => "fenced",
        (Mode::Blocked, _) => "blocked",
        (_, Health::Paused) => "paused",
        (_, Health::Down) => "down",
        (_, Health::Probing) => "probing",
        (_, Health::Suspect) => "suspect",
        (_, Health::Healthy) => "healthy",
    }
}

fn attention_text(attention: &status::Attention) -> String {
    let what = match attention.kind {
        AttentionKind::StillMapped => "closed but still mapped",
        AttentionKind::OpenPassthrough => "open for long",
        AttentionKind::Void => "lost its newest content to a power cut",
        AttentionKind::Quarantine => "in quarantine",
        AttentionKind::Damaged => "damaged",
        AttentionKind::Configuration => "not as configured",
        AttentionKind::Unreliable => "not reliable",
        AttentionKind::Late => "not acknowledged in time",
        AttentionKind::Unsealed => "not readable from the local disk",
        AttentionKind::Panicked => "failed by a mistake in this program",
        AttentionKind::Latched => "nothing more is acknowledged: a sync failed",
    };
    let which = match (&attention.path, attention.inode) {
        (Some(path), _) => path.clone(),
        (None, Some(inode)) => format!("inode {inode}"),
        (None, None) if attention.kind == AttentionKind::Quarantine => "local files".into(),
        (None, None) if attention.kind == AttentionKind::Damaged => "copies".into(),
        (None, None) if attention.kind == AttentionKind::Panicked => "calls".into(),
        (None, None) if attention.kind == AttentionKind::Latched => "the state disk".into(),
        (None, None) if attention.kind == AttentionKind::Configuration => "targets".into(),
        (None, None) if attention.kind == AttentionKind::Unreliable => "a store".into(),
        (None, None) => "files".into(),
    };
    let mut text = format!("  attention: {which}: {what}");
    if let Some(amount) = attention.bytes {
        text += &format!(", {}", bytes(amount));
    }
    if let Some(since) = attention.since_seconds {
        text += &format!(", for {}", span(since));
    }
    text + &format!("\n    hint: {}\n", attention.hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Attention, Cache, Filesystem, Target, Unreplicated};

    fn target(name: &str) -> Target {
        Target {
            name: name.into(),
            uri: "s3://bucket/prefix".into(),
            health: Health::Healthy,
            mode: Mode::Follow,
            reason: None,
            hint: None,
            whole_as_of: Some("2026-11-20T10:00:00Z".into()),
            resync: None,
            pending_objects: 0,
            pending_bytes: 0,
            lag_seconds: 0,
            placed_bytes: 5 << 30,
            shipped_seq: 9,
            last_error: Some("old news".into()),
        }
    }

    fn status(safe: bool, targets: Vec<Target>) -> status::Status {
        status::Status {
            filesystem: Filesystem {
                name: "photos".into(),
                uuid: "6d0c".into(),
                mountpoint: "/mnt/photos".into(),
                state_dir: "/var/lib/tandemfs/mnt-photos".into(),
                epoch: 3,
                no_passthrough: None,
            },
            safe,
            unreplicated: Unreplicated::default(),
            targets,
            attention: Vec::new(),
            cache: Cache { used_bytes: 5 << 30, pinned_bytes: 0, limit_bytes: Some(20 << 30) },
            garbage: Default::default(),
            requests: Default::default(),
            journal_seq: 9,
        }
    }

    #[test]
    fn safe_is_said_first() {
        insta::assert_snapshot!(text(&status(true, vec![target("aws"), target("b")])), @r"
        photos on /mnt/photos: safe, every target holds everything
          aws  healthy, 5.0 GiB placed
          b    healthy, 5.0 GiB placed
          local: 5.0 GiB of 20.0 GiB, 0 B of it must stay until every target has it
        ");
    }

    #[test]
    fn an_ill_target_says_since_when_why_and_what_to_do() {
        let ill = Target {
            health: Health::Down,
            pending_objects: 1204,
            pending_bytes: 3 << 30,
            lag_seconds: 3661,
            reason: Some("connection refused".into()),
            hint: Some("it is tried again every minute".into()),
            ..target("oss")
        };
        let mut status = status(false, vec![target("aws"), ill]);
        status.unreplicated = Unreplicated { files: 1, bytes: 3 << 30, oldest_seconds: 3661 };
        status.attention.push(Attention {
            kind: AttentionKind::StillMapped,
            path: Some("a.db".into()),
            inode: Some(7),
            bytes: Some(4096),
            since_seconds: Some(60),
            hint: "end the program that maps it".into(),
        });
        insta::assert_snapshot!(text(&status), @r"
        photos on /mnt/photos: not yet on every target
          waiting: 1 file, 3.0 GiB, the oldest for 1h 1m
          aws  healthy, 5.0 GiB placed
          oss  down, lacks 3.0 GiB in 1,204 objects, 1h 1m behind, whole as of 2026-11-20T10:00:00Z, 5.0 GiB placed
               connection refused
               hint: it is tried again every minute
          local: 5.0 GiB of 20.0 GiB, 0 B of it must stay until every target has it
          attention: a.db: closed but still mapped, 4.0 KiB, for 1m
            hint: end the program that maps it
        ");
    }

    #[test]
    fn json_has_the_documented_keys() {
        let json = serde_json::to_value(status(true, vec![target("aws")])).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(keys(&json), "attention cache filesystem garbage journal_seq safe targets unreplicated");
        assert_eq!(
            keys(&json["targets"][0]),
            "health hint lag_seconds last_error mode name pending_bytes pending_objects placed_bytes reason resync \
             shipped_seq uri whole_as_of"
        );
        assert_eq!(json["targets"][0]["health"], "healthy");
    }
}
