//! Golden bytes of what programs of this machine tell one another, kept in `tests/fixtures/local-1`.
//!
//! Owns: that today's program writes and reads these lines: a command may be of another version than the daemon it talks to.
//! Does not own: formats on targets (`format::golden`), state directories (`tests/mount/fixtures.rs`).

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{Flushed, Op, Reply, ReplyBody, Request, Said, TargetOp, Whereis};
use super::registry;
use super::status::Status;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/local-1").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a line, which is what today's program writes for what it read.
fn golden<T: Serialize + DeserializeOwned>(line: &str) -> T {
    let value: T = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), line);
    value
}

#[test]
fn every_request_is_written_and_read_as_ever() {
    // A request that is added needs a line.
    let number = |op: &Op| match op {
        Op::Status {} => 0,
        Op::Whereis { .. } => 1,
        Op::Flush(_) => 2,
        Op::Umount(_) => 3,
        Op::Scrub(_) => 4,
        Op::ScrubCost(_) => 5,
        Op::HandOver {} => 6,
        Op::Reload {} => 7,
        Op::Gc { .. } => 8,
        Op::Target(TargetOp::Add { .. }) => 9,
        Op::Target(TargetOp::Remove { .. }) => 10,
        Op::Target(TargetOp::Pause { .. }) => 11,
        Op::Target(TargetOp::Resume { .. }) => 12,
        Op::Target(TargetOp::Replace { .. }) => 13,
        Op::Target(TargetOp::Adopt { .. }) => 14,
    };
    let mut numbers: Vec<i32> =
        read("requests.jsonl").lines().map(|line| number(&golden::<Request>(line).op)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..15).collect::<Vec<_>>());
}

#[test]
fn replies_are_written_and_read_as_ever() {
    for line in read("replies.jsonl").lines() {
        let reply: Reply = serde_json::from_str(line).unwrap();
        let ReplyBody::Ok(value) = reply.body else {
            golden::<Reply>(line);
            continue;
        };
        // Its members come in no order of their own; the answer inside has one.
        let inside = line.split_once("\"ok\":").and_then(|(_, rest)| rest.strip_suffix('}')).unwrap();
        match reply.id {
            2 => assert_eq!(golden::<Vec<Whereis>>(inside).len(), 1),
            3 => assert_eq!(golden::<Flushed>(inside).seq, 812),
            9 => assert_eq!(golden::<Said>(inside).lines.len(), 1),
            _ => assert!(value.is_null()),
        }
    }
    golden::<Status>(read("status.json").trim_end());
}

#[test]
fn an_entry_of_the_registry_is_written_and_read_as_ever() {
    let entry: registry::Entry = golden(&read("registry.json"));
    assert_eq!((entry.pid, entry.state_dir.0.as_slice()), (4711, &b"/var/\xff"[..]));
}
