//! Failures after `close` returned: files whose bytes the local disk does not give when they are to be sealed (D3).
//!
//! Owns: which files those are, what the next `fsync` or `close` of them answers, what `status` says.
//! Does not own: trying again (`pipeline`); a full disk is no such failure, it passes.

use std::collections::BTreeMap;
use std::io;

use parking_lot::Mutex;

use crate::clock::{self, Instant};
use crate::id::InodeId;
use crate::meta::{Error, Result};

/// Files with such a failure; each is tried again until it succeeds.
#[derive(Debug, Default)]
pub struct Troubles {
    files: Mutex<BTreeMap<InodeId, Trouble>>,
}

/// What happened to one of them.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub since: Instant,
    /// What the operating system said.
    pub message: String,
}

/// Files that are kept in mind at most: a disk that fails fails for all.
const FILES_MAX: usize = 10_000;

impl Troubles {
    /// Notes that sealing failed. A full disk or too many open files say nothing about the file.
    pub fn note(&self, ino: InodeId, error: &io::Error) {
        if matches!(
            error.raw_os_error(),
            Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM)
        ) {
            return;
        }
        let mut files = self.files.lock();
        if files.len() < FILES_MAX || files.contains_key(&ino) {
            let since = files.get(&ino).map_or_else(clock::instant, |known| known.since);
            files.insert(ino, Trouble { since, message: error.to_string() });
        }
    }

    /// The file was sealed, or is gone.
    pub fn over(&self, ino: InodeId) {
        self.files.lock().remove(&ino);
    }

    /// An input/output error if there is trouble with `ino`.
    pub fn check(&self, ino: InodeId) -> Result<()> {
        match self.files.lock().get(&ino) {
            None => Ok(()),
            Some(trouble) => Err(Error::Io {
                what: format!("earlier content of inode {ino}"),
                source: io::Error::other(trouble.message.clone()),
            }),
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<(InodeId, Trouble)> {
        self.files.lock().iter().map(|(ino, trouble)| (*ino, trouble.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_a_failure_after_close_meets_the_next_one_until_it_is_over() {
        let troubles = Troubles::default();
        let ino = InodeId(7);
        troubles.note(ino, &io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(troubles.check(ino).is_ok(), "a full disk passes");
        troubles.note(ino, &io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(troubles.check(ino).unwrap_err().errno(), rustix::io::Errno::IO);
        assert!(troubles.check(InodeId(8)).is_ok());
        assert_eq!(troubles.all().len(), 1);
        troubles.over(ino);
        assert!(troubles.check(ino).is_ok());
    }
}
