//! Shipping rows: how far each target is, the segments on their way to it, and when history may be forgotten (T2).
//!
//! Owns: `target.position` and all columns about segments, `deferred`, `segment`; dropping journal rows that everybody has.
//! Does not own: what goes into a segment (`replication::selection`), sending it (`replication::shipper`).
//!
//! ```text
//! built ──store_segments, synced──▶ stored ──put──▶ on the target ──confirm_segment──▶ confirmed
//!   n, hash, position, deferred        the body, so that          confirmed_*, shipped_seq;
//!   move on, durably, before the put   a retry sends the same     the body goes
//! ```

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::journal;
use super::{Error, Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::format::record::{Change, VoidReason};
use crate::format::segment::Encoded;
use crate::id::{Epoch, Hash, SegmentNumber, Seq, TargetBit, TargetId, WriterId};
use crate::replication::ack::Holds;

/// Rows dropped in one transaction: well below the 2 ms that a background transaction may hold the writer (D8).
const TRIM_ROWS: usize = 500;
/// Rows looked at for the time of the oldest: some records carry none.
const OLDEST_ROWS_MAX: usize = 64;

/// A segment of a target and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentId {
    pub epoch: Epoch,
    pub writer: WriterId,
    pub n: SegmentNumber,
    pub hash: Hash,
    /// The highest seq in it or before it.
    pub seq: Seq,
}

/// How far a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub bit: TargetBit,
    pub id: TargetId,
    pub initialised: bool,
    /// The highest seq put into a segment.
    pub position: Seq,
    /// Low water of what is confirmed.
    pub shipped_seq: Seq,
    /// The newest segment built; `None` before the first.
    pub built: Option<SegmentId>,
    /// The newest segment that the target is known to have.
    pub confirmed: Option<SegmentId>,
    /// The newest epoch whose announcement is on the target.
    pub contact_epoch: Epoch,
    /// Since the last complete checkpoint.
    pub segment_bytes: u64,
    /// Since the last complete checkpoint.
    pub segment_count: u64,
}

/// A segment on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSegment {
    pub id: SegmentId,
    pub body: Vec<u8>,
    pub low_water: Seq,
}

/// What a target has not confirmed yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShippingBacklog {
    /// Records in no segment yet.
    pub records: u64,
    /// Segments built and not confirmed.
    pub segments: u64,
    /// When the oldest record above the target's low water was made; `None` if it has all, or that record has no time.
    pub oldest: Option<Timestamp>,
}

impl Meta {
    /// How far target `bit` is.
    pub fn cursor(&self, bit: TargetBit) -> Result<Cursor> {
        self.read(|conn| cursor(conn, bit))
    }

