//! Extent rows: which piece holds which bytes of one manifest.
//!
//! Owns: replacing, cutting and releasing ranges of a manifest, and counting what that does to the chunks' references.
//! Does not own: which inode has which manifest, where pieces come from (`commit`, `replay`), reading (`read`).
//!
//! Rows of one manifest never overlap; what no row names is a hole (zeros). A row is never empty. Neighbours that continue
//! each other in the same chunk become one row (O4).
//!
//! ```text
//! before   |aaaaaaaaaaaa|    |bbbb||cccccccc|
//! replace         |nnnnnnnnnnnnnnnnnn|
//! after    |aaaaaa||nnnnnnnnnnnnnnnnnn||cccc|      a: −6   b: −4   c: −4   n: +18
//! ```
//!
//! Counting is apart from changing: a transaction sums up in [`RefDeltas`] and updates each touched chunk once.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Error, Result, Tx};
use crate::id::{ChunkId, ManifestId};

/// One row: a run of a file's bytes that lies in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtentRow {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes, at least 1.
    pub length: u64,
    pub chunk: ChunkId,
    /// Bytes from the start of the chunk.
    pub chunk_offset: u64,
}

impl ExtentRow {
    /// The first byte of the file behind this row.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// What is left of the row from file offset `from` on; the caller knows that it lies inside.
    fn tail(&self, from: u64) -> ExtentRow {
        let skipped = from - self.offset;
        ExtentRow { offset: from, length: self.length - skipped, chunk_offset: self.chunk_offset + skipped, ..*self }
    }

    /// True if `next` continues this row both in the file and in the chunk.
    fn continues_in(&self, next: &ExtentRow) -> bool {
        self.chunk == next.chunk && self.end() == next.offset && self.chunk_offset + self.length == next.chunk_offset
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<ExtentRow> {
        let number = |column| {
            let value: i64 = row.get(column)?;
            u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
        };
        Ok(ExtentRow { offset: number(0)?, length: number(1)?, chunk: row.get(2)?, chunk_offset: number(3)? })
    }
}

/// Changes of `chunk.bytes_referenced`, summed up over a transaction (T5).
#[derive(Debug, Default)]
#[must_use = "references are counted only by `apply`"]
pub(crate) struct RefDeltas {
    bytes: BTreeMap<ChunkId, i64>,
    net: i64,
}

impl RefDeltas {
    /// Counts `bytes` more that extents name in `chunk`.
    pub fn add(&mut self, chunk: ChunkId, bytes: u64) {
        *self.bytes.entry(chunk).or_default() += bytes as i64;
        self.net += bytes as i64;
    }

    /// Counts `bytes` fewer.
    pub fn remove(&mut self, chunk: ChunkId, bytes: u64) {
        *self.bytes.entry(chunk).or_default() -= bytes as i64;
        self.net -= bytes as i64;
    }

    /// Bytes that extents name more than before, over all chunks so far: of what lies between two looks, by how much the
    /// manifest that was changed has grown.
    pub fn net(&self) -> i64 {
        self.net
    }

