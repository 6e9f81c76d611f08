//! From a selection to segments: which records go into which, where a run may end. Pure.
//!
//! Owns: items from journal rows, packing runs into segments, `end` and low water of each.
//! Does not own: what is selected (`selection`), the bytes of a segment (`format::segment`).
//!
//! - A run starts a new segment if it does not fit into the one that is open. So a segment without `end` holds nothing but
//!   a piece of one long run, and a reader that stops before it misses nothing else.
//! - Low water moves at the end of a run only.

use std::collections::HashSet;

use super::conflicts::Footprint;
use super::selection::{Item, Order, Role, Selection, Window};
use crate::format::json;
use crate::format::record::Record;
use crate::format::segment::{Builder, Encoded, Place};
use crate::id::{Hash, InodeId, Seq};
use crate::meta::journal::Kind;
use crate::meta::window::{JournalWindow, WindowRow};

/// Bytes of one round, about; a longer run goes whole.
pub const ROUND_BYTES_MAX: u64 = 16 << 20;

/// Selects what goes next of a journal window.
pub fn select(window: &JournalWindow, births_waiting: &HashSet<InodeId>, order: Order) -> Selection {
    let items: Vec<Item> = window.rows.iter().map(item).collect();
    let window = Window {
        items: &items,
        end: window.end,
        more: window.more,
        position: window.position,
        units: &window.units,
        births_waiting,
        bytes_max: ROUND_BYTES_MAX,
    };
    Selection::of(window, order)
}

fn item(row: &WindowRow) -> Item {
    let footprint = match &row.change {
        Some(change) => Footprint::of(change),
        None => Footprint::of_open_slot(row.ino),
    };
    Item {
        seq: row.seq,
        ready: row.ready,
        footprint: if row.fsynced { footprint.fsynced() } else { footprint },
        role: match row.kind {
            Kind::Birth => Role::Birth { ino: row.ino, slot_beyond: row.slot_beyond },
            Kind::Content => Role::Slot { ino: row.ino },
            Kind::Other | Kind::Synced => Role::Other,
        },
        // Hashes double in hex, and keys have names.
        bytes: 128 + 3 * row.bytes,
    }
}

/// Packs a selection into segments; the first stands at `first` and follows on `prev`.
pub fn pack(window: &JournalWindow, selection: &Selection, first: Place, prev: Option<Hash>) -> Vec<Encoded> {
    let mut packer = Packer {
        done: Vec::new(),
        builder: Builder::new(first, prev),
        // Everything before the first record that is left was shipped earlier.
        low_water: window.rows.first().map_or(window.end, |row| row.seq.previous()),
    };
    for run in &selection.runs {
        let lines: Vec<(Seq, Vec<u8>)> = selection.ship[run.records.clone()]
            .iter()
            .flat_map(|&index| {
                let row = &window.rows[index];
                let change = row.change.clone().expect("an open slot is not ready, so it is not selected");
                json::lines(&Record { seq: row.seq, change }).into_iter().map(|line| (row.seq, line))
            })
            .collect();
        let bytes: usize = lines.iter().map(|(_, line)| line.len()).sum();
        if !packer.builder.is_empty() && packer.builder.bytes() + bytes > crate::format::segment::LINES_BYTES_MAX {
            packer.finish(true);
        }
        for (seq, line) in &lines {
            if !packer.builder.fits(line) {
                packer.finish(false);
            }
            packer.builder.push(*seq, line);
        }
        packer.low_water = run.low_water;
    }
    if !packer.builder.is_empty() {
        packer.finish(true);
    }
    packer.done
}

struct Packer {
    done: Vec<Encoded>,
    builder: Builder,
    low_water: Seq,
}

