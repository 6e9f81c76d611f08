//! Chunk files: the local files that writes land in and chunks are uploaded from.
//!
//! Owns: their names and places in the state directory, creating, opening and removing them, syncing their directories.
//! Does not own: which bytes of them mean what (`meta::location`, `write::ranges`).
//!
//! ```text
//! chunks/<2 hex>/<session>-<inode>-<base generation>-<whole|edit>          one session's bytes at their own offsets
//! chunks/<2 hex>/<session>-<inode>-<base generation>-<whole|edit>.ranges   which of them are dirty, for an edit
//! chunks/<2 hex>/<session>-<inode>-<base generation>-<whole|edit>.unsynced empty: a sync of it failed, see `Files::sync_failed`
//! fetched/<2 hex>/<hash>                                                   one chunk that came back from a target
//! ```
//!
//! A name is its file's header (S7): it says what the file is when no row does. State lives in rows; a file keeps its name
//! for life (S2).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::group::GroupSync;
use super::lend::Lending;
use crate::id::{ChunkHash, Generation, InodeId, SessionId};
use crate::testing::failpoint::{self, Point};

/// The chunk files of one state directory.
#[derive(Debug, Clone)]
pub struct ChunkFiles {
    state_dir: PathBuf,
    folders: Arc<Folders>,
    lending: Arc<Lending>,
}

/// The folders of chunk files, a few hundred, each with its new entries and how far these are synced.
type Folders = Mutex<HashMap<PathBuf, Arc<GroupSync>>>;

/// What a chunk file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionName {
    pub session: SessionId,
    pub ino: InodeId,
    pub base: Generation,
    pub whole: bool,
}

impl SessionName {
    /// The name relative to the state directory. Sessions of a moment share a folder, and so the sync of their entries (S1).
    pub fn path(&self) -> String {
        self.path_in(self.session.0 >> 8)
    }

    /// Where it lay in earlier state directories.
    pub fn earlier_path(&self) -> String {
        self.path_in(self.session.0)
    }

    fn path_in(&self, folder: u64) -> String {
        let SessionName { session, ino, base, whole } = self;
        let kind = if *whole { "whole" } else { "edit" };
        let (session, ino, base) = (session.0, ino.0, base.0);
        format!("chunks/{:02x}/{session:016x}-{ino:x}-{base:x}-{kind}", folder & 0xff)
    }

    /// Reads a file name (its last component); `None` if it is not of this form.
    pub fn parse(file_name: &OsStr) -> Option<SessionName> {
        let mut parts = file_name.to_str()?.split('-');
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (session, ino, base) = (SessionId(number()?), InodeId(number()?), Generation(number()?));
        let whole = match parts.next()? {
            "whole" => true,
            "edit" => false,
            _ => return None,
        };
        parts.next().is_none().then_some(SessionName { session, ino, base, whole })
    }
}

/// The name of the file that records the dirty ranges of an edit session.
pub fn ranges_path(path: &str) -> String {
    format!("{path}.ranges")
}

/// The name of the file that says that a sync of a session's file failed.
pub fn unsynced_path(path: &str) -> String {
    format!("{path}.unsynced")
}

/// The name of a fetched chunk, relative to the state directory.
pub fn fetched_path(hash: &ChunkHash) -> String {
    format!("fetched/{:02x}/{hash}", hash.0[0])
}

impl ChunkFiles {
    /// The chunk files below `state_dir`; makes its folders.
    pub fn new(state_dir: &Path) -> io::Result<ChunkFiles> {
        let files = ChunkFiles { state_dir: state_dir.to_owned(), folders: Arc::default(), lending: Arc::default() };
        for folder in ["chunks", "fetched", "quarantine"] {
            files.make_folder(folder)?;
        }
        Ok(files)
    }

