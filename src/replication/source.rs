//! The bytes of a chunk from this machine's chunk files: found, mapped and checked before any of them is sent (S5).
//!
//! Owns: which local ranges make up a chunk, mapping them, checking them, saying what is wrong with them.
//! Does not own: sending (`upload`), other sources (`upload` asks other targets), repair.
//!
//! - A range of at least [`MAP_MIN`] bytes is mapped, not read: the body of a put is page cache, not memory of ours. That of
//!   a file that is lent to the kernel is read: it may become a session's file and change (P3). Smaller
//!   ranges, of which a gathered chunk may have thousands, are read and joined: a mapping each would cost more than the
//!   copy and could exhaust the kernel's count of mappings. Whoever asks bounds these buffers ([`copied_bytes`]).
//! - Pages are faulted in before they are touched, so that a bad disk is an error and not a signal.
//! - Every range is checked against its CRC32C, and the chunk against its name when a file of it was sealed before this
//!   mount: what changed while nobody watched is never sent.
//! - Several files may hold the same bytes; a bad range sends us to the next.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};

use crate::chunk::file::ChunkFiles;
use crate::chunk::lend::{self, Lending};
use crate::id::{ChunkFileId, ChunkHash};
use crate::meta::placement::{ChunkSources, LocationPiece};
use crate::target::Body;

/// Bytes from which a range is mapped instead of read.
pub const MAP_MIN: u64 = 64 << 10;

/// Something wrong with one copy of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("chunk {chunk} in {place}: {problem}")]
pub struct Finding {
    pub chunk: ChunkHash,
    /// A chunk file, relative to the state directory, or the name of a target.
    pub place: String,
    pub problem: String,
}

/// The bytes of a chunk, checked: the only thing that is put under a chunk's name.
#[derive(Debug, Clone)]
pub struct CheckedChunk {
    body: Body,
}

impl CheckedChunk {
    /// Checks bytes that came from a target against the chunk's name.
    pub fn fetched(hash: ChunkHash, bytes: Bytes) -> Option<CheckedChunk> {
        (ChunkHash::of(&bytes) == hash).then(|| CheckedChunk { body: bytes.into() })
    }

    /// The bytes.
    pub fn into_body(self) -> Body {
        self.body
    }
}

/// Bytes of a chunk that would be read into memory rather than mapped.
pub fn copied_bytes(lending: &Lending, sources: &ChunkSources) -> u64 {
    let is_copied = |piece: &&LocationPiece| piece.length < MAP_MIN || lending.has(&piece.name);
    let copied = sources.pieces.iter().filter(is_copied).map(|piece| piece.length).sum::<u64>();
    copied.min(sources.chunk.length)
}

/// Opens a chunk from local files. `mount` is the number of this mount. Blocks on the disk.
///
/// Returns `None` in the first place if no local copy is there and right; every wrong one that was met is a finding.
pub fn open(files: &mut Files<'_>, mount: u64, sources: &ChunkSources) -> (Option<CheckedChunk>, Vec<Finding>) {
    let mut opener = Opener { files, sources, findings: Vec::new() };
    let mut ranges: Vec<Range> = sources.pieces.iter().map(|_| Range::Untried).collect();
    while let Some(tiling) = tile(&sources.pieces, sources.chunk.length, &ranges) {
        let mut good = true;
        for &index in &tiling {
            if let Range::Untried = ranges[index] {
                ranges[index] = match opener.read(&sources.pieces[index]) {
                    Ok(bytes) => Range::Good(bytes),
                    Err(problem) => {
                        opener.report(&sources.pieces[index].name, problem);
                        good = false;
                        Range::Bad
                    }
                };
            }
        }
        if !good {
            continue;
        }
        let small =
            tiling.iter().map(|index| sources.pieces[*index].length).filter(|length| *length < MAP_MIN).sum::<u64>();
        let parts = join(tiling.iter().filter_map(|index| ranges[*index].take()), small as usize);
        let is_old = |index: &&usize| sources.pieces[**index].mount < mount;
        if tiling.iter().any(|index| is_old(&index)) && name_of(&parts) != sources.chunk.hash {
            // Which of the old ranges it is, their checksums do not tell: none of them is trusted.
            for &index in tiling.iter().filter(is_old) {
                opener.report(&sources.pieces[index].name, "the chunk does not match its name".to_owned());
                ranges[index] = Range::Bad;
            }
            continue;
        }
        return (Some(CheckedChunk { body: Body::new(parts) }), opener.findings);
    }
    (None, opener.findings)
}