    /// Which records target `bit` has; `None` while segments are on their way to it: they are of the position already, and
    /// not of the target.
    pub fn holds(&self, bit: TargetBit) -> Result<Option<Holds>> {
        self.read(|conn| {
            let row = conn
                .prepare_cached(
                    "SELECT position, shipped_seq, mode, EXISTS (SELECT 1 FROM segment WHERE bit = ?1) FROM target \
                     WHERE bit = ?1",
                )?
                .query_row([bit], |row| {
                    Ok((row.get::<_, Seq>(0)?, row.get::<_, Seq>(1)?, row.get::<_, String>(2)?, row.get::<_, bool>(3)?))
                })?;
            let (position, low_water, mode, on_its_way) = row;
            if mode == "resync" {
                // It takes no records: it has what its last whole point has.
                return Ok(Some(Holds::up_to(low_water)));
            }
            if on_its_way {
                return Ok(None);
            }
            let deferred = conn
                .prepare_cached("SELECT seq FROM deferred WHERE bit = ?1 ORDER BY seq")?
                .query_map([bit], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<Seq>>>()?;
            Ok(Some(Holds { low_water, position: position.max(low_water), deferred: deferred.into() }))
        })
    }

    /// Stores segments that follow on the newest one built, with the position and the deferred records after them, and
    /// syncs: from here on the local history is not behind what the target may get (T2).
    pub fn store_segments(&self, bit: TargetBit, segments: &[Encoded], position: Seq, deferred: &[Seq]) -> Result<()> {
        self.write(|tx| tx.store_segments(bit, segments, position, deferred))?;
        self.sync()
    }

    /// Stores a segment without records that follows on the newest one built, and syncs. Nothing moves on but the chain.
    pub fn store_empty_segment(&self, bit: TargetBit, segment: &Encoded) -> Result<()> {
        assert_eq!(segment.count, 0, "a segment with records moves the position");
        self.write(|tx| tx.append_segments(bit, std::slice::from_ref(segment)))?;
        self.sync()
    }

    /// The oldest segment of a target that is built and not confirmed.
    pub fn next_unconfirmed(&self, bit: TargetBit) -> Result<Option<StoredSegment>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT epoch, writer, n, hash, seq_max, body, low_water FROM segment WHERE bit = ?1 ORDER BY n LIMIT 1",
            )?;
            let stored = statement.query_row([bit], stored).optional()?;
            Ok(stored)
        })
    }

    /// All segments of a target that are built and not confirmed, without their bodies.
    pub fn unconfirmed(&self, bit: TargetBit) -> Result<Vec<SegmentId>> {
        self.read(|conn| {
            let mut statement =
                conn.prepare_cached("SELECT epoch, writer, n, hash, seq_max FROM segment WHERE bit = ?1 ORDER BY n")?;
            let ids = statement.query_map([bit], segment_id)?.collect::<rusqlite::Result<_>>()?;
            Ok(ids)
        })
    }

    /// Records that the target has the oldest unconfirmed segment, `n`. Returns the low water after it.
    pub fn confirm_segment(&self, bit: TargetBit, n: SegmentNumber) -> Result<Seq> {
        self.write(|tx| tx.confirm_segment(bit, n))
    }

    /// Records that the target's `tandemfs.json` was written or seen (T1): it is never made anew.
    pub fn set_initialised(&self, bit: TargetBit) -> Result<()> {
        self.write(|tx| {
            tx.conn().prepare_cached("UPDATE target SET initialised = 1 WHERE bit = ?1")?.execute([bit])?;
            Ok(())
        })?;
        self.sync()
    }

    /// Records that the announcement of `epoch` is on the target (T7).
    pub fn set_contact_epoch(&self, bit: TargetBit, epoch: Epoch) -> Result<()> {
        self.write(|tx| {
            tx.conn()
                .prepare_cached("UPDATE target SET contact_epoch = max(contact_epoch, ?2) WHERE bit = ?1")?
                .execute(params![bit, epoch])?;
            Ok(())
        })
    }

    /// Records that are in no segment of target `bit` yet.
    pub fn waiting_records(&self, bit: TargetBit) -> Result<u64> {
        self.read(|conn| {
            let cursor = cursor(conn, bit)?;
            let head: Seq = conn.prepare_cached("SELECT seq FROM counter")?.query_row([], |row| row.get(0))?;
            let deferred: i64 = conn
                .prepare_cached("SELECT count(*) FROM deferred WHERE bit = ?1")?
                .query_row([bit], |row| row.get(0))?;
            Ok(head.0.saturating_sub(cursor.position.0) + deferred as u64)
        })
    }

    /// What the target has not confirmed yet, for `status`.
    pub fn shipping_backlog(&self, bit: TargetBit) -> Result<ShippingBacklog> {
        self.read(|conn| {
            let cursor = cursor(conn, bit)?;
            let count = |sql: &str| -> Result<u64> {
                Ok(conn.prepare_cached(sql)?.query_row([bit], |row| row.get::<_, i64>(0))? as u64)
            };
            let head: Seq = conn.prepare_cached("SELECT seq FROM counter")?.query_row([], |row| row.get(0))?;
            // Both tables are bounded: O7 and the one round that is on its way.
            let deferred = count("SELECT count(*) FROM deferred WHERE bit = ?1")?;
            let segments = count("SELECT count(*) FROM segment WHERE bit = ?1")?;
            Ok(ShippingBacklog {
                records: head.0.saturating_sub(cursor.position.0) + deferred,
                segments,
                oldest: oldest(conn, cursor.shipped_seq)?,
            })
        })
    }

    /// Drops journal rows and units that every target has which takes them from the journal, but none from `keep_from` on
    /// (a checkpoint on its way still needs them). Returns true if there may be more to drop.
    pub fn trim_journal(&self, keep_from: Option<Seq>) -> Result<bool> {
        let limit: Option<Seq> = self.read(|conn| {
            let (lowest, targets): (Option<Seq>, i64) = conn
                .prepare_cached("SELECT min(iif(mode <> 'resync', shipped_seq, NULL)), count(*) FROM target")?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if lowest.is_some() || targets == 0 {
                return Ok(lowest);
            }
            // Nobody follows: only what open slots will fill, and the units they are part of, is wanted still.
            let head: Seq = conn.prepare_cached("SELECT seq FROM counter")?.query_row([], |row| row.get(0))?;
            let open: Option<Seq> =
                conn.prepare_cached("SELECT min(first_seq) FROM slot")?.query_row([], |row| row.get(0))?;
            Ok(Some(open.map_or(head, |first| head.min(first.previous()))))
        })?;
        let Some(limit) = limit.map(|limit| keep_from.map_or(limit, |keep| limit.min(keep.previous()))) else {
            return Ok(false);
        };
        let first: Option<Seq> = self
            .read(|conn| Ok(conn.prepare_cached("SELECT min(seq) FROM journal")?.query_row([], |row| row.get(0))?))?;
        if first.is_none_or(|first| first > limit) {
            return Ok(false);
        }
        self.write(|tx| {
            let dropped = tx
                .conn()
                .prepare_cached(
                    "DELETE FROM journal WHERE seq IN (SELECT seq FROM journal WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
                )?
                .execute(params![limit, TRIM_ROWS as i64])?;
            let more = dropped == TRIM_ROWS;
            if !more {
                tx.conn().prepare_cached("DELETE FROM unit WHERE last <= ?1")?.execute([limit])?;
            }
            Ok(more)
        })
    }
}

