//! Extended attributes (xattr(7)).
//!
//! Owns: their rows and records, limits, the attributes `user.tandemfs.*`, that setting an access control list changes
//! the mode.
//! Does not own: the virtual attribute `user.tandemfs.targets` (`vfs::xattr` asks for it).

use rusqlite::{Connection, OptionalExtension, params};
use rustix::io::Errno;

use super::acl::{self, Acl};
use super::cache::Known;
use super::inode::Inode;
use super::{Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::config::Stated;
use crate::format::record::Change;
use crate::id::InodeId;

/// Virtual: where a file is safe. Not stored, not listed, so that copies do not carry it.
pub const TARGETS: &[u8] = b"user.tandemfs.targets";
/// Stored: the acknowledgement policy of a file or directory; it travels with the data.
pub const POLICY: &[u8] = b"user.tandemfs.policy";
/// SELinux' label of a file.
pub const LABEL: &[u8] = b"security.selinux";
/// All attributes that start so are ours.
const OURS: &[u8] = b"user.tandemfs.";

/// Bytes of the longest name, and of the longest value (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 64 * 1024;
/// Bytes of all names of an inode, each with a NUL (`XATTR_LIST_MAX`): more could never be listed.
const LIST_MAX: usize = 64 * 1024;

/// What `setxattr` may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMode {
    /// Make it or replace it.
    Any,
    /// `XATTR_CREATE`: `EEXIST` if it is there.
    Create,
    /// `XATTR_REPLACE`: `ENODATA` if it is not.
    Replace,
}

/// An attribute that shall be set.
#[derive(Debug, Clone, Copy)]
pub struct SetXattr<'a> {
    pub ino: InodeId,
    pub name: &'a [u8],
    pub value: &'a [u8],
    pub mode: SetMode,
    /// An access control list set by somebody outside the file's group takes its set-gid bit away.
    pub clear_set_gid: bool,
    pub time: Timestamp,
}

/// The value of an attribute, or `None`.
fn find(conn: &Connection, ino: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
    Ok(conn
        .prepare_cached("SELECT value FROM xattr WHERE ino = ?1 AND name = ?2")?
        .query_row(params![ino, name], |row| row.get(0))
        .optional()?)
}

/// Writes a row, without a record.
pub(super) fn store(tx: &Tx<'_>, ino: InodeId, name: &[u8], value: &[u8]) -> Result<()> {
    tx.conn()
        .prepare_cached(
            "INSERT INTO xattr (ino, name, value) VALUES (?1, ?2, ?3) ON CONFLICT (ino, name) DO UPDATE SET value = ?3",
        )?
        .execute(params![ino, name, value])?;
    tx.changes().xattrs_changed(ino);
    Ok(())
}

fn delete(tx: &Tx<'_>, ino: InodeId, name: &[u8]) -> Result<()> {
    tx.conn().prepare_cached("DELETE FROM xattr WHERE ino = ?1 AND name = ?2")?.execute(params![ino, name])?;
    tx.changes().xattrs_changed(ino);
    Ok(())
}

/// True if an attribute of this name can exist at all.
pub fn is_supported(name: &[u8]) -> bool {
    let prefixes = [b"user.".as_slice(), b"trusted.", b"security."];
    !name.contains(&0) && (name == acl::ACCESS || name == acl::DEFAULT || prefixes.iter().any(|p| name.starts_with(p)))
}

/// Names that can be set or removed, by anybody.
fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        Err(Errno::RANGE.into())
    } else if name == TARGETS {
        Err(Errno::PERM.into())
    } else if name.starts_with(OURS) && name != POLICY {
        Err(Errno::INVAL.into())
    } else if !is_supported(name) {
        Err(Errno::OPNOTSUPP.into())
    } else if name.ends_with(b".") && name.iter().filter(|&&byte| byte == b'.').count() == 1 {
        // Only a prefix.
        Err(Errno::INVAL.into())
    } else {
        Ok(())
    }
}

/// A policy is what [`Stated`] can read.
fn check_policy(value: &[u8]) -> Result<()> {
    let stated = std::str::from_utf8(value).ok().and_then(|text| text.parse::<Stated>().ok());
    stated.map(drop).ok_or_else(|| Errno::INVAL.into())
}

impl Meta {
    /// True if any file has a label of SELinux.
    pub fn has_labels(&self) -> Result<bool> {
        self.read(|conn| Ok(conn.prepare_cached("SELECT 1 FROM xattr WHERE name = ?1")?.exists([LABEL])?))
    }

    /// The acknowledgement policies that files and directories state. One that cannot be read (another version wrote it)
    /// states nothing.
    pub fn stated_policies(&self) -> Result<Vec<(InodeId, Stated)>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT ino, value FROM xattr WHERE name = ?1")?;
            let rows = statement.query_map([POLICY], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            let stated = |value: Vec<u8>| std::str::from_utf8(&value).ok()?.parse().ok();
            rows.filter_map(|row| row.map(|(ino, value)| Some((ino, stated(value)?))).transpose())
                .map(|row| Ok(row?))
                .collect()
        })
    }
}

