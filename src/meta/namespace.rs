//! Names: what a directory holds, and the way from a path to an inode and back.
//!
//! Owns: valid names, rows of `dirent`, the times of a directory whose names change, the root.
//! Does not own: transactions that change names (`create`, `remove`, `rename`), listing (`readdir`).

use rusqlite::{Connection, OptionalExtension, params};
use rustix::io::Errno;

use super::cache::Known;
use super::inode::Inode;
use super::{Error, Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::format::record::{Change, Dentry};
use crate::id::{Generation, InodeId, Seq};

/// Bytes of the longest name.
pub const NAME_MAX: usize = 255;

/// A name that a directory may hold: 1–255 bytes, no `/`, no NUL, not `.` or `..`. Whoever has one need not check again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks `bytes`: `ENAMETOOLONG` or `EINVAL` if no directory can hold that name.
    pub fn new(bytes: &'a [u8]) -> std::result::Result<Name<'a>, Errno> {
        match bytes {
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(Errno::INVAL),
            bytes => Ok(Name(bytes)),
        }
    }

    /// The bytes of the name.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// A name in a directory, by reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub parent: InodeId,
    pub name: Name<'a>,
}

impl Place<'_> {
    pub(super) fn dentry(&self) -> Dentry {
        Dentry { parent: self.parent, name: self.name.0.to_vec() }
    }
}

/// The inode that has this name, or `None`.
pub(super) fn find_entry(conn: &Connection, place: Place<'_>) -> Result<Option<InodeId>> {
    Ok(conn
        .prepare_cached("SELECT ino FROM dirent WHERE parent = ?1 AND name = ?2")?
        .query_row(params![place.parent, place.name.0], |row| row.get(0))
        .optional()?)
}

/// The inode that has this name; that there is none is `ENOENT`.
pub(super) fn entry(conn: &Connection, place: Place<'_>) -> Result<InodeId> {
    find_entry(conn, place)?.ok_or(Error::Refused(Errno::NOENT))
}

/// The row of the inode that a name refers to; a name without an inode is damage, not `ENOENT`.
fn named_inode(conn: &Connection, ino: InodeId) -> Result<Inode> {
    Inode::find(conn, ino)?.ok_or_else(|| nameless(ino))
}

fn nameless(ino: InodeId) -> Error {
    Error::Damaged(format!("a name refers to inode {ino}, which has no row"))
}

/// True if `directory` holds no name.
pub(super) fn is_empty(conn: &Connection, directory: InodeId) -> Result<bool> {
    Ok(!conn.prepare_cached("SELECT 1 FROM dirent WHERE parent = ?1 LIMIT 1")?.exists([directory])?)
}

/// True if `directory` is `ancestor` or lies below it.
pub(super) fn is_within(conn: &Connection, directory: InodeId, ancestor: InodeId) -> Result<bool> {
    let mut above = conn.prepare_cached("SELECT parent FROM inode WHERE ino = ?1")?;
    let mut current = directory;
    // A tree deeper than this is a cycle: names of 1 byte and paths of 4096 bytes are all that programs can make, but
    // relative paths go deeper, so the bound is generous.
    for _ in 0..1_000_000 {
        if current == ancestor {
            return Ok(true);
        }
        if current == InodeId::ROOT {
            return Ok(false);
        }
        current = above.query_row([current], |row| row.get(0))?;
    }
    Err(Error::Damaged(format!("directory {directory} has no way up to the root")))
}

impl Inode {
    /// Sets the times of a directory that gained or lost a name, as record `seq`.
    pub(super) fn names_changed(&mut self, time: Timestamp, seq: Seq) {
        (self.mtime, self.ctime, self.times_seq) = (time, time, seq);
    }

    /// Notes that record `seq` named this inode: it was linked, moved, or lost a name.
    pub(super) fn named(&mut self, time: Timestamp, seq: Seq) {
        (self.ctime, self.last_seq) = (time, seq);
    }
}

