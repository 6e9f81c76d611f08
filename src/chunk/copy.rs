//! Copying a local file: by reference where the filesystem can, else its bytes, holes left out.
//!
//! Owns: FICLONE, the loop over data.
//! Does not own: names, syncing, when a copy is a point in time: a clone always, copied bytes only while nobody writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

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
