//! How the data of a session is cut into chunks. Pure: ranges in, ranges out.
//!
//! Owns: the grid, the threshold between chunks of their own and gathered pieces, dropping of zero blocks (DESIGN §3, S9).
//! Does not own: reading the bytes, hashing, which session the pieces of a gathered chunk come from (`write::gather`).
//!
//! ```text
//! whole session, chunk_size / 4 or more     cell 0      cell 1      cell 2 (tail)
//!                                         ├──chunk───┼──chunk───┼─chunk─┤      equal content, equal chunks
//! edit of a large run                        ├piece┼──chunk───┼piece┤          cut on the same grid
//! small file, scattered edits                 ├piece┤   ├piece┤                gathered with others
//! ```

use std::ops::Range;

/// Zeros are dropped in blocks of this many bytes, aligned to the file.
pub const BLOCK: u64 = 4096;

/// A run of a file's bytes.
pub type Run = Range<u64>;

/// What becomes of a range of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// A chunk of its own: on the grid, so that equal content gives equal chunks.
    Own(Run),
    /// A piece to be gathered with others.
    Small(Run),
}

/// Cuts a whole-file session of `size` bytes: from a quarter of a chunk on, every cell of the grid is a chunk of its
/// own, the tail too; below, the file is one piece.
pub fn cut_whole(size: u64, chunk_size: u64) -> impl Iterator<Item = Cut> {
    let small = size < chunk_size / 4;
    let step = if small { size.max(1) } else { chunk_size };
    (0..size.div_ceil(step)).map(move |index| {
        let run = index * step..((index + 1) * step).min(size);
        if small { Cut::Small(run) } else { Cut::Own(run) }
    })
}

/// Cuts one dirty run of an edit session: on the grid if it is at least a quarter of a chunk, where parts of that length
/// become chunks of their own.
pub fn cut_edit(run: Run, chunk_size: u64) -> impl Iterator<Item = Cut> {
    let large = chunk_size / 4;
    let on_grid = run.end - run.start >= large;
    let mut start = run.start;
    std::iter::from_fn(move || {
        if start >= run.end {
            return None;
        }
        let end = if on_grid { (start / chunk_size + 1) * chunk_size } else { run.end }.min(run.end);
        let part = start..end;
        start = end;
        Some(if on_grid && part.end - part.start >= large { Cut::Own(part) } else { Cut::Small(part) })
    })
}

/// Splits `bytes`, which lie at `offset` of the file, into runs of data and runs of zeros, at block borders: a block
/// that is zero in all its bytes here is a hole. Returns `(run, is_data)` in order, neighbours differ.
pub fn data_and_holes(bytes: &[u8], offset: u64) -> Vec<(Run, bool)> {
    let mut runs: Vec<(Run, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let to_border = (BLOCK - (offset + at as u64) % BLOCK) as usize;
        let end = (at + to_border).min(bytes.len());
        let is_data = !is_zero(&bytes[at..end]);
        let block = offset + at as u64..offset + end as u64;
        match runs.last_mut() {
            Some((run, data)) if *data == is_data => run.end = block.end,
            _ => runs.push((block, is_data)),
        }
        at = end;
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    // Words first: the compiler turns the loop into vector compares.
    // SAFETY: any bit pattern is a valid u128.
    let (head, words, tail) = unsafe { bytes.align_to::<u128>() };
    words.iter().all(|&word| word == 0) && head.iter().chain(tail).all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = 64 << 10;

    #[test]
    fn a_whole_file_from_a_quarter_of_a_chunk_on_is_cut_on_the_grid_with_its_tail() {
        let cuts = |size| cut_whole(size, CHUNK).collect::<Vec<_>>();
        assert_eq!(cuts(0), []);
        assert_eq!(cuts(CHUNK / 4 - 1), [Cut::Small(0..CHUNK / 4 - 1)]);
        assert_eq!(cuts(CHUNK / 4), [Cut::Own(0..CHUNK / 4)]);
        assert_eq!(cuts(CHUNK + 1), [Cut::Own(0..CHUNK), Cut::Own(CHUNK..CHUNK + 1)]);
    }

    #[test]
    fn small_edits_are_pieces_and_large_ones_are_cut_on_the_grid() {
        let cuts = |run| cut_edit(run, CHUNK).collect::<Vec<_>>();
        assert_eq!(cuts(10..20), [Cut::Small(10..20)]);
        assert_eq!(cuts(CHUNK - 10..CHUNK + 10), [Cut::Small(CHUNK - 10..CHUNK + 10)]);
        assert_eq!(
            cuts(CHUNK - 10..3 * CHUNK + 10),
            [
                Cut::Small(CHUNK - 10..CHUNK),
                Cut::Own(CHUNK..2 * CHUNK),
                Cut::Own(2 * CHUNK..3 * CHUNK),
                Cut::Small(3 * CHUNK..3 * CHUNK + 10)
            ]
        );
    }

    proptest! {
        #[test]
        fn cuts_cover_the_run_without_overlap(start in 0..5 * CHUNK, len in 1..5 * CHUNK) {
            let mut at = start;
            for cut in cut_edit(start..start + len, CHUNK) {
                let (Cut::Own(run) | Cut::Small(run)) = cut.clone();
                prop_assert_eq!(run.start, at);
                prop_assert!(run.end > run.start && run.end - run.start <= CHUNK);
                if let Cut::Own(run) = cut {
                    prop_assert_eq!(run.start / CHUNK, (run.end - 1) / CHUNK);
                }
                at = run.end;
            }
            prop_assert_eq!(at, start + len);
        }

        #[test]
        fn only_whole_zero_blocks_are_holes(
            offset in 0..3 * BLOCK,
            blocks in proptest::collection::vec((any::<bool>(), 1usize..9000), 0..8),
        ) {
            let bytes: Vec<u8> = blocks.iter().flat_map(|&(data, len)| vec![u8::from(data); len]).collect();
            let mut at = offset;
            let mut before = None;
            for (run, is_data) in data_and_holes(&bytes, offset) {
                prop_assert_eq!(run.start, at);
                prop_assert_ne!(before, Some(is_data), "neighbours differ");
                let slice = &bytes[(run.start - offset) as usize..(run.end - offset) as usize];
                prop_assert!(is_data || slice.iter().all(|&b| b == 0));
                before = Some(is_data);
                at = run.end;
            }
            prop_assert_eq!(at, offset + bytes.len() as u64);
        }
    }
}