impl Tx<'_> {
    /// The row of a directory that still has a name (or is the root): only there may names come and go.
    pub(super) fn directory(&self, ino: InodeId) -> Result<Inode> {
        match self.inode(ino)? {
            inode if !inode.is_dir() => Err(Errno::NOTDIR.into()),
            inode if inode.nlink == 0 => Err(Errno::NOENT.into()),
            inode => Ok(inode),
        }
    }

    /// The row of the inode that a name refers to; a name without an inode is damage, not `ENOENT`.
    pub(super) fn named_inode(&self, ino: InodeId) -> Result<Inode> {
        self.find_inode(ino)?.ok_or_else(|| nameless(ino))
    }

    pub(super) fn insert_entry(&mut self, place: Place<'_>, ino: InodeId) -> Result<()> {
        let cookie = self.next_cookie();
        self.conn()
            .prepare_cached("INSERT INTO dirent (parent, name, ino, cookie) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![place.parent, place.name.0, ino, cookie])?;
        Ok(())
    }

    pub(super) fn delete_entry(&mut self, place: Place<'_>) -> Result<()> {
        self.conn()
            .prepare_cached("DELETE FROM dirent WHERE parent = ?1 AND name = ?2")?
            .execute(params![place.parent, place.name.0])?;
        Ok(())
    }

    /// Makes the root directory of a new filesystem. Its record is the first of all: `setattr` on inode 1.
    pub fn make_root(&mut self, mode: u32, uid: u32, gid: u32, time: Timestamp) -> Result<Inode> {
        let change = Change::Setattr {
            ino: InodeId::ROOT,
            mode: Some(libc::S_IFDIR | mode & 0o7777),
            uid: Some(uid),
            gid: Some(gid),
            atime: Some(time),
            mtime: Some(time),
            ctime: time,
        };
        let seq = self.append(&change)?;
        assert_eq!(seq, Seq(1), "the root is made first, in an empty store");
        let inode = Inode {
            ino: InodeId::ROOT,
            mode: libc::S_IFDIR | mode & 0o7777,
            uid,
            gid,
            rdev: 0,
            nlink: 2,
            size: 0,
            generation: Generation(0),
            atime: time,
            mtime: time,
            ctime: time,
            times_seq: seq,
            manifest: None,
            last_seq: seq,
            parent: InodeId::ROOT,
            allocated: 0,
        };
        inode.insert(self)?;
        Ok(inode)
    }
}

impl Meta {
    /// The inode that `parent` has under this name; `ENOENT` if it has none.
    pub fn lookup(&self, place: Place<'_>) -> Result<Inode> {
        let moment = self.cache.moment();
        let found = self.read(|conn| find_entry(conn, place)?.map(|ino| named_inode(conn, ino)).transpose())?;
        if let Some(inode) = found {
            self.cache.bring(moment, [Known { inode, xattrs: None }]);
            return Ok(inode);
        }
        // Was it a directory at all?
        match self.inode(place.parent)? {
            parent if parent.is_dir() => Err(Errno::NOENT.into()),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// The inode at `path`, which is relative to the root, with or without a leading slash. Symbolic links are not
    /// followed; `.` and `..` are refused.
    pub fn resolve(&self, path: &[u8]) -> Result<Inode> {
        self.read(|conn| {
            let mut inode = Inode::get(conn, InodeId::ROOT)?;
            for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
                if !inode.is_dir() {
                    return Err(Errno::NOTDIR.into());
                }
                let place = Place { parent: inode.ino, name: Name::new(name)? };
                inode = named_inode(conn, entry(conn, place)?)?;
            }
            Ok(inode)
        })
    }

    /// A path of `ino` from the root, without a leading slash (the root's is empty). `None` if it has no name, or if
    /// its newest name went while an older one stayed: names are not searched for, because that reads every directory.
    pub fn path_of(&self, ino: InodeId) -> Result<Option<Vec<u8>>> {
        self.read(|conn| {
            let mut names: Vec<Vec<u8>> = Vec::new();
            let mut current = ino;
            while current != InodeId::ROOT {
                let Some(inode) = Inode::find(conn, current)? else { return Ok(None) };
                let name = conn
                    .prepare_cached("SELECT name FROM dirent WHERE parent = ?1 AND ino = ?2 LIMIT 1")?
                    .query_row(params![inode.parent, current], |row| row.get(0))
                    .optional()?;
                let Some(name) = name else { return Ok(None) };
                names.push(name);
                current = inode.parent;
            }
            names.reverse();
            Ok(Some(names.join(&b'/')))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_1_to_255_bytes_without_slash_and_nul_and_no_dots() {
        let check = |name: &[u8]| Name::new(name).map(|_| ());
        assert_eq!(check(&[b'a'; 255]), Ok(()));
        assert_eq!(check(b"..."), Ok(()));
        assert_eq!(check(b"\xff\n"), Ok(()));
        assert_eq!(check(&[b'a'; 256]), Err(Errno::NAMETOOLONG));
        for bad in [b"".as_slice(), b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(check(bad), Err(Errno::INVAL), "{bad:?}");
        }
    }
}
