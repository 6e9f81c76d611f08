//! Import: a checkpoint's database, taken as data and built anew (D5).
//!
//! Owns: what a file must be so that its rows are believed (FORMATS.md, "Import checks"); what filled its open slots.
//! Does not own: fetching and unpacking it (`restore`), the records after it (`replay`).
//!
//! - The file is hostile until the end: opened read-only with everything switched off that could run, its schema compared
//!   with ours column by column, each row checked and inserted into a fresh store. Nothing is copied unseen.
//! - Rows must come in strictly ascending order of their keys, so that a file whose pages refer to one another in
//!   circles ends with an error.
//! - Link counts and references are counted here, never taken over.
//! - Whatever is wrong with the file is [`Error::Checkpoint`]; any other error is about the new store.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::FromSql;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::export::{OpenSlot, SCHEMA, USER_VERSION};
use super::extent::{self, ExtentRow, RefDeltas};
use super::inode::Inode;
use super::migrate::APPLICATION_ID;
use super::replay::CHUNK_LENGTH_MAX;
use super::{Created, Error, Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::format::bytes::check_name;
use crate::format::record::{Change, Record, VoidReason};
use crate::id::{ChunkHash, ChunkId, Epoch, FilesystemId, InodeId, ManifestId, NUMBER_MAX, Seq, WriterId};

/// Rows of one write transaction.
const BATCH_ROWS: usize = 20_000;
/// No value in the file is longer: an extended attribute, 64 KiB, is the longest there is.
const VALUE_BYTES_MAX: i32 = 1 << 20;

/// Open slots of a snapshot: each is a file that was being written.
const SLOTS_MAX: usize = 1_000_000;

/// What a checkpoint must be a checkpoint of.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub filesystem: FilesystemId,
    pub seq: Seq,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Every record up to this one is in the store.
    pub seq: Seq,
    /// The writer that exported it.
    pub epoch: Epoch,
    pub writer: WriterId,
    /// Slots that were open: their content is not in the store yet ([`Meta::fill_slots`]).
    pub slots: Vec<OpenSlot>,
}

/// Returns the error of a file that cannot be believed.
macro_rules! refuse {
    ($($why:tt)*) => {
        return Err(Error::Checkpoint(format!($($why)*)))
    };
}

/// Creates a store at `store`, where nothing may be, from the checkpoint's database `file`.
pub fn import(file: &Path, expected: &Expected, store: &Path) -> Result<(Meta, Imported)> {
    let source = open(file)?;
    check_schema(&source)?;
    let head = Head::read(&source, expected)?;
    let created = Created {
        filesystem: expected.filesystem,
        name: head.name.clone(),
        chunk_size: head.chunk_size,
        time: head.created,
    };
    let meta = Meta::create(store, &created)?;
    let mut import = Import {
        head,
        last_inode: InodeId(0),
        parent: InodeId(0),
        last_name: vec![],
        last_xattr: (InodeId(0), vec![]),
        slots: vec![],
        in_slots: HashSet::new(),
        file: None,
        deltas: RefDeltas::default(),
    };
    import.tables(&source, &meta)?;
    let Import { head, slots, .. } = import;
    Ok((meta, Imported { seq: head.seq, epoch: head.epoch, writer: head.writer, slots }))
}

