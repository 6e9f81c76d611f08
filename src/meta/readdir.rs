//! Listing a directory, page by page.
//!
//! Owns: the order of entries and the place in it where a page ends.
//! Does not own: `.` and `..` (`vfs::readdir`).
//!
//! An entry's cookie is drawn from a counter when the name comes, so entries lie in order of naming, and a name that
//! stays is listed exactly once however many others come and go between two pages.

use rusqlite::params;

use super::cache::Known;
use super::inode::Inode;
use super::{Meta, Result};
use crate::id::InodeId;

/// A name in a directory and the inode it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    /// The next page starts after this.
    pub cookie: i64,
    pub inode: Inode,
}

impl Meta {
    /// Up to `limit` entries of `directory` after `cookie` (0 = from the start), in order of their cookies.
    pub fn read_dir(&self, directory: InodeId, cookie: i64, limit: usize) -> Result<Vec<Entry>> {
        use std::sync::LazyLock;
        static SQL: LazyLock<String> = LazyLock::new(|| {
            let columns: Vec<String> = Inode::COLUMNS.split(", ").map(|column| format!("i.{column}")).collect();
            format!(
                "SELECT {}, d.name, d.cookie, EXISTS (SELECT 1 FROM xattr x WHERE x.ino = i.ino) FROM dirent d JOIN inode i ON i.ino = d.ino \
                 WHERE d.parent = ?1 AND d.cookie > ?2 ORDER BY d.cookie LIMIT ?3",
                columns.join(", ")
            )
        });
        let moment = self.cache.moment();
        let (entries, known): (Vec<Entry>, Vec<Known>) = self.read(|conn| {
            let mut select = conn.prepare_cached(&SQL)?;
            let rows = select.query_map(params![directory, cookie, limit as i64], |row| {
                let inode = Inode::from_row(row)?;
                let entry =
                    Entry { inode, name: row.get(Inode::COLUMN_COUNT)?, cookie: row.get(Inode::COLUMN_COUNT + 1)? };
                Ok((entry, Known { inode, xattrs: Some(row.get(Inode::COLUMN_COUNT + 2)?) }))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        // Whoever lists a directory asks for its files next.
        self.cache.bring(moment, known);
        Ok(entries)
    }
}
