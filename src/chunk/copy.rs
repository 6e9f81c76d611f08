//! Copying a local file: by reference where the filesystem can, else its bytes, holes left out.
//!
//! Owns: FICLONE, whether it works, the loop over data.
//! Does not own: names, syncing, when a copy is a point in time: a clone always, copied bytes only while nobody writes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::file::ChunkFiles;

/// Bytes copied by one call, so that a copy can be ended.
const STEP: usize = 64 << 20;
/// Bytes copied at a time where the kernel cannot copy by itself.
const BUFFER: usize = 1 << 20;

/// Makes the empty file `to` share all blocks of `from`. False: this filesystem cannot.
pub fn share(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies `from` into the empty file `to` and gives it the same length; `go_on` is asked between steps. False: it was not
/// let go on.
pub fn bytes(from: &File, to: &File, go_on: impl Fn() -> bool) -> io::Result<bool> {
    let length = from.metadata()?.len();
    let mut at = 0;
    while at < length {
        let Some(start) = seek(from, SeekFrom::Data(at))? else { break };
        let end = seek(from, SeekFrom::Hole(start))?.unwrap_or(length).min(length);
        at = start;
        while at < end {
            if !go_on() {
                return Ok(false);
            }
            let copied = step(from, to, at, (end - at).min(STEP as u64) as usize)?;
            if copied == 0 {
                // Cut off meanwhile.
                break;
            }
            at += copied as u64;
        }
        if at < end {
            break;
        }
    }
    to.set_len(from.metadata()?.len().min(length))?;
    Ok(true)
}

/// Copies the bytes of `range` to the same place in `to`.
pub fn range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let copied = step(from, to, at, (range.end - at).min(STEP as u64) as usize)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += copied as u64;
    }
    Ok(())
}

/// True if `range` is zeros. Holes are, and cost nothing; of the rest `left` bytes are read at most.
pub fn is_zero(file: &File, range: Range<u64>, left: &mut u64) -> io::Result<bool> {
    let mut buffer = vec![0; (64 << 10).min(*left as usize)];
    let mut at = range.start;
    while at < range.end {
        let Some(data) = seek(file, SeekFrom::Data(at))?.filter(|data| *data < range.end) else { break };
        let end = seek(file, SeekFrom::Hole(data))?.unwrap_or(range.end).min(range.end);
        at = data;
        while at < end {
            let length = (end - at).min(buffer.len() as u64);
            if length > *left || length == 0 {
                return Ok(false);
            }
            let part = &mut buffer[..length as usize];
            file.read_exact_at(part, at)?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            *left -= length;
            at += length;
        }
    }
    Ok(true)
}

/// True if files in the state directory can share blocks.
pub fn shares_in(files: &ChunkFiles) -> io::Result<bool> {
    let (from, to) = (files.nameless()?, files.nameless()?);
    to.write_all_at(&[1], 0)?;
    share(&to, &from)
}

fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn step(from: &File, to: &File, at: u64, length: usize) -> io::Result<usize> {
    let (mut offset_from, mut offset_to) = (at, at);
    match rustix::fs::copy_file_range(from, Some(&mut offset_from), to, Some(&mut offset_to), length) {
        Ok(copied) => Ok(copied),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
            let mut buffer = vec![0; length.min(BUFFER)];
            let read = from.read_at(&mut buffer, at)?;
            to.write_all_at(&buffer[..read], at)?;
            Ok(read)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_are_seen_in_holes_and_in_blocks_within_the_budget() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&[0; 100_000], 1 << 20).unwrap();
        file.write_all_at(&[5], 8 << 20).unwrap();
        let budget = |bytes| {
            let mut left: u64 = bytes;
            is_zero(&file, 0..8 << 20, &mut left).unwrap()
        };
        assert!(budget(200_000), "a hole, zeros, a hole");
        assert!(!budget(50_000), "not all of it was looked at");
        assert!(!budget(0));
        let mut left = 1 << 20;
        assert!(!is_zero(&file, 0..(8 << 20) + 1, &mut left).unwrap());
        assert!(is_zero(&file, (8 << 20) + 1..1 << 30, &mut left).unwrap());
        assert!(is_zero(&file, 1 << 30..2 << 30, &mut left).unwrap(), "beyond the end");
    }

    #[test]
    fn a_copy_has_the_bytes_the_holes_and_the_length() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(40 << 20).unwrap();
        from.write_all_at(&[7; 10_000], 3 << 20).unwrap();
        from.write_all_at(&[9; 10], (30 << 20) + 5).unwrap();
        assert!(bytes(&from, &to, || true).unwrap());
        assert_eq!(to.metadata().unwrap().len(), 40 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
        for (offset, length) in [(0, 100), (3 << 20, 10_000), (30 << 20, 100)] {
            let (mut left, mut right) = (vec![0; length], vec![1; length]);
            from.read_exact_at(&mut left, offset).unwrap();
            to.read_exact_at(&mut right, offset).unwrap();
            assert!(left == right, "at {offset}");
        }
        let stopped = tempfile::tempfile().unwrap();
        assert!(!bytes(&from, &stopped, || false).unwrap());
    }
}
