//! A bounded cache of open chunk files, for reads.
//!
//! Owns: descriptors, at most [`OpenFiles::CAPACITY`] of them; the one used longest ago is closed first.
//! Does not own: what is read through them.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::file::ChunkFiles;

/// Open chunk files by name.
#[derive(Debug)]
pub struct OpenFiles {
    files: ChunkFiles,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    files: LruCache<String, Arc<File>>,
    /// Counts up: what was opened before one is not kept after it.
    forgets: u64,
}

impl OpenFiles {
    /// Descriptors kept open at most; an eighth of what the process may have, if that is fewer.
    pub const CAPACITY: usize = 256;

    /// An empty cache over `files`.
    pub fn new(files: ChunkFiles) -> OpenFiles {
        let capacity = Self::CAPACITY.min(super::descriptors() / 8).max(1);
        let capacity = NonZeroUsize::new(capacity).expect("the capacity is not zero");
        OpenFiles { files, open: Mutex::new(Open { files: LruCache::new(capacity), forgets: 0 }) }
    }

    /// Opens `path` for reading, or returns the descriptor that is open already.
    pub fn get(&self, path: &str) -> io::Result<Arc<File>> {
        self.get_by(path, |path| self.files.open(path))
    }

    /// `open` runs without the lock: it may wait for the disk.
    fn get_by(&self, path: &str, open: impl FnOnce(&str) -> io::Result<File>) -> io::Result<Arc<File>> {
        let forgets = {
            let mut kept = self.open.lock();
            if let Some(file) = kept.files.get(path) {
                return Ok(file.clone());
            }
            kept.forgets
        };
        let named = |e: io::Error| io::Error::new(e.kind(), format!("open {path}: {e}"));
        let file = Arc::new(open(path).map_err(named)?);
        let mut kept = self.open.lock();
        if kept.forgets == forgets {
            kept.files.put(path.to_owned(), file.clone());
        }
        Ok(file)
    }

    /// Forgets the descriptor of a file that was removed, so that its space is free, or that nobody must have open. One that
    /// is being opened now goes with its reader.
    pub fn forget(&self, path: &str) {
        let mut kept = self.open.lock();
        kept.forgets += 1;
        kept.files.pop(path);
    }

    /// The files themselves.
    pub fn files(&self) -> &ChunkFiles {
        &self.files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_while_it_is_opened_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open_files = OpenFiles::new(ChunkFiles::new(dir.path()).unwrap());
        drop(open_files.files().create("chunks/00/f").unwrap());
        let forgotten = open_files.get_by("chunks/00/f", |path| {
            let file = open_files.files().open(path);
            open_files.forget(path);
            file
        });
        let forgotten = forgotten.unwrap();
        assert_eq!(Arc::strong_count(&forgotten), 1, "its reader alone has it");
        let kept = open_files.get("chunks/00/f").unwrap();
        assert!(Arc::ptr_eq(&kept, &open_files.get("chunks/00/f").unwrap()));
        open_files.forget("chunks/00/f");
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