impl Packer {
    fn finish(&mut self, end: bool) {
        // The next segment follows on this one, whose hash is known only when it is sealed.
        let place = self.builder.place();
        let after = Place { n: place.n.next(), ..place };
        let full = std::mem::replace(&mut self.builder, Builder::new(after, None));
        let encoded = full.finish(self.low_water, end);
        self.builder = Builder::new(after, Some(encoded.hash));
        self.done.push(encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::format::record::{Change, Content, Extent};
    use crate::format::segment;
    use crate::id::{ChunkHash, Epoch, FilesystemId, Generation, SegmentNumber, TargetId, WriterId};

    fn place() -> Place {
        let (filesystem, target) = (FilesystemId::random(), TargetId::random());
        Place { filesystem, target, epoch: Epoch(2), writer: WriterId(9), n: SegmentNumber(5) }
    }

    fn row(seq: u64, change: Change) -> WindowRow {
        let kind = Kind::of(&change);
        let ino = change.inode().unwrap();
        let bytes = crate::meta::journal::encode(&change).len() as u64;
        WindowRow {
            seq: Seq(seq),
            kind,
            ino,
            change: Some(change),
            fsynced: false,
            ready: true,
            slot_beyond: false,
            bytes,
        }
    }

    fn xattr(ino: u64, bytes: usize) -> Change {
        let (name, value) = (b"user.k".to_vec(), vec![b'v'; bytes]);
        Change::Setxattr { ino: InodeId(ino), name, value, mode: None, ctime: Timestamp::EPOCH }
    }

    fn content(ino: u64, chunks: u64) -> Change {
        let chunk = |n: u64| (ChunkHash::of(&n.to_le_bytes()), 1 << 20);
        let extent = |n: u64| Extent { offset: n << 20, length: 1 << 20, chunk: n as u32, chunk_offset: 0 };
        Change::Content(Content {
            ino: InodeId(ino),
            generation: Generation(1),
            whole: true,
            size: chunks << 20,
            mtime: Timestamp::EPOCH,
            ctime: Timestamp::EPOCH,
            mode: None,
            chunks: (0..chunks).map(chunk).collect(),
            extents: (0..chunks).map(extent).collect(),
            zero: vec![],
            part: None,
        })
    }

    fn window(rows: Vec<WindowRow>, units: &[(u64, u64)]) -> JournalWindow {
        JournalWindow {
            end: rows.last().unwrap().seq,
            rows,
            more: false,
            position: Seq(0),
            units: units.iter().map(|(first, last)| (Seq(*first), Seq(*last))).collect(),
        }
    }

    fn shipped(window: &JournalWindow) -> Vec<Encoded> {
        let selection = select(window, &HashSet::new(), Order::Overtaking);
        pack(window, &selection, place(), Some(Hash::of(b"before")))
    }

    #[test]
    fn t2_segments_are_chained_and_their_records_come_back() {
        let rows: Vec<_> = (1..=160).map(|seq| row(seq, xattr(seq, 60_000))).collect();
        let window = window(rows, &[]);
        let segments = shipped(&window);
        assert!(segments.len() > 1);
        let mut prev = Hash::of(b"before");
        let mut records = Vec::new();
        for (segment, n) in segments.iter().zip(5..) {
            assert_eq!(segment.place.n, SegmentNumber(n));
            assert!(segment.end, "no run is longer than a segment");
            let decoded = segment::decode(&segment.body, &segment.place).unwrap();
            assert_eq!(decoded.trailer.prev, Some(prev));
            prev = segment.hash;
            records.extend(decoded.records);
            assert_eq!(segment.low_water, records.last().unwrap().seq);
        }
        // A round ends when it has enough.
        let all: Vec<_> = (window.rows.iter().take(records.len()))
            .map(|row| Record { seq: row.seq, change: row.change.clone().unwrap() })
            .collect();
        assert_eq!(records, all);
    }

    #[test]
    fn o6_a_run_that_is_longer_than_a_segment_ends_once() {
        // 2…160 are one unit of 9 MB; 1 and 161 are not.
        let rows: Vec<_> = (1..=161).map(|seq| row(seq, xattr(seq, 60_000))).collect();
        let segments = shipped(&window(rows, &[(2, 160)]));
        let ends: Vec<bool> = segments.iter().map(|segment| segment.end).collect();
        assert_eq!(
            (ends[0], segments[0].count, segments[0].low_water),
            (true, 1, Seq(1)),
            "what was before ends first"
        );
        assert!(ends[1..ends.len() - 1].iter().any(|end| !end));
        let last_of_unit = segments.iter().position(|segment| segment.seq_max >= Seq(160)).unwrap();
        for segment in &segments[1..last_of_unit] {
            assert_eq!((segment.end, segment.low_water), (false, Seq(1)), "nothing of it counts before its end");
        }
        assert!(segments[last_of_unit].end);
        assert_eq!(segments[last_of_unit].low_water, Seq(160));
    }

    #[test]
    fn t2_a_long_content_is_split_and_stays_one_run() {
        let window = window(vec![row(1, content(7, 40_000))], &[]);
        let segments = shipped(&window);
        assert!(segments.len() > 1);
        let parts: Vec<_> = segments
            .iter()
            .flat_map(|segment| segment::decode(&segment.body, &segment.place).unwrap().records)
            .map(|record| match record.change {
                Change::Content(content) => content.part.unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(parts.last().unwrap().0, parts.last().unwrap().1);
        assert_eq!(segments.iter().filter(|segment| segment.end).count(), 1);
        assert_eq!(segments.iter().map(|segment| segment.low_water.0).max(), Some(1));
        assert_eq!(segments[0].low_water, Seq(0));
    }
}
