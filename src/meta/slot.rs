//! Slots: the places that content changes take in history before their bytes are sealed (O1).
//!
//! Owns: reserving, renewing, moving and voiding a slot, the row of the session that holds it, and the units these make (O6).
//! Does not own: filling one (`meta::commit`), deciding when a slot is due (`write`).
//!
//! ```text
//!            ┌──renew: no other record of the inode came after──┐
//!            ▼                                                  │
//! none ──▶ open at s ──another record of the inode came──▶ Void(moved) at s, open at s' > s
//!            ├──seal committed──▶ Content at s
//!            └──last name gone──▶ Void(unlinked); power cut before any sync ──▶ Void(lost)
//! ```
//!
//! Records from the place where a slot was first taken to the journal head at its last renewal are one *unit* (O6): its
//! bytes may be younger than the records in between, so they reach a target together or not at all.

use rusqlite::{OptionalExtension, params};

use super::inode::{Inode, timestamp};
use super::journal::{self, Kind};
use super::{Error, Meta, Result, Tx};
use crate::clock::Timestamp;
use crate::format::record::{Change, VoidReason};
use crate::id::{Generation, InodeId, Seq, SessionId};

/// A dirty session asks for its place in history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRequest {
    pub ino: InodeId,
    pub session: SessionId,
    /// Generation of the content that the session was based on.
    pub base: Generation,
    /// Nothing of the earlier content shows through.
    pub whole: bool,
    /// Bytes of the earlier content that may show through.
    pub base_limit: u64,
    /// Bytes of a whole session known to be on disk (S1).
    pub synced_size: Option<u64>,
    /// Bytes of the file now.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Asked for by an `fsync`: no record may overtake it (O6).
    pub fsynced: bool,
}

/// An open slot's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub seq: Seq,
    pub ino: InodeId,
    pub generation: Generation,
    pub session: SessionId,
    /// Where the session's slot was first taken.
    pub first_seq: Seq,
    pub fsynced: bool,
    /// What the content record will carry.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Meta {
    /// An `fsync` of `ino` found nothing new: what it covers has its place already, filled or not. From now on no record
    /// overtakes the newest one about `ino` (O6), and that one overtakes none of the others about it (O7).
    pub fn bar_overtaking(&self, ino: InodeId) -> Result<()> {
        let newest: Option<Seq> = self.read(|conn| {
            // Not what every target has, and not what is barred.
            Ok(conn
                .prepare_cached(
                    "SELECT j.seq FROM inode i JOIN journal j ON j.seq = i.last_seq LEFT JOIN slot s ON s.ino = i.ino \
                     WHERE i.ino = ?1 AND (j.kind <> ?2 AND j.body IS NOT NULL OR s.fsynced = 0) \
                     AND EXISTS (SELECT 1 FROM target WHERE shipped_seq < i.last_seq) LIMIT 1",
                )?
                .query_row(params![ino, Kind::Synced as i64], |row| row.get(0))
                .optional()?)
        })?;
        let Some(newest) = newest else { return Ok(()) };
        self.write(|tx| {
            tx.conn()
                .prepare_cached("UPDATE journal SET kind = ?2 WHERE seq = ?1 AND body IS NOT NULL")?
                .execute(params![newest, Kind::Synced as i64])?;
            tx.conn().prepare_cached("UPDATE slot SET fsynced = 1 WHERE ino = ?1")?.execute([ino])?;
            Ok(())
        })
    }
}