impl Tx<'_> {
    /// As [`Meta::store_segments`], without the sync.
    pub(crate) fn store_segments(
        &mut self,
        bit: TargetBit,
        segments: &[Encoded],
        position: Seq,
        deferred: &[Seq],
    ) -> Result<()> {
        self.append_segments(bit, segments)?;
        self.conn()
            .prepare_cached("UPDATE target SET position = max(position, ?2) WHERE bit = ?1")?
            .execute(params![bit, position])?;
        // A checkpoint may have become complete since the window was read: what it covers waits for nothing any more.
        let shipped = cursor(self.conn(), bit)?.shipped_seq;
        let deferred: Vec<Seq> = deferred.iter().copied().filter(|seq| *seq > shipped).collect();
        self.replace_deferred(bit, &deferred)
    }

    /// Appends to the chain of a target's segments.
    fn append_segments(&mut self, bit: TargetBit, segments: &[Encoded]) -> Result<()> {
        let before = cursor(self.conn(), bit)?;
        let mut newest = before.built;
        for segment in segments {
            let follows = newest.map_or(SegmentNumber(0), |built| built.n).next();
            if segment.place.n != follows || segment.place.target != before.id {
                return Err(Error::Damaged(format!(
                    "segment {} of target {} does not follow on {follows}",
                    segment.place.n, segment.place.target
                )));
            }
            let id = SegmentId {
                epoch: segment.place.epoch,
                writer: segment.place.writer,
                n: segment.place.n,
                hash: segment.hash,
                seq: segment.seq_max,
            };
            self.conn().prepare_cached("INSERT INTO segment VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(
                params![bit, id.n, id.epoch, id.writer, segment.body, id.hash.to_string(), id.seq, segment.low_water],
            )?;
            newest = Some(id);
        }
        let Some(built) = newest else { return Ok(()) };
        self.conn()
            .prepare_cached("UPDATE target SET n = ?2, hash = ?3, epoch = ?4, writer = ?5 WHERE bit = ?1")?
            .execute(params![bit, built.n, built.hash.to_string(), built.epoch, built.writer])?;
        Ok(())
    }

    /// Writes the difference only: a long list changes little from round to round.
    fn replace_deferred(&mut self, bit: TargetBit, deferred: &[Seq]) -> Result<()> {
        let before: Vec<Seq> = self
            .conn()
            .prepare_cached("SELECT seq FROM deferred WHERE bit = ?1 ORDER BY seq")?
            .query_map([bit], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let missing_in = |list: &[Seq], seq: &Seq| list.binary_search(seq).is_err();
        for seq in before.iter().filter(|seq| missing_in(deferred, seq)) {
            self.conn()
                .prepare_cached("DELETE FROM deferred WHERE bit = ?1 AND seq = ?2")?
                .execute(params![bit, seq])?;
        }
        for seq in deferred.iter().filter(|seq| missing_in(&before, seq)) {
            self.conn().prepare_cached("INSERT INTO deferred VALUES (?1, ?2)")?.execute(params![bit, seq])?;
        }
        Ok(())
    }

    fn confirm_segment(&mut self, bit: TargetBit, n: SegmentNumber) -> Result<Seq> {
        let oldest = self
            .conn()
            .prepare_cached(
                "SELECT epoch, writer, n, hash, seq_max, low_water, length(body) FROM segment WHERE bit = ?1 \
                 ORDER BY n LIMIT 1",
            )?
            .query_row([bit], |row| Ok((segment_id(row)?, row.get::<_, Seq>(5)?, row.get::<_, i64>(6)?)))
            .optional()?;
        let Some((id, low_water, bytes)) = oldest.filter(|(id, ..)| id.n == n) else {
            return Err(Error::Damaged(format!("segment {n} of target {} is not the next to confirm", bit.index())));
        };
        self.conn().prepare_cached("DELETE FROM segment WHERE bit = ?1 AND n = ?2")?.execute(params![bit, n])?;
        self.conn()
            .prepare_cached(
                "UPDATE target SET confirmed_n = ?2, confirmed_hash = ?3, confirmed_seq = max(confirmed_seq, ?4), \
                 confirmed_epoch = ?5, confirmed_writer = ?6, shipped_seq = max(shipped_seq, ?7), \
                 segment_bytes = segment_bytes + ?8, segment_count = segment_count + ?9 WHERE bit = ?1",
            )?
            .execute(params![
                bit,
                n,
                id.hash.to_string(),
                id.seq,
                id.epoch,
                id.writer,
                low_water,
                bytes,
                // One without records is no activity that a later checkpoint would be due for.
                i64::from(id.seq > Seq::ZERO)
            ])?;
        Ok(cursor(self.conn(), bit)?.shipped_seq)
    }
}

