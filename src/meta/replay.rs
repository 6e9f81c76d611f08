//! Replay: one record of history, applied to the tables of a state directory that is being restored.
//!
//! Owns: what every record does to the shared tables (FORMATS.md, "Segments"), and that a record which contradicts them is
//! refused by name, whatever it says.
//! Does not own: which records are applied, and in what groups (`restore`); the rules inside one record (`format`).
//!
//! - Records come in the order in which a target got them: one may have overtaken others (O6), so `seq` may go down. The
//!   journal's head follows the highest.
//! - Nothing is appended to the journal: these records are on the targets already.
//! - Nothing here trusts a record: what it names must exist, what it makes must not.

use rusqlite::{OptionalExtension, params};

use super::extent::{self, RefDeltas};
use super::inode::Inode;
use super::{Error, Result, Tx};
use crate::clock::Timestamp;
use crate::format::record::{Change, Content, Dentry, Extent, Record, VoidReason, Xattr};
use crate::id::{ChunkHash, ChunkId, Generation, InodeId, NUMBER_MAX, Seq};

/// Bytes of the longest chunk (FORMATS.md).
pub(crate) const CHUNK_LENGTH_MAX: u64 = 64 << 20;

/// Returns the error of a record that cannot be true.
macro_rules! contradiction {
    ($at:expr, $($why:tt)*) => {
        return Err($at.error(format!($($why)*)))
    };
}

/// Whose effect is being applied: the record and the inode it is about, for errors.
#[derive(Clone, Copy)]
struct At {
    seq: Seq,
    ino: InodeId,
}

impl At {
    fn error(self, why: String) -> Error {
        Error::Contradiction { seq: self.seq, ino: self.ino, why }
    }
}

