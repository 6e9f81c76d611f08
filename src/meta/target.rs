//! Target rows: which targets this filesystem has, under which bit, in which mode.
//!
//! Owns: registering configured targets, their mode and reason, the mask of those that local bytes are pinned for, and
//! where a target's need begins (T5).
//! Does not own: cursors and segments (`meta::shipping`), placement bits (`meta::placement`), identity (`replication`).

use rusqlite::{Connection, OptionalExtension, params};

use super::{Error, Meta, Result, Tx};
use crate::id::{ChunkId, Seq, TargetBit, TargetId};
use crate::testing::failpoint::{self, Point};

/// What we do with a target (T4), as the row has it. Health is another matter: a follower that is down still follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Takes the journal as it grows.
    Follow,
    /// Is being brought to a later whole point.
    Resync,
    /// Cannot be used until an operator acts; everything waits for it.
    Blocked,
    /// Another writer holds it (T7).
    Fenced,
}

impl Mode {
    /// The word in the column and in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Follow => "follow",
            Mode::Resync => "resync",
            Mode::Blocked => "blocked",
            Mode::Fenced => "fenced",
        }
    }

    /// Local bytes are pinned until such a target has them. A resyncer is left out: it takes what it needs from wherever
    /// it is (T6). A blocked or fenced one counts: nothing is given up because a target is ill.
    pub fn pins(self) -> bool {
        self != Mode::Resync
    }

    fn from_column(text: &str) -> Result<Mode> {
        [Mode::Follow, Mode::Resync, Mode::Blocked, Mode::Fenced]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| Error::Damaged(format!("target mode {text:?} is unknown")))
    }
}

/// One target as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRow {
    pub bit: TargetBit,
    /// Drawn when it was registered, written into its `tandemfs.json` at first contact (T1).
    pub id: TargetId,
    pub name: String,
    /// Without secrets.
    pub uri: String,
    /// Its `tandemfs.json` was written or seen: it is never made anew (T1).
    pub initialised: bool,
    pub mode: Mode,
    pub reason: Option<String>,
    /// S of the state it holds or resyncs to (T4, T5).
    pub base_seq: Seq,
    /// Low water of confirmed segments and complete checkpoints.
    pub shipped_seq: Seq,
    /// By the operator, until then (seconds since 1970; [`FOR_EVER`]); `None`: it is not paused.
    pub paused_until: Option<i64>,
    /// Of a resyncer: the moment whose state it holds, in seconds since 1970; `None`: it holds none.
    pub whole_secs: Option<i64>,
    /// It lost objects; what it still has must be listed before anything else (T7).
    pub relist: bool,
    /// It pins since a moment ago: chunks after this one were not looked at yet for it (`meta::pin`).
    pub unpinned_after: Option<ChunkId>,
}

/// Paused until the operator says otherwise.
pub const FOR_EVER: i64 = i64::MAX;

/// A target as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    pub name: String,
    /// Without secrets.
    pub uri: String,
    /// The id read from its `tandemfs.json`, where it is known already.
    pub id: Option<TargetId>,
}

/// What registering found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The row of each configured target, in the order of the configuration.
    pub configured: Vec<TargetRow>,
    /// Rows that the configuration does not name. They keep pinning what they lack, until `target remove`.
    pub absent: Vec<TargetRow>,
}

impl Meta {
    /// All targets, by bit.
    pub fn targets(&self) -> Result<Vec<TargetRow>> {
        self.read(rows)
    }