/// Reads how far target `bit` is.
pub(crate) fn cursor(conn: &Connection, bit: TargetBit) -> Result<Cursor> {
    let unconfirmed: Option<Seq> =
        conn.prepare_cached("SELECT max(seq_max) FROM segment WHERE bit = ?1")?.query_row([bit], |row| row.get(0))?;
    conn.prepare_cached(
        "SELECT uuid, initialised, position, shipped_seq, n, hash, epoch, writer, confirmed_n, confirmed_hash, \
         confirmed_epoch, confirmed_writer, confirmed_seq, contact_epoch, segment_bytes, segment_count \
         FROM target WHERE bit = ?1",
    )?
    .query_row([bit], |row| {
        let confirmed_seq: Seq = row.get(12)?;
        let segment = |n: usize, hash: usize, epoch: usize, seq: Seq| -> rusqlite::Result<Option<SegmentId>> {
            let number: SegmentNumber = row.get(n)?;
            if number == SegmentNumber(0) {
                return Ok(None);
            }
            let (epoch, writer) = (row.get(epoch)?, row.get(epoch + 1)?);
            Ok(Some(SegmentId { epoch, writer, n: number, hash: text_hash(row, hash)?, seq }))
        };
        Ok(Cursor {
            bit,
            id: row.get(0)?,
            initialised: row.get(1)?,
            position: row.get(2)?,
            shipped_seq: row.get(3)?,
            built: segment(4, 5, 6, unconfirmed.unwrap_or(Seq::ZERO).max(confirmed_seq))?,
            confirmed: segment(8, 9, 10, confirmed_seq)?,
            contact_epoch: row.get(13)?,
            segment_bytes: row.get::<_, i64>(14)? as u64,
            segment_count: row.get::<_, i64>(15)? as u64,
        })
    })
    .optional()?
    .ok_or_else(|| Error::Damaged(format!("target {} has no row", bit.index())))
}