    /// Updates each touched chunk once. A chunk whose count becomes 0 is dead from journal head + 1 on, even if it came
    /// and went within this transaction (a record names it then, and the target that gets the record needs it);
    /// one that is referenced again is revived (T5).
    pub fn apply(self, tx: &Tx<'_>) -> Result<()> {
        let mut update = tx.conn().prepare_cached(
            "UPDATE chunk SET bytes_referenced = bytes_referenced + ?2, \
             dead_seq = CASE WHEN bytes_referenced + ?2 > 0 THEN NULL ELSE ?3 END \
             WHERE id = ?1 AND bytes_referenced + ?2 >= 0",
        )?;
        let dead_seq = tx.head().next();
        for (chunk, delta) in self.bytes {
            if update.execute(params![chunk, delta, dead_seq])? != 1 {
                return Err(Error::Damaged(format!(
                    "chunk row {chunk} is missing, or its count of references would fall below zero by {delta}"
                )));
            }
        }
        Ok(())
    }
}

/// Makes `length` bytes from `offset` name `piece` (chunk, offset in it), or a hole.
pub(crate) fn replace(
    tx: &Tx<'_>,
    manifest: ManifestId,
    offset: u64,
    length: u64,
    piece: Option<(ChunkId, u64)>,
    deltas: &mut RefDeltas,
) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()).ok_or_else(|| {
        Error::Damaged(format!("extent of {length} bytes at {offset} lies beyond every possible file"))
    })?;
    let left = row_before(tx.conn(), manifest, offset)?;
    // What remains, or already stands, directly behind the range; `stands` = it is a row of its own at `end`.
    let mut right: Option<(ExtentRow, bool)> = None;
    if let Some(left) = left.filter(|left| left.end() > offset) {
        deltas.remove(left.chunk, left.end().min(end) - offset);
        set_length(tx, manifest, left.offset, offset - left.offset)?;
        if left.end() > end {
            right = Some((left.tail(end), false));
        }
    }
    if right.is_none() {
        let mut rows = tx.conn().prepare_cached(
            "SELECT offset, length, chunk, chunk_offset FROM extent \
             WHERE manifest = ?1 AND offset >= ?2 AND offset <= ?3 ORDER BY offset",
        )?;
        let mut rows = rows.query(params![manifest, offset as i64, end as i64])?;
        let mut covered = false;
        while let Some(row) = rows.next()? {
            let row = ExtentRow::from_row(row)?;
            if row.offset == end {
                right = Some((row, true));
                break;
            }
            covered = true;
            deltas.remove(row.chunk, row.end().min(end) - row.offset);
            if row.end() > end {
                right = Some((row.tail(end), false));
            }
        }
        drop(rows);
        if covered {
            tx.conn()
                .prepare_cached("DELETE FROM extent WHERE manifest = ?1 AND offset >= ?2 AND offset < ?3")?
                .execute(params![manifest, offset as i64, end as i64])?;
        }
    }
    let Some((chunk, chunk_offset)) = piece else {
        return match right {
            Some((row, false)) => store(tx, manifest, &row),
            _ => Ok(()),
        };
    };
    deltas.add(chunk, length);
    let mut new = ExtentRow { offset, length, chunk, chunk_offset };
    match right {
        Some((row, stands)) if new.continues_in(&row) => {
            new.length += row.length;
            if stands {
                tx.conn()
                    .prepare_cached("DELETE FROM extent WHERE manifest = ?1 AND offset = ?2")?
                    .execute(params![manifest, end as i64])?;
            }
        }
        Some((row, false)) => store(tx, manifest, &row)?,
        _ => {}
    }
    let left = left.map(|left| ExtentRow { length: left.length.min(offset - left.offset), ..left });
    match left {
        Some(left) if left.continues_in(&new) => set_length(tx, manifest, left.offset, left.length + new.length),
        _ => store(tx, manifest, &new),
    }
}

/// Inserts a row where the caller knows that the manifest names nothing, as in a new one filled in order.
pub(crate) fn insert(tx: &Tx<'_>, manifest: ManifestId, row: &ExtentRow, deltas: &mut RefDeltas) -> Result<()> {
    store(tx, manifest, row)?;
    deltas.add(row.chunk, row.length);
    Ok(())
}

/// Cuts off what lies at or beyond `size`.
pub(crate) fn cut(tx: &Tx<'_>, manifest: ManifestId, size: u64, deltas: &mut RefDeltas) -> Result<()> {
    let Ok(from) = i64::try_from(size) else { return Ok(()) };
    if let Some(row) = row_before(tx.conn(), manifest, size)?.filter(|row| row.end() > size) {
        deltas.remove(row.chunk, row.end() - size);
        set_length(tx, manifest, row.offset, size - row.offset)?;
    }
    let mut rows = tx.conn().prepare_cached("SELECT chunk, length FROM extent WHERE manifest = ?1 AND offset >= ?2")?;
    let mut rows = rows.query(params![manifest, from])?;
    let mut any = false;
    while let Some(row) = rows.next()? {
        deltas.remove(row.get(0)?, row.get::<_, i64>(1)? as u64);
        any = true;
    }
    drop(rows);
    if any {
        tx.conn()
            .prepare_cached("DELETE FROM extent WHERE manifest = ?1 AND offset >= ?2")?
            .execute(params![manifest, from])?;
    }
    Ok(())
}

