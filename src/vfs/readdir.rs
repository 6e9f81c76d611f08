//! Listing directories: `readdir`, `readdirplus`.
//!
//! An offset is the place after an entry: 1 after `.`, 2 after `..`, 2 + cookie after any other (`meta::readdir`).

use super::{Attributes, Result, Vfs, errno};
use crate::id::InodeId;

/// Rows read at once: about what one reply takes.
const PAGE: usize = 128;
const PAGE_WITH_ATTRIBUTES: usize = 32;

/// An entry of a listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    /// Where the listing goes on after this entry.
    pub offset: u64,
    /// With size and times as a live session knows them, if asked for.
    pub attributes: Attributes,
}

impl Vfs {
    /// Calls `add` with the entries of `ino` after `offset` until it returns true (the reply is full). With `live` the
    /// attributes are those that `stat` would show, else only inode number and type may be used.
    pub fn read_dir(
        &self,
        ino: InodeId,
        offset: u64,
        live: bool,
        mut add: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let refused = |error: crate::meta::Error| errno("readdir", ino, &error);
        let mut offset = offset;
        if offset < 2 {
            let directory = self.meta.inode(ino).map_err(refused)?;
            let parent = self.meta.inode(directory.parent).unwrap_or(directory);
            for (name, inode) in [(b".".as_slice(), directory), (b"..", parent)].into_iter().skip(offset as usize) {
                offset += 1;
                if add(DirEntry { name, offset, attributes: Attributes { inode, blocks: 0 } }) {
                    return Ok(());
                }
            }
        }
        let limit = if live { PAGE_WITH_ATTRIBUTES } else { PAGE };
        loop {
            let cookie = i64::try_from(offset - 2).unwrap_or(i64::MAX);
            let page = self.meta.read_dir(ino, cookie, limit).map_err(refused)?;
            for entry in &page {
                offset = entry.cookie as u64 + 2;
                let attributes =
                    if live { self.attributes(entry.inode) } else { Attributes { inode: entry.inode, blocks: 0 } };
                if add(DirEntry { name: &entry.name, offset, attributes }) {
                    return Ok(());
                }
            }
            if page.len() < limit {
                return Ok(());
            }
        }
    }
}