    /// Matches configured targets with rows (by id where known, then by URI, then by name, so that either may change),
    /// writes their names and URIs, and makes rows for new ones.
    ///
    /// A new target follows from the start of history while the journal still has all of it; later it has to resync.
    pub fn register_targets(&self, configured: &[Configured]) -> Result<Registered> {
        let registered = self.write(|tx| {
            let known = rows(tx.conn())?;
            let matches = match_rows(configured, &known);
            let mut bits = Vec::with_capacity(configured.len());
            for (target, row) in configured.iter().zip(&matches) {
                bits.push(match row {
                    Some(row) => {
                        tx.conn()
                            .prepare_cached("UPDATE target SET name = ?2, uri = ?3 WHERE bit = ?1")?
                            .execute(params![row.bit, target.name, target.uri])?;
                        row.bit
                    }
                    None => tx.add_target(&target.name, &target.uri, target.id.unwrap_or_else(TargetId::random))?,
                });
            }
            let (configured, absent): (Vec<_>, Vec<_>) =
                rows(tx.conn())?.into_iter().partition(|row| bits.contains(&row.bit));
            let in_order = |bit: &TargetBit| configured.iter().find(|row| row.bit == *bit).cloned();
            Ok(Registered { configured: bits.iter().filter_map(in_order).collect(), absent })
        })?;
        // What an earlier mount did not come to the end of, too.
        self.pin_all()?;
        Ok(registered)
    }

    /// Changes what is done with a target, and why. The first change to following marks what it lacks as to be placed.
    pub fn set_target_mode(&self, bit: TargetBit, mode: Mode, reason: Option<&str>) -> Result<()> {
        self.write(|tx| tx.set_target_mode(bit, mode, reason))?;
        self.pin_all()
    }

    /// The mask of targets that local bytes are pinned for ([`Mode::pins`]).
    pub fn pinning_mask(&self) -> Result<u64> {
        self.read(pinning_mask)
    }
}

impl Tx<'_> {
    /// Makes the row of a new target and returns its bit.
    pub fn add_target(&mut self, name: &str, uri: &str, id: TargetId) -> Result<TargetBit> {
        let known = rows(self.conn())?;
        let retired = self.retired_mask()?;
        let bit = (0..TargetBit::COUNT)
            .filter_map(TargetBit::new)
            .find(|bit| known.iter().all(|row| row.bit != *bit) && retired & bit.mask() == 0)
            .ok_or_else(|| Error::Damaged(format!("there are {} targets already", TargetBit::COUNT)))?;
        let head = self.head();
        // Rows of the journal go when all followers have them; while the first is there, all are. A restored journal has at
        // most some that fill places (`restored`).
        let whole_journal = head == Seq::ZERO
            || self.conn().query_row(
                "SELECT EXISTS (SELECT 1 FROM journal WHERE seq = 1) AND NOT EXISTS (SELECT 1 FROM lineage)",
                [],
                |row| row.get(0),
            )?;
        let (mode, base) = if whole_journal { (Mode::Follow, Seq::ZERO) } else { (Mode::Resync, head) };
        self.conn()
            .prepare_cached(
                "INSERT INTO target (bit, uuid, name, uri, initialised, mode, reason, base_seq, position, shipped_seq, \
                 n, hash, confirmed_n, confirmed_hash, confirmed_seq, epoch, writer, contact_epoch, segment_bytes, \
                 segment_count) VALUES (?1, ?2, ?3, ?4, 0, ?5, NULL, ?6, 0, 0, 0, '', 0, '', 0, 0, '00000000', 0, 0, 0)",
            )?
            .execute(params![bit, id, name, uri, mode.as_str(), base])?;
        // No chunk has its bit.
        self.conn().prepare_cached("INSERT OR REPLACE INTO tally VALUES (?1, 0, 0, 0, 0)")?.execute([bit])?;
        if mode.pins() {
            self.begin_pinning(bit)?;
        }
        Ok(bit)
    }

    /// As [`Meta::set_target_mode`], but for the chunks that are to be marked: [`Meta::pin_all`] goes over them.
    pub fn set_target_mode(&mut self, bit: TargetBit, mode: Mode, reason: Option<&str>) -> Result<()> {
        let before = self
            .conn()
            .prepare_cached("SELECT mode FROM target WHERE bit = ?1")?
            .query_row([bit], |row| row.get::<_, String>(0))
            .optional()?
            .ok_or_else(|| Error::Damaged(format!("target {} has no row", bit.index())))?;
        let before = Mode::from_column(&before)?;
        if (before == Mode::Resync) != (mode == Mode::Resync) {
            failpoint::pass(Point::Resync);
        }
        self.conn().prepare_cached("UPDATE target SET mode = ?2, reason = ?3 WHERE bit = ?1")?.execute(params![
            bit,
            mode.as_str(),
            reason
        ])?;
        match (before.pins(), mode.pins()) {
            (false, true) => self.begin_pinning(bit),
            (true, false) => self.end_pinning(bit),
            _ => Ok(()),
        }
    }

    /// The mask of targets that local bytes are pinned for, as this transaction sees it.
    pub fn pinning_mask(&self) -> Result<u64> {
        pinning_mask(self.conn())
    }
}

