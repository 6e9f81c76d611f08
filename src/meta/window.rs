//! The journal as one target sees it: what it has not got yet, and what of that could go.
//!
//! Owns: reading the rows after a target's position and those it deferred, with the placement of the chunks they name.
//! Does not own: which of them go next (`replication::selection`), the target's row (`meta::shipping`).

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension};

use super::journal::{self, Kind};
use super::{Error, Meta, Result};
use crate::format::record::Change;
use crate::id::{ChunkHash, InodeId, Seq, TargetBit};

/// How much of the journal is looked at in one go. A unit that begins inside is read to its end, whatever its length.
#[derive(Debug, Clone, Copy)]
pub struct WindowLimits {
    /// Rows after the position.
    pub rows_max: usize,
    /// Bytes of their bodies.
    pub bytes_max: u64,
}

impl Default for WindowLimits {
    fn default() -> WindowLimits {
        // More rows than may be deferred, so that the rule of deferral decides how far overtaking reaches, and not this.
        WindowLimits { rows_max: 16_384, bytes_max: 32 << 20 }
    }
}

/// One record that the target has not got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowRow {
    pub seq: Seq,
    /// What it does, be it synced or not.
    pub kind: Kind,
    /// The inode that it is about.
    pub ino: InodeId,
    /// `None`: an open slot.
    pub change: Option<Change>,
    /// An `fsync` covered it (O6).
    pub fsynced: bool,
    /// It is no open slot, and every chunk that it names is placed on the target.
    pub ready: bool,
    /// A birth without a slot in the window, though the inode took one: it lies beyond (O2).
    pub slot_beyond: bool,
    /// Bytes of its body.
    pub bytes: u64,
}

/// What a target has not got, from one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalWindow {
    /// Ascending: deferred rows, then rows after the position.
    pub rows: Vec<WindowRow>,
    /// Every record up to here that the target has not got is in `rows`.
    pub end: Seq,
    /// The journal goes on after `end`.
    pub more: bool,
    /// The highest seq shipped.
    pub position: Seq,
    /// Units that reach into the window (O6).
    pub units: Vec<(Seq, Seq)>,
}

impl Meta {
    /// Reads what target `bit` has not got, up to `upto` at most.
    ///
    /// Which births wait (O2) is to be asked after this, for [`JournalWindow::end`].
    pub fn journal_window(&self, bit: TargetBit, upto: Seq, limits: WindowLimits) -> Result<JournalWindow> {
        self.read(|conn| read(conn, bit, upto, limits))
    }
}

fn read(conn: &Connection, bit: TargetBit, upto: Seq, limits: WindowLimits) -> Result<JournalWindow> {
    let position: Seq = conn
        .prepare_cached("SELECT position FROM target WHERE bit = ?1")?
        .query_row([bit], |row| row.get(0))
        .optional()?
        .ok_or_else(|| Error::Damaged(format!("target {} has no row", bit.index())))?;
    let head: Seq = conn.prepare_cached("SELECT seq FROM counter")?.query_row([], |row| row.get(0))?;
    let mut window =
        JournalWindow { position, end: head.min(upto).max(position), more: false, ..JournalWindow::default() };
    let mut placed = Placed { conn, mask: bit.mask() as i64, known: HashMap::new() };

    let mut statement = conn.prepare_cached(
        "SELECT d.seq, j.kind, j.ino, j.body, s.fsynced FROM deferred d LEFT JOIN journal j ON j.seq = d.seq \
         LEFT JOIN slot s ON s.seq = d.seq WHERE d.bit = ?1 ORDER BY d.seq",
    )?;
    let mut rows = statement.query([bit])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, Option<i64>>(1)?.is_none() {
            let seq: Seq = row.get(0)?;
            return Err(Error::Damaged(format!("record {seq} is deferred on target {} and gone", bit.index())));
        }
        window.rows.push(placed.row(row)?);
    }

    let lowest = window.rows.first().map_or(position.next(), |row| row.seq);
    window.units = conn
        .prepare_cached("SELECT first, last FROM unit WHERE last >= ?1 ORDER BY first")?
        .query_map([lowest], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;

    let mut statement = conn.prepare_cached(
        "SELECT j.seq, j.kind, j.ino, j.body, s.fsynced FROM journal j LEFT JOIN slot s ON s.seq = j.seq \
         WHERE j.seq > ?1 AND j.seq <= ?2 ORDER BY j.seq",
    )?;
    let mut rows = statement.query([position, window.end])?;
    let (mut count, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        let seq: Seq = row.get(0)?;
        let full = count >= limits.rows_max || bytes >= limits.bytes_max;
        // A cut here would tear a unit that has begun.
        if full && !window.units.iter().any(|(first, last)| *first < seq && seq <= *last) {
            window.end = seq.previous();
            break;
        }
        let row = placed.row(row)?;
        count += 1;
        bytes += row.bytes;
        window.rows.push(row);
    }
    window.more = head > window.end;
    mark_slots_beyond(conn, &mut window.rows)?;
    Ok(window)
}

