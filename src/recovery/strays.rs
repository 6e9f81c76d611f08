//! Files that no row knows (S7): they are moved to `quarantine/`, never deleted.
//!
//! A file without a row was never acknowledged: its session took no slot, or its fetch was cut off. It is looked for in the
//! background, so that a mount does not wait for a large directory.

use std::ffi::OsStr;
use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::chunk::file::{ChunkFiles, SessionName};
use crate::clock::{self, Timestamp};
use crate::id::SessionId;
use crate::meta::Meta;

/// Seconds for which a fetched file without a row may be one that is being written.
const FETCH_AGE: i64 = 600;

/// Moves strays of earlier mounts to quarantine; returns how many. `first_session`: the first session of this mount, whose
/// files are none of our business. `is_read`: true of a session that was committed a moment ago, whose file is read until
/// its layer goes. `pause` is called now and then, and may block.
pub fn quarantine(
    meta: &Meta,
    files: &ChunkFiles,
    first_session: SessionId,
    is_read: impl Fn(SessionId) -> bool,
    pause: impl Fn(),
) -> io::Result<usize> {
    let known: std::collections::HashSet<SessionId> =
        meta.sessions().map_err(io::Error::other)?.into_iter().map(|row| row.id).collect();
    let mut moved = 0;
    for folder in ["chunks", "fetched"] {
        for shard in std::fs::read_dir(files.locate(folder))? {
            let shard = shard?;
            if !shard.file_type()?.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(shard.path())? {
                pause();
                let entry = entry?;
                let is_ours = |session| session >= first_session || known.contains(&session);
                if is_stray(meta, folder, &shard.file_name(), &entry, is_ours, &is_read)? {
                    if entry.path().extension().is_some_and(|extension| extension == "unsynced") {
                        // It said something about a session that is no more, and holds nothing.
                        std::fs::remove_file(entry.path())?;
                        continue;
                    }
                    std::fs::rename(entry.path(), files.locate("quarantine").join(entry.file_name()))?;
                    moved += 1;
                }
            }
        }
    }
    Ok(moved)
}

/// What lies in quarantine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quarantined {
    pub files: u64,
    /// On disk.
    pub bytes: u64,
    /// When the first of them came there.
    pub since: Option<Timestamp>,
}

/// Looks into quarantine.
pub fn quarantined(files: &ChunkFiles) -> io::Result<Quarantined> {
    let mut sum = Quarantined::default();
    for entry in std::fs::read_dir(files.locate("quarantine"))? {
        let file = entry?.metadata()?;
        // The move there was the last change of its inode.
        let moved = Timestamp::new(file.ctime(), 0).map_err(io::Error::other)?;
        sum.files += 1;
        sum.bytes += file.blocks() * 512;
        sum.since = Some(sum.since.map_or(moved, |since| since.min(moved)));
    }
    Ok(sum)
}

fn is_stray(
    meta: &Meta,
    folder: &str,
    shard: &OsStr,
    entry: &DirEntry,
    is_ours: impl Fn(SessionId) -> bool,
    is_read: impl Fn(SessionId) -> bool,
) -> io::Result<bool> {
    let file_name = entry.file_name();
    let Some(text) = file_name.to_str() else { return Ok(true) };
    let base = text.strip_suffix(".ranges").or(text.strip_suffix(".unsynced")).unwrap_or(text);
    let session = SessionName::parse(OsStr::new(base));
    // Asked last: of most files the name or a row says enough.
    let is_layer = || session.as_ref().is_some_and(|name| is_read(name.session));
    if let Some(name) = &session {
        if is_ours(name.session) {
            return Ok(false);
        }
        if base != text {
            // The record of a session that was committed: of no more use, yet nothing is deleted here.
            return Ok(!is_layer());
        }
    } else if folder == "fetched"
        && clock::now().secs() - Timestamp::from(entry.metadata()?.modified()?).secs() < FETCH_AGE
    {
        // A fetch of this mount may be writing it right now; its row follows.
        return Ok(false);
    }
    let path = format!("{folder}/{}/{text}", shard.to_string_lossy());
    let has_row = meta.has_chunk_file(&path).map_err(io::Error::other)?;
    Ok(!has_row && !is_layer())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Generation, InodeId};

    #[test]
    fn s7_files_without_rows_go_to_quarantine_and_those_of_this_mount_stay() {
        let (dir, meta) = crate::meta::testing::store();
        let files = ChunkFiles::new(dir.path()).unwrap();
        let name =
            |session| SessionName { session: SessionId(session), ino: InodeId(2), base: Generation(0), whole: true };
        for session in [5, 100] {
            files.create(&name(session).path()).unwrap();
        }
        std::fs::write(files.locate(&name(5).path()), [7; 5000]).unwrap();
        assert_eq!(quarantined(&files).unwrap(), Quarantined::default());
        assert_eq!(quarantine(&meta, &files, SessionId(100), |read| read == SessionId(5), || ()).unwrap(), 0);
        assert_eq!(quarantine(&meta, &files, SessionId(100), |_| false, || ()).unwrap(), 1);
        let found = quarantined(&files).unwrap();
        assert_eq!((found.files, found.bytes >= 5000, found.since.is_some()), (1, true, true), "{found:?}");
        assert!(!files.locate(&name(5).path()).exists());
        assert!(files.locate("quarantine").join("0000000000000005-2-0-whole").exists());
        assert!(files.locate(&name(100).path()).exists());
        assert_eq!(quarantine(&meta, &files, SessionId(100), |_| false, || ()).unwrap(), 0, "twice is once");
    }
}
