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
    open: Mutex<LruCache<String, Arc<File>>>,
}

impl OpenFiles {
    /// Descriptors kept open at most; an eighth of what the process may have, if that is fewer.
    pub const CAPACITY: usize = 256;

    /// An empty cache over `files`.
    pub fn new(files: ChunkFiles) -> OpenFiles {
        let capacity = Self::CAPACITY.min(super::descriptors() / 8).max(1);
        let capacity = NonZeroUsize::new(capacity).expect("the capacity is not zero");
        OpenFiles { files, open: Mutex::new(LruCache::new(capacity)) }
    }

    /// Opens `path` for reading, or returns the descriptor that is open already.
    pub fn get(&self, path: &str) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(path) {
            return Ok(file.clone());
        }
        let named = |e: io::Error| io::Error::new(e.kind(), format!("open {path}: {e}"));
        let file = Arc::new(self.files.open(path).map_err(named)?);
        self.open.lock().put(path.to_owned(), file.clone());
        Ok(file)
    }

    /// Forgets the descriptor of a file that was removed, so that its space is free.
    pub fn forget(&self, path: &str) {
        self.open.lock().pop(path);
    }

    /// The files themselves.
    pub fn files(&self) -> &ChunkFiles {
        &self.files
    }
}