impl Tx<'_> {
    /// Takes, renews or moves the slot of a dirty session, and writes size and times into the inode's row.
    /// An inode without a name takes none: `None`.
    pub fn reserve_slot(&mut self, request: &SlotRequest) -> Result<Option<Seq>> {
        let Some(mut inode) = self.find_inode(request.ino)? else { return Ok(None) };
        if inode.nlink == 0 {
            return Ok(None);
        }
        let held = self.slot_of(request.session)?;
        let committed = inode;
        let seq = match held {
            Some(held) if inode.last_seq <= held.seq && held.seq > self.exported() => self.renew(&held, request)?,
            held => self.take(request, &mut inode, held.as_ref())?,
        };
        let first = held.map_or(seq, |held| held.first_seq);
        self.extend_unit(first, self.head().max(seq))?;
        match held {
            Some(_) => self.update_session(request, seq)?,
            None => self.store_session(request, seq, &committed)?,
        }
        inode.size = request.size;
        inode.mtime = request.mtime;
        inode.ctime = request.ctime;
        inode.update(self)?;
        Ok(Some(seq))
    }

    /// Hands the open slot of `from`, and its row, over to `to`: a session whose file is a copy of its bytes (P4).
    pub fn hand_slot(&mut self, from: SessionId, to: SessionId) -> Result<()> {
        self.conn().prepare_cached("UPDATE slot SET session = ?2 WHERE session = ?1")?.execute([from, to])?;
        self.conn().prepare_cached("UPDATE session SET id = ?2 WHERE id = ?1")?.execute([from, to])?;
        Ok(())
    }

    /// Joins the open slots of these sessions and all records since into one unit: a rotation is one cut (O8).
    pub fn join_slots(&mut self, sessions: &[SessionId]) -> Result<()> {
        let head = self.head();
        for session in sessions {
            if let Some(slot) = self.slot_of(*session)? {
                self.extend_unit(slot.first_seq, head)?;
            }
        }
        Ok(())
    }

    /// Voids the open slots of an inode that has just lost its last name, in the transaction of that unlink, as one unit
    /// with it, and gives up its sessions: without a name no content of it will ever be needed on a target.
    pub fn void_slots_of_unnamed(&mut self, ino: InodeId, unlink: Seq) -> Result<()> {
        for slot in self.slots_of(ino)? {
            self.end_slot(&slot, &Change::Void { ino, generation: slot.generation, why: VoidReason::Unlinked })?;
            self.extend_unit(slot.first_seq, unlink)?;
        }
        self.conn().prepare_cached("DELETE FROM session WHERE ino = ?1")?.execute([ino])?;
        Ok(())
    }

    /// Voids the slot of a session whose bytes a power cut took before any sync (S6): the generation before it stays, and
    /// its size and times come back unless a later slot of the inode stands.
    ///
    /// A session that was based on this one is lost, too, or replaces everything: what it would put back is the same now.
    pub fn void_lost(&mut self, session: SessionId) -> Result<()> {
        let Some(slot) = self.slot_of(session)? else { return Ok(()) };
        let committed = self
            .conn()
            .prepare_cached("SELECT size, mtime, mtime_ns, ctime, ctime_ns FROM session WHERE id = ?1")?
            .query_row([session], |row| Ok((row.get::<_, i64>(0)? as u64, timestamp(row, 1)?, timestamp(row, 3)?)))?;
        let (size, mtime, ctime) = committed;
        let why = VoidReason::Lost { size, mtime, ctime };
        self.conn()
            .prepare_cached(
                "UPDATE session SET (size, mtime, mtime_ns, ctime, ctime_ns) = \
                 (SELECT size, mtime, mtime_ns, ctime, ctime_ns FROM session WHERE id = ?1) \
                 WHERE id = (SELECT min(id) FROM session WHERE ino = ?2 AND id > ?1)",
            )?
            .execute(params![session, slot.ino])?;
        self.end_slot(&slot, &Change::Void { ino: slot.ino, generation: slot.generation, why })?;
        if self.slots_of(slot.ino)?.iter().all(|other| other.seq < slot.seq) {
            let mut inode = self.inode(slot.ino)?;
            inode.size = committed.0;
            // What a record after the slot set, it set for good; in replay that one has the last word, too. It may have set
            // the very time of the slot: whoever copies a file gives it the time that it has.
            let named_since = inode.last_seq > slot.seq;
            if inode.mtime == slot.mtime && !(named_since && self.sets_mtime_after(slot.ino, slot.seq)?) {
                inode.mtime = committed.1;
            }
            if !named_since && inode.ctime == slot.ctime {
                inode.ctime = committed.2;
            }
            inode.update(self)?;
        }
        self.delete_session(session)
    }

    /// True if a record about `ino` after `seq` sets its mtime.
    fn sets_mtime_after(&self, ino: InodeId, seq: Seq) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT seq, body FROM journal WHERE seq > ?1 AND ino = ?2 AND body IS NOT NULL")?;
        let mut rows = statement.query(params![seq, ino])?;
        while let Some(row) = rows.next()? {
            let record = journal::decode(row.get(0)?, &row.get::<_, Vec<u8>>(1)?)?;
            if matches!(record.change, Change::Setattr { mtime: Some(_), .. }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fills the slot's place in the journal and removes its row.
    pub(crate) fn end_slot(&mut self, slot: &Slot, change: &Change) -> Result<()> {
        // The barrier outlives the slot's row: the record may wait for its chunks yet. A void has nothing to keep order for.
        let kind = if slot.fsynced && matches!(change, Change::Content(_)) { Kind::Synced } else { Kind::Content };
        let filled = self
            .conn()
            .prepare_cached("UPDATE journal SET body = ?2, kind = ?3 WHERE seq = ?1 AND body IS NULL")?
            .execute(params![slot.seq, journal::encode(change), kind as i64])?;
        if filled != 1 {
            return Err(Error::Damaged(format!(
                "slot {} of inode {} has no open place in the journal",
                slot.seq, slot.ino
            )));
        }
        self.conn().prepare_cached("DELETE FROM slot WHERE seq = ?1")?.execute([slot.seq])?;
        Ok(())
    }

    /// The open slot of a session.
    pub(crate) fn slot_of(&self, session: SessionId) -> Result<Option<Slot>> {
        let seq: Option<Seq> = self
            .conn()
            .prepare_cached("SELECT slot FROM session WHERE id = ?1")?
            .query_row([session], |row| row.get(0))
            .optional()?
            .flatten();
        let Some(seq) = seq else { return Ok(None) };
        let slot = self
            .conn()
            .prepare_cached(
                "SELECT seq, ino, generation, session, first_seq, fsynced, size, mtime, mtime_ns, ctime, ctime_ns \
                 FROM slot WHERE seq = ?1",
            )?
            .query_row([seq], slot_row)
            .optional()?;
        match slot {
            Some(slot) if slot.session == session => Ok(Some(slot)),
            _ => Err(Error::Damaged(format!("session {session} names slot {seq}, which is not its own"))),
        }
    }

    fn slots_of(&self, ino: InodeId) -> Result<Vec<Slot>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT seq, ino, generation, session, first_seq, fsynced, size, mtime, mtime_ns, ctime, ctime_ns \
             FROM slot WHERE ino = ?1 ORDER BY seq",
        )?;
        let slots = statement.query_map([ino], slot_row)?.collect::<rusqlite::Result<_>>()?;
        Ok(slots)
    }

    fn renew(&mut self, held: &Slot, request: &SlotRequest) -> Result<Seq> {
        self.conn()
            .prepare_cached(
                "UPDATE slot SET head = ?2, fsynced = fsynced OR ?3, size = ?4, mtime = ?5, mtime_ns = ?6, ctime = ?7, \
                 ctime_ns = ?8 WHERE seq = ?1",
            )?
            .execute(params![
                held.seq,
                self.head(),
                request.fsynced,
                request.size as i64,
                request.mtime.secs(),
                request.mtime.nanos(),
                request.ctime.secs(),
                request.ctime.nanos()
            ])?;
        Ok(held.seq)
    }

    /// Takes a new place; the one that was held becomes void.
    fn take(&mut self, request: &SlotRequest, inode: &mut Inode, held: Option<&Slot>) -> Result<Seq> {
        if let Some(held) = held {
            let change = Change::Void { ino: held.ino, generation: held.generation, why: VoidReason::Moved };
            self.end_slot(held, &change)?;
        }
        let seq = self.next_seq();
        inode.generation = inode.generation.next();
        inode.last_seq = seq;
        self.conn()
            .prepare_cached("INSERT INTO journal (seq, kind, ino, body) VALUES (?1, ?2, ?3, NULL)")?
            .execute(params![seq, Kind::Content as i64, request.ino])?;
        self.conn()
            .prepare_cached("INSERT INTO slot VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")?
            .execute(params![
                seq,
                request.ino,
                inode.generation,
                request.session,
                held.map_or(seq, |held| held.first_seq),
                seq,
                request.fsynced || held.is_some_and(|held| held.fsynced),
                request.size as i64,
                request.mtime.secs(),
                request.mtime.nanos(),
                request.ctime.secs(),
                request.ctime.nanos()
            ])?;
        Ok(seq)
    }

    /// Joins the records `first` … `last` into one unit; a single record is one by itself.
    pub(crate) fn extend_unit(&mut self, first: Seq, last: Seq) -> Result<()> {
        if last > first {
            self.conn()
                .prepare_cached(
                    "INSERT INTO unit (first, last) VALUES (?1, ?2) ON CONFLICT (first) DO UPDATE SET last = max(last, ?2)",
                )?
                .execute(params![first, last])?;
        }
        Ok(())
    }
}

