//! Sealing: reading a frozen session once, cutting it into chunks and pieces, hashing the chunks of its own.
//!
//! Owns: the pass over the session's chunk file: zeros dropped, BLAKE3 and CRC32C of large runs.
//! Does not own: where cuts fall (`chunk::layout`), small pieces of several sessions together (`gather`), syncing and
//! committing (`pipeline`).
//!
//! Bytes are mapped, never copied. `MADV_POPULATE_READ` comes first, so that a bad disk is an error and not SIGBUS; nobody
//! truncates a frozen file.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::SeekFrom;

use super::session::Frozen;
use crate::chunk::layout::{self, Cut};
use crate::chunk::outline::{self, Outline};
use crate::id::ChunkHash;

/// CRC32C (Castagnoli), as S3 and the location rows have it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Outlines of one session at most: 4 MiB of memory. Later chunks of a huge file get theirs when they are fetched.
const OUTLINES_MAX: usize = 8192;

/// A chunk whose bytes all lie in this session's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnChunk {
    pub hash: ChunkHash,
    /// Bytes.
    pub length: u64,
    /// Runs of the file, in the order of the chunk's bytes, with the CRC32C of each.
    pub runs: Vec<(Range<u64>, u32)>,
    /// By which parts of it can be checked, if it is long.
    pub outline: Option<Outline>,
}

/// What sealing found in one session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Chunks of its own, ascending.
    pub own: Vec<OwnChunk>,
    /// Runs of data to be gathered with others, ascending.
    pub small: Vec<Range<u64>>,
    /// Ranges (offset, length) that became holes over earlier content, ascending; none for a whole session.
    pub zero: Vec<(u64, u64)>,
    /// Bytes allocated on disk.
    pub allocated: u64,
}

/// Reads the file of `frozen` and cuts it.
pub fn seal(file: &File, frozen: &Frozen, chunk_size: u64) -> io::Result<Sealed> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    let mut pass = Pass { file, length: metadata.len(), sealed: Sealed::default(), outlines: 0 };
    pass.sealed.allocated = metadata.blocks() * 512;
    if frozen.whole {
        pass.cuts(layout::cut_whole(frozen.size, chunk_size))?;
        pass.sealed.zero.clear();
    } else {
        for dirty in frozen.ranges.iter() {
            let dirty = dirty.start..dirty.end.min(frozen.size);
            if dirty.start < dirty.end {
                pass.cuts(layout::cut_edit(dirty, chunk_size))?;
            }
        }
        pass.cut_off_holes(frozen);
    }
    Ok(pass.sealed)
}

struct Pass<'a> {
    file: &'a File,
    /// Of the file; beyond are zeros.
    length: u64,
    sealed: Sealed,
    outlines: usize,
}

impl Pass<'_> {
    fn cuts(&mut self, cuts: impl Iterator<Item = Cut>) -> io::Result<()> {
        let mut next_data = 0;
        for cut in cuts {
            let (Cut::Own(run) | Cut::Small(run)) = &cut;
            if next_data < run.start {
                next_data = self.next_data(run.start)?;
            }
            if next_data >= run.end {
                self.hole(run.clone());
                continue;
            }
            match cut {
                Cut::Own(run) => self.own(run)?,
                Cut::Small(run) => self.small(run)?,
            }
        }
        Ok(())
    }

    /// Where the next allocated bytes are, from `offset` on.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        if offset >= self.length {
            return Ok(u64::MAX);
        }
        match rustix::fs::seek(self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data),
            Err(rustix::io::Errno::NXIO) => Ok(u64::MAX),
            Err(e) => Err(e.into()),
        }
    }

    fn own(&mut self, run: Range<u64>) -> io::Result<()> {
        let Some(bytes) = self.map(&run)? else {
            self.hole(run);
            return Ok(());
        };
        let mut hasher = outline::Hasher::default();
        let mut runs = Vec::new();
        for (part, is_data) in self.parts(&bytes, &run) {
            if is_data {
                let slice = &bytes[(part.start - run.start) as usize..(part.end - run.start) as usize];
                hasher.update(slice);
                runs.push((part, crc32c(slice)));
            } else {
                self.hole(part);
            }
        }
        if !runs.is_empty() {
            let length = runs.iter().map(|(part, _)| part.end - part.start).sum();
            let (hash, outline) = hasher.finish();
            self.outlines += usize::from(outline.is_some());
            let outline = outline.filter(|_| self.outlines <= OUTLINES_MAX);
            self.sealed.own.push(OwnChunk { hash, length, runs, outline });
        }
        Ok(())
    }

    fn small(&mut self, run: Range<u64>) -> io::Result<()> {
        let Some(bytes) = self.map(&run)? else {
            self.hole(run);
            return Ok(());
        };
        for (part, is_data) in self.parts(&bytes, &run) {
            if is_data {
                self.sealed.small.push(part);
            } else {
                self.hole(part);
            }
        }
        Ok(())
    }

    /// Data and holes of a mapped run; what lies beyond the end of the file is a hole.
    fn parts(&self, bytes: &[u8], run: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut parts = layout::data_and_holes(bytes, run.start);
        let mapped = run.start + bytes.len() as u64;
        if mapped < run.end {
            parts.push((mapped..run.end, false));
        }
        parts
    }

    fn map(&self, run: &Range<u64>) -> io::Result<Option<Mmap>> {
        let end = run.end.min(self.length);
        if end <= run.start {
            return Ok(None);
        }
        map(self.file, run.start..end).map(Some)
    }

    fn hole(&mut self, run: Range<u64>) {
        push_hole(&mut self.sealed.zero, run);
    }

    /// What a truncate cut off of the earlier content and no write filled since is a hole too.
    fn cut_off_holes(&mut self, frozen: &Frozen) {
        let mut holes = std::mem::take(&mut self.sealed.zero);
        let mut at = frozen.base_limit;
        for dirty in frozen.ranges.within(frozen.base_limit..frozen.size.max(frozen.base_limit)) {
            holes.push((at, dirty.start - at));
            at = dirty.end;
        }
        if at < frozen.size {
            holes.push((at, frozen.size - at));
        }
        holes.retain(|&(_, length)| length > 0);
        holes.sort_unstable();
        for (offset, length) in holes {
            push_hole(&mut self.sealed.zero, offset..offset + length);
        }
    }
}