fn segment_id(row: &Row<'_>) -> rusqlite::Result<SegmentId> {
    Ok(SegmentId {
        epoch: row.get(0)?,
        writer: row.get(1)?,
        n: row.get(2)?,
        hash: text_hash(row, 3)?,
        seq: row.get(4)?,
    })
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredSegment> {
    Ok(StoredSegment { id: segment_id(row)?, body: row.get(5)?, low_water: row.get(6)? })
}

fn text_hash(row: &Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    row.get::<_, String>(column)?.parse().map_err(|e: crate::id::InvalidId| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, e.into())
    })
}

/// The time of the oldest record above `shipped`.
pub(super) fn oldest(conn: &Connection, shipped: Seq) -> Result<Option<Timestamp>> {
    let mut statement = conn.prepare_cached(
        "SELECT j.seq, j.body, s.ctime, s.ctime_ns FROM journal j LEFT JOIN slot s ON s.seq = j.seq \
         WHERE j.seq > ?1 ORDER BY j.seq LIMIT ?2",
    )?;
    let mut rows = statement.query(params![shipped, OLDEST_ROWS_MAX as i64])?;
    while let Some(row) = rows.next()? {
        let seq: Seq = row.get(0)?;
        let time = match row.get::<_, Option<Vec<u8>>>(1)? {
            Some(body) => time_of(&journal::decode(seq, &body)?.change),
            None if row.get::<_, Option<i64>>(2)?.is_some() => Some(super::inode::timestamp(row, 2)?),
            None => None,
        };
        if time.is_some() {
            return Ok(time);
        }
    }
    Ok(None)
}