enum Range {
    Untried,
    Good(Bytes),
    Bad,
}

impl Range {
    fn take(&mut self) -> Option<Bytes> {
        match std::mem::replace(self, Range::Untried) {
            Range::Good(bytes) => Some(bytes),
            Range::Untried | Range::Bad => None,
        }
    }
}

/// Joins neighbouring small ranges, so that a body has few parts; each is freed as soon as it is copied. There are at most
/// `small_bytes` of them: a buffer that grows would be copied again and again.
fn join(ranges: impl Iterator<Item = Bytes>, small_bytes: usize) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let mut small = Vec::with_capacity(small_bytes);
    for range in ranges {
        if (range.len() as u64) < MAP_MIN {
            small.extend_from_slice(&range);
        } else {
            if !small.is_empty() {
                parts.push(std::mem::take(&mut small).into());
            }
            parts.push(range);
        }
    }
    if !small.is_empty() {
        parts.push(small.into());
    }
    parts
}

/// Picks pieces that lie end to end from 0 to `length`, none of them bad. A checksum covers exactly its piece, so pieces
/// are taken whole. `pieces` ascend by offset.
fn tile(pieces: &[LocationPiece], length: u64, ranges: &[Range]) -> Option<Vec<usize>> {
    // From the end: `follow[offset]` is a piece at `offset` from which the end can be reached.
    let mut follow: std::collections::BTreeMap<u64, usize> = Default::default();
    for (index, piece) in pieces.iter().enumerate().rev() {
        let Some(end) = piece.chunk_offset.checked_add(piece.length) else { continue };
        let reaches = end == length || follow.contains_key(&end);
        if piece.length > 0 && reaches && !matches!(ranges[index], Range::Bad) {
            follow.insert(piece.chunk_offset, index);
        }
    }
    let mut tiling = Vec::new();
    let mut offset = 0;
    while offset < length {
        let index = *follow.get(&offset)?;
        tiling.push(index);
        offset += pieces[index].length;
    }
    (length > 0).then_some(tiling)
}

/// Chunk files, the one opened last at hand: neighbours in a gathered chunk, and chunks of a moment, are often neighbours in
/// a file.
pub struct Files<'a> {
    files: &'a ChunkFiles,
    last: Option<(ChunkFileId, Open)>,
}

#[derive(Clone)]
struct Open {
    file: Arc<File>,
    /// A sealed file does not grow (S2).
    length: u64,
}

impl Files<'_> {
    /// None is open yet.
    pub fn new(files: &ChunkFiles) -> Files<'_> {
        Files { files, last: None }
    }

    fn get(&mut self, piece: &LocationPiece) -> Result<Open, String> {
        if let Some((id, open)) = &self.last
            && *id == piece.file
        {
            return Ok(open.clone());
        }
        let file = self.files.open(&piece.name).map_err(|e| format!("cannot be opened: {e}"))?;
        let length = file.metadata().map_err(|e| format!("cannot be examined: {e}"))?.len();
        let open = Open { file: Arc::new(file), length };
        self.last = Some((piece.file, open.clone()));
        Ok(open)
    }
}

struct Opener<'a, 'f> {
    files: &'a mut Files<'f>,
    sources: &'a ChunkSources,
    findings: Vec<Finding>,
}

impl Opener<'_, '_> {
    fn report(&mut self, place: &str, problem: String) {
        self.findings.push(Finding { chunk: self.sources.chunk.hash, place: place.to_owned(), problem });
    }

    fn read(&mut self, piece: &LocationPiece) -> Result<Bytes, String> {
        let Open { file, length } = self.files.get(piece)?;
        let end = piece.file_offset.checked_add(piece.length);
        if end.is_none_or(|end| end > length) {
            return Err(format!("the file ends at byte {length}, before the range at {}", piece.file_offset));
        }
        // A lent file may change while it is sent (P3): a mapping of it would, too.
        let mapping = if piece.length < MAP_MIN { None } else { self.files.files.lending().map(&piece.name) };
        let bytes = mapping.map_or_else(|| read(&file, piece), |mapping| map(&file, piece, mapping));
        let bytes = bytes.map_err(|e| format!("cannot be read at byte {}: {e}", piece.file_offset))?;
        if crc32c(&bytes) != piece.crc32c {
            return Err(format!("{} bytes at {} do not match their checksum", piece.length, piece.file_offset));
        }
        Ok(bytes)
    }
}

