//! What a failure of OpenDAL means to the caller.
//!
//! Owns: the way from an `opendal::Error` to [`Kind`] and [`Class`]. Pure.
//! Does not own: what happens next (`replication`).
//!
//! - A put or delete whose fate is unknown is [`Class::Ambiguous`]: the bytes may have arrived although the answer did not.
//!   Not so when no connection was made, nor when the store itself refused.
//! - OpenDAL calls every unknown `std::io` error temporary, a full disk too: the errno decides before its opinion does.
//! - Contexts of OpenDAL's errors hold URLs, which may be signed: only messages and sources are passed on.

use std::error::Error as StdError;
use std::io::ErrorKind as io;

use opendal::ErrorKind;

use super::transport::Notes;
use super::{Class, Error, Kind};

/// Stores refuse requests that were signed with a time too far from theirs: five minutes at some, fifteen at S3.
pub(super) const CLOCK_SECS_MAX: i64 = 5 * 60;
/// Bytes of a store's answer that are passed on.
const MESSAGE_MAX: usize = 300;

/// A call, for the error message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) key: &'a str,
}

impl Call<'_> {
    /// An error of this call.
    pub(super) fn error(&self, kind: Kind, class: Class, message: impl Into<String>) -> Error {
        let key = self.key.to_owned();
        Error { kind, class, operation: self.operation, key, message: message.into(), retry_after: None }
    }

    /// True if a lost answer leaves open whether something happened.
    fn changes(&self) -> bool {
        matches!(self.operation, "put" | "delete")
    }

    /// The class of a failure after the request may have reached the store.
    pub(super) fn unknown_fate(&self) -> Class {
        if self.changes() { Class::Ambiguous } else { Class::Temporary }
    }
}

/// Classifies a failed call.
pub(super) fn classify(call: Call<'_>, error: &opendal::Error, notes: &Notes) -> Error {
    let (kind, class) = meaning(call, error, notes);
    let mut message = message(error);
    if let (Kind::Denied, Some(ahead)) = (kind, notes.ahead_secs.filter(|ahead| ahead.abs() >= CLOCK_SECS_MAX)) {
        message = format!("{message} ({}, and requests are signed with the time)", clock_words(ahead));
    }
    Error { retry_after: notes.retry_after, ..call.error(kind, class, message) }
}

/// Says how far a store's clock is from ours.
pub(super) fn clock_words(ahead_secs: i64) -> String {
    let side = if ahead_secs < 0 { "behind" } else { "ahead of" };
    format!("the store's clock is {} s {side} ours", ahead_secs.unsigned_abs())
}

fn meaning(call: Call<'_>, error: &opendal::Error, notes: &Notes) -> (Kind, Class) {
    if let Some(found) = by_source(call, error) {
        return found;
    }
    let says = |names: &[&str]| names.iter().any(|name| error.message().contains(name));
    if says(&["connection request: timeout"]) {
        return (Kind::Unreachable, Class::Temporary);
    }
    // Names that stores give their refusals: clearer than the status, which differs among them.
    if says(&["NoSuchBucket", "ContainerNotFound", "bucket does not exist", "NoSuchContainer"]) {
        return (Kind::PlaceMissing, Class::Rejected);
    }
    if says(&["BlobAlreadyExists", "PreconditionFailed"]) && call.operation == "put" {
        return (Kind::Exists, Class::Rejected);
    }
    if says(&["QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull"]) {
        return (Kind::Full, Class::Temporary);
    }
    if says(&["BadDigest", "XAmzContentChecksumMismatch", "IncompleteBody"]) {
        // The bytes were damaged on the way and the store noticed.
        return (Kind::Failed, Class::Temporary);
    }
    if says(&["the answer is longer than"]) {
        return (Kind::Invalid, call.unknown_fate());
    }
    if says(&["reader got too", "content range is invalid"]) {
        // The answer is whole, but not what was asked for: the object is shorter, or the store ignores ranges. (Azurite
        // answers a range that begins at the end with one that ends before it begins.)
        return (Kind::Invalid, Class::Rejected);
    }
    match error.kind() {
        ErrorKind::NotFound if call.operation == "put" => (Kind::PlaceMissing, Class::Rejected),
        ErrorKind::NotFound => (Kind::NotFound, Class::Rejected),
        ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists => (Kind::Exists, Class::Rejected),
        ErrorKind::PermissionDenied => (Kind::Denied, Class::Rejected),
        ErrorKind::RateLimited => (Kind::Throttled, Class::Temporary),
        ErrorKind::ConfigInvalid => (Kind::Config, Class::Rejected),
        ErrorKind::Unsupported => (Kind::Unsupported, Class::Rejected),
        ErrorKind::RangeNotSatisfied | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            (Kind::Invalid, Class::Rejected)
        }
        ErrorKind::Conflict => (Kind::Failed, Class::Temporary),
        _ if error.message().starts_with("signing http request")
            || error.message().starts_with("loading credential") =>
        {
            (Kind::Denied, Class::Rejected)
        }
        _ => by_status(call, error, notes),
    }
}