impl Tx<'_> {
    /// Applies `record` as if its change happened here. An error leaves the transaction half done: roll it back.
    pub fn replay(&mut self, record: &Record) -> Result<()> {
        let Record { seq, change } = record;
        let at = At { seq: *seq, ino: change.inode().unwrap_or_default() };
        let numbers = [seq.0, at.ino.0];
        if seq.0 == 0 || numbers.iter().any(|number| *number > NUMBER_MAX) {
            contradiction!(at, "its number or its inode's is not possible");
        }
        self.set_head(self.head().max(*seq));
        match change {
            Change::Mkdir { parent, name, mode, uid, gid, time, xattrs, .. } => {
                let born = Birth { mode: *mode, uid: *uid, gid: *gid, rdev: 0, size: 0, time: *time };
                if mode & libc::S_IFMT != libc::S_IFDIR {
                    contradiction!(at, "mode {mode:o} is not a directory's");
                }
                self.replay_birth(at, *parent, name, &born, xattrs)
            }
            Change::Create { parent, name, mode, uid, gid, rdev, time, xattrs, .. } => {
                let device = match mode & libc::S_IFMT {
                    libc::S_IFCHR | libc::S_IFBLK => true,
                    libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => false,
                    _ => contradiction!(at, "mode {mode:o} is not a file's, fifo's, socket's or device's"),
                };
                let rdev = if device { *rdev } else { 0 };
                let born = Birth { mode: *mode, uid: *uid, gid: *gid, rdev, size: 0, time: *time };
                self.replay_birth(at, *parent, name, &born, xattrs)
            }
            Change::Symlink { parent, name, ino, uid, gid, target, time } => {
                if !(1..=4095).contains(&target.len()) || target.contains(&0) {
                    contradiction!(at, "a symbolic link to {} bytes", target.len());
                }
                let mode = libc::S_IFLNK | 0o777;
                let born = Birth { mode, uid: *uid, gid: *gid, rdev: 0, size: target.len() as u64, time: *time };
                self.replay_birth(at, *parent, name, &born, &[])?;
                self.conn()
                    .prepare_cached("INSERT INTO symlink (ino, target) VALUES (?1, ?2)")?
                    .execute(params![ino, target])?;
                Ok(())
            }
            Change::Content(content) => self.replay_content(at, content),
            Change::Void { ino, generation, why } => self.replay_void(at, *ino, *generation, *why),
            Change::Link { parent, name, ino, time } => {
                let mut inode = self.replay_known(at, *ino)?;
                if inode.is_dir() {
                    contradiction!(at, "a directory gets a second name");
                }
                self.replay_enter(at, *parent, name, *ino)?;
                inode.nlink += 1;
                inode.parent = *parent;
                self.replay_store_named(at, &mut inode, *time)?;
                self.replay_names_changed(at, *parent, *time, 0)
            }
            Change::Unlink { parent, name, ino, time } => {
                self.replay_leave(at, *parent, name, *ino)?;
                let inode = self.replay_known(at, *ino)?;
                if inode.is_dir() {
                    contradiction!(at, "an unlink names a directory");
                }
                self.replay_unname(at, inode, *time)?;
                self.replay_names_changed(at, *parent, *time, 0)
            }
            Change::Rmdir { parent, name, ino, time } => {
                self.replay_leave(at, *parent, name, *ino)?;
                let inode = self.replay_known(at, *ino)?;
                self.replay_remove_directory(at, &inode)?;
                self.replay_names_changed(at, *parent, *time, -1)
            }
            Change::Rename { from, to, ino, replaced, dir, time } => {
                self.replay_rename(at, from, to, *ino, *replaced, *dir, *time)
            }
            Change::Exchange { a, b, time } => self.replay_exchange(at, a, b, *time),
            Change::Setattr { ino, mode, uid, gid, atime, mtime, ctime } => {
                let mut inode = self.replay_known(at, *ino)?;
                inode.mode = new_mode(at, &inode, *mode)?;
                inode.uid = uid.unwrap_or(inode.uid);
                inode.gid = gid.unwrap_or(inode.gid);
                inode.atime = atime.unwrap_or(inode.atime);
                set_times(at, &mut inode, *mtime, *ctime);
                self.replay_store(at, &mut inode)
            }
            Change::Setxattr { ino, name, value, mode, ctime } => {
                let mut inode = self.replay_known(at, *ino)?;
                self.replay_xattr(at, *ino, name, value)?;
                inode.mode = new_mode(at, &inode, *mode)?;
                set_times(at, &mut inode, None, *ctime);
                self.replay_store(at, &mut inode)
            }
            Change::Removexattr { ino, name, ctime } => {
                let mut inode = self.replay_known(at, *ino)?;
                let removed = self
                    .conn()
                    .prepare_cached("DELETE FROM xattr WHERE ino = ?1 AND name = ?2")?
                    .execute(params![ino, name])?;
                self.changes().xattrs_changed(*ino);
                if removed != 1 {
                    contradiction!(at, "an extended attribute that it does not have is removed");
                }
                set_times(at, &mut inode, None, *ctime);
                self.replay_store(at, &mut inode)
            }
            Change::Repack { from, chunks, moves } => self.replay_repack(at, *from, chunks, moves),
        }
    }

    /// Makes the bare root that replay without a checkpoint starts from; the first record gives it its owner.
    pub(crate) fn restore_root(&mut self) -> Result<()> {
        let time = Timestamp::EPOCH;
        let root = Inode {
            ino: InodeId::ROOT,
            mode: libc::S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 2,
            size: 0,
            generation: Generation(0),
            atime: time,
            mtime: time,
            ctime: time,
            times_seq: Seq::ZERO,
            manifest: None,
            last_seq: Seq::ZERO,
            parent: InodeId::ROOT,
            allocated: 0,
        };
        root.insert(self)
    }

    /// Applies a record of `slots.jsonl` to a fresh snapshot: extents only, clipped to `size`, the size that the file
    /// has in the end (T3). Attributes are the snapshot's: reserving the slot had written them.
    pub(crate) fn replay_slot(&mut self, record: &Record, size: u64) -> Result<()> {
        let at = At { seq: record.seq, ino: record.change.inode().unwrap_or_default() };
        match &record.change {
            Change::Content(content) => {
                let mut inode = self.replay_known(at, content.ino)?;
                self.replay_replace(at, &mut inode, content, content.size.min(size))?;
                inode.update(self)
            }
            Change::Void { .. } => Ok(()),
            _ => contradiction!(at, "it fills no slot"),
        }
    }

    /// Cuts an inode's content at `size` and makes that its size: the last step after the records of its slots.
    pub(crate) fn settle_slots_of(&mut self, seq: Seq, ino: InodeId, size: u64) -> Result<()> {
        let at = At { seq, ino };
        let mut inode = self.replay_known(at, ino)?;
        if !inode.is_file() || size > NUMBER_MAX {
            contradiction!(at, "a slot that makes it {size} bytes long");
        }
        inode.size = size;
        if let Some(manifest) = inode.manifest {
            let mut deltas = RefDeltas::default();
            extent::cut(self, manifest, size, &mut deltas)?;
            inode.allocate(deltas.net())?;
            deltas.apply(self)?;
        }
        inode.update(self)
    }

    fn replay_birth(&mut self, at: At, parent: InodeId, name: &[u8], born: &Birth, xattrs: &[Xattr]) -> Result<()> {
        let At { seq, ino } = at;
        if born.mode & !(libc::S_IFMT | 0o7777) != 0 || ino.0 == 0 {
            contradiction!(at, "mode {:o} or the inode's number is not possible", born.mode);
        }
        if self.find_inode(ino)?.is_some() {
            contradiction!(at, "it is born a second time");
        }
        let is_dir = born.mode & libc::S_IFMT == libc::S_IFDIR;
        self.replay_enter(at, parent, name, ino)?;
        let inode = Inode {
            ino,
            mode: born.mode,
            uid: born.uid,
            gid: born.gid,
            rdev: born.rdev,
            nlink: if is_dir { 2 } else { 1 },
            size: born.size,
            generation: Generation(0),
            atime: born.time,
            mtime: born.time,
            ctime: born.time,
            times_seq: if is_dir { seq } else { Seq::ZERO },
            manifest: None,
            last_seq: seq,
            parent,
            allocated: 0,
        };
        inode.insert(self)?;
        for (name, value) in xattrs {
            self.replay_xattr(at, ino, name, value)?;
        }
        self.raise_next_inode(ino);
        self.replay_names_changed(at, parent, born.time, is_dir.into())
    }

    #[allow(clippy::too_many_arguments)]
    fn replay_rename(
        &mut self,
        at: At,
        from: &Dentry,
        to: &Dentry,
        ino: InodeId,
        replaced: Option<InodeId>,
        dir: bool,
        time: Timestamp,
    ) -> Result<()> {
        let mut inode = self.replay_known(at, ino)?;
        if inode.is_dir() != dir {
            contradiction!(at, "the rename of a directory moves something else, or the other way round");
        }
        if replaced == Some(ino) || from == to {
            contradiction!(at, "a rename replaces what it moves");
        }
        if dir && self.replay_is_within(at, to.parent, ino)? {
            contradiction!(at, "a directory moves into itself");
        }
        self.replay_leave(at, from.parent, &from.name, ino)?;
        let mut subdirectories = i64::from(dir);
        if let Some(replaced) = replaced {
            self.replay_leave(at, to.parent, &to.name, replaced)?;
            let row = self.replay_known(at, replaced)?;
            if row.is_dir() != dir {
                contradiction!(at, "a directory replaces another kind of file, or the other way round");
            }
            if dir {
                self.replay_remove_directory(at, &row)?;
                subdirectories -= 1;
            } else {
                self.replay_unname(at, row, time)?;
            }
        }
        self.replay_enter(at, to.parent, &to.name, ino)?;
        inode.parent = to.parent;
        self.replay_store_named(at, &mut inode, time)?;
        self.replay_names_changed(at, from.parent, time, -i64::from(dir))?;
        self.replay_names_changed(at, to.parent, time, subdirectories)
    }

    fn replay_exchange(&mut self, at: At, a: &(Dentry, InodeId), b: &(Dentry, InodeId), time: Timestamp) -> Result<()> {
        let (a_dir, b_dir) = (self.replay_known(at, a.1)?.is_dir(), self.replay_known(at, b.1)?.is_dir());
        if a.0 == b.0 {
            contradiction!(at, "a name changes places with itself");
        }
        if (a_dir && self.replay_is_within(at, b.0.parent, a.1)?)
            || (b_dir && self.replay_is_within(at, a.0.parent, b.1)?)
        {
            contradiction!(at, "a directory changes places with what is inside it");
        }
        for ((dentry, held), (_, new)) in [(a, b), (b, a)] {
            // The position in the listing stays: the name does, only what it names is another.
            let changed = self
                .conn()
                .prepare_cached("UPDATE dirent SET ino = ?4 WHERE parent = ?1 AND name = ?2 AND ino = ?3")?
                .execute(params![dentry.parent, dentry.name, held, new])?;
            if changed != 1 {
                contradiction!(at, "a name in directory {} is not inode {held}", dentry.parent);
            }
        }
        for (ino, parent) in [(a.1, b.0.parent), (b.1, a.0.parent)] {
            // Read only now: both may be the same inode.
            let mut inode = self.replay_known(at, ino)?;
            inode.parent = parent;
            self.replay_store_named(at, &mut inode, time)?;
        }
        let gained = i64::from(b_dir) - i64::from(a_dir);
        self.replay_names_changed(at, a.0.parent, time, gained)?;
        self.replay_names_changed(at, b.0.parent, time, -gained)
    }

    fn replay_content(&mut self, at: At, content: &Content) -> Result<()> {
        let mut inode = self.replay_known(at, content.ino)?;
        self.replay_replace(at, &mut inode, content, content.size)?;
        inode.size = content.size;
        inode.mtime = content.mtime;
        inode.ctime = content.ctime;
        inode.mode = new_mode(at, &inode, content.mode)?;
        self.replay_store(at, &mut inode)
    }

    /// Puts the record's bytes in place; what lies at or beyond `size` is dropped. Changes the row's manifest and
    /// generation only; the caller stores it.
    fn replay_replace(&mut self, at: At, inode: &mut Inode, content: &Content, size: u64) -> Result<()> {
        if !inode.is_file() || content.size > NUMBER_MAX || content.generation.0 > NUMBER_MAX {
            contradiction!(at, "content of {} bytes for something that cannot have it", content.size);
        }
        inode.generation = inode.generation.max(content.generation);
        let mut deltas = RefDeltas::default();
        // A split change forgets the earlier content once, with its first part.
        if content.whole && content.part.is_none_or(|(part, _)| part == 1) {
            if let Some(manifest) = inode.manifest.take() {
                extent::release(self, manifest, &mut deltas)?;
            }
        } else if let Some(manifest) = inode.manifest {
            extent::cut(self, manifest, size, &mut deltas)?;
        }
        let manifest = match inode.manifest {
            Some(manifest) => manifest,
            None if content.extents.is_empty() => {
                inode.allocate(deltas.net())?;
                return deltas.apply(self);
            }
            None => *inode.manifest.insert(self.next_manifest()),
        };
        for &(offset, length) in &content.zero {
            extent::replace(self, manifest, offset, length, None, &mut deltas).map_err(|e| at.error(e.to_string()))?;
        }
        let mut ids = ChunkIds::new(&content.chunks);
        let mut end = 0;
        for extent in &content.extents {
            let chunk_end = extent.chunk_offset.checked_add(extent.length);
            let file_end = extent.offset.checked_add(extent.length).filter(|end| *end <= content.size);
            let known = content.chunks.get(extent.chunk as usize);
            let (Some(chunk_end), Some(file_end), Some((_, length))) = (chunk_end, file_end, known) else {
                contradiction!(at, "an extent at {} lies outside its file or its chunk", extent.offset);
            };
            if extent.length == 0 || extent.offset < end || chunk_end > *length {
                contradiction!(at, "an extent at {} is empty, out of order or outside its chunk", extent.offset);
            }
            end = file_end;
            let length = extent.length.min(size.saturating_sub(extent.offset));
            if length == 0 {
                continue;
            }
            let chunk = ids.id(self, at, extent.chunk)?;
            extent::replace(self, manifest, extent.offset, length, Some((chunk, extent.chunk_offset)), &mut deltas)?;
        }
        inode.allocate(deltas.net())?;
        deltas.apply(self)
    }

    fn replay_void(&mut self, at: At, ino: InodeId, generation: Generation, why: VoidReason) -> Result<()> {
        // The inode of a slot that brought nothing may be gone.
        let Some(mut inode) = self.find_inode(ino)? else {
            match why {
                VoidReason::Unlinked | VoidReason::Moved => return Ok(()),
                VoidReason::Lost { .. } => contradiction!(at, "a slot was lost of an inode that does not exist"),
            }
        };
        if generation.0 > NUMBER_MAX {
            contradiction!(at, "generation {generation} is not possible");
        }
        inode.generation = inode.generation.max(generation);
        if let VoidReason::Lost { size, mtime, ctime } = why {
            if !inode.is_file() || size > NUMBER_MAX {
                contradiction!(at, "a slot was lost that made it {size} bytes long");
            }
            (inode.size, inode.mtime, inode.ctime) = (size, mtime, ctime);
            if let Some(manifest) = inode.manifest {
                let mut deltas = RefDeltas::default();
                extent::cut(self, manifest, size, &mut deltas)?;
                inode.allocate(deltas.net())?;
                deltas.apply(self)?;
            }
        }
        self.replay_store(at, &mut inode)
    }

    /// Moves references to ranges of chunk `from` elsewhere, wherever they stand now (O5).
    fn replay_repack(&mut self, at: At, from: ChunkHash, chunks: &[(ChunkHash, u64)], moves: &[Extent]) -> Result<()> {
        let found: Option<(ChunkId, i64)> = self
            .conn()
            .prepare_cached("SELECT id, length FROM chunk WHERE hash = ?1")?
            .query_row([from], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        // Nobody refers to a chunk that is not known: nothing to move.
        let Some((from_id, from_length)) = found else { return Ok(()) };
        let mut end = 0;
        for piece in moves {
            let file_end = piece.offset.checked_add(piece.length).filter(|end| *end <= from_length as u64);
            let chunk_end = piece.chunk_offset.checked_add(piece.length);
            let known = chunks.get(piece.chunk as usize).filter(|(hash, _)| *hash != from);
            let (Some(file_end), Some(chunk_end), Some((_, length))) = (file_end, chunk_end, known) else {
                contradiction!(at, "a move at {} of chunk {from} lies outside a chunk", piece.offset);
            };
            if piece.length == 0 || piece.offset < end || chunk_end > *length {
                contradiction!(at, "a move at {} of chunk {from} is empty, out of order or too long", piece.offset);
            }
            end = file_end;
        }
        let mut ids = ChunkIds::new(chunks);
        let mut deltas = RefDeltas::default();
        self.move_references(from_id, moves, &mut deltas, |tx, index| ids.id(tx, at, index))?;
        deltas.apply(self)
    }

    /// The row of an inode that a record says is there.
    fn replay_known(&self, at: At, ino: InodeId) -> Result<Inode> {
        self.find_inode(ino)?.ok_or_else(|| at.error(format!("inode {ino} does not exist")))
    }

    fn replay_enter(&mut self, at: At, parent: InodeId, name: &[u8], ino: InodeId) -> Result<()> {
        check_name(at, name)?;
        if !self.replay_known(at, parent)?.is_dir() {
            contradiction!(at, "inode {parent}, where it gets a name, is not a directory");
        }
        let cookie = self.next_cookie();
        let entered = self
            .conn()
            .prepare_cached("INSERT OR IGNORE INTO dirent (parent, name, ino, cookie) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![parent, name, ino, cookie])?;
        if entered != 1 {
            contradiction!(at, "its new name in directory {parent} is taken");
        }
        Ok(())
    }

    fn replay_leave(&mut self, at: At, parent: InodeId, name: &[u8], ino: InodeId) -> Result<()> {
        let left = self
            .conn()
            .prepare_cached("DELETE FROM dirent WHERE parent = ?1 AND name = ?2 AND ino = ?3")?
            .execute(params![parent, name, ino])?;
        if left != 1 {
            contradiction!(at, "the name that goes in directory {parent} is not inode {ino}");
        }
        Ok(())
    }

    /// Takes one name away from an inode that is no directory; without names it is gone.
    fn replay_unname(&mut self, at: At, mut inode: Inode, time: Timestamp) -> Result<()> {
        inode.nlink = inode.nlink.saturating_sub(1);
        if inode.nlink == 0 { self.replay_forget(&inode) } else { self.replay_store_named(at, &mut inode, time) }
    }

    fn replay_remove_directory(&mut self, at: At, inode: &Inode) -> Result<()> {
        let empty =
            !self.conn().prepare_cached("SELECT 1 FROM dirent WHERE parent = ?1 LIMIT 1")?.exists([inode.ino])?;
        if !inode.is_dir() || !empty || inode.ino == InodeId::ROOT {
            contradiction!(at, "inode {} goes as an empty directory, which it is not", inode.ino);
        }
        self.replay_forget(inode)
    }

    /// Removes the rows of an inode without names.
    fn replay_forget(&mut self, inode: &Inode) -> Result<()> {
        if let Some(manifest) = inode.manifest {
            let mut deltas = RefDeltas::default();
            extent::release(self, manifest, &mut deltas)?;
            deltas.apply(self)?;
        }
        for sql in ["DELETE FROM xattr WHERE ino = ?1", "DELETE FROM symlink WHERE ino = ?1"] {
            self.conn().prepare_cached(sql)?.execute([inode.ino])?;
        }
        inode.delete(self)
    }

    /// Gives a directory whose names changed its times, unless a later record set them (O7), and its links.
    fn replay_names_changed(&mut self, at: At, directory: InodeId, time: Timestamp, subdirectories: i64) -> Result<()> {
        let mut inode = self.replay_known(at, directory)?;
        if at.seq >= inode.times_seq {
            (inode.mtime, inode.ctime, inode.times_seq) = (time, time, at.seq);
        }
        inode.nlink = u32::try_from(i64::from(inode.nlink) + subdirectories)
            .map_err(|_| at.error(format!("directory {directory} has an impossible number of subdirectories")))?;
        inode.update(self)
    }

    fn replay_store_named(&mut self, at: At, inode: &mut Inode, time: Timestamp) -> Result<()> {
        set_times(at, inode, None, time);
        self.replay_store(at, inode)
    }

    fn replay_store(&mut self, at: At, inode: &mut Inode) -> Result<()> {
        inode.last_seq = inode.last_seq.max(at.seq);
        inode.update(self)
    }

    fn replay_xattr(&mut self, at: At, ino: InodeId, name: &[u8], value: &[u8]) -> Result<()> {
        if !(1..=255).contains(&name.len()) || name.contains(&0) || value.len() > 64 << 10 {
            contradiction!(at, "an extended attribute of {} and {} bytes", name.len(), value.len());
        }
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO xattr (ino, name, value) VALUES (?1, ?2, ?3)")?
            .execute(params![ino, name, value])?;
        self.changes().xattrs_changed(ino);
        Ok(())
    }

    /// True if `directory` is `ancestor` or lies below it.
    fn replay_is_within(&self, at: At, directory: InodeId, ancestor: InodeId) -> Result<bool> {
        let mut above = self.conn().prepare_cached("SELECT parent FROM inode WHERE ino = ?1")?;
        let mut current = directory;
        // Replay keeps directories one tree, so the way up ends at the root; the bound is for a table that is damaged.
        for _ in 0..1_000_000 {
            match current {
                _ if current == ancestor => return Ok(true),
                InodeId::ROOT => return Ok(false),
                _ => {}
            }
            let parent = above.query_row([current], |row| row.get(0)).optional()?;
            let Some(parent) = parent else { contradiction!(at, "inode {current} does not exist") };
            current = parent;
        }
        contradiction!(at, "directory {directory} has no way up to the root")
    }
}

/// What a new inode starts with.
struct Birth {
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    size: u64,
    time: Timestamp,
}

/// The rows of a record's chunks, looked up or made when an extent first names them.
struct ChunkIds<'a> {
    chunks: &'a [(ChunkHash, u64)],
    ids: Vec<Option<ChunkId>>,
}