impl Meta {
    /// Puts what filled the open slots of a checkpoint into a store fresh from [`import`]: extents only, clipped to the
    /// size that the file has in the end (T3). `records` gives them in order of seq, and is asked twice.
    pub fn fill_slots<I>(&self, slots: &[OpenSlot], records: impl Fn() -> Result<I>) -> Result<()>
    where
        I: Iterator<Item = Result<Record>>,
    {
        // The size of a file is the snapshot's, because reserving the newest slot wrote it; unless that slot was lost.
        let mut sizes: BTreeMap<InodeId, (Seq, Option<u64>)> = BTreeMap::new();
        let mut open = slots.iter();
        let mut current: Option<&OpenSlot> = None;
        for record in records()? {
            let record = record?;
            if current.is_none_or(|slot| slot.seq != record.seq) {
                current = open.next();
            }
            let (generation, lost) = match &record.change {
                Change::Content(content) => (content.generation, None),
                Change::Void { generation, why: VoidReason::Lost { size, .. }, .. } => (*generation, Some(*size)),
                Change::Void { generation, .. } => (*generation, None),
                _ => refuse!("record {} fills no slot", record.seq),
            };
            let found = record.change.inode().map(|ino| OpenSlot { seq: record.seq, ino, generation });
            match (current, found) {
                (Some(slot), Some(found)) if *slot == found => sizes.insert(slot.ino, (slot.seq, lost)),
                _ => refuse!("record {} does not belong to the next open slot", record.seq),
            };
        }
        if let Some(slot) = open.next() {
            refuse!("nothing fills slot {} of inode {}", slot.seq, slot.ino);
        }
        let mut wanted = BTreeMap::new();
        for (ino, (seq, lost)) in sizes {
            let size = match lost {
                Some(size) => size,
                None => self.inode(ino)?.size,
            };
            wanted.insert(ino, (seq, size));
        }
        let mut records = records()?.peekable();
        while records.peek().is_some() {
            self.write(|tx| {
                for record in records.by_ref().take(1_000) {
                    let record = record?;
                    let size = record.change.inode().and_then(|ino| wanted.get(&ino)).map_or(0, |(_, size)| *size);
                    tx.replay_slot(&record, size).map_err(of_checkpoint)?;
                }
                Ok(())
            })?;
            self.checkpoint_wal()?;
        }
        self.write(|tx| {
            wanted
                .iter()
                .try_for_each(|(ino, (seq, size))| tx.settle_slots_of(*seq, *ino, *size))
                .map_err(of_checkpoint)
        })
    }
}

/// A record that contradicts its own checkpoint makes the checkpoint unusable.
fn of_checkpoint(error: Error) -> Error {
    match error {
        Error::Contradiction { .. } => Error::Checkpoint(error.to_string()),
        other => other,
    }
}

fn unreadable(error: rusqlite::Error) -> Error {
    Error::Checkpoint(error.to_string())
}

fn column<T: FromSql>(row: &Row<'_>, index: usize) -> Result<T> {
    row.get(index).map_err(unreadable)
}

/// A number that is not negative and that JSON can carry.
fn number(row: &Row<'_>, index: usize) -> Result<u64> {
    let value: i64 = column(row, index)?;
    match u64::try_from(value) {
        Ok(value) if value <= NUMBER_MAX => Ok(value),
        _ => refuse!("{value} is out of range"),
    }
}

fn time(row: &Row<'_>, index: usize) -> Result<Timestamp> {
    super::inode::timestamp(row, index).map_err(unreadable)
}

fn open(file: &Path) -> Result<Connection> {
    let io = |source| Error::Io { what: format!("read {}", file.display()), source };
    let mut header = [0; 100];
    std::fs::File::open(file).map_err(io)?.read_exact(&mut header).map_err(io)?;
    // A file in WAL mode would make SQLite look for files beside it.
    if !header.starts_with(b"SQLite format 3\0") || header[18..20] != [1, 1] {
        refuse!("not a database in rollback mode");
    }
    let conn = Connection::open_with_flags(
        file,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW,
    )?;
    for (option, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    ] {
        conn.set_db_config(option, on)?;
    }
    conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
    conn.execute_batch(
        "PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA query_only = ON;",
    )
    .map_err(unreadable)?;
    let id = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(unreadable);
    match (id("application_id")?, id("user_version")?) {
        (APPLICATION_ID, USER_VERSION) => Ok(conn),
        (application, version) => refuse!("application id {application:#x}, version {version}"),
    }
}

