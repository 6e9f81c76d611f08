//! The outline of a chunk: by which a part of it can be checked without the rest. Pure.
//!
//! Owns: hashing a chunk with its outline, the way from an outline back to the chunk's name, checking groups.
//! Does not own: keeping outlines (`meta::outline`), when a part is fetched by itself (`read::parts`).
//!
//! ```text
//!                  the chunk's name
//!                 /                \
//!              ·                      ·
//!            /    \                /     \
//!     value 0     value 1    value 2     value 3       32 bytes each: the outline
//!     256 KiB     256 KiB    256 KiB     the rest      a group: read and checked by itself
//! ```
//!
//! BLAKE3 is such a tree already; the outline is one level of it. Nobody is trusted for it: an outline counts only if it
//! leads to the name of the chunk, and then bytes that lead to its values are the bytes of that chunk.

use std::ops::Range;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::id::ChunkHash;

/// Bytes of a group, but of the last. A power of two, so that each is a whole subtree. Smaller ones would save no time (a
/// request costs more than moving 256 KiB) and cost more room: an outline is an eight thousandth of its chunk.
pub const GROUP: u64 = 256 << 10;
/// Shorter chunks have no outline: a part would be most of them.
pub const LENGTH_MIN: u64 = 4 * GROUP;

const VALUE: usize = size_of::<ChainingValue>();

/// The chaining values of a chunk's groups, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Of the chunk, in bytes.
    length: u64,
    values: Box<[ChainingValue]>,
}

impl Outline {
    /// Hashes a whole chunk.
    pub fn of(bytes: &[u8]) -> (ChunkHash, Option<Outline>) {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The outline that was kept as `bytes`, if it is one of the chunk of this name and length.
    pub fn read(bytes: &[u8], hash: ChunkHash, length: u64) -> Option<Outline> {
        let (values, rest) = bytes.as_chunks::<VALUE>();
        let complete = rest.is_empty() && length >= LENGTH_MIN && values.len() as u64 == length.div_ceil(GROUP);
        (complete && root(values, length) == hash).then(|| Outline { length, values: values.into() })
    }

    /// As it is kept.
    pub fn as_bytes(&self) -> &[u8] {
        self.values.as_flattened()
    }

    /// The bytes of all groups that `range` touches.
    pub fn covering(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(self.length).div_ceil(GROUP) * GROUP;
        range.start / GROUP * GROUP..end.min(self.length)
    }

    /// Whether `bytes` are those of the chunk at `groups`, a range from [`Outline::covering`].
    pub fn confirms(&self, groups: &Range<u64>, bytes: &[u8]) -> bool {
        let in_place = groups.start.is_multiple_of(GROUP)
            && (groups.end == self.length || groups.end.is_multiple_of(GROUP))
            && groups.end <= self.length
            && groups.start < groups.end
            && bytes.len() as u64 == groups.end - groups.start;
        let at = |index: usize| groups.start + index as u64 * GROUP;
        in_place
            && bytes.chunks(GROUP as usize).enumerate().all(|(index, group)| {
                let value = blake3::Hasher::new().set_input_offset(at(index)).update(group).finalize_non_root();
                value == self.values[(at(index) / GROUP) as usize]
            })
    }
}

/// Hashes a chunk piece by piece, and takes its outline on the way. As fast as BLAKE3 alone: a group is far more than it
/// hashes at a time.
#[derive(Debug, Default)]
pub struct Hasher {
    length: u64,
    /// Of the groups that are full and followed by another byte.
    values: Vec<ChainingValue>,
    group: blake3::Hasher,
}

impl Hasher {
    /// Adds the bytes that come next.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let filled = self.length - self.values.len() as u64 * GROUP;
            if filled == GROUP {
                // More comes: so this group is not the root.
                self.values.push(self.group.finalize_non_root());
                self.group = blake3::Hasher::new();
                self.group.set_input_offset(self.length);
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min((GROUP - filled) as usize));
            self.group.update(now);
            self.length += now.len() as u64;
            bytes = later;
        }
    }

    /// The name of the chunk, and its outline if it is long enough to have one.
    pub fn finish(mut self) -> (ChunkHash, Option<Outline>) {
        if self.values.is_empty() {
            return (self.group.finalize().into(), None);
        }
        self.values.push(self.group.finalize_non_root());
        let hash = root(&self.values, self.length);
        let outline = (self.length >= LENGTH_MIN)
            .then(|| Outline { length: self.length, values: self.values.into_boxed_slice() });
        (hash, outline)
    }
}