/// All rows, by bit.
pub(crate) fn rows(conn: &Connection) -> Result<Vec<TargetRow>> {
    let mut statement = conn.prepare_cached(
        "SELECT bit, uuid, name, uri, initialised, mode, reason, base_seq, shipped_seq, paused_until, \
         whole_secs, relist, (SELECT value FROM filesystem WHERE key = 'pinning.' || bit) FROM target ORDER BY bit",
    )?;
    let rows = statement.query_map([], |row| {
        Ok((
            TargetRow {
                bit: row.get(0)?,
                id: row.get(1)?,
                name: row.get(2)?,
                uri: row.get(3)?,
                initialised: row.get(4)?,
                mode: Mode::Follow,
                reason: row.get(6)?,
                base_seq: row.get(7)?,
                shipped_seq: row.get(8)?,
                paused_until: row.get(9)?,
                whole_secs: row.get(10)?,
                relist: row.get(11)?,
                unpinned_after: row.get(12)?,
            },
            row.get::<_, String>(5)?,
        ))
    })?;
    rows.map(|row| {
        let (row, mode) = row?;
        Ok(TargetRow { mode: Mode::from_column(&mode)?, ..row })
    })
    .collect()
}

/// The mask of targets that local bytes are pinned for.
pub(crate) fn pinning_mask(conn: &Connection) -> Result<u64> {
    Ok(rows(conn)?.iter().filter(|row| row.mode.pins()).fold(0, |mask, row| mask | row.bit.mask()))
}

/// Where the need of a target begins (T5): it needs a chunk that is referenced, or died after this.
pub(crate) fn base(conn: &Connection, target: &TargetRow) -> Result<Seq> {
    if target.mode == Mode::Resync {
        return Ok(target.base_seq);
    }
    let pending: Option<Seq> = conn
        .prepare_cached("SELECT min(seq) FROM checkpoint WHERE bit = ?1 AND complete = 0")?
        .query_row([target.bit], |row| row.get(0))?;
    Ok(pending.map_or(target.shipped_seq, |seq| seq.min(target.shipped_seq)))
}