impl<'a> ChunkIds<'a> {
    fn new(chunks: &'a [(ChunkHash, u64)]) -> ChunkIds<'a> {
        ChunkIds { chunks, ids: vec![None; chunks.len()] }
    }

    /// `index` was checked against the array.
    fn id(&mut self, tx: &mut Tx<'_>, at: At, index: u32) -> Result<ChunkId> {
        let index = index as usize;
        if let Some(id) = self.ids[index] {
            return Ok(id);
        }
        let (hash, length) = self.chunks[index];
        if !(1..=CHUNK_LENGTH_MAX).contains(&length) {
            contradiction!(at, "chunk {hash} of {length} bytes");
        }
        tx.conn()
            .prepare_cached(
                "INSERT INTO chunk (hash, length, bytes_referenced, incomplete) VALUES (?1, ?2, 0, 1) \
                 ON CONFLICT (hash) DO NOTHING",
            )?
            .execute(params![hash, length as i64])?;
        let (id, known): (ChunkId, i64) = tx
            .conn()
            .prepare_cached("SELECT id, length FROM chunk WHERE hash = ?1")?
            .query_row([hash], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if known as u64 != length {
            contradiction!(at, "chunk {hash} has {known} bytes, not {length}");
        }
        self.ids[index] = Some(id);
        Ok(id)
    }
}

/// Sets the times of `inode`; those of a directory belong to the highest seq that set them (O7).
fn set_times(at: At, inode: &mut Inode, mtime: Option<Timestamp>, ctime: Timestamp) {
    if inode.is_dir() && at.seq < inode.times_seq {
        return;
    }
    inode.ctime = ctime;
    if let Some(mtime) = mtime {
        inode.mtime = mtime;
        if inode.is_dir() {
            inode.times_seq = at.seq;
        }
    }
}

fn new_mode(at: At, inode: &Inode, mode: Option<u32>) -> Result<u32> {
    let Some(mode) = mode else { return Ok(inode.mode) };
    if mode & !0o7777 != 0 && mode & !0o7777 != inode.file_type() {
        contradiction!(at, "mode {mode:o} for an inode of type {:o}", inode.file_type());
    }
    Ok(inode.file_type() | mode & 0o7777)
}

fn check_name(at: At, name: &[u8]) -> Result<()> {
    let bad = matches!(name, b"" | b"." | b"..") || name.len() > 255 || name.contains(&b'/') || name.contains(&0);
    if bad {
        contradiction!(at, "a name of {} bytes that no directory can hold", name.len());
    }
    Ok(())
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