fn read(file: &File, piece: &LocationPiece) -> std::io::Result<Bytes> {
    let mut bytes = vec![0; piece.length as usize];
    file.read_exact_at(&mut bytes, piece.file_offset)?;
    Ok(bytes.into())
}

fn map(file: &File, piece: &LocationPiece, mapping: lend::Mapping) -> std::io::Result<Bytes> {
    let length = usize::try_from(piece.length).map_err(std::io::Error::other)?;
    // SAFETY: a sealed chunk file is immutable and never shortened while a row names it (S2, D1): the mapping stays valid
    // and its bytes stay what they are.
    let mapped = unsafe { MmapOptions::new().offset(piece.file_offset).len(length).map(file)? };
    match mapped.advise(Advice::PopulateRead) {
        Ok(()) => {}
        // Before Linux 5.14. Reading the range first makes the disk speak up just as well.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => read_through(file, piece)?,
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => return Err(std::io::Error::from_raw_os_error(libc::EIO)),
        Err(e) => return Err(e),
    }
    Ok(Bytes::from_owner(Mapped { bytes: mapped, _mapping: mapping }))
}

fn read_through(file: &File, piece: &LocationPiece) -> std::io::Result<()> {
    let mut buffer = [0; 32 << 10];
    let (mut offset, end) = (piece.file_offset, piece.file_offset + piece.length);
    while offset < end {
        let length = buffer.len().min((end - offset) as usize);
        file.read_exact_at(&mut buffer[..length], offset)?;
        offset += length as u64;
    }
    Ok(())
}

struct Mapped {
    bytes: Mmap,
    /// The file is not lent meanwhile.
    _mapping: lend::Mapping,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The name of a chunk with these bytes.
pub fn name_of(parts: &[Bytes]) -> ChunkHash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::ChunkId;
    use crate::meta::placement::ChunkTodo;

    struct Disk {
        dir: tempfile::TempDir,
        files: ChunkFiles,
    }

    impl Disk {
        fn new() -> Disk {
            let dir = tempfile::tempdir().unwrap();
            let files = ChunkFiles::new(dir.path()).unwrap();
            Disk { dir, files }
        }

        /// A file that holds `bytes` at `offset`.
        fn file(&self, id: u64, offset: u64, bytes: &[u8]) -> String {
            let name = format!("chunks/00/{id}");
            self.files.create(&name).unwrap().write_all_at(bytes, offset).unwrap();
            name
        }