/// The file has our tables with our columns, and nothing else at all.
fn check_schema(source: &Connection) -> Result<()> {
    let describe = |conn: &Connection| -> rusqlite::Result<Vec<String>> {
        let mut found = vec![];
        let mut statement = conn.prepare(
            "SELECT type, name, tbl_name, sql IS NULL, coalesce(sql, '') LIKE 'CREATE TABLE%' FROM sqlite_schema",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, name, table): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            found.push(format!("{kind} {name} on {table} {} {}", row.get::<_, bool>(3)?, row.get::<_, bool>(4)?));
            if found.len() > 32 {
                break;
            }
        }
        let mut statement =
            conn.prepare("SELECT name, type, ncol, wr, strict FROM pragma_table_list WHERE schema = 'main'")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
            let numbers: [i64; 3] = [row.get(2)?, row.get(3)?, row.get(4)?];
            found.push(format!("{kind} {name} {numbers:?}"));
            let mut statement =
                conn.prepare("SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?1)")?;
            let mut columns = statement.query([&name])?;
            while let Some(row) = columns.next()? {
                let (column, kind): (String, String) = (row.get(0)?, row.get(1)?);
                let numbers: [i64; 3] = [row.get(2)?, row.get(3)?, row.get(4)?];
                found.push(format!("{name}.{column} {kind} {numbers:?}"));
            }
        }
        found.sort();
        Ok(found)
    };
    let ours = Connection::open_in_memory()?;
    ours.execute_batch(SCHEMA)?;
    let (ours, theirs) = (describe(&ours)?, describe(source).map_err(unreadable)?);
    if let Some(other) = theirs.iter().find(|line| !ours.contains(line)) {
        refuse!("has {other:?}, which no checkpoint has");
    }
    if let Some(missing) = ours.iter().find(|line| !theirs.contains(line)) {
        refuse!("lacks {missing:?}");
    }
    Ok(())
}

/// The table `filesystem`.
struct Head {
    name: String,
    seq: Seq,
    epoch: Epoch,
    writer: WriterId,
    next_inode: InodeId,
    chunk_high: u64,
    chunk_size: u64,
    created: Timestamp,
}

impl Head {
    fn read(source: &Connection, expected: &Expected) -> Result<Head> {
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        let mut statement = source.prepare("SELECT key, value FROM filesystem").map_err(unreadable)?;
        let mut rows = statement.query([]).map_err(unreadable)?;
        while let Some(row) = rows.next().map_err(unreadable)? {
            let key: String = column(row, 0)?;
            let known = match key.as_str() {
                "filesystem" | "name" | "writer" | "created" => texts.insert(key.clone(), column(row, 1)?).is_none(),
                "seq" | "epoch" | "next_inode" | "chunk_high" | "chunk_size" => {
                    numbers.insert(key.clone(), number(row, 1)?).is_none()
                }
                _ => false,
            };
            if !known {
                refuse!("has the key {:?} twice, or should not have it", key.chars().take(40).collect::<String>());
            }
        }
        let text = |key: &str| texts.get(key).cloned().ok_or_else(|| Error::Checkpoint(format!("lacks {key}")));
        let number = |key: &str| numbers.get(key).copied().ok_or_else(|| Error::Checkpoint(format!("lacks {key}")));
        let head = Head {
            name: text("name")?,
            seq: Seq(number("seq")?),
            epoch: Epoch(number("epoch")?),
            writer: text("writer")?.parse().map_err(|e| Error::Checkpoint(format!("writer: {e}")))?,
            next_inode: InodeId(number("next_inode")?),
            chunk_high: number("chunk_high")?,
            chunk_size: number("chunk_size")?,
            created: crate::format::parse_utc(&text("created")?)
                .ok_or_else(|| Error::Checkpoint("created is not a time".into()))?,
        };
        if text("filesystem")? != expected.filesystem.to_string() || head.seq != expected.seq {
            refuse!("is of filesystem {}, seq {}", text("filesystem")?, head.seq);
        }
        if !head.chunk_size.is_power_of_two() || !(64 << 10..=CHUNK_LENGTH_MAX).contains(&head.chunk_size) {
            refuse!("chunk size {}", head.chunk_size);
        }
        Ok(head)
    }
}

/// The rows on their way, and what of earlier ones later ones are checked against.
struct Import {
    head: Head,
    last_inode: InodeId,
    /// Of the last row of `dirent`: the directory, known to be one, and the name.
    parent: InodeId,
    last_name: Vec<u8>,
    last_xattr: (InodeId, Vec<u8>),
    slots: Vec<OpenSlot>,
    in_slots: HashSet<InodeId>,
    /// The file whose extents are coming.
    file: Option<Filling>,
    deltas: RefDeltas,
}

/// A file whose extents are coming.
struct Filling {
    /// Written with what is allocated when its last extent has come.
    inode: Inode,
    manifest: ManifestId,
    /// Where its extents must end; none while a slot of it is open.
    size: Option<u64>,
    /// Where the next may begin.
    next: u64,
}