fn push_hole(holes: &mut Vec<(u64, u64)>, run: Range<u64>) {
    match holes.last_mut() {
        Some((offset, length)) if *offset + *length == run.start => *length += run.end - run.start,
        _ => holes.push((run.start, run.end - run.start)),
    }
}

/// Maps a range of a file that nobody changes any more, with its pages present.
pub fn map(file: &File, range: Range<u64>) -> io::Result<Mmap> {
    let length = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: sealed and frozen chunk files are immutable: they are only ever unlinked as a whole (D1).
    let map = unsafe { MmapOptions::new().offset(range.start).len(length).map(file)? };
    map.advise(Advice::PopulateRead)?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SessionId;
    use crate::write::ranges::RangeSet;
    use std::os::unix::fs::FileExt;

    const CHUNK: u64 = 64 << 10;

    fn frozen(whole: bool, size: u64, base_limit: u64, dirty: &[Range<u64>]) -> Frozen {
        let mut ranges = RangeSet::default();
        for range in dirty {
            ranges.insert(range.clone());
        }
        Frozen {
            id: SessionId(1),
            whole,
            base_limit,
            path: String::new(),
            ranges,
            size,
            accounted: 0,
            kept: Default::default(),
        }
    }

    fn file(size: u64, data: &[(u64, Vec<u8>)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn equal_cells_are_equal_chunks_and_zero_blocks_are_dropped() {
        let cell = [vec![7; 4096], vec![0; 4096], vec![9; CHUNK as usize - 8192]].concat();
        let file = file(3 * CHUNK, &[(0, cell.clone()), (2 * CHUNK, cell.clone())]);
        let sealed = seal(&file, &frozen(true, 3 * CHUNK, 0, &[]), CHUNK).unwrap();
        let [first, second] = &sealed.own[..] else { panic!("{sealed:?}") };
        assert_eq!(first.hash, second.hash);
        assert_eq!(first.hash, ChunkHash::of(&[&cell[..4096], &cell[8192..]].concat()));
        assert_eq!(first.length, CHUNK - 4096);
        assert_eq!(first.runs[1], (8192..CHUNK, crc32c(&cell[8192..])));
        assert_eq!((sealed.small, sealed.zero), (vec![], vec![]));
    }

    #[test]
    fn a_small_file_is_pieces() {
        let file = file(10_000, &[(5000, vec![1; 10])]);
        let sealed = seal(&file, &frozen(true, 10_000, 0, &[]), CHUNK).unwrap();
        assert_eq!((sealed.own.len(), sealed.small), (0, vec![4096..8192]));
    }

    #[test]
    fn zeros_written_over_content_are_holes() {
        let file = file(10_000, &[(4096, vec![0; 4096]), (100, vec![3; 50])]);
        let sealed = seal(&file, &frozen(false, 10_000, 10_000, &[100..150, 4096..8192]), CHUNK).unwrap();
        assert_eq!((sealed.small, sealed.zero), (vec![100..150], vec![(4096, 4096)]));
    }

    #[test]
    fn what_a_truncate_cut_off_is_a_hole_unless_written_again() {
        let file = file(9000, &[(2000, vec![3; 50]), (8990, vec![4; 10])]);
        let sealed = seal(&file, &frozen(false, 9000, 1000, &[2000..2050, 8990..9000]), CHUNK).unwrap();
        assert_eq!(sealed.small, [2000..2050, 8990..9000]);
        assert_eq!(sealed.zero, [(1000, 1000), (2050, 6940)]);
    }

    #[test]
    fn a_sparse_file_costs_nothing() {
        let file = file(1 << 40, &[]);
        let sealed = seal(&file, &frozen(true, 1 << 40, 0, &[]), 4 << 20).unwrap();
        assert_eq!(sealed, Sealed { allocated: sealed.allocated, ..Sealed::default() });
    }
}