        fn open(&self, sources: &ChunkSources) -> (Option<Vec<u8>>, usize) {
            let (chunk, findings) = open(&mut Files::new(&self.files), 5, sources);
            (chunk.map(|chunk| chunk.into_body().parts().concat()), findings.len())
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn piece(chunk_offset: u64, bytes: &[u8], file: u64, file_offset: u64) -> LocationPiece {
        LocationPiece {
            chunk_offset,
            length: bytes.len() as u64,
            file: ChunkFileId(file),
            name: format!("chunks/00/{file}"),
            file_offset,
            crc32c: crc32c(bytes),
            mount: 5,
        }
    }

    fn sources(content: &[u8], pieces: Vec<LocationPiece>) -> ChunkSources {
        let chunk = ChunkTodo { id: ChunkId(1), hash: ChunkHash::of(content), length: content.len() as u64 };
        ChunkSources { chunk, placed: 0, pieces }
    }

    #[test]
    fn a_gathered_chunk_is_its_ranges_in_order_large_ones_mapped_and_small_ones_read() {
        let disk = Disk::new();
        let content = bytes(200_000);
        // An offset that is no multiple of a page.
        disk.file(1, 12_345, &content[..100_000]);
        disk.file(2, 0, &content[100_000..]);
        let pieces = vec![
            piece(0, &content[..100_000], 1, 12_345),
            piece(100_000, &content[100_000..100_100], 2, 0),
            piece(100_100, &content[100_100..], 2, 100),
        ];
        let sources = sources(&content, pieces);
        assert_eq!(copied_bytes(disk.files.lending(), &sources), 100);
        assert_eq!(disk.open(&sources), (Some(content), 0));
    }

    #[test]
    fn s5_a_range_that_does_not_match_its_checksum_is_never_given_out() {
        let disk = Disk::new();
        for length in [1_000, 100_000] {
            let content = bytes(length);
            let mut spoiled = content.clone();
            spoiled[length / 2] ^= 1;
            disk.file(length as u64, 0, &spoiled);
            assert_eq!(disk.open(&sources(&content, vec![piece(0, &content, length as u64, 0)])), (None, 1));
        }
    }

    #[test]
    fn s5_a_file_of_an_earlier_mount_is_checked_by_name_and_one_of_this_mount_by_checksum() {
        let disk = Disk::new();
        let content = bytes(100_000);
        let mut spoiled = content.clone();
        spoiled[7] ^= 1;
        disk.file(1, 0, &spoiled);
        // The row was spoiled with the file: only the name tells.
        let mut spoiled = piece(0, &spoiled, 1, 0);
        assert_eq!(disk.open(&sources(&content, vec![spoiled.clone()])).1, 0);
        spoiled.mount = 4;
        assert_eq!(disk.open(&sources(&content, vec![spoiled])), (None, 1));
    }

    #[test]
    fn p3_a_lent_file_is_copied_and_a_mapped_one_is_not_lent() {
        let disk = Disk::new();
        let content = bytes(100_000);
        disk.file(1, 0, &content);
        let sources = sources(&content, vec![piece(0, &content, 1, 0)]);
        let (file, name) = (ChunkFileId(1), sources.pieces[0].name.clone());
        let lending = disk.files.lending();
        let sent = open(&mut Files::new(&disk.files), 5, &sources).0.unwrap().into_body();
        assert!(!lending.lend(file, &name), "an upload maps it");
        drop(sent);
        assert!(lending.lend(file, &name));
        assert_eq!(copied_bytes(lending, &sources), 100_000);
        let sent = open(&mut Files::new(&disk.files), 5, &sources).0.unwrap().into_body();
        std::fs::write(disk.files.locate(&name), vec![0; 100_000]).unwrap();
        assert!(sent.parts().concat() == content, "what is sent is what was checked");
    }

    #[test]
    fn a_bad_copy_is_reported_and_the_other_one_taken() {
        let disk = Disk::new();
        let content = bytes(100_000);
        disk.file(1, 0, &content[..50_000]);
        disk.file(2, 0, &content);
        let copies = vec![piece(0, &content, 1, 0), piece(0, &content, 2, 0), piece(0, &content, 3, 0)];
        let (chunk, findings) = disk.open(&sources(&content, copies));
        assert_eq!(chunk, Some(content));
        assert!(findings <= 2, "a short file and a missing one, as far as they were met");
    }

    #[test]
    fn what_is_not_local_is_no_finding() {
        let disk = Disk::new();
        let content = bytes(100);
        assert_eq!(disk.open(&sources(&content, vec![])), (None, 0));
        disk.file(1, 0, &content);
        assert_eq!(disk.open(&sources(&content, vec![piece(0, &content[..99], 1, 0)])), (None, 0));
        assert!(disk.dir.path().exists());
    }

    proptest! {
        #[test]
        fn a_tiling_is_found_exactly_when_there_is_one(
            cuts in prop::collection::vec((0..12u64, 1..6u64, any::<bool>()), 0..12),
        ) {
            let mut pieces: Vec<_> = cuts
                .iter()
                .map(|(offset, length, bad)| (piece(*offset, &bytes(*length as usize), 1, 0), *bad))
                .collect();
            pieces.sort_by_key(|(piece, _)| piece.chunk_offset);
            let ranges: Vec<_> = pieces.iter().map(|(_, bad)| if *bad { Range::Bad } else { Range::Untried }).collect();
            let good: Vec<_> = pieces.iter().filter(|(_, bad)| !bad).map(|(piece, _)| piece).collect();
            let pieces: Vec<_> = pieces.iter().map(|(piece, _)| piece.clone()).collect();
            // The oracle: all offsets that can be reached from 0.
            let mut reached = std::collections::BTreeSet::from([0]);
            for _ in 0..12 {
                for piece in &good {
                    if reached.contains(&piece.chunk_offset) {
                        reached.insert(piece.chunk_offset + piece.length);
                    }
                }
            }
            let tiling = tile(&pieces, 12, &ranges);
            prop_assert_eq!(tiling.is_some(), reached.contains(&12));
            let mut offset = 0;
            for index in tiling.into_iter().flatten() {
                prop_assert!(!matches!(ranges[index], Range::Bad));
                prop_assert_eq!(pieces[index].chunk_offset, offset);
                offset += pieces[index].length;
            }
        }
    }
}