/// Finds the births that have a slot, but not here.
fn mark_slots_beyond(conn: &Connection, rows: &mut [WindowRow]) -> Result<()> {
    let mut slotted = HashSet::new();
    for row in rows.iter_mut().rev() {
        match row.kind {
            Kind::Content => {
                slotted.insert(row.ino);
            }
            Kind::Birth if !slotted.contains(&row.ino) => {
                row.slot_beyond = conn
                    .prepare_cached("SELECT generation > 0 FROM inode WHERE ino = ?1")?
                    .query_row([row.ino], |row| row.get(0))
                    .optional()?
                    .unwrap_or(false);
            }
            Kind::Birth | Kind::Other | Kind::Synced => {}
        }
    }
    Ok(())
}

/// Looks up whether chunks are on the target, each once.
struct Placed<'a> {
    conn: &'a Connection,
    mask: i64,
    known: HashMap<ChunkHash, bool>,
}

impl Placed<'_> {
    fn row(&mut self, row: &rusqlite::Row<'_>) -> Result<WindowRow> {
        let seq: Seq = row.get(0)?;
        let body: Option<&[u8]> = row.get_ref(3)?.as_bytes_or_null().map_err(rusqlite::Error::from)?;
        let change = body.map(|body| journal::decode(seq, body)).transpose()?.map(|record| record.change);
        let synced = Kind::from_column(row.get(1)?)? == Kind::Synced;
        let kind = change.as_ref().map_or(Kind::Content, Kind::of);
        let chunks: &[(ChunkHash, u64)] = match &change {
            Some(Change::Content(content)) => &content.chunks,
            Some(Change::Repack { chunks, .. }) => chunks,
            _ => &[],
        };
        let mut ready = change.is_some();
        for (hash, _) in chunks {
            ready &= self.is_placed(seq, *hash)?;
        }
        Ok(WindowRow {
            seq,
            kind,
            ino: row.get(2)?,
            fsynced: synced || row.get::<_, Option<bool>>(4)?.unwrap_or(false),
            ready,
            slot_beyond: false,
            bytes: body.map_or(0, |body| body.len() as u64),
            change,
        })
    }

    fn is_placed(&mut self, seq: Seq, hash: ChunkHash) -> Result<bool> {
        if let Some(placed) = self.known.get(&hash) {
            return Ok(*placed);
        }
        let bits: Option<i64> = self
            .conn
            .prepare_cached("SELECT placed FROM chunk WHERE hash = ?1")?
            .query_row([hash], |row| row.get(0))
            .optional()?;
        let bits = bits.ok_or_else(|| Error::Damaged(format!("chunk {hash} of record {seq} has no row")))?;
        let placed = bits & self.mask != 0;
        self.known.insert(hash, placed);
        Ok(placed)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::id::Generation;
    use crate::meta::target::Configured;
    use crate::meta::testing::{file, fill_slot, slot_request, store};

    const BIT: fn() -> TargetBit = || TargetBit::new(0).unwrap();

    fn follower(meta: &Meta) {
        meta.register_targets(&[Configured { name: "a".into(), uri: "fs:///a".into(), id: None }]).unwrap();
    }

    fn window(meta: &Meta) -> JournalWindow {
        meta.journal_window(BIT(), meta.head(), WindowLimits::default()).unwrap()
    }

    fn seqs(window: &JournalWindow) -> Vec<u64> {
        window.rows.iter().map(|row| row.seq.0).collect()
    }

    #[test]
    fn a_record_is_ready_when_its_chunks_are_on_this_target() {
        let (_dir, meta) = store();
        follower(&meta);
        let hash = ChunkHash::of(b"x");
        meta.write(|tx| {
            let ino = file(tx, b"a");
            tx.reserve_slot(&slot_request(ino, 1, 9))
        })
        .unwrap();
        let open = window(&meta);
        assert_eq!(open.rows.iter().map(|row| row.ready).collect::<Vec<_>>(), [true, false]);
        assert_eq!(open.rows[1].change, None);
        assert_eq!((open.end, open.more), (Seq(2), false));

        meta.write(|tx| {
            fill_slot(tx, 1, hash);
            Ok(())
        })
        .unwrap();
        assert!(!window(&meta).rows[1].ready, "filled, but its chunk is not there");
        meta.write(|tx| Ok(tx.conn().execute("UPDATE chunk SET placed = 2", [])?)).unwrap();
        assert!(!window(&meta).rows[1].ready, "on another target");
        meta.write(|tx| Ok(tx.conn().execute("UPDATE chunk SET placed = 3", [])?)).unwrap();
        assert!(window(&meta).rows[1].ready);
    }

    #[test]
    fn o6_a_slot_that_an_fsync_reserved_stays_a_barrier_after_it_is_filled() {
        let (_dir, meta) = store();
        follower(&meta);
        meta.write(|tx| {
            let ino = file(tx, b"a");
            tx.reserve_slot(&SlotRequestSynced::of(ino))
        })
        .unwrap();
        assert_eq!(window(&meta).rows.iter().map(|row| row.fsynced).collect::<Vec<_>>(), [false, true]);
        meta.write(|tx| {
            fill_slot(tx, 1, ChunkHash::of(b"x"));
            Ok(())
        })
        .unwrap();
        assert_eq!(window(&meta).rows.iter().map(|row| row.fsynced).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn o6_an_fsync_that_finds_nothing_new_bars_overtaking_too() {
        let (_dir, meta) = store();
        follower(&meta);
        let ino = meta.write(|tx| Ok(file(tx, b"a"))).unwrap();
        let fsynced = || window(&meta).rows.iter().map(|row| (row.kind, row.fsynced)).collect::<Vec<_>>();
        let (birth, content) = ((Kind::Birth, true), |fsynced| (Kind::Content, fsynced));
        // Empty.
        meta.write(|tx| Ok(tx.conn().execute("UPDATE inode SET last_seq = 1 WHERE ino = ?1", [ino])?)).unwrap();
        meta.bar_overtaking(ino).unwrap();
        assert_eq!(fsynced(), [birth]);
        // Frozen, not filled yet.
        meta.write(|tx| tx.reserve_slot(&slot_request(ino, 1, 9))).unwrap();
        meta.bar_overtaking(ino).unwrap();
        assert_eq!(fsynced(), [birth, content(true)]);
        // Filled, and closed.
        meta.write(|tx| {
            tx.reserve_slot(&slot_request(ino, 2, 9))?;
            fill_slot(tx, 1, ChunkHash::of(b"x"));
            fill_slot(tx, 2, ChunkHash::of(b"y"));
            Ok(())
        })
        .unwrap();
        assert_eq!(fsynced(), [birth, content(true), content(false)]);
        meta.bar_overtaking(ino).unwrap();
        assert_eq!(fsynced(), [birth, content(true), content(true)]);
        // Changed after that: the change stays behind the content, so nothing overtakes the change.
        let named = Change::Removexattr { ino, name: b"x".to_vec(), ctime: crate::clock::Timestamp::EPOCH };
        meta.write(|tx| {
            let seq = tx.append(&named)?;
            Ok(tx.conn().execute("UPDATE inode SET last_seq = ?1 WHERE ino = ?2", params![seq, ino])?)
        })
        .unwrap();
        meta.bar_overtaking(ino).unwrap();
        assert_eq!(fsynced()[3], (Kind::Other, true));
        // Every target has it: nothing is written.
        meta.write(|tx| Ok(tx.conn().execute("UPDATE journal SET kind = 3 WHERE seq = 4", [])?)).unwrap();
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET shipped_seq = 4", [])?)).unwrap();
        meta.bar_overtaking(ino).unwrap();
        assert_eq!(fsynced()[3], (Kind::Other, false));
    }

    struct SlotRequestSynced;
    impl SlotRequestSynced {
        fn of(ino: InodeId) -> crate::meta::slot::SlotRequest {
            crate::meta::slot::SlotRequest { fsynced: true, ..slot_request(ino, 1, 9) }
        }
    }

    #[test]
    fn the_window_holds_what_was_deferred_and_what_comes_after_the_position() {
        let (_dir, meta) = store();
        follower(&meta);
        meta.write(|tx| {
            for name in [b"a", b"b", b"c", b"d"] {
                file(tx, name);
            }
            tx.conn().execute("UPDATE target SET position = 3", [])?;
            tx.conn().execute("INSERT INTO deferred VALUES (0, 2)", [])?;
            Ok(())
        })
        .unwrap();
        assert_eq!(seqs(&window(&meta)), [2, 4]);
        let earlier = meta.journal_window(BIT(), Seq(3), WindowLimits::default()).unwrap();
        assert_eq!((seqs(&earlier), earlier.end, earlier.more), (vec![2], Seq(3), true));
        meta.write(|tx| Ok(tx.conn().execute("DELETE FROM journal WHERE seq = 2", [])?)).unwrap();
        let gone = meta.journal_window(BIT(), meta.head(), WindowLimits::default());
        assert!(matches!(gone, Err(Error::Damaged(_))), "{gone:?}");
    }

    #[test]
    fn o6_a_window_does_not_end_inside_a_unit() {
        let (_dir, meta) = store();
        follower(&meta);
        meta.write(|tx| {
            for name in 0..9_u8 {
                file(tx, &[b'a' + name]);
            }
            tx.extend_unit(Seq(3), Seq(6))
        })
        .unwrap();
        let limited = |rows_max| {
            let limits = WindowLimits { rows_max, ..WindowLimits::default() };
            let window = meta.journal_window(BIT(), meta.head(), limits).unwrap();
            (seqs(&window).len(), window.end.0, window.more)
        };
        assert_eq!(limited(2), (2, 2, true));
        assert_eq!(limited(3), (6, 6, true));
        assert_eq!(limited(8), (8, 8, true));
        assert_eq!(limited(9), (9, 9, false));
    }

    #[test]
    fn o2_a_birth_whose_slot_lies_beyond_the_window_says_so() {
        let (_dir, meta) = store();
        follower(&meta);
        meta.write(|tx| {
            let a = file(tx, b"a");
            file(tx, b"b");
            tx.reserve_slot(&slot_request(a, 1, 9))
        })
        .unwrap();
        let beyond = |upto| -> Vec<bool> {
            let window = meta.journal_window(BIT(), upto, WindowLimits::default()).unwrap();
            window.rows.iter().map(|row| row.slot_beyond).collect()
        };
        assert_eq!(beyond(Seq(2)), [true, false]);
        assert_eq!(beyond(Seq(3)), [false, false, false]);
        assert_eq!(window(&meta).rows[2].kind, Kind::Content);
        assert_eq!(meta.inode(window(&meta).rows[2].ino).unwrap().generation, Generation(1));
    }
}
