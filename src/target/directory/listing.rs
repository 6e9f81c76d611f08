//! Walking a target directory in the order of keys.
//!
//! Owns: ascending order over the whole tree, one page at a time, with bounded memory.
//! Does not own: what the objects are.
//!
//! Keys compare as strings in which `/` is a character like others: `a-b` < `a/x` < `a0`. So a directory sorts by its name
//! with a `/` behind it, and a depth-first walk in that order meets all keys in ascending order.

use std::collections::BinaryHeap;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::place::{Place, regular};
use crate::target::Listed;

/// Entries of one directory kept in memory at a time; a larger directory is read again for the next run.
const RUN: usize = 4096;
/// Our keys have four components; a deeper tree is not ours.
const DEPTH_MAX: usize = 16;

/// A walk that ends when it has met `limit` objects.
pub(super) struct Walk<'a> {
    pub(super) place: &'a Place,
    /// Only keys greater than this.
    pub(super) after: &'a str,
    pub(super) limit: usize,
    pub(super) found: Vec<Listed>,
    /// What is no object: symlinks, devices, names that are not UTF-8.
    pub(super) skipped: u64,
}

impl Walk<'_> {
    /// Walks everything whose key starts with `prefix` (empty or ending in `/`).
    pub(super) fn run(&mut self, prefix: &str) -> Result<(), Errno> {
        match self.place.directory(prefix.strip_suffix('/').unwrap_or(prefix)) {
            Ok(dir) => self.directory(&dir, prefix, 0),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn directory(&mut self, dir: &OwnedFd, prefix: &str, depth: usize) -> Result<(), Errno> {
        let mut floor = None;
        loop {
            // What is no object is counted in the first run only, and not again for each page.
            let count_skipped = floor.is_none() && self.after <= prefix;
            let (run, more) = self.scan(dir, prefix, floor.as_deref(), count_skipped)?;
            for name in &run {
                if self.found.len() >= self.limit {
                    return Ok(());
                }
                self.entry(dir, prefix, name, depth)?;
            }
            match run.into_iter().next_back() {
                Some(last) if more => floor = Some(last),
                _ => return Ok(()),
            }
        }
    }

    fn entry(&mut self, dir: &OwnedFd, prefix: &str, name: &str, depth: usize) -> Result<(), Errno> {
        let key = format!("{prefix}{name}");
        if !name.ends_with('/') {
            match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    if let Ok(length) = regular(&stat) {
                        self.found.push(Listed { key, length });
                    }
                    return Ok(());
                }
                // Removed meanwhile.
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if depth == DEPTH_MAX {
            self.skipped += 1;
            return Ok(());
        }
        match self.place.directory(&key[..key.len() - 1]) {
            Ok(sub) => self.directory(&sub, &key, depth + 1),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the smallest names of a directory above `floor` in which wanted keys can lie, ascending, directories with a
    /// `/` at the end; and whether there are more.
    fn scan(
        &mut self,
        dir: &OwnedFd,
        prefix: &str,
        floor: Option<&str>,
        count_skipped: bool,
    ) -> Result<(Vec<String>, bool), Errno> {
        let mut smallest = BinaryHeap::new();
        let mut more = false;
        let mut entries = Dir::read_from(dir)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(_) => continue,
                },
                kind => kind,
            };
            let name = match (entry.file_name().to_str(), kind) {
                (Ok(name), FileType::RegularFile) => name.to_owned(),
                (Ok(name), FileType::Directory) => format!("{name}/"),
                _ => {
                    self.skipped += u64::from(count_skipped);
                    continue;
                }
            };
            if floor.is_some_and(|floor| name.as_str() <= floor) || !self.wanted(prefix, &name) {
                continue;
            }
            smallest.push(name);
            if smallest.len() > RUN {
                smallest.pop();
                more = true;
            }
        }
        Ok((smallest.into_sorted_vec(), more))
    }

    /// True if the object, or some object in the directory, may come after `after`.
    fn wanted(&self, prefix: &str, name: &str) -> bool {
        match self.after.strip_prefix(prefix) {
            Some(rest) => name > rest || (name.ends_with('/') && rest.starts_with(name)),
            // `after` lies outside: before all of this directory (the caller would have left it out otherwise).
            None => prefix > self.after,
        }
    }
}
