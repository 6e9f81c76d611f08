//! Gathering: small runs of many files of the same moment share chunks (S9). Pure.
//!
//! Owns: when a gathered chunk closes, in which order pieces lie, where one chunk ends and the next begins.
//! Does not own: reading and hashing the bytes (`pipeline`).

use std::ops::Range;
use std::time::Duration;

use crate::clock::Instant;
use crate::id::InodeId;

/// A run of one session's file that waits for a shared chunk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// First in the order: files of one directory come back together with one fetch.
    pub parent: InodeId,
    pub ino: InodeId,
    /// Bytes in the file, and in the session's chunk file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Which session of the batch.
    pub session: usize,
}

/// A gathered chunk: runs of sessions' files, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// (session of the batch, range of its file).
    pub runs: Vec<(usize, Range<u64>)>,
    /// Bytes.
    pub length: u64,
}

/// A chunk is full enough when at most this part of it is free: a piece that does not fit begins the next one.
const FREE_MAX: u64 = 16;

/// Lays out the pieces of a batch: sorted by (directory, inode, offset), cut into chunks of at most `chunk_size` bytes.
///
/// Pieces are cut in two only where much of a chunk would stay free: files that share no chunk can be committed apart, so
/// that no commit holds the metadata for long (D8).
pub fn layout(mut pieces: Vec<Piece>, chunk_size: u64) -> Vec<Plan> {
    pieces.sort_unstable();
    let mut plans: Vec<Plan> = Vec::new();
    for piece in pieces {
        let mut at = piece.offset;
        let end = piece.offset + piece.length;
        while at < end {
            let left = end - at;
            let full = |plan: &Plan| {
                let free = chunk_size - plan.length;
                free == 0 || (left > free && left <= chunk_size && free <= chunk_size / FREE_MAX)
            };
            if plans.last().is_none_or(full) {
                plans.push(Plan::default());
            }
            let plan = plans.last_mut().expect("a plan was pushed when there was none");
            let taken = (end - at).min(chunk_size - plan.length);
            plan.runs.push((piece.session, at..at + taken));
            plan.length += taken;
            at += taken;
        }
    }
    plans
}

/// Decides when the open batch closes.
#[derive(Debug)]
pub struct Closing {
    chunk_size: u64,
    bytes: u64,
    pieces: usize,
    oldest: Option<Instant>,
    /// Pieces of the last whole second, for the pace.
    second: Instant,
    this_second: usize,
    pace: usize,
}

/// Full chunks that one batch may hold: more share the last, partly filled one.
const BATCH_CHUNKS: u64 = 4;
/// Pieces of one batch at most: bounds memory and the transaction.
const BATCH_PIECES: usize = 16_384;
/// From this many pieces a second on, a batch waits one second, else five.
const FAST_PACE: usize = 100;

impl Closing {
    /// No piece waits.
    pub fn new(chunk_size: u64, now: Instant) -> Closing {
        Closing { chunk_size, bytes: 0, pieces: 0, oldest: None, second: now, this_second: 0, pace: 0 }
    }

    /// Notes a piece that came.
    pub fn add(&mut self, length: u64, now: Instant) {
        if now.since(self.second) >= Duration::from_secs(1) {
            self.pace = self.this_second;
            self.this_second = 0;
            self.second = now;
        }
        self.this_second += 1;
        self.pieces += 1;
        self.bytes += length;
        self.oldest.get_or_insert(now);
    }

    /// When the batch is due; `None` while nothing waits.
    pub fn due(&self, hurry: bool) -> Option<Instant> {
        let oldest = self.oldest?;
        let full = self.bytes >= BATCH_CHUNKS * self.chunk_size || self.pieces >= BATCH_PIECES;
        if full || hurry {
            return Some(oldest);
        }
        let fast = self.pace.max(self.this_second) >= FAST_PACE;
        Some(oldest + Duration::from_secs(if fast { 1 } else { 5 }))
    }

    /// The batch was closed.
    pub fn closed(&mut self) {
        self.bytes = 0;
        self.pieces = 0;
        self.oldest = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn s9_a_batch_closes_by_age_by_size_and_at_once_for_a_waiter() {
        let start = Instant::START + SECOND;
        let mut closing = Closing::new(100, start);
        assert_eq!(closing.due(true), None, "nothing waits");
        closing.add(10, start);
        assert_eq!(closing.due(false), Some(start + 5 * SECOND));
        assert_eq!(closing.due(true), Some(start));
        for _ in 0..FAST_PACE {
            closing.add(1, start);
        }
        assert_eq!(closing.due(false), Some(start + SECOND));
        closing.add(400, start);
        assert_eq!(closing.due(false), Some(start));
        closing.closed();
        assert_eq!(closing.due(false), None);
    }

    #[test]
    fn s9_five_thousand_small_files_take_few_chunks() {
        let pieces: Vec<Piece> = (0..5000)
            .map(|i| Piece {
                parent: InodeId(i % 200),
                ino: InodeId(1000 + i),
                offset: 0,
                length: 4096 + (i * 7919) % 61_440,
                session: i as usize,
            })
            .collect();
        let bytes: u64 = pieces.iter().map(|piece| piece.length).sum();
        let (least, chunks) = (bytes.div_ceil(4 << 20), layout(pieces, 4 << 20).len() as u64);
        assert!((least..=least + least / 16).contains(&chunks), "{chunks} chunks for what fits into {least}");
    }

    #[test]
    fn d8_small_files_share_one_chunk_each() {
        let pieces = (0..5000).map(|i| Piece {
            parent: InodeId(1),
            ino: InodeId(1000 + i),
            offset: 0,
            length: 4096 + (i * 7919) % 61_440,
            session: i as usize,
        });
        let plans = layout(pieces.collect(), 4 << 20);
        let mut sessions: Vec<usize> =
            plans.iter().flat_map(|plan| plan.runs.iter().map(|(session, _)| *session)).collect();
        sessions.sort_unstable();
        assert!(sessions.windows(2).all(|pair| pair[0] != pair[1]), "no file is cut in two");
    }

    proptest! {
        #[test]
        fn every_byte_of_every_piece_is_in_one_place(
            list in proptest::collection::vec((0..3u64, 0..4u64, 0..1000u64, 1..300u64), 0..20),
        ) {
            let pieces: Vec<Piece> = list
                .iter()
                .enumerate()
                .map(|(session, &(parent, ino, offset, length))| Piece {
                    parent: InodeId(parent), ino: InodeId(ino), offset, length, session,
                })
                .collect();
            let plans = layout(pieces.clone(), 128);
            let mut seen = std::collections::BTreeMap::new();
            for (index, plan) in plans.iter().enumerate() {
                let length: u64 = plan.runs.iter().map(|(_, run)| run.end - run.start).sum();
                prop_assert_eq!(length, plan.length);
                prop_assert!(length <= 128);
                prop_assert!(length >= 120 || index + 1 == plans.len(), "only the last is not full");
                for (session, run) in &plan.runs {
                    for byte in run.clone() {
                        *seen.entry((*session, byte)).or_insert(0) += 1;
                    }
                }
            }
            let mut wanted = std::collections::BTreeMap::new();
            for piece in pieces {
                for byte in piece.offset..piece.offset + piece.length {
                    wanted.insert((piece.session, byte), 1);
                }
            }
            prop_assert_eq!(seen, wanted);
        }
    }
}
