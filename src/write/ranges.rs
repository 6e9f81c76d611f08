//! Which bytes of an edit session are dirty.
//!
//! Owns: the set of dirty ranges in memory (pure), and its record on disk, byte for byte.
//! Does not own: the data itself, when records are written (S6: data, then the record, then the reply).
//!
//! ```text
//! .ranges file: records of 16 bytes, little endian
//! ┌───────────────┬────────────┬────────────┐
//! │ offset u64    │ length u32 │ crc32c u32 │   range: these bytes are dirty
//! ├───────────────┼────────────┼────────────┤
//! │ 2^64 − 1      │ records    │ crc32c u32 │   SYNC mark: so many records, from the start, have their data on disk (S1)
//! └───────────────┴────────────┴────────────┘   crc32c of the 12 bytes before it
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of one record.
pub const RECORD: usize = 16;
/// A session with more ranges than this is rotated (D8).
pub const RANGES_MAX: usize = 65_536;
const MARK: u64 = u64::MAX;

/// A set of byte ranges; neighbours and overlaps merge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// start → end, disjoint and not touching.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `range`. Returns false if all of it was in the set already.
    pub fn insert(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() || self.contains(&range) {
            return false;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..=end).next() {
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
        true
    }

    /// True if every byte of `range` is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        self.ranges.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    /// Takes out everything from `size` on.
    pub fn cut(&mut self, size: u64) {
        self.ranges.split_off(&size);
        if let Some((_, end)) = self.ranges.range_mut(..size).next_back() {
            *end = (*end).min(size);
        }
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// The parts of `range` in the set, in ascending order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        self.ranges
            .range(first..range.end.max(first))
            .map(move |(&start, &end)| start.max(range.start)..end.min(range.end))
            .filter(|part| part.start < part.end)
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// True if no byte is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Encodes the records of a dirty range; a range longer than a record can say takes several.
pub fn encode_range(range: Range<u64>, out: &mut Vec<u8>) {
    let mut start = range.start;
    while start < range.end {
        let length = (range.end - start).min(u64::from(u32::MAX));
        encode(start, length as u32, out);
        start += length;
    }
}

/// Encodes a SYNC mark over the first `records` records.
pub fn encode_mark(records: u32, out: &mut Vec<u8>) {
    encode(MARK, records, out);
}

fn encode(offset: u64, length: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Which records of a `.ranges` file count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Same boot: the page cache lived, all of them (S6).
    All,
    /// Another boot: those that the last SYNC mark covers; a range may be on disk while its data is not.
    Synced,
}

/// What a `.ranges` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub ranges: RangeSet,
    /// There was at least one SYNC mark.
    pub synced: bool,
}

/// Reads the records of a `.ranges` file as far as they are whole; a torn tail ends them.
pub fn decode(bytes: &[u8], trust: Trust) -> Recovered {
    let mut records: Vec<Range<u64>> = Vec::new();
    let mut marks = Vec::new();
    let mut count = 0usize;
    for record in bytes.chunks_exact(RECORD) {
        let offset = u64::from_le_bytes(record[..8].try_into().expect("a record has 16 bytes"));
        let length = u32::from_le_bytes(record[8..12].try_into().expect("a record has 16 bytes"));
        let crc = u32::from_le_bytes(record[12..].try_into().expect("a record has 16 bytes"));
        if crc != crc32c(&record[..12]) {
            break;
        }
        if offset == MARK {
            marks.push(length as usize);
            records.push(0..0);
        } else {
            let Some(end) = offset.checked_add(length.into()) else { break };
            records.push(offset..end);
        }
        count += 1;
    }
    let counted = match trust {
        Trust::All => count,
        // A mark names the length before its own sync began, never more than what precedes it.
        Trust::Synced => marks.iter().copied().max().unwrap_or(0).min(count),
    };
    let mut ranges = RangeSet::default();
    for range in records.into_iter().take(counted) {
        ranges.insert(range);
    }
    Recovered { ranges, synced: !marks.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// `tests/fixtures/local-1/ranges`: what a session that a crash left is recovered from, by whatever version comes then.
    #[test]
    fn golden_ranges_are_written_and_read_as_ever() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/local-1/ranges");
        let golden = std::fs::read(path).unwrap();
        let mut written = Vec::new();
        encode_range(0..4096, &mut written);
        encode_range(8192..8202, &mut written);
        encode_mark(2, &mut written);
        encode_range(4096..8192, &mut written);
        encode_range(1 << 40..(1 << 40) + 1, &mut written);
        assert_eq!(written, golden);
        let ranges = |trust| decode(&golden, trust).ranges.iter().collect::<Vec<_>>();
        assert_eq!(ranges(Trust::Synced), [0..4096, 8192..8202]);
        assert_eq!(ranges(Trust::All), [0..8202, 1 << 40..(1 << 40) + 1]);
    }

    fn members(set: &RangeSet) -> BTreeSet<u64> {
        set.iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn a_range_set_is_the_set_of_its_bytes(
            inserts in proptest::collection::vec((0u64..60, 0u64..12), 0..20),
            cut in 0u64..80,
            window in (0u64..70, 0u64..20),
        ) {
            let mut set = RangeSet::default();
            let mut oracle = BTreeSet::new();
            for (start, len) in inserts {
                let grows = (start..start + len).any(|byte| !oracle.contains(&byte));
                prop_assert_eq!(set.insert(start..start + len), grows);
                oracle.extend(start..start + len);
                prop_assert_eq!(&members(&set), &oracle);
            }
            let window = window.0..window.0 + window.1;
            let within: BTreeSet<u64> = set.within(window.clone()).flatten().collect();
            prop_assert_eq!(within, oracle.range(window).copied().collect::<BTreeSet<_>>());
            set.cut(cut);
            oracle.split_off(&cut);
            prop_assert_eq!(&members(&set), &oracle);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "disjoint, not touching");
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes, Trust::All);
            decode(&bytes, Trust::Synced);
        }
    }

    #[test]
    fn after_another_boot_only_records_before_the_sync_count() {
        let mut log = Vec::new();
        encode_range(0..10, &mut log);
        encode_range(20..30, &mut log);
        // The sync began when one record was there; the mark was written after the second.
        encode_mark(1, &mut log);
        encode_range(40..50, &mut log);
        assert_eq!(members(&decode(&log, Trust::Synced).ranges), (0..10).collect());
        assert_eq!(decode(&log, Trust::All).ranges.iter().collect::<Vec<_>>(), [0..10, 20..30, 40..50]);
        assert!(!decode(&log[..32], Trust::Synced).synced);
    }

    #[test]
    fn a_torn_or_flipped_record_ends_the_log() {
        let mut log = Vec::new();
        encode_range(0..10, &mut log);
        encode_range(20..30, &mut log);
        log.truncate(31);
        assert_eq!(decode(&log, Trust::All).ranges.iter().collect::<Vec<_>>(), [0..10]);
        log[3] ^= 1;
        assert!(decode(&log, Trust::All).ranges.is_empty());
    }

    #[test]
    fn a_range_beyond_four_gib_takes_several_records() {
        let mut log = Vec::new();
        encode_range(5..5 + (1 << 33), &mut log);
        assert_eq!(decode(&log, Trust::All).ranges.iter().collect::<Vec<_>>(), [5..5 + (1 << 33)]);
    }
}