    /// Where `path`, relative to the state directory, lies.
    pub fn locate(&self, path: &str) -> PathBuf {
        self.state_dir.join(path)
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Which files the kernel reads by itself.
    pub fn lending(&self) -> &Arc<Lending> {
        &self.lending
    }

    /// Creates a file that must not exist, for reading and writing.
    pub fn create(&self, path: &str) -> io::Result<File> {
        let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.locate(path));
        let folder = Path::new(path).parent().and_then(Path::to_str).unwrap_or_default();
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_folder(folder)?;
                open()
            }
            result => result,
        };
        if file.is_ok() {
            self.folder(&self.locate(folder)).changed();
        }
        file
    }

    /// Keeps bytes in quarantine, for people to look at. What is kept there under this name already stays.
    pub fn quarantine(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write;
        match self.create(&format!("quarantine/{name}")) {
            Ok(mut file) => file.write_all(bytes),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a file that no row names another name.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let folder = Path::new(to).parent().and_then(Path::to_str).unwrap_or_default();
        self.make_folder(folder)?;
        std::fs::rename(self.locate(from), self.locate(to))
    }

    /// Gives a file one more name, which must be new.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let folder = Path::new(to).parent().and_then(Path::to_str).unwrap_or_default();
        self.make_folder(folder)?;
        std::fs::hard_link(self.locate(from), self.locate(to))?;
        self.folder(&self.locate(folder)).changed();
        Ok(())
    }

    /// A file without a name, to try what the filesystem can.
    pub fn nameless(&self) -> io::Result<File> {
        let path = self.locate(&format!("probe-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    /// Opens a file for reading.
    pub fn open(&self, path: &str) -> io::Result<File> {
        File::open(self.locate(path))
    }

    /// Removes a file; that there is none is fine.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        match std::fs::remove_file(self.locate(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Makes the directory entry of `path` survive a power cut, and those of its folders. Shared with all who wait for the
    /// same folder; one that nothing came into since its last sync is left alone.
    pub fn sync_entry(&self, path: &str) -> io::Result<()> {
        let path = self.locate(path);
        for folder in path.ancestors().skip(1).take(3) {
            self.folder(folder).wait(|| {
                failpoint::check(Point::SyncEntry)?;
                File::open(folder)?.sync_all()
            })?;
        }
        Ok(())
    }

    fn folder(&self, folder: &Path) -> Arc<GroupSync> {
        let mut folders = self.folders.lock();
        match folders.get(folder) {
            Some(known) => known.clone(),
            // Of an earlier mount nobody knows what it synced.
            None => folders.entry(folder.to_owned()).or_insert_with(|| Arc::new(GroupSync::unknown())).clone(),
        }
    }

    /// Notes beside a session's file that a sync of it failed: the next mount counts only what an earlier sync covered.
    pub fn mark_unsynced(&self, path: &str) -> io::Result<()> {
        File::create(self.locate(&unsynced_path(path)))?.sync_all()
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = self.locate(folder);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        folder.parent().into_iter().for_each(|parent| self.folder(parent).changed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_the_file_is() {
        let name =
            SessionName { session: SessionId(0x1_0000_00ab), ino: InodeId(0x20), base: Generation(3), whole: false };
        assert_eq!(name.path(), "chunks/00/00000001000000ab-20-3-edit");
        assert_eq!(name.earlier_path(), "chunks/ab/00000001000000ab-20-3-edit");
        let file_name = name.path().rsplit('/').next().map(OsStr::new).and_then(SessionName::parse);
        assert_eq!(file_name, Some(name));
        for foreign in ["", "x", "00000001000000ab-20-3", "00000001000000ab-20-3-edit.ranges", "1-2-3-whole-4"] {
            assert_eq!(SessionName::parse(OsStr::new(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn a_missing_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let files = ChunkFiles::new(dir.path()).unwrap();
        files.create("chunks/ab/x").unwrap();
        assert!(files.create("chunks/ab/x").is_err(), "a chunk file is never taken over");
        files.sync_entry("chunks/ab/x").unwrap();
        files.remove("chunks/ab/x").unwrap();
        files.remove("chunks/ab/x").unwrap();
    }
}