/// When a change was made, as its record says.
fn time_of(change: &Change) -> Option<Timestamp> {
    match change {
        Change::Mkdir { time, .. }
        | Change::Create { time, .. }
        | Change::Symlink { time, .. }
        | Change::Link { time, .. }
        | Change::Rename { time, .. }
        | Change::Exchange { time, .. }
        | Change::Unlink { time, .. }
        | Change::Rmdir { time, .. } => Some(*time),
        Change::Content(content) => Some(content.ctime),
        Change::Setattr { ctime, .. } | Change::Setxattr { ctime, .. } | Change::Removexattr { ctime, .. } => {
            Some(*ctime)
        }
        Change::Void { why: VoidReason::Lost { ctime, .. }, .. } => Some(*ctime),
        Change::Void { .. } | Change::Repack { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::segment::{Builder, Place};
    use crate::id::FilesystemId;
    use crate::meta::target::{Configured, Mode};
    use crate::meta::testing::{file, store};

    fn bit(index: u8) -> TargetBit {
        TargetBit::new(index).unwrap()
    }

    fn followers(meta: &Meta, names: &[&str]) {
        let configured = |name: &&str| Configured { name: name.to_string(), uri: format!("fs:///{name}"), id: None };
        meta.register_targets(&names.iter().map(configured).collect::<Vec<_>>()).unwrap();
    }

    fn segment(meta: &Meta, bit: TargetBit, seqs: &[u64], low_water: u64) -> Encoded {
        let cursor = meta.cursor(bit).unwrap();
        let place = Place {
            filesystem: FilesystemId::random(),
            target: cursor.id,
            epoch: Epoch(3),
            writer: WriterId(7),
            n: cursor.built.map_or(SegmentNumber(0), |built| built.n).next(),
        };
        let mut builder = Builder::new(place, cursor.built.map(|built| built.hash));
        for seq in seqs {
            builder.push(Seq(*seq), b"{}\n");
        }
        builder.finish(Seq(low_water), true)
    }

    #[test]
    fn t2_a_stored_segment_moves_the_position_and_a_confirmed_one_the_low_water() {
        let (_dir, meta) = store();
        followers(&meta, &["a"]);
        let first = segment(&meta, bit(0), &[1, 3], 1);
        meta.store_segments(bit(0), std::slice::from_ref(&first), Seq(3), &[Seq(2)]).unwrap();
        let second = segment(&meta, bit(0), &[2, 4], 4);
        meta.store_segments(bit(0), std::slice::from_ref(&second), Seq(4), &[]).unwrap();

        let cursor = meta.cursor(bit(0)).unwrap();
        assert_eq!((cursor.position, cursor.shipped_seq, cursor.confirmed), (Seq(4), Seq(0), None));
        assert_eq!(cursor.built.unwrap().n, SegmentNumber(2));
        assert_eq!(cursor.built.unwrap().seq, Seq(4));
        assert_eq!(meta.unconfirmed(bit(0)).unwrap().len(), 2);
        let next = meta.next_unconfirmed(bit(0)).unwrap().unwrap();
        assert_eq!((next.id.n, &next.body), (SegmentNumber(1), &first.body), "the very bytes, for a retry");

        assert!(meta.confirm_segment(bit(0), SegmentNumber(2)).is_err(), "in order only");
        assert_eq!(meta.confirm_segment(bit(0), SegmentNumber(1)).unwrap(), Seq(1));
        assert_eq!(meta.confirm_segment(bit(0), SegmentNumber(2)).unwrap(), Seq(4));
        let cursor = meta.cursor(bit(0)).unwrap();
        assert_eq!(cursor.confirmed, cursor.built);
        assert_eq!((cursor.segment_count, cursor.segment_bytes), (2, (first.body.len() + second.body.len()) as u64));
        assert_eq!(meta.next_unconfirmed(bit(0)).unwrap(), None);
    }

    #[test]
    fn d3_a_target_has_a_record_only_once_its_segment_is_confirmed() {
        let (_dir, meta) = store();
        followers(&meta, &["a"]);
        assert_eq!(meta.holds(bit(0)).unwrap(), Some(Holds::up_to(Seq(0))));
        let first = segment(&meta, bit(0), &[1, 3], 1);
        meta.store_segments(bit(0), &[first], Seq(3), &[Seq(2)]).unwrap();
        assert_eq!(meta.holds(bit(0)).unwrap(), None, "it is of the position, and not there");
        meta.confirm_segment(bit(0), SegmentNumber(1)).unwrap();
        let holds = meta.holds(bit(0)).unwrap().unwrap();
        assert_eq!([1, 2, 3, 4].map(|seq| holds.has(Seq(seq))), [true, false, true, false]);
        assert_eq!([1, 2].map(|seq| holds.has_all(Seq(seq))), [true, false]);
        meta.set_target_mode(bit(0), Mode::Resync, None).unwrap();
        assert_eq!(meta.holds(bit(0)).unwrap(), Some(Holds::up_to(Seq(1))));
    }

    #[test]
    fn t2_a_segment_that_does_not_follow_on_the_newest_is_refused() {
        let (_dir, meta) = store();
        followers(&meta, &["a"]);
        let first = segment(&meta, bit(0), &[1], 1);
        meta.store_segments(bit(0), std::slice::from_ref(&first), Seq(1), &[]).unwrap();
        assert!(meta.store_segments(bit(0), &[first], Seq(1), &[]).is_err());
        assert_eq!(meta.unconfirmed(bit(0)).unwrap().len(), 1);
    }

    #[test]
    fn t3_a_checkpoint_that_completes_meanwhile_leaves_nothing_deferred_below_it() {
        let (_dir, meta) = store();
        followers(&meta, &["a"]);
        let round = segment(&meta, bit(0), &[1, 5], 1);
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET position = 4, shipped_seq = 4", [])?)).unwrap();
        meta.store_segments(bit(0), &[round], Seq(5), &[Seq(2), Seq(3)]).unwrap();
        assert_eq!(meta.shipping_backlog(bit(0)).unwrap().records, 0);
    }

    #[test]
    fn t2_rows_go_when_all_followers_have_them_and_no_checkpoint_needs_them() {
        let (_dir, meta) = store();
        followers(&meta, &["a", "b", "c"]);
        meta.write(|tx| {
            for name in [b"a", b"b", b"c", b"d"] {
                file(tx, name);
            }
            tx.extend_unit(Seq(1), Seq(2))
        })
        .unwrap();
        let rows = || -> i64 {
            meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM journal", [], |row| row.get(0))?)).unwrap()
        };
        let shipped = |bit: u8, seq: u64| {
            meta.write(|tx| {
                Ok(tx.conn().execute("UPDATE target SET shipped_seq = ?2 WHERE bit = ?1", params![bit, Seq(seq)])?)
            })
            .unwrap();
        };
        shipped(0, 4);
        shipped(1, 3);
        assert!(!meta.trim_journal(None).unwrap());
        assert_eq!(rows(), 4, "the third has nothing");
        meta.set_target_mode(bit(2), Mode::Fenced, None).unwrap();
        assert!(!meta.trim_journal(None).unwrap());
        assert_eq!(rows(), 4, "nothing is given up because a target is ill");
        meta.set_target_mode(bit(2), Mode::Resync, None).unwrap();
        assert!(!meta.trim_journal(Some(Seq(2))).unwrap());
        assert_eq!(rows(), 3);
        assert!(!meta.trim_journal(None).unwrap());
        assert_eq!(rows(), 1);
        let units: i64 =
            meta.read(|conn| Ok(conn.query_row("SELECT count(*) FROM unit", [], |row| row.get(0))?)).unwrap();
        assert_eq!(units, 0);
    }

    #[test]
    fn the_backlog_names_the_oldest_record_that_is_not_confirmed() {
        let (_dir, meta) = store();
        followers(&meta, &["a"]);
        assert_eq!(meta.shipping_backlog(bit(0)).unwrap(), ShippingBacklog::default());
        meta.write(|tx| {
            file(tx, b"a");
            file(tx, b"b");
            Ok(())
        })
        .unwrap();
        let waiting = ShippingBacklog { records: 2, segments: 0, oldest: Some(Timestamp::EPOCH) };
        assert_eq!(meta.shipping_backlog(bit(0)).unwrap(), waiting);
        let all = segment(&meta, bit(0), &[1, 2], 2);
        meta.store_segments(bit(0), &[all], Seq(2), &[]).unwrap();
        let sent = ShippingBacklog { records: 0, segments: 1, oldest: Some(Timestamp::EPOCH) };
        assert_eq!(meta.shipping_backlog(bit(0)).unwrap(), sent);
        meta.confirm_segment(bit(0), SegmentNumber(1)).unwrap();
        assert_eq!(meta.shipping_backlog(bit(0)).unwrap(), ShippingBacklog::default());
    }
}