/// Failures below the protocol: sockets and local files.
fn by_source(call: Call<'_>, error: &opendal::Error) -> Option<(Kind, Class)> {
    let mut source: Option<&(dyn StdError + 'static)> = error.source();
    let mut unreachable = None;
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<reqwest::Error>() {
            // What never connected was never applied.
            let class = if cause.is_connect() { Class::Temporary } else { call.unknown_fate() };
            unreachable = Some((Kind::Unreachable, class));
        }
        let io = cause.downcast_ref::<std::io::Error>();
        // Without a number it is what another program said in words: ssh.
        match io.filter(|io| io.raw_os_error().is_none()).map(std::io::Error::kind) {
            Some(io::PermissionDenied) => return Some((Kind::Denied, Class::Rejected)),
            Some(io::ConnectionRefused | io::HostUnreachable | io::NetworkUnreachable) => {
                return Some((Kind::Unreachable, Class::Temporary));
            }
            Some(io::ConnectionReset | io::ConnectionAborted | io::NotConnected | io::TimedOut | io::BrokenPipe) => {
                unreachable = unreachable.or(Some((Kind::Unreachable, call.unknown_fate())));
            }
            _ => {}
        }
        if let Some(errno) = io.and_then(std::io::Error::raw_os_error) {
            match errno {
                libc::ENOSPC | libc::EDQUOT => return Some((Kind::Full, Class::Temporary)),
                libc::EACCES | libc::EPERM | libc::EROFS => return Some((Kind::Denied, Class::Rejected)),
                libc::ECONNREFUSED | libc::ENETUNREACH | libc::EHOSTUNREACH => {
                    return Some((Kind::Unreachable, Class::Temporary));
                }
                libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT | libc::ECONNABORTED => {
                    unreachable = unreachable.or(Some((Kind::Unreachable, call.unknown_fate())));
                }
                libc::EIO => return Some((Kind::Failed, call.unknown_fate())),
                _ => {}
            }
        }
        source = cause.source();
    }
    unreachable
}

fn by_status(call: Call<'_>, error: &opendal::Error, notes: &Notes) -> (Kind, Class) {
    match notes.status {
        Some(401 | 403) => (Kind::Denied, Class::Rejected),
        Some(409 | 412) if call.operation == "put" => (Kind::Exists, Class::Rejected),
        Some(416) => (Kind::Invalid, Class::Rejected),
        Some(429) => (Kind::Throttled, Class::Temporary),
        Some(413 | 405 | 501) => (Kind::Unsupported, Class::Rejected),
        Some(507) => (Kind::Full, Class::Temporary),
        Some(503) => (Kind::Failed, Class::Temporary),
        // The store, or a gateway before it, lost track: it may have happened.
        Some(500..=599) => (Kind::Failed, call.unknown_fate()),
        Some(300..=399) => (Kind::Config, Class::Rejected),
        Some(400..=499) if !error.is_temporary() => (Kind::Failed, Class::Rejected),
        // No answer, or one that broke off.
        _ => (Kind::Failed, call.unknown_fate()),
    }
}