fn slot_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Slot> {
    Ok(Slot {
        seq: row.get(0)?,
        ino: row.get(1)?,
        generation: row.get(2)?,
        session: row.get(3)?,
        first_seq: row.get(4)?,
        fsynced: row.get(5)?,
        size: row.get::<_, i64>(6)? as u64,
        mtime: timestamp(row, 7)?,
        ctime: timestamp(row, 9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::{file, slot_request, store};

    fn record(tx: &Tx<'_>, seq: Seq) -> Option<Change> {
        let body: Option<Vec<u8>> =
            tx.conn().query_row("SELECT body FROM journal WHERE seq = ?1", [seq], |row| row.get(0)).unwrap();
        body.map(|body| journal::decode(seq, &body).unwrap().change)
    }

    fn units(tx: &Tx<'_>) -> Vec<(Seq, Seq)> {
        let mut statement = tx.conn().prepare("SELECT first, last FROM unit ORDER BY first").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    fn other_record(tx: &mut Tx<'_>, ino: InodeId) -> Seq {
        let seq = tx.append(&Change::Removexattr { ino, name: b"user.k".to_vec(), ctime: Timestamp::EPOCH }).unwrap();
        let mut inode = Inode::get(tx.conn(), ino).unwrap();
        inode.last_seq = seq;
        inode.update(tx).unwrap();
        seq
    }

    #[test]
    fn a_later_flush_renews_the_slot_in_place_and_makes_a_unit_to_the_head() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            let other = file(tx, b"b");
            let first = tx.reserve_slot(&slot_request(ino, 1, 10))?.unwrap();
            let passed = other_record(tx, other);
            assert_eq!(tx.reserve_slot(&slot_request(ino, 1, 20))?, Some(first));
            assert_eq!(Inode::get(tx.conn(), ino)?.size, 20);
            assert_eq!(units(tx), [(first, passed)], "its bytes may be younger than what came between");
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_slot_moves_when_another_record_of_its_inode_came_after_it() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            let first = tx.reserve_slot(&slot_request(ino, 1, 10))?.unwrap();
            other_record(tx, ino);
            let moved = tx.reserve_slot(&slot_request(ino, 1, 20))?.unwrap();
            assert!(moved > first);
            assert!(matches!(record(tx, first), Some(Change::Void { why: VoidReason::Moved, .. })));
            assert_eq!(record(tx, moved), None, "the new place is open");
            assert_eq!(units(tx), [(first, moved)]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn an_inode_without_a_name_takes_no_slot_and_its_open_one_is_void_with_the_unlink() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            let slot = tx.reserve_slot(&slot_request(ino, 1, 10))?.unwrap();
            let unlink = other_record(tx, ino);
            let mut inode = Inode::get(tx.conn(), ino)?;
            inode.nlink = 0;
            inode.update(tx)?;
            tx.void_slots_of_unnamed(ino, unlink)?;
            assert!(matches!(record(tx, slot), Some(Change::Void { why: VoidReason::Unlinked, .. })));
            assert_eq!(units(tx), [(slot, unlink)]);
            assert_eq!(tx.reserve_slot(&slot_request(ino, 2, 10))?, None);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_lost_slot_puts_the_committed_size_and_times_back() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            let before = Inode::get(tx.conn(), ino)?;
            let slot = tx.reserve_slot(&slot_request(ino, 1, 10))?.unwrap();
            tx.void_lost(SessionId(1))?;
            assert!(matches!(record(tx, slot), Some(Change::Void { why: VoidReason::Lost { size: 0, .. }, .. })));
            let after = Inode::get(tx.conn(), ino)?;
            assert_eq!((after.size, after.mtime, after.ctime), (before.size, before.mtime, before.ctime));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn s6_of_two_lost_sessions_the_base_of_the_first_comes_back() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            let before = Inode::get(tx.conn(), ino)?;
            let slots = [tx.reserve_slot(&slot_request(ino, 1, 10))?, tx.reserve_slot(&slot_request(ino, 2, 20))?];
            tx.void_lost(SessionId(1))?;
            assert_eq!(Inode::get(tx.conn(), ino)?.size, 20, "a later slot stands");
            tx.void_lost(SessionId(2))?;
            let after = Inode::get(tx.conn(), ino)?;
            assert_eq!((after.size, after.mtime, after.ctime), (before.size, before.mtime, before.ctime));
            for slot in slots {
                // What replay puts back on a target.
                let body = record(tx, slot.unwrap());
                assert!(matches!(body, Some(Change::Void { why: VoidReason::Lost { size: 0, .. }, .. })), "{body:?}");
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn s6_a_lost_session_gives_way_to_the_earlier_one_that_stands() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            tx.reserve_slot(&slot_request(ino, 1, 10))?;
            tx.reserve_slot(&slot_request(ino, 2, 20))?;
            tx.void_lost(SessionId(2))?;
            assert_eq!(Inode::get(tx.conn(), ino)?.size, 10);
            Ok(())
        })
        .unwrap();
    }

    /// As `cp -p` does, and a rename in the moment of the last write.
    #[test]
    fn s6_the_times_of_a_lost_slot_stay_if_a_later_record_set_the_same_ones() {
        let (_dir, meta) = store();
        let times = |mtime: Option<Timestamp>| {
            meta.write(|tx| {
                let ino = file(tx, if mtime.is_some() { b"a" } else { b"b" });
                let request = slot_request(ino, ino.0, 10);
                tx.reserve_slot(&request)?;
                let seq = tx.append(&Change::Setattr {
                    ino,
                    mode: None,
                    uid: None,
                    gid: None,
                    atime: None,
                    mtime,
                    ctime: request.ctime,
                })?;
                let mut inode = Inode::get(tx.conn(), ino)?;
                inode.last_seq = seq;
                inode.update(tx)?;
                tx.void_lost(SessionId(ino.0))?;
                let inode = Inode::get(tx.conn(), ino)?;
                Ok((inode.mtime == request.mtime, inode.ctime == request.ctime))
            })
            .unwrap()
        };
        let mtime = slot_request(InodeId(2), 1, 10).mtime;
        assert_eq!(times(Some(mtime)), (true, true));
        assert_eq!(times(None), (false, true), "mtime comes back with the content before");
    }

    #[test]
    fn s6_times_that_were_set_after_a_lost_slot_stay_as_in_replay() {
        let (_dir, meta) = store();
        meta.write(|tx| {
            let ino = file(tx, b"a");
            tx.reserve_slot(&slot_request(ino, 1, 10))?;
            let mut inode = Inode::get(tx.conn(), ino)?;
            let linked = Timestamp::new(5000, 0).unwrap();
            inode.ctime = linked;
            inode.update(tx)?;
            tx.void_lost(SessionId(1))?;
            assert_eq!(Inode::get(tx.conn(), ino)?.ctime, linked);
            Ok(())
        })
        .unwrap();
    }
}