/// The name of the chunk of `length` bytes whose groups, two or more, have these values.
fn root(values: &[ChainingValue], length: u64) -> ChunkHash {
    let (left, right) = halves(values, length);
    merge_subtrees_root(&left, &right, Mode::Hash).into()
}

fn subtree(values: &[ChainingValue], length: u64) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = halves(values, length);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

fn halves(values: &[ChainingValue], length: u64) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(length);
    let (before, after) = values.split_at((left / GROUP) as usize);
    (subtree(before, left), subtree(after, length - left))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Lengths of all kinds, those around the borders of groups above all.
    fn length() -> impl Strategy<Value = usize> {
        let border =
            (0u64..14, -2i64..=2).prop_map(|(groups, off)| (groups * GROUP).saturating_add_signed(off) as usize);
        prop_oneof![0usize..5000, border, 0usize..(7 * GROUP as usize)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// However the bytes come, the name is that of BLAKE3.
        #[test]
        fn the_name_is_blake3_of_the_bytes(seed: u64, length in length(), pieces in prop::collection::vec(1usize..700_000, 1..9)) {
            let bytes = noise(seed, length);
            let mut hasher = Hasher::default();
            let (mut rest, mut sizes) = (&bytes[..], pieces.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                hasher.update(now);
                rest = later;
            }
            let (hash, outline) = hasher.finish();
            prop_assert_eq!(hash, ChunkHash::of(&bytes));
            prop_assert_eq!(outline.is_some(), length as u64 >= LENGTH_MIN);
            prop_assert_eq!(Outline::of(&bytes), (hash, outline));
        }

        /// Right bytes of any part are confirmed; with one bit flipped, moved, or cut off they are not.
        #[test]
        fn any_part_is_confirmed_and_nothing_else(
            seed: u64, length in (LENGTH_MIN..9 * GROUP), (start, end) in (0.0..1.0f64, 0.0..1.0f64), flip in 0.0..1.0f64,
        ) {
            let bytes = noise(seed, length as usize);
            let (hash, outline) = Outline::of(&bytes);
            let outline = Outline::read(outline.unwrap().as_bytes(), hash, length).unwrap();
            let at = |share: f64| (share * length as f64) as u64;
            let range = at(start.min(end))..at(start.max(end)) + 1;
            let groups = outline.covering(&range);
            prop_assert!(groups.start <= range.start && groups.end >= range.end.min(length));
            prop_assert!(groups.start + GROUP > range.start && groups.end < range.end + GROUP);
            let mut part = bytes[groups.start as usize..groups.end as usize].to_vec();
            prop_assert!(outline.confirms(&groups, &part));
            prop_assert!(!outline.confirms(&groups, &part[1..]));
            let elsewhere = (groups.start + GROUP)..(groups.end + GROUP);
            prop_assert!(!outline.confirms(&elsewhere, &part), "the same bytes at another place");
            let flipped = (flip * part.len() as f64) as usize;
            part[flipped] ^= 1;
            prop_assert!(!outline.confirms(&groups, &part));
        }
    }

    #[test]
    fn an_outline_that_does_not_lead_to_the_name_is_none() {
        let bytes = noise(1, 5 * GROUP as usize + 7);
        let length = bytes.len() as u64;
        let (hash, outline) = Outline::of(&bytes);
        let kept = outline.unwrap().as_bytes().to_vec();
        assert_eq!(kept.len(), 6 * VALUE);
        assert!(Outline::read(&kept, hash, length).is_some());
        for at in [0, 40, kept.len() - 1] {
            let mut wrong = kept.clone();
            wrong[at] ^= 1;
            assert_eq!(Outline::read(&wrong, hash, length), None);
        }
        assert_eq!(Outline::read(&kept[VALUE..], hash, length), None);
        assert_eq!(Outline::read(&kept[1..], hash, length), None);
        assert_eq!(Outline::read(&kept, hash, length - GROUP), None);
        assert_eq!(Outline::read(&kept, hash, 1), None);
        assert_eq!(Outline::read(&[], hash, 0), None);
        assert_eq!(Outline::read(&kept, ChunkHash::of(b"another"), length), None);
    }
}