/// The cause in words: the message and the innermost source, without URLs.
fn message(error: &opendal::Error) -> String {
    let mut innermost: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(source) = innermost.and_then(StdError::source) {
        innermost = Some(source);
    }
    let mut text = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(answer) = store_answer(&text) {
        text = answer;
    }
    if let Some(source) = innermost {
        text = if text.is_empty() { source.to_string() } else { format!("{text}: {source}") };
    }
    if text.is_empty() {
        text = error.kind().to_string();
    }
    if text.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What a store answered, in its words: OpenDAL hands on the parsed answer as `S3Error { code: "…", message: "…", … }`.
fn store_answer(text: &str) -> Option<String> {
    let (name, fields) = text.split_once(" { ")?;
    if !name.ends_with("Error") || name.contains(' ') {
        return None;
    }
    let field = |name: &str| {
        let rest = fields.split_once(&format!("{name}: \""))?.1;
        Some(rest.split_once('"')?.0).filter(|value| !value.is_empty())
    };
    match (field("code"), field("message")) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (Some(one), None) | (None, Some(one)) => Some(one.to_owned()),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PUT: Call<'_> = Call { operation: "put", key: "chunks/aa/aa" };
    const GET: Call<'_> = Call { operation: "get", key: "chunks/aa/aa" };

    fn status(status: u16) -> Notes {
        Notes { status: Some(status), ..Notes::default() }
    }

    fn unexpected(message: &str) -> opendal::Error {
        opendal::Error::new(ErrorKind::Unexpected, message)
    }

    #[test]
    fn a_stores_answer_is_passed_on_in_its_words() {
        for (said, passed) in [
            (
                r#"S3Error { code: "SignatureDoesNotMatch", message: "", resource: "", request_id: "" }"#,
                "SignatureDoesNotMatch",
            ),
            (r#"OssError { code: "NoSuchBucket", message: "none here", host: "x" }"#, "NoSuchBucket: none here"),
            (r#"S3Error { code: "cut off"#, "S3Error { code: \"cut off"),
            ("plain words { code: }", "plain words { code: }"),
            ("S3Error { }", "S3Error { }"),
        ] {
            assert_eq!(message(&unexpected(said)), passed, "{said}");
        }
    }

    #[test]
    fn a_full_disk_is_full_although_opendal_calls_it_temporary() {
        let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let error = unexpected("unexpected io error").set_temporary().set_source(source);
        assert_eq!(meaning(PUT, &error, &Notes::default()), (Kind::Full, Class::Temporary));
    }

    #[test]
    fn a_put_that_lost_its_answer_is_ambiguous_and_a_get_is_not() {
        let reset = || {
            let source = std::io::Error::from_raw_os_error(libc::ECONNRESET);
            unexpected("send http request").set_temporary().set_source(source)
        };
        assert_eq!(meaning(PUT, &reset(), &Notes::default()), (Kind::Unreachable, Class::Ambiguous));
        assert_eq!(meaning(GET, &reset(), &Notes::default()), (Kind::Unreachable, Class::Temporary));
        assert_eq!(meaning(PUT, &unexpected(""), &status(504)), (Kind::Failed, Class::Ambiguous));
    }

    #[test]
    fn a_refused_connection_changed_nothing() {
        let source = std::io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let error = unexpected("send http request").set_temporary().set_source(source);
        assert_eq!(meaning(PUT, &error, &Notes::default()), (Kind::Unreachable, Class::Temporary));
    }

    /// SFTP goes through `ssh`, which tells what is wrong in words.
    #[test]
    fn what_ssh_says_in_words_is_understood() {
        let said = |kind| unexpected("ssh error").set_source(std::io::Error::new(kind, "words"));
        let of = |kind| meaning(PUT, &said(kind), &Notes::default());
        assert_eq!(of(io::PermissionDenied), (Kind::Denied, Class::Rejected));
        assert_eq!(of(io::ConnectionRefused), (Kind::Unreachable, Class::Temporary));
        assert_eq!(of(io::TimedOut), (Kind::Unreachable, Class::Ambiguous));
        assert_eq!(of(io::Other), (Kind::Failed, Class::Ambiguous));
        let waited = unexpected("connection request: timeout").set_temporary();
        assert_eq!(meaning(PUT, &waited, &Notes::default()), (Kind::Unreachable, Class::Temporary));
    }

    #[test]
    fn refusals_by_name_and_by_status() {
        let cases = [
            (
                GET,
                ErrorKind::ConfigInvalid,
                "S3Error { code: \"NoSuchBucket\" }",
                404,
                Kind::PlaceMissing,
                Class::Rejected,
            ),
            (GET, ErrorKind::NotFound, "NoSuchKey", 404, Kind::NotFound, Class::Rejected),
            (PUT, ErrorKind::NotFound, "", 404, Kind::PlaceMissing, Class::Rejected),
            (PUT, ErrorKind::PermissionDenied, "AccessDenied", 403, Kind::Denied, Class::Rejected),
            (PUT, ErrorKind::PermissionDenied, "QuotaExceeded", 403, Kind::Full, Class::Temporary),
            (PUT, ErrorKind::Unexpected, "", 401, Kind::Denied, Class::Rejected),
            (PUT, ErrorKind::RateLimited, "SlowDown", 503, Kind::Throttled, Class::Temporary),
            (PUT, ErrorKind::Unexpected, "busy", 503, Kind::Failed, Class::Temporary),
            (PUT, ErrorKind::Unexpected, "", 507, Kind::Full, Class::Temporary),
            (PUT, ErrorKind::ConditionNotMatch, "", 412, Kind::Exists, Class::Rejected),
            (PUT, ErrorKind::Unexpected, "BlobAlreadyExists", 409, Kind::Exists, Class::Rejected),
            (PUT, ErrorKind::Unexpected, "BadDigest", 400, Kind::Failed, Class::Temporary),
            (PUT, ErrorKind::Unexpected, "InvalidArgument", 400, Kind::Failed, Class::Rejected),
            (PUT, ErrorKind::Unexpected, "signing http request", 0, Kind::Denied, Class::Rejected),
            (GET, ErrorKind::RangeNotSatisfied, "", 416, Kind::Invalid, Class::Rejected),
            (GET, ErrorKind::Unexpected, "416 Requested Range Not Satisfiable", 416, Kind::Invalid, Class::Rejected),
        ];
        for (call, kind, message, code, expected, class) in cases {
            let notes = if code == 0 { Notes::default() } else { status(code) };
            let error = opendal::Error::new(kind, message);
            assert_eq!(meaning(call, &error, &notes), (expected, class), "{} {message} {code}", call.operation);
        }
    }

    #[test]
    fn a_refusal_names_a_clock_that_is_wrong() {
        let denied = opendal::Error::new(ErrorKind::PermissionDenied, "RequestTimeTooSkewed");
        let said = |ahead| classify(PUT, &denied, &Notes { ahead_secs: Some(ahead), ..status(403) }).message;
        assert_eq!(said(2), "RequestTimeTooSkewed");
        assert!(said(-1_200).contains("the store's clock is 1200 s behind ours"), "{}", said(-1_200));
        assert!(said(400).contains("400 s ahead of ours"), "{}", said(400));
    }

    #[test]
    fn the_wish_of_the_store_is_passed_on_and_its_urls_are_not() {
        let notes = Notes { retry_after: Some(Duration::from_secs(7)), ..status(429) };
        let error = opendal::Error::new(ErrorKind::RateLimited, "slow  down")
            .with_context("uri", "https://store/?X-Amz-Signature=secret")
            .set_source(std::io::Error::other("x".repeat(1000)));
        let error = classify(PUT, &error, &notes);
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
        assert!(error.message.starts_with("slow down: xxx") && error.message.len() < 320, "{}", error.message);
        assert!(!error.message.contains("secret"));
    }
}
