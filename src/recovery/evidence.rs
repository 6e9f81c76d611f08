//! What is known of each session with a row: its file, its record of dirty ranges, its inode.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::chunk::file::{SessionName, ranges_path, unsynced_path};
use crate::clock::Timestamp;
use crate::meta::inode::Inode;
use crate::meta::session::SessionRow;
use crate::meta::{Error, Meta, Result};
use crate::write::Files;

/// One session as it was found.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub row: SessionRow,
    /// Its inode, if that has a name.
    pub inode: Option<Inode>,
    /// The name of its chunk file, if that is there.
    pub path: Option<String>,
    /// The file.
    pub file: Option<StagedFile>,
    /// Its record of dirty ranges, if there is one.
    pub ranges: Option<Vec<u8>>,
    /// A sync of its file failed: what is in the page cache now need not be what was written.
    pub unsynced: bool,
}

/// A session's chunk file as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagedFile {
    /// Bytes.
    pub length: u64,
    pub mtime: Timestamp,
}

/// The names that a session's file may have: it keeps the one it got when it began, even if it became whole later.
pub fn paths(row: &SessionRow) -> [String; 4] {
    let name = |whole| SessionName { session: row.id, ino: row.ino, base: row.base, whole };
    let (as_is, other) = (name(row.whole), name(!row.whole));
    [as_is.path(), other.path(), as_is.earlier_path(), other.earlier_path()]
}

/// Looks at all sessions.
pub fn gather(meta: &Meta, files: &Arc<Files>) -> Result<Vec<Evidence>> {
    meta.sessions()?.into_iter().map(|row| look(meta, files, row)).collect()
}

fn look(meta: &Meta, files: &Files, row: SessionRow) -> Result<Evidence> {
    let inode = match meta.inode(row.ino) {
        Ok(inode) => Some(inode).filter(|inode| inode.nlink > 0),
        Err(Error::Refused(_)) => None,
        Err(error) => return Err(error),
    };
    let mut evidence = Evidence { row, inode, path: None, file: None, ranges: None, unsynced: false };
    for path in paths(&evidence.row) {
        let failed = |source| Error::Io { what: format!("look at {path}"), source };
        match std::fs::metadata(files.chunk_files().locate(&path)) {
            Ok(metadata) => {
                let mtime = Timestamp::new(metadata.mtime(), metadata.mtime_nsec() as u32).unwrap_or_default();
                evidence.file = Some(StagedFile { length: metadata.len(), mtime });
                evidence.ranges = match std::fs::read(files.chunk_files().locate(&ranges_path(&path))) {
                    Ok(bytes) => Some(bytes),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    Err(e) => return Err(failed(e)),
                };
                evidence.unsynced = files.chunk_files().locate(&unsynced_path(&path)).exists();
                evidence.path = Some(path);
                break;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(evidence)
}