type Each = fn(&mut Import, &mut Tx<'_>, &Row<'_>) -> Result<()>;

impl Import {
    fn tables(&mut self, source: &Connection, meta: &Meta) -> Result<()> {
        let tables: [(&str, Each); 7] = [
            (
                "SELECT ino, mode, uid, gid, rdev, size, generation, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, \
                 times_seq FROM inode ORDER BY ino",
                Import::inode,
            ),
            ("SELECT seq, ino, generation FROM slot ORDER BY seq", Import::slot),
            ("SELECT parent, name, ino FROM dirent ORDER BY parent, name", Import::dirent),
            ("SELECT ino, target FROM symlink ORDER BY ino", Import::symlink),
            ("SELECT ino, name, value FROM xattr ORDER BY ino, name", Import::xattr),
            ("SELECT id, hash, length, dead_seq FROM chunk ORDER BY id", Import::chunk),
            ("SELECT ino, offset, length, chunk, chunk_offset FROM extent ORDER BY ino, offset", Import::extent),
        ];
        for (sql, each) in tables {
            self.last_inode = InodeId(0);
            let mut statement = source.prepare(sql).map_err(unreadable)?;
            let mut rows = statement.query([]).map_err(unreadable)?;
            let mut more = true;
            while more {
                meta.write(|tx| {
                    for _ in 0..BATCH_ROWS {
                        match rows.next().map_err(unreadable)? {
                            Some(row) => each(self, tx, row)?,
                            None => {
                                more = false;
                                break;
                            }
                        }
                    }
                    std::mem::take(&mut self.deltas).apply(tx)
                })?;
                meta.checkpoint_wal()?;
            }
        }
        meta.write(|tx| self.finish(tx))
    }

    /// True for the next row of a table that is ordered by inode.
    fn ascends(&mut self, ino: InodeId) -> bool {
        let ascends = ino > self.last_inode;
        self.last_inode = ino;
        ascends
    }

    fn inode(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let small = |index| -> Result<u32> { column(row, index) };
        let ino = InodeId(number(row, 0)?);
        let mode = small(1)?;
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let inode = Inode {
            ino,
            mode,
            uid: small(2)?,
            gid: small(3)?,
            rdev: small(4)?,
            // Counted when the names come.
            nlink: if is_dir { 2 } else { 0 },
            size: number(row, 5)?,
            generation: crate::id::Generation(number(row, 6)?),
            atime: time(row, 7)?,
            mtime: time(row, 9)?,
            ctime: time(row, 11)?,
            times_seq: Seq(number(row, 13)?),
            manifest: None,
            last_seq: self.head.seq,
            // Nobody's, until a name comes.
            parent: if ino == InodeId::ROOT { InodeId::ROOT } else { InodeId(0) },
            allocated: 0,
        };
        if !self.ascends(ino) || ino >= self.head.next_inode {
            refuse!("inode {ino} is out of order, or not below next_inode {}", self.head.next_inode);
        }
        let (sized, device) = match inode.file_type() {
            libc::S_IFREG | libc::S_IFLNK => (true, false),
            libc::S_IFDIR | libc::S_IFIFO | libc::S_IFSOCK => (false, false),
            libc::S_IFCHR | libc::S_IFBLK => (false, true),
            _ => refuse!("inode {ino} has mode {mode:o}"),
        };
        if mode & !(libc::S_IFMT | 0o7777) != 0 || (inode.size > 0 && !sized) || (inode.rdev != 0 && !device) {
            refuse!("inode {ino} has mode {mode:o}, size {} and rdev {}", inode.size, inode.rdev);
        }
        if inode.generation.0 > self.head.seq.0 || inode.times_seq > self.head.seq {
            refuse!("inode {ino} is of a generation or a time beyond {}", self.head.seq);
        }
        if !is_dir && (ino == InodeId::ROOT || inode.times_seq != Seq::ZERO) {
            refuse!("inode {ino} is not a directory");
        }
        inode.insert(tx)
    }