/// Forgets all extents of a manifest at once. For one that may be large, [`release_batch`].
pub(crate) fn release(tx: &Tx<'_>, manifest: ManifestId, deltas: &mut RefDeltas) -> Result<()> {
    cut(tx, manifest, 0, deltas)
}

/// Forgets at most `rows_max` extents from the end of a manifest; true when none is left (D8: ≤ 2 ms at a time).
pub(crate) fn release_batch(tx: &Tx<'_>, manifest: ManifestId, rows_max: u32, deltas: &mut RefDeltas) -> Result<bool> {
    let from: Option<i64> = tx
        .conn()
        .prepare_cached("SELECT offset FROM extent WHERE manifest = ?1 ORDER BY offset DESC LIMIT 1 OFFSET ?2")?
        .query_row(params![manifest, rows_max.saturating_sub(1)], |row| row.get(0))
        .optional()?;
    match from {
        Some(from) => {
            cut(tx, manifest, from as u64, deltas)?;
            Ok(row_before(tx.conn(), manifest, from as u64)?.is_none())
        }
        None => release(tx, manifest, deltas).map(|()| true),
    }
}

/// The rows of a manifest that touch `offset … offset + length`, in order.
pub(crate) fn rows(conn: &Connection, manifest: ManifestId, offset: u64, length: u64) -> Result<Vec<ExtentRow>> {
    let mut found: Vec<_> = row_before(conn, manifest, offset)?.filter(|row| row.end() > offset).into_iter().collect();
    let end = i64::try_from(offset.saturating_add(length)).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(
        "SELECT offset, length, chunk, chunk_offset FROM extent \
         WHERE manifest = ?1 AND offset >= ?2 AND offset < ?3 ORDER BY offset",
    )?;
    for row in
        statement.query_map(params![manifest, i64::try_from(offset).unwrap_or(i64::MAX), end], ExtentRow::from_row)?
    {
        found.push(row?);
    }
    Ok(found)
}

/// The last row that begins before `offset`.
fn row_before(conn: &Connection, manifest: ManifestId, offset: u64) -> Result<Option<ExtentRow>> {
    Ok(conn
        .prepare_cached(
            "SELECT offset, length, chunk, chunk_offset FROM extent \
             WHERE manifest = ?1 AND offset < ?2 ORDER BY offset DESC LIMIT 1",
        )?
        .query_row(params![manifest, i64::try_from(offset).unwrap_or(i64::MAX)], ExtentRow::from_row)
        .optional()?)
}

