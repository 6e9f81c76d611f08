//! Scrub: a paced check of the copies on one target, resumable, with repair.
//!
//! Owns: the levels, what a pass finds, its report and its place to go on from.
//! Does not own: making copies good again (a copy that lost its placement bit is uploaded like any other: `replication`),
//! who asks for a pass and when (`mount`).
//!
//! ```text
//!  listing of chunks/ ──┐
//!                       ├─▶ compare (pure) ─▶ missing?, wrong length? ─▶ stat: really? ─┐
//!  rows with the bit ───┘                                                               ├─▶ finding ─▶ repair
//!  rows with the bit ─▶ chosen by the level ─▶ get, BLAKE3 ─▶ absent, wrong bytes ──────┘
//! ```
//!
//! - Nothing is ever deleted. Repair takes the placement bit away; then the uploader replaces the copy with bytes it has
//!   checked (S5), from this machine or from another target. A bad copy for which nobody has better bytes stays as it is.
//! - A copy that could not be read is *unverifiable*, not bad: an outage is no finding.
//! - A pass remembers its place after every page, so that a restart costs a page.

mod compare;
mod pass;

use serde::{Deserialize, Serialize};

pub use self::pass::{Cost, Pass, cost};
use crate::id::ChunkHash;

/// Findings kept in a report; all are counted.
const EXAMPLES: usize = 20;
/// Of a sampling pass: one chunk in so many is read.
const SAMPLE: u64 = 64;

/// How thorough a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Names and lengths, by listing.
    List,
    /// As `list`, and the bytes of one chunk in 64, other ones at each pass.
    Sample,
    /// As `list`, and every byte; then the history is restored from this target alone, into a place that is thrown away.
    Deep,
}

impl Level {
    /// Whether the bytes of a chunk are read. `draw` differs from pass to pass.
    fn reads(self, hash: &ChunkHash, draw: u64) -> bool {
        match self {
            Level::List => false,
            Level::Sample => {
                let [a, b, c, d, e, f, g, h, ..] = hash.0;
                (u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ draw).is_multiple_of(SAMPLE)
            }
            Level::Deep => true,
        }
    }
}

/// What is wrong with a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// There is no object.
    Missing,
    /// The object has another length.
    Length,
    /// Its bytes do not have the hash of its name.
    Bytes,
}

/// One bad copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The key of the object.
    pub key: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What a pass over one target found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The name of the target.
    pub target: String,
    /// How thorough it was.
    pub level: Level,
    /// It went on where an earlier one was interrupted.
    pub resumed: bool,
    /// Copies that are there with the right length.
    pub listed: u64,
    /// Copies whose every byte was right.
    pub verified: u64,
    /// Bytes of them.
    pub verified_bytes: u64,
    /// Bad copies.
    pub bad: u64,
    /// Of the bad ones, those that are good again.
    pub repaired: u64,
    /// Copies that could not be read.
    pub unverifiable: u64,
    /// Why the last of them could not.
    pub unverifiable_reason: Option<String>,
    /// Chunks that lie there and no file refers to: they leave by garbage collection.
    pub unneeded: u64,
    /// Bytes of them.
    pub unneeded_bytes: u64,
    /// Objects below `chunks/` that no version of ours wrote. They are never touched.
    pub foreign: u64,
    /// What is wrong with the history on the target; `None`: nothing, or not looked at.
    pub history: Option<String>,
    /// The first of the bad copies.
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(target: &str, level: Level) -> Report {
        Report {
            target: target.to_owned(),
            level,
            resumed: false,
            listed: 0,
            verified: 0,
            verified_bytes: 0,
            bad: 0,
            repaired: 0,
            unverifiable: 0,
            unverifiable_reason: None,
            unneeded: 0,
            unneeded_bytes: 0,
            foreign: 0,
            history: None,
            findings: Vec::new(),
        }
    }

    /// Nothing is wrong, or everything that was is good again.
    pub fn is_clean(&self) -> bool {
        self.bad == self.repaired && self.history.is_none()
    }

    fn found(&mut self, key: String, problem: Problem) {
        self.bad += 1;
        if self.findings.len() < EXAMPLES {
            self.findings.push(Finding { key, problem });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_small_and_another_each_time() {
        let hashes: Vec<ChunkHash> = (0..6400u32).map(|n| ChunkHash::of(&n.to_le_bytes())).collect();
        let sample = |draw| hashes.iter().filter(|hash| Level::Sample.reads(hash, draw)).count();
        assert!((50..200).contains(&sample(0)), "{}", sample(0));
        assert!(hashes.iter().any(|hash| Level::Sample.reads(hash, 1) && !Level::Sample.reads(hash, 0)));
        assert!(hashes.iter().all(|hash| Level::Deep.reads(hash, 0) && !Level::List.reads(hash, 0)));
    }
}