    fn slot(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let generation = crate::id::Generation(number(row, 2)?);
        let slot = OpenSlot { seq: Seq(number(row, 0)?), ino: InodeId(number(row, 1)?), generation };
        let inode = known(tx, slot.ino)?;
        if !inode.is_file() || generation > inode.generation || slot.seq > self.head.seq || slot.seq == Seq::ZERO {
            refuse!("slot {} of inode {} is not possible", slot.seq, slot.ino);
        }
        if self.slots.last().is_some_and(|last| last.seq >= slot.seq) {
            refuse!("slot {} is out of order", slot.seq);
        }
        if self.slots.len() == SLOTS_MAX {
            refuse!("more than {SLOTS_MAX} slots are open");
        }
        self.slots.push(slot);
        self.in_slots.insert(slot.ino);
        Ok(())
    }

    fn dirent(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let (parent, name, ino) = (InodeId(number(row, 0)?), column::<Vec<u8>>(row, 1)?, InodeId(number(row, 2)?));
        if parent != self.parent {
            if parent < self.parent || !known(tx, parent)?.is_dir() {
                refuse!("names in {parent} are out of order, or it is not a directory");
            }
            self.parent = parent;
        } else if name <= self.last_name {
            refuse!("names in directory {parent} are out of order");
        }
        check_name(&name).map_err(|e| Error::Checkpoint(format!("directory {parent}: {e}")))?;
        let mut inode = known(tx, ino)?;
        if inode.is_dir() {
            if inode.parent != InodeId(0) {
                refuse!("directory {ino} has two names, or is the root");
            }
            let mut directory = tx.inode(parent)?;
            directory.nlink = directory.nlink.saturating_add(1);
            directory.update(tx)?;
            // It may be its own parent: then it is found not to hang on the root.
            inode = known(tx, ino)?;
        } else {
            inode.nlink = inode.nlink.saturating_add(1);
        }
        inode.parent = parent;
        inode.update(tx)?;
        let cookie = tx.next_cookie();
        tx.conn()
            .prepare_cached("INSERT INTO dirent (parent, name, ino, cookie) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![parent, name, ino, cookie])?;
        self.last_name = name;
        Ok(())
    }

    fn symlink(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let (ino, target) = (InodeId(number(row, 0)?), column::<Vec<u8>>(row, 1)?);
        let inode = known(tx, ino)?;
        let fits = inode.file_type() == libc::S_IFLNK && inode.size == target.len() as u64;
        if !self.ascends(ino) || !fits || !(1..=4095).contains(&target.len()) || target.contains(&0) {
            refuse!("symbolic link {ino} to {} bytes", target.len());
        }
        tx.conn().prepare_cached("INSERT INTO symlink (ino, target) VALUES (?1, ?2)")?.execute(params![ino, target])?;
        Ok(())
    }

    fn xattr(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let (ino, name, value) = (InodeId(number(row, 0)?), column::<Vec<u8>>(row, 1)?, column::<Vec<u8>>(row, 2)?);
        known(tx, ino)?;
        let key = (ino, name);
        let possible = (1..=255).contains(&key.1.len()) && !key.1.contains(&0) && value.len() <= 64 << 10;
        if key <= self.last_xattr || !possible {
            refuse!("an extended attribute of inode {ino} is out of order or not possible");
        }
        tx.conn()
            .prepare_cached("INSERT INTO xattr (ino, name, value) VALUES (?1, ?2, ?3)")?
            .execute(params![ino, key.1, value])?;
        tx.changes().xattrs_changed(ino);
        self.last_xattr = key;
        Ok(())
    }

    fn chunk(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let (id, length) = (number(row, 0)?, number(row, 2)?);
        let hash: ChunkHash = column(row, 1)?;
        let dead: Option<Seq> = column(row, 3)?;
        // Ids ascend like inode numbers do.
        if !self.ascends(InodeId(id)) || id > self.head.chunk_high {
            refuse!("chunk row {id} is out of order or above {}", self.head.chunk_high);
        }
        if !(1..=CHUNK_LENGTH_MAX).contains(&length) || dead.is_some_and(|dead| dead > self.head.seq.next()) {
            refuse!("chunk {hash} of {length} bytes is not possible");
        }
        let inserted = tx
            .conn()
            .prepare_cached(
                "INSERT OR IGNORE INTO chunk (id, hash, length, dead_seq, bytes_referenced, incomplete) \
                 VALUES (?1, ?2, ?3, ?4, 0, 1)",
            )?
            .execute(params![id as i64, hash, length as i64, dead])?;
        if inserted != 1 {
            refuse!("chunk {hash} has two rows");
        }
        Ok(())
    }

    fn extent(&mut self, tx: &mut Tx<'_>, row: &Row<'_>) -> Result<()> {
        let ino = InodeId(number(row, 0)?);
        let extent = ExtentRow {
            offset: number(row, 1)?,
            length: number(row, 2)?,
            chunk: ChunkId(number(row, 3)?),
            chunk_offset: number(row, 4)?,
        };
        let mut filling = match self.file.take() {
            Some(filling) if filling.inode.ino == ino => filling,
            before => {
                filled(tx, before)?;
                let inode = known(tx, ino)?;
                if !self.ascends(ino) || !inode.is_file() {
                    refuse!("extents of inode {ino} are out of order, or it is not a file");
                }
                let manifest = tx.next_manifest();
                // The old content of a file with open slots may be longer than the file; filling them clips it.
                let size = (!self.in_slots.contains(&ino)).then_some(inode.size);
                Filling { inode: Inode { manifest: Some(manifest), ..inode }, manifest, size, next: 0 }
            }
        };
        let length: Option<i64> = tx
            .conn()
            .prepare_cached("SELECT length FROM chunk WHERE id = ?1")?
            .query_row([extent.chunk], |row| row.get(0))
            .optional()?;
        let Some(length) = length else {
            refuse!("inode {ino} refers to chunk row {}, which is missing", extent.chunk)
        };
        // All numbers are below 2^53, so none of these sums overflows.
        let in_chunk = extent.chunk_offset + extent.length <= length as u64;
        let in_file = extent.end() <= filling.size.unwrap_or(NUMBER_MAX);
        if extent.length == 0 || extent.offset < filling.next || !in_chunk || !in_file {
            refuse!("the extent of inode {ino} at {} is empty, overlaps, or lies outside", extent.offset);
        }
        filling.next = extent.end();
        filling.inode.allocated += extent.length;
        let manifest = self.file.insert(filling).manifest;
        extent::insert(tx, manifest, &extent, &mut self.deltas)
    }

    /// The checks that need all rows, and the counters.
    fn finish(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        filled(tx, self.file.take())?;
        let count = |sql: &str| -> Result<i64> { Ok(tx.conn().query_row(sql, [], |row| row.get(0))?) };
        if tx.find_inode(InodeId::ROOT)?.is_none() {
            refuse!("has no root");
        }
        let nameless = count("SELECT count(*) FROM inode WHERE parent = 0")?;
        if nameless > 0 {
            refuse!("{nameless} inodes have no name");
        }
        let directories = count("SELECT count(*) FROM inode WHERE mode & 61440 = 16384")?;
        // Every directory but the root has one name, so the walk down from the root meets none twice and ends.
        let reached = count(
            "WITH RECURSIVE tree (ino) AS (VALUES (1) UNION ALL SELECT d.ino FROM tree CROSS JOIN dirent d ON d.parent = tree.ino \
             CROSS JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 16384) SELECT count(*) FROM tree",
        )?;
        if reached != directories {
            refuse!("{} directories do not hang on the root", directories - reached);
        }
        if count("SELECT count(*) FROM inode WHERE mode & 61440 = 40960")? != count("SELECT count(*) FROM symlink")? {
            refuse!("a symbolic link has no target");
        }
        let dead = self.head.seq.next();
        tx.conn()
            .execute("UPDATE chunk SET dead_seq = ?1 WHERE bytes_referenced = 0 AND dead_seq IS NULL", params![dead])?;
        tx.conn().execute("UPDATE counter SET epoch = ?1, writer = ?2", params![self.head.epoch, self.head.writer])?;
        tx.set_head(self.head.seq);
        tx.raise_next_inode(InodeId(self.head.next_inode.0.saturating_sub(1)));
        Ok(())
    }
}

/// All extents of a file have come.
fn filled(tx: &Tx<'_>, file: Option<Filling>) -> Result<()> {
    file.map_or(Ok(()), |filling| filling.inode.update(tx))
}

fn known(tx: &Tx<'_>, ino: InodeId) -> Result<Inode> {
    match tx.find_inode(ino)? {
        Some(inode) => Ok(inode),
        None => refuse!("refers to inode {ino}, which is missing"),
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