fn store(tx: &Tx<'_>, manifest: ManifestId, row: &ExtentRow) -> Result<()> {
    tx.conn()
        .prepare_cached(
            "INSERT INTO extent (manifest, offset, length, chunk, chunk_offset) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![manifest, row.offset as i64, row.length as i64, row.chunk, row.chunk_offset as i64])?;
    Ok(())
}

fn set_length(tx: &Tx<'_>, manifest: ManifestId, offset: u64, length: u64) -> Result<()> {
    tx.conn().prepare_cached("UPDATE extent SET length = ?3 WHERE manifest = ?1 AND offset = ?2")?.execute(params![
        manifest,
        offset as i64,
        length as i64
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::id::{FilesystemId, Hash, Seq};
    use crate::meta::{Created, Meta};

    const MANIFEST: ManifestId = ManifestId(7);
    const CHUNKS: u64 = 4;
    const CHUNK_LENGTH: u64 = 48;

    /// A store with chunks 1 … 4 and, to be left alone, a row of the neighbouring manifests.
    fn store_with_chunks() -> (tempfile::TempDir, Meta) {
        let dir = tempfile::tempdir().unwrap();
        let created = Created {
            filesystem: FilesystemId::random(),
            name: "t".into(),
            chunk_size: 1 << 16,
            time: Timestamp::EPOCH,
        };
        let meta = Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap();
        meta.write(|tx| {
            for id in 1..=CHUNKS + 1 {
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, bytes_referenced, incomplete) VALUES (?1, ?2, ?3, 0, 0)",
                    params![ChunkId(id), Hash::of(&id.to_le_bytes()), CHUNK_LENGTH as i64],
                )?;
            }
            let mut deltas = RefDeltas::default();
            for manifest in [6, 8] {
                let row = ExtentRow { offset: 0, length: 48, chunk: ChunkId(CHUNKS + 1), chunk_offset: 0 };
                insert(tx, ManifestId(manifest), &row, &mut deltas)?;
            }
            deltas.apply(tx)
        })
        .unwrap();
        (dir, meta)
    }

    fn references(meta: &Meta) -> Vec<(i64, Option<Seq>)> {
        meta.read(|conn| {
            let mut statement = conn.prepare("SELECT bytes_referenced, dead_seq FROM chunk ORDER BY id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap()
    }

    #[derive(Debug, Clone)]
    enum Op {
        Replace { offset: u64, length: u64, piece: Option<(u64, u64)> },
        Cut { size: u64 },
        ReleaseBatch { rows_max: u32 },
    }

    fn op() -> impl Strategy<Value = Op> {
        let piece = prop_oneof![
            1 => Just(None),
            4 => (1..=CHUNKS, 0..CHUNK_LENGTH / 4).prop_map(|(chunk, block)| Some((chunk, block * 2))),
        ];
        prop_oneof![
            12 => (0u64..40, 0u64..20, piece).prop_map(|(offset, length, piece)| Op::Replace { offset: offset * 2, length, piece }),
            2 => (0u64..70).prop_map(|size| Op::Cut { size }),
            1 => (1u32..4).prop_map(|rows_max| Op::ReleaseBatch { rows_max }),
        ]
    }

    /// Each byte of the file on its own: the chunk and the offset in it that hold it.
    type Oracle = Vec<Option<(u64, u64)>>;

    fn check(meta: &Meta, oracle: &Oracle) {
        let rows = meta.read(|conn| rows(conn, MANIFEST, 0, 1 << 20)).unwrap();
        let mut bytes: Oracle = vec![None; oracle.len()];
        let mut end = 0;
        for row in &rows {
            assert!(row.length > 0 && row.offset >= end, "rows overlap or are empty: {rows:?}");
            end = row.end();
            for i in 0..row.length {
                bytes[(row.offset + i) as usize] = Some((row.chunk.0, row.chunk_offset + i));
            }
        }
        assert_eq!(&bytes, oracle);
        let mut counted = vec![0i64; CHUNKS as usize];
        oracle.iter().flatten().for_each(|(chunk, _)| counted[*chunk as usize - 1] += 1);
        let found = references(meta);
        for (chunk, count) in counted.iter().enumerate() {
            assert_eq!(found[chunk].0, *count, "chunk {}", chunk + 1);
            assert!((*count == 0) || found[chunk].1.is_none(), "a referenced chunk is not dead (T5)");
        }
        assert_eq!(found[CHUNKS as usize], (96, None), "other manifests are left alone");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn extents_hold_what_a_byte_array_would(ops in prop::collection::vec((op(), any::<bool>()), 1..40)) {
            let (_dir, meta) = store_with_chunks();
            let mut oracle: Oracle = vec![None; 128];
            let mut pending: Vec<Op> = Vec::new();
            for (op, commit) in ops {
                pending.push(op);
                if !commit {
                    continue;
                }
                meta.write(|tx| {
                    let mut deltas = RefDeltas::default();
                    for op in pending.drain(..) {
                        match op {
                            Op::Replace { offset, length, piece } => {
                                let piece_id = piece.map(|(chunk, at)| (ChunkId(chunk), at));
                                replace(tx, MANIFEST, offset, length, piece_id, &mut deltas)?;
                                for i in 0..length {
                                    oracle[(offset + i) as usize] = piece.map(|(chunk, at)| (chunk, at + i));
                                }
                            }
                            Op::Cut { size } => {
                                cut(tx, MANIFEST, size, &mut deltas)?;
                                oracle.iter_mut().skip(size as usize).for_each(|byte| *byte = None);
                            }
                            Op::ReleaseBatch { rows_max } => {
                                let before = rows(tx.conn(), MANIFEST, 0, 1 << 20)?;
                                let done = release_batch(tx, MANIFEST, rows_max, &mut deltas)?;
                                let kept = before.len().saturating_sub(rows_max as usize);
                                assert_eq!(done, kept == 0);
                                let size = before.get(kept).map_or(128, |row| row.offset);
                                oracle.iter_mut().skip(size as usize).for_each(|byte| *byte = None);
                            }
                        }
                    }
                    deltas.apply(tx)
                }).unwrap();
                check(&meta, &oracle);
            }
        }
    }

    #[test]
    fn neighbours_that_continue_each_other_become_one_row() {
        let (_dir, meta) = store_with_chunks();
        let found = meta
            .write(|tx| {
                let mut deltas = RefDeltas::default();
                replace(tx, MANIFEST, 0, 8, Some((ChunkId(1), 0)), &mut deltas)?;
                replace(tx, MANIFEST, 16, 8, Some((ChunkId(1), 16)), &mut deltas)?;
                replace(tx, MANIFEST, 8, 8, Some((ChunkId(1), 8)), &mut deltas)?;
                // Rewriting the middle with the same piece splits and heals.
                replace(tx, MANIFEST, 4, 4, Some((ChunkId(1), 4)), &mut deltas)?;
                deltas.apply(tx)?;
                rows(tx.conn(), MANIFEST, 0, 100)
            })
            .unwrap();
        assert_eq!(found, [ExtentRow { offset: 0, length: 24, chunk: ChunkId(1), chunk_offset: 0 }]);
        assert_eq!(references(&meta)[0], (24, None));
    }

    #[test]
    fn t5_a_chunk_is_dead_from_head_plus_one_and_revived_by_a_reference() {
        let (_dir, meta) = store_with_chunks();
        let set = |piece: Option<(ChunkId, u64)>, head: u64| {
            meta.write(|tx| {
                tx.set_head(Seq(head));
                let mut deltas = RefDeltas::default();
                replace(tx, MANIFEST, 0, 8, piece, &mut deltas)?;
                deltas.apply(tx)
            })
            .unwrap();
            references(&meta)[0]
        };
        assert_eq!(set(Some((ChunkId(1), 0)), 5), (8, None));
        assert_eq!(set(None, 9), (0, Some(Seq(10))));
        assert_eq!(set(Some((ChunkId(1), 8)), 11), (8, None));
        assert_eq!(set(Some((ChunkId(2), 0)), 12), (0, Some(Seq(13))));
    }

    #[test]
    fn a_count_below_zero_or_a_range_beyond_every_file_is_damage_not_a_panic() {
        let (_dir, meta) = store_with_chunks();
        let refused = meta.write(|tx| {
            let mut deltas = RefDeltas::default();
            deltas.remove(ChunkId(1), 1);
            deltas.apply(tx)
        });
        assert!(matches!(refused, Err(Error::Damaged(_))));
        let refused = meta.write(|tx| {
            let mut deltas = RefDeltas::default();
            replace(tx, MANIFEST, u64::MAX - 1, 5, None, &mut deltas)
        });
        assert!(matches!(refused, Err(Error::Damaged(_))));
    }
}