/// For each configured target the row that is its own, if any. No row is given twice.
fn match_rows<'a>(configured: &[Configured], known: &'a [TargetRow]) -> Vec<Option<&'a TargetRow>> {
    let mut matches: Vec<Option<&TargetRow>> = vec![None; configured.len()];
    let by_id = |target: &Configured, row: &TargetRow| target.id == Some(row.id);
    // A target whose id is known and has no row is new, whatever its URI and name were used for before.
    let by_uri = |target: &Configured, row: &TargetRow| target.id.is_none() && target.uri == row.uri;
    let by_name = |target: &Configured, row: &TargetRow| target.id.is_none() && target.name == row.name;
    for same in [&by_id as &dyn Fn(&Configured, &TargetRow) -> bool, &by_uri, &by_name] {
        for (index, target) in configured.iter().enumerate() {
            if matches[index].is_none() {
                let free = |row: &&TargetRow| matches.iter().flatten().all(|taken| taken.bit != row.bit);
                matches[index] = known.iter().filter(free).find(|row| same(target, row));
            }
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::format::record::Change;
    use crate::id::InodeId;
    use crate::meta::testing::store;

    fn configured(name: &str, uri: &str) -> Configured {
        Configured { name: name.into(), uri: uri.into(), id: None }
    }

    fn some_change() -> Change {
        Change::Removexattr { ino: InodeId(1), name: vec![1], ctime: Timestamp::EPOCH }
    }

    #[test]
    fn a_target_keeps_its_row_when_its_name_or_its_uri_changes() {
        let (_dir, meta) = store();
        let first = meta.register_targets(&[configured("a", "fs:///a"), configured("b", "fs:///b")]).unwrap();
        assert_eq!(first.configured.iter().map(|row| row.bit.index()).collect::<Vec<_>>(), [0, 1]);
        assert!(first.configured.iter().all(|row| row.mode == Mode::Follow && !row.initialised));

        let second = meta.register_targets(&[configured("bb", "fs:///b"), configured("a", "fs:///moved")]).unwrap();
        let ids = |registered: &Registered| registered.configured.iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(ids(&second), [first.configured[1].id, first.configured[0].id]);
        assert_eq!(second.configured[0].name, "bb");
        assert_eq!(second.configured[1].uri, "fs:///moved");
        assert_eq!(meta.targets().unwrap().len(), 2);
    }

    #[test]
    fn swapped_names_stay_with_their_uris() {
        let (_dir, meta) = store();
        let first = meta.register_targets(&[configured("a", "fs:///1"), configured("b", "fs:///2")]).unwrap();
        let second = meta.register_targets(&[configured("b", "fs:///1"), configured("a", "fs:///2")]).unwrap();
        assert_eq!(second.configured[0].id, first.configured[0].id);
        assert_eq!(second.configured[0].name, "b");
    }

    #[test]
    fn a_target_that_is_no_longer_configured_keeps_pinning() {
        let (_dir, meta) = store();
        meta.register_targets(&[configured("a", "fs:///a"), configured("b", "fs:///b")]).unwrap();
        let second = meta.register_targets(&[configured("a", "fs:///a")]).unwrap();
        assert_eq!(second.absent.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(meta.pinning_mask().unwrap(), 0b11);
    }

    #[test]
    fn a_known_id_decides_before_uri_and_name() {
        let (_dir, meta) = store();
        let first = meta.register_targets(&[configured("a", "fs:///a"), configured("b", "fs:///b")]).unwrap();
        let swapped = Configured { id: Some(first.configured[1].id), ..configured("a", "fs:///a") };
        let second = meta.register_targets(&[swapped]).unwrap();
        assert_eq!(second.configured[0].bit, first.configured[1].bit);
        let foreign = Configured { id: Some(TargetId::random()), ..configured("a", "fs:///a") };
        assert_eq!(meta.register_targets(&[foreign]).unwrap().configured[0].bit.index(), 2);
    }

    #[test]
    fn a_target_added_after_history_was_dropped_has_to_resync() {
        let (_dir, meta) = store();
        meta.write(|tx| tx.append(&some_change())).unwrap();
        let early = meta.register_targets(&[configured("a", "fs:///a")]).unwrap();
        assert_eq!(early.configured[0].mode, Mode::Follow);
        meta.write(|tx| Ok(tx.conn().execute("DELETE FROM journal", [])?)).unwrap();
        let late = meta.register_targets(&[configured("b", "fs:///b")]).unwrap();
        assert_eq!((late.configured[0].mode, late.configured[0].base_seq), (Mode::Resync, Seq(1)));
        assert_eq!(meta.pinning_mask().unwrap(), 0b01);
    }

    #[test]
    fn a_mode_nobody_knows_is_an_error() {
        let (_dir, meta) = store();
        meta.register_targets(&[configured("a", "fs:///a")]).unwrap();
        meta.write(|tx| Ok(tx.conn().execute("UPDATE target SET mode = 'x'", [])?)).unwrap();
        assert!(matches!(meta.targets(), Err(Error::Damaged(_))));
    }
}
