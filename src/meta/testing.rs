//! Small stores for the unit tests of `meta`.

use rusqlite::params;

use super::inode::Inode;
use super::slot::SlotRequest;
use super::{Created, Meta, Tx};
use crate::clock::Timestamp;
use crate::format::record::Change;
use crate::id::{FilesystemId, Generation, InodeId, Seq, SessionId};

/// A new store with a root directory.
pub(crate) fn store() -> (tempfile::TempDir, Meta) {
    let dir = tempfile::tempdir().unwrap();
    let created =
        Created { filesystem: FilesystemId::random(), name: "t".into(), chunk_size: 1 << 22, time: Timestamp::EPOCH };
    let meta = Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap();
    (dir, meta)
}

/// A new empty file in the root, with its `create` record.
pub(crate) fn file(tx: &mut Tx<'_>, name: &[u8]) -> InodeId {
    let ino = tx.next_inode();
    let mode = libc::S_IFREG | 0o644;
    let time = Timestamp::EPOCH;
    let seq = tx
        .append(&Change::Create {
            parent: InodeId::ROOT,
            name: name.to_vec(),
            ino,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            time,
            xattrs: vec![],
        })
        .unwrap();
    let inode = Inode {
        ino,
        mode,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        size: 0,
        generation: Generation(0),
        atime: time,
        mtime: time,
        ctime: time,
        times_seq: Seq::ZERO,
        manifest: None,
        last_seq: seq,
        parent: InodeId::ROOT,
    };
    inode.insert(tx).unwrap();
    let cookie = tx.next_cookie();
    tx.conn().execute("INSERT INTO dirent VALUES (1, ?1, ?2, ?3)", params![name, ino, cookie]).unwrap();
    ino
}

/// The request of a whole session that wrote `size` bytes.
pub(crate) fn slot_request(ino: InodeId, session: u64, size: u64) -> SlotRequest {
    let time = Timestamp::new(1_000 + size as i64, 0).unwrap();
    SlotRequest {
        ino,
        session: SessionId(session),
        base: Generation(0),
        whole: true,
        base_limit: 0,
        synced_size: None,
        size,
        mtime: time,
        ctime: time,
        fsynced: false,
    }
}