impl Tx<'_> {
    /// Sets an attribute. Returns the inode: an access control list may have changed its mode.
    pub fn set_xattr(&mut self, request: &SetXattr<'_>) -> Result<Inode> {
        let SetXattr { ino, name, value, mode, clear_set_gid, time } = *request;
        check_name(name)?;
        if value.len() > VALUE_MAX {
            return Err(Errno::TOOBIG.into());
        }
        if name == POLICY {
            check_policy(value)?;
        }
        let mut inode = Inode::get(self.conn(), ino)?;
        let had = self.find_xattr(ino, name)?;
        match (mode, &had) {
            (SetMode::Create, Some(_)) => return Err(Errno::EXIST.into()),
            (SetMode::Replace, None) => return Err(Errno::NODATA.into()),
            _ => {}
        }
        // What is stored: the value, or nothing for a list that says no more than the mode.
        let (new_mode, stored) = if name == acl::ACCESS {
            let list = Acl::decode(value)?;
            let permissions = list.as_ref().map_or(inode.mode & 0o777, Acl::permissions);
            let kept = if clear_set_gid { inode.mode & !0o777 & !libc::S_ISGID } else { inode.mode & !0o777 };
            (Some(kept | permissions), list.is_some_and(|list| !list.is_minimal()))
        } else if name == acl::DEFAULT {
            let list = Acl::decode(value)?;
            if list.is_some() && !inode.is_dir() {
                return Err(Errno::ACCESS.into());
            }
            (None, list.is_some())
        } else {
            (None, true)
        };
        if stored && had.is_none() && self.listed_bytes(ino)? + name.len() + 1 > LIST_MAX {
            return Err(Errno::NOSPC.into());
        }
        inode.ctime = time;
        let changed_mode = new_mode.filter(|mode| *mode != inode.mode);
        inode.mode = new_mode.unwrap_or(inode.mode);
        if stored {
            store(self, ino, name, value)?;
            self.record(
                &mut inode,
                Change::Setxattr { ino, name: name.to_vec(), value: value.to_vec(), mode: changed_mode, ctime: time },
            )?;
        } else {
            if had.is_some() {
                delete(self, ino, name)?;
                self.record(&mut inode, Change::Removexattr { ino, name: name.to_vec(), ctime: time })?;
            }
            if changed_mode.is_some() {
                let (uid, gid, atime, mtime) = (None, None, None, None);
                self.record(
                    &mut inode,
                    Change::Setattr { ino, mode: changed_mode, uid, gid, atime, mtime, ctime: time },
                )?;
            }
        }
        inode.update(self)?;
        Ok(inode)
    }

    /// Removes an attribute: `ENODATA` if it is not there, but for access control lists, which everything has: one that
    /// says no more than the mode.
    pub fn remove_xattr(&mut self, ino: InodeId, name: &[u8], time: Timestamp) -> Result<Inode> {
        check_name(name)?;
        let mut inode = Inode::get(self.conn(), ino)?;
        if self.find_xattr(ino, name)?.is_none() {
            let is_list = name == acl::ACCESS || name == acl::DEFAULT;
            return if is_list { Ok(inode) } else { Err(Errno::NODATA.into()) };
        }
        delete(self, ino, name)?;
        inode.ctime = time;
        self.record(&mut inode, Change::Removexattr { ino, name: name.to_vec(), ctime: time })?;
        inode.update(self)?;
        Ok(inode)
    }

    /// Appends a record about an inode, if it still has a name.
    fn record(&mut self, inode: &mut Inode, change: Change) -> Result<()> {
        if inode.nlink > 0 {
            inode.last_seq = self.append(&change)?;
        }
        Ok(())
    }

    /// The value of an attribute as this transaction has left it, or `None`.
    pub(super) fn find_xattr(&self, ino: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if !self.changes().has_xattrs_of(ino) && self.has_no_xattrs(ino) {
            return Ok(None);
        }
        find(self.conn(), ino, name)
    }

    fn listed_bytes(&self, ino: InodeId) -> Result<usize> {
        let bytes: i64 = self
            .conn()
            .prepare_cached("SELECT coalesce(sum(length(name) + 1), 0) FROM xattr WHERE ino = ?1")?
            .query_row([ino], |row| row.get(0))?;
        Ok(bytes as usize)
    }
}

impl Meta {
    /// The value of a stored attribute: `ENODATA` if it is not there.
    pub fn xattr(&self, ino: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        // `ls -l` asks for two of each file that it lists, and most files have none.
        let (known, moment) = self.cache.look(ino);
        if let Some(Known { xattrs: Some(false), .. }) = known {
            return Err(Errno::NODATA.into());
        }
        let (value, any) = self.read(|conn| {
            let value = find(conn, ino, name)?;
            let mut any = conn.prepare_cached("SELECT 1 FROM xattr WHERE ino = ?1")?;
            let any = value.is_some() || any.exists([ino])?;
            Ok((value, any))
        })?;
        self.cache.bring(moment, known.map(|known| Known { xattrs: Some(any), ..known }));
        value.ok_or(Errno::NODATA.into())
    }

    /// The names of all stored attributes, ascending.
    pub fn xattr_names(&self, ino: InodeId) -> Result<Vec<Vec<u8>>> {
        if let Some(Known { xattrs: Some(false), .. }) = self.cache.find(ino) {
            return Ok(Vec::new());
        }
        self.read(|conn| {
            let mut select = conn.prepare_cached("SELECT name FROM xattr WHERE ino = ?1 ORDER BY name")?;
            let names = select.query_map([ino], |row| row.get(0))?;
            Ok(names.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The target of a symbolic link: `EINVAL` for anything else.
    pub fn readlink(&self, ino: InodeId) -> Result<Vec<u8>> {
        self.read(|conn| {
            Ok(conn
                .prepare_cached("SELECT target FROM symlink WHERE ino = ?1")?
                .query_row([ino], |row| row.get(0))
                .optional()?
                .ok_or(Errno::INVAL)?)
        })
    }
}
