//! Sealed chunk files that the kernel reads by itself: lent out, to be had back when somebody wants to write (P1, P3).
//!
//! Owns: which files are lent, that none of them is mapped for an upload, what becomes of one that loses its last row.
//! Does not own: lending and thawing (`write::lend`), the registered backing file (`write::opening`).
//!
//! A lent file may have to become a session's file again at any moment, and its bytes change then. So nobody keeps a
//! mapping of it: an upload copies what it sends ([`Lending::map`]), a file that is mapped for an upload is not lent. Who
//! reads a file by its rows looks at the rows and reads [`Lending::undisturbed`]: if a file was thawed in between, the bytes
//! may be another generation's.
//!
//! The kernel reads on in a file without a name, so a lent one does no harm when it is unlinked; but it would give no space
//! back, and its bytes could not be thawed. It waits for its return.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::id::ChunkFileId;

/// The lent files of a state directory.
#[derive(Debug, Default)]
pub struct Lending {
    inner: Mutex<Inner>,
    thaws: AtomicU64,
}

/// See [`Lending::moment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

#[derive(Debug, Default)]
struct Inner {
    /// By name, which is never given twice, as the number of a row may be.
    lent: HashMap<String, Lent>,
    rows: HashMap<ChunkFileId, String>,
    /// How often each is mapped for an upload.
    mapped: HashMap<String, u32>,
}

#[derive(Debug)]
struct Lent {
    file: ChunkFileId,
    /// Its bytes on disk, once no row names it.
    rowless: Option<u64>,
}

impl Lending {
    /// Lends a file, again if it is lent. False: an upload maps it.
    pub fn lend(&self, file: ChunkFileId, name: &str) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.mapped.contains_key(name) {
            return false;
        }
        if !inner.lent.contains_key(name) {
            inner.lent.insert(name.to_owned(), Lent { file, rowless: None });
            inner.rows.insert(file, name.to_owned());
        }
        true
    }

    /// True while the file of this row is lent: it does not leave.
    pub fn is_lent(&self, file: ChunkFileId) -> bool {
        self.inner.lock().rows.contains_key(&file)
    }

    /// No row names this file any more. True if it is lent: then it is not unlinked now, and [`Lending::end`] tells.
    pub fn lost_its_row(&self, name: &str, bytes: u64) -> bool {
        let inner = &mut *self.inner.lock();
        let Some(lent) = inner.lent.get_mut(name) else { return false };
        lent.rowless = Some(bytes);
        inner.rows.remove(&lent.file);
        true
    }

    /// Nobody has the file any more. `Some`: it has no row, and this many bytes on disk; the caller unlinks it.
    pub fn end(&self, name: &str) -> Option<u64> {
        let inner = &mut *self.inner.lock();
        let lent = inner.lent.remove(name)?;
        if lent.rowless.is_none() {
            inner.rows.remove(&lent.file);
        }
        lent.rowless
    }

    /// From here on the bytes of the file may change; its rows are gone. As [`Lending::end`].
    pub fn thawed(&self, name: &str) -> Option<u64> {
        self.thaws.fetch_add(1, Ordering::SeqCst);
        self.end(name)
    }

    /// A moment, before rows are looked at; see [`Lending::thawed_since`].
    pub fn moment(&self) -> Moment {
        Moment(self.thaws.load(Ordering::SeqCst))
    }

    /// True if the bytes of any file may have changed since then: what was read by rows may not be what they say.
    pub fn thawed_since(&self, moment: Moment) -> bool {
        self.moment() != moment
    }

    /// What `read` finds by looking at rows and reading files; `None` if a file was thawed meanwhile.
    pub fn undisturbed<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        let moment = self.moment();
        let found = read();
        (!self.thawed_since(moment)).then_some(found)
    }

    /// Leave to map a file for an upload. `None`: it is lent, read it.
    pub fn map(self: &Arc<Lending>, name: &str) -> Option<Mapping> {
        let inner = &mut *self.inner.lock();
        if inner.lent.contains_key(name) {
            return None;
        }
        *inner.mapped.entry(name.to_owned()).or_default() += 1;
        Some(Mapping { lending: self.clone(), name: name.to_owned() })
    }

    /// True if [`Lending::map`] would refuse this file now.
    pub fn has(&self, name: &str) -> bool {
        self.inner.lock().lent.contains_key(name)
    }
}

/// A file that is mapped for an upload; it is not lent meanwhile.
#[derive(Debug)]
pub struct Mapping {
    lending: Arc<Lending>,
    name: String,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mapped = &mut self.lending.inner.lock().mapped;
        if let Some(count) = mapped.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                mapped.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p3_a_file_is_lent_or_mapped_for_an_upload_never_both() {
        let lending = Arc::new(Lending::default());
        let (first, second) = (lending.map("f").unwrap(), lending.map("f").unwrap());
        drop(first);
        assert!(!lending.lend(ChunkFileId(1), "f"));
        drop(second);
        assert!(lending.lend(ChunkFileId(1), "f"));
        assert!(lending.map("f").is_none() && lending.map("g").is_some());
        assert_eq!(lending.end("f"), None);
        assert!(lending.map("f").is_some());
    }

    #[test]
    fn p3_what_is_read_by_rows_while_any_file_is_thawed_does_not_count() {
        let lending = Lending::default();
        assert_eq!(lending.undisturbed(|| 1), Some(1));
        let moment = lending.moment();
        assert!(lending.lend(ChunkFileId(1), "f") && !lending.thawed_since(moment), "its bytes stay");
        assert_eq!(lending.undisturbed(|| lending.thawed("f")), None);
        assert!(lending.thawed_since(moment));
        assert_eq!(lending.undisturbed(|| 2), Some(2), "from here on the rows are true");
    }

    #[test]
    fn a_lent_file_without_a_row_waits_for_its_return() {
        let lending = Lending::default();
        assert!(!lending.lost_its_row("f", 7));
        assert!(lending.lend(ChunkFileId(1), "f") && lending.lend(ChunkFileId(1), "f"));
        assert!(lending.is_lent(ChunkFileId(1)));
        assert!(lending.lost_its_row("f", 7));
        assert!(!lending.is_lent(ChunkFileId(1)), "the number may be another file's now");
        assert_eq!((lending.end("f"), lending.end("f")), (Some(7), None));
    }
}
