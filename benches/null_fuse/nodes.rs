//! Node numbers ↔ paths. A node knows its directory and its name there; its path is put together when it is needed.
//!
//! A number is drawn for each name that the kernel learns, and goes when the kernel forgets it. Two hard links that were
//! there before the mount are two nodes; one made through the mount shares the node that it was made from.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::DirEntry;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{FileAttr, FileHandle, FileType};
use parking_lot::Mutex;

use super::{attr, check, files, kind, names};

const ROOT: u64 = 1;

pub struct Nodes {
    source: PathBuf,
    table: Mutex<Table>,
}

struct Table {
    next: u64,
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, OsString), u64>,
    /// Directories that are being listed: as they were when the listing began.
    listings: HashMap<u64, Arc<Vec<Entry>>>,
}

struct Node {
    parent: u64,
    name: OsString,
    lookups: u64,
}

/// A name in a directory.
pub struct Entry {
    pub name: OsString,
    pub kind: FileType,
}

impl Nodes {
    pub fn new(source: &Path) -> Nodes {
        let table = Table { next: ROOT + 1, nodes: HashMap::new(), names: HashMap::new(), listings: HashMap::new() };
        Nodes { source: source.to_owned(), table: Mutex::new(table) }
    }

    /// Where a node lies in the source directory.
    pub fn path(&self, ino: u64) -> PathBuf {
        let table = self.table.lock();
        let mut names = Vec::new();
        let mut at = ino;
        // A node without a row was removed; a path that leads nowhere is the answer then.
        while let Some(node) = table.nodes.get(&at) {
            names.push(node.name.as_os_str());
            at = node.parent;
        }
        let mut path = self.source.clone();
        path.extend(names.iter().rev());
        path
    }

    /// Where `name` in a directory lies.
    pub fn child_path(&self, parent: u64, name: &OsStr) -> PathBuf {
        let mut path = self.path(parent);
        path.push(name);
        path
    }

    /// `stat` of a node, by its open file if there is one.
    pub fn stat(&self, ino: u64, handle: Option<FileHandle>) -> io::Result<FileAttr> {
        match handle {
            Some(handle) => Ok(attr(ino, &stat_open(handle)?)),
            None => Ok(attr(ino, &names::stat(&self.path(ino))?)),
        }
    }

    /// Finds a name; the kernel holds one lookup more of its node.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> io::Result<FileAttr> {
        let stat = names::stat(&self.child_path(parent, name))?;
        Ok(attr(self.known(parent, name), &stat))
    }

    /// The node of a file that was just created and opened.
    pub fn created(&self, parent: u64, name: &OsStr, handle: FileHandle) -> io::Result<FileAttr> {
        let stat = stat_open(handle)?;
        Ok(attr(self.known(parent, name), &stat))
    }

    /// The attributes of a listed entry, for which the kernel holds a lookup unless it is `.` or `..`.
    pub fn listed(&self, parent: u64, name: &OsStr) -> io::Result<FileAttr> {
        if name == "." || name == ".." {
            return Ok(attr(parent, &names::stat(&self.path(parent))?));
        }
        self.lookup(parent, name)
    }

    /// An entry did not fit into the reply.
    pub fn unlisted(&self, ino: u64, name: &OsStr) {
        if name != "." && name != ".." {
            self.forget(ino, 1);
        }
    }

    /// `ino` has one more name.
    pub fn linked(&self, ino: u64, parent: u64, name: &OsStr) -> io::Result<FileAttr> {
        let stat = names::stat(&self.child_path(parent, name))?;
        let mut table = self.table.lock();
        table.names.insert((parent, name.to_owned()), ino);
        if let Some(node) = table.nodes.get_mut(&ino) {
            (node.parent, node.name) = (parent, name.to_owned());
            node.lookups += 1;
        }
        Ok(attr(ino, &stat))
    }

    fn known(&self, parent: u64, name: &OsStr) -> u64 {
        let mut table = self.table.lock();
        let table = &mut *table;
        let ino = *table.names.entry((parent, name.to_owned())).or_insert_with(|| {
            table.next += 1;
            table.next - 1
        });
        let fresh = || Node { parent, name: name.to_owned(), lookups: 0 };
        table.nodes.entry(ino).or_insert_with(fresh).lookups += 1;
        ino
    }

    /// A name is gone.
    pub fn removed(&self, parent: u64, name: &OsStr) {
        self.table.lock().names.remove(&(parent, name.to_owned()));
    }

    /// A name has moved.
    pub fn renamed(&self, from: (u64, &OsStr), to: (u64, &OsStr)) {
        let mut table = self.table.lock();
        table.names.remove(&(to.0, to.1.to_owned()));
        if let Some(ino) = table.names.remove(&(from.0, from.1.to_owned())) {
            table.names.insert((to.0, to.1.to_owned()), ino);
            if let Some(node) = table.nodes.get_mut(&ino) {
                (node.parent, node.name) = (to.0, to.1.to_owned());
            }
        }
    }

    /// The kernel holds `lookups` fewer of a node.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut table = self.table.lock();
        let Some(node) = table.nodes.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let Some(Node { parent, name, .. }) = table.nodes.remove(&ino) else { return };
            let place = (parent, name);
            if table.names.get(&place) == Some(&ino) {
                table.names.remove(&place);
            }
        }
    }

    /// The names in a directory, as they were when a listing of it last began at 0.
    pub fn list(&self, ino: u64, offset: u64) -> io::Result<Arc<Vec<Entry>>> {
        let under_way = self.table.lock().listings.get(&ino).filter(|_| offset > 0).cloned();
        if let Some(list) = under_way {
            if offset >= list.len() as u64 {
                self.table.lock().listings.remove(&ino);
            }
            return Ok(list);
        }
        let entry = |entry: io::Result<DirEntry>| -> io::Result<Entry> {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(kind(libc::S_IFREG));
            Ok(Entry { name: entry.file_name(), kind })
        };
        let dots = [".", ".."].map(|name| Ok(Entry { name: name.into(), kind: FileType::Directory }));
        let rest = std::fs::read_dir(self.path(ino))?.map(entry);
        let list: Arc<Vec<Entry>> = Arc::new(dots.into_iter().chain(rest).collect::<io::Result<_>>()?);
        self.table.lock().listings.insert(ino, list.clone());
        Ok(list)
    }
}

fn stat_open(handle: FileHandle) -> io::Result<libc::stat> {
    // SAFETY: the descriptor is open, `stat` plain numbers that the call fills in.
    unsafe {
        let mut stat = std::mem::zeroed();
        check(libc::fstat(files::borrow(handle).as_raw_fd(), &mut stat).into())?;
        Ok(stat)
    }
}
