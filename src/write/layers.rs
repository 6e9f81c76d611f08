//! Which layer of an inode's content answers for which bytes. Pure.
//!
//! Owns: the order of layers: the staged session, frozen sessions newest first, the committed manifest.
//! Does not own: reading from any of them (`read`).
//!
//! ```text
//! staged (edit)     ··██··········██·|   dirty ranges only, the base shows through up to base_limit
//! frozen (whole)    ████████████         nothing shows through
//! manifest          ~~~~~~~~~~~~~~~~     not asked
//! ```

use std::ops::Range;

use super::ranges::RangeSet;

/// One session as a layer of content.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Nothing of the layers below shows through.
    pub whole: bool,
    /// From here on nothing of the layers below shows through.
    pub base_limit: u64,
    /// What an edit replaced; unused when `whole`.
    pub ranges: &'a RangeSet,
}

/// Who answers for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The layer with this index; bytes beyond the end of its file are zeros.
    Layer(usize),
    /// The committed manifest.
    Manifest,
    /// Nobody: zeros.
    Hole,
}

/// A range and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub range: Range<u64>,
    pub source: Source,
}

/// Splits `range`, which lies inside the file, among the layers, newest first. The segments are ascending and cover it.
pub fn plan(layers: &[Layer<'_>], range: Range<u64>) -> Vec<Segment> {
    let mut segments = Vec::new();
    descend(layers, 0, range, &mut segments);
    segments
}

fn descend(layers: &[Layer<'_>], index: usize, range: Range<u64>, out: &mut Vec<Segment>) {
    if range.is_empty() {
        return;
    }
    let Some(layer) = layers.get(index) else {
        return push(out, range, Source::Manifest);
    };
    if layer.whole {
        return push(out, range, Source::Layer(index));
    }
    let mut at = range.start;
    for dirty in layer.ranges.within(range.clone()) {
        show_through(layers, index, at..dirty.start, out);
        at = dirty.end;
        push(out, dirty, Source::Layer(index));
    }
    show_through(layers, index, at..range.end, out);
}

fn show_through(layers: &[Layer<'_>], index: usize, gap: Range<u64>, out: &mut Vec<Segment>) {
    let limit = layers[index].base_limit.clamp(gap.start, gap.end);
    descend(layers, index + 1, gap.start..limit, out);
    if limit < gap.end {
        push(out, limit..gap.end, Source::Hole);
    }
}

fn push(out: &mut Vec<Segment>, range: Range<u64>, source: Source) {
    match out.last_mut() {
        Some(last) if last.source == source && last.range.end == range.start => last.range.end = range.end,
        _ => out.push(Segment { range, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 40;

    #[derive(Debug, Clone)]
    struct Owned {
        whole: bool,
        base_limit: u64,
        ranges: RangeSet,
    }

    fn layer() -> impl Strategy<Value = Owned> {
        let ranges = proptest::collection::vec((0..SIZE, 0..8u64), 0..6);
        (prop::bool::weighted(0.2), 0..SIZE + 5, ranges).prop_map(|(whole, base_limit, list)| {
            let mut ranges = RangeSet::default();
            for (start, len) in list {
                ranges.insert(start..(start + len).min(SIZE));
            }
            Owned { whole, base_limit, ranges }
        })
    }

    /// Asks the layers for one byte, top down.
    fn oracle(layers: &[Owned], byte: u64) -> Source {
        for (index, layer) in layers.iter().enumerate() {
            if layer.whole || layer.ranges.contains(&(byte..byte + 1)) {
                return Source::Layer(index);
            }
            if byte >= layer.base_limit {
                return Source::Hole;
            }
        }
        Source::Manifest
    }

    proptest! {
        #[test]
        fn each_byte_comes_from_the_newest_layer_that_has_it(
            owned in proptest::collection::vec(layer(), 0..4),
            range in (0..SIZE, 0..SIZE),
        ) {
            let layers: Vec<_> = owned
                .iter()
                .map(|l| Layer { whole: l.whole, base_limit: l.base_limit, ranges: &l.ranges })
                .collect();
            let range = range.0..(range.0 + range.1).min(SIZE);
            let mut at = range.start;
            for segment in plan(&layers, range.clone()) {
                prop_assert_eq!(segment.range.start, at);
                for byte in segment.range.clone() {
                    prop_assert_eq!(segment.source, oracle(&owned, byte), "byte {}", byte);
                }
                at = segment.range.end;
            }
            prop_assert_eq!(at, range.end.max(range.start));
        }
    }
}
