//! The set of targets while it changes: removing one, pausing one, and what commands changed about the configuration.
//!
//! Owns: the row of a removed target on its way out, `target.paused_until`, the table `target_change`.
//! Does not own: rows as such (`meta::target`), what a change means at the next mount (`mount::live_set`).

use rusqlite::params;

use super::{Error, Meta, Result};
use crate::id::{ChunkId, Epoch, SegmentNumber, TargetBit, TargetId, WriterId};

/// What a command changed about one configured target; remembered over restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetChange {
    pub name: String,
    /// As given, without secrets; `None`: it was removed.
    pub uri: Option<String>,
    /// What the configuration said for this name then; `None`: nothing.
    pub configured: Option<String>,
}

/// Live bytes by where else they are, if one target goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Without {
    /// On no other target and not on this machine: lost with it.
    pub lost_chunks: u64,
    pub lost_bytes: u64,
    /// On no other target, but on this machine.
    pub local_bytes: u64,
    /// On exactly one other target: its bit, and the bytes.
    pub single: Vec<(TargetBit, u64)>,
}

impl Meta {
    /// Removes the row of a target; durable. Its bits go afterwards, page by page ([`Meta::forget_placed`], then
    /// [`Meta::release_bit`]); until then the bit is not used again, and counts as no copy.
    pub fn remove_target(&self, bit: TargetBit) -> Result<()> {
        self.write(|tx| {
            for table in ["tally", "deferred", "segment", "checkpoint", "discarded", "deletion", "target"] {
                tx.conn().prepare_cached(&format!("DELETE FROM {table} WHERE bit = ?1"))?.execute([bit])?;
            }
            tx.conn().prepare_cached("INSERT OR IGNORE INTO retired VALUES (?1)")?.execute([bit])?;
            tx.end_pinning(bit)
        })?;
        self.sync()
    }

    /// The bits of removed targets that chunks may still have.
    pub fn retired(&self) -> Result<Vec<TargetBit>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT bit FROM retired ORDER BY bit")?;
            let bits = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(bits)
        })
    }

    /// No chunk has this bit any more: a new target may get it.
    pub fn release_bit(&self, bit: TargetBit) -> Result<()> {
        self.write(|tx| {
            tx.conn().prepare_cached("DELETE FROM retired WHERE bit = ?1")?.execute([bit])?;
            Ok(())
        })
    }

    /// Makes the row of a new target, or returns the one that has this name; durable.
    pub fn new_target(&self, name: &str, uri: &str) -> Result<TargetBit> {
        let bit = self.write(|tx| tx.add_target(name, uri, TargetId::random()))?;
        self.sync()?;
        self.pin_all()?;
        Ok(bit)
    }

    /// Notes that a target lies elsewhere now, or has another name.
    pub fn rename_target(&self, bit: TargetBit, name: &str, uri: &str) -> Result<()> {
        self.write(|tx| {
            tx.conn()
                .prepare_cached("UPDATE target SET name = ?2, uri = ?3 WHERE bit = ?1")?
                .execute(params![bit, name, uri])?;
            Ok(())
        })?;
        self.sync()
    }

    /// Pauses a target until a time ([`super::target::FOR_EVER`]), or with `None` lets it go on; durable.
    pub fn set_paused(&self, bit: TargetBit, until: Option<i64>) -> Result<()> {
        self.write(|tx| {
            tx.conn()
                .prepare_cached("UPDATE target SET paused_until = ?2 WHERE bit = ?1")?
                .execute(params![bit, until])?;
            Ok(())
        })?;
        self.sync()
    }

    /// Makes the place with this id the target's, whatever another mount wrote there: those segments do not count.
    pub fn adopt(&self, bit: TargetBit, id: TargetId, discarded: &[(Epoch, WriterId, SegmentNumber)]) -> Result<()> {
        self.write(|tx| {
            tx.conn()
                .prepare_cached("UPDATE target SET uuid = ?2, initialised = 1 WHERE bit = ?1")?
                .execute(params![bit, id])?;
            for (epoch, writer, n) in discarded {
                tx.conn()
                    .prepare_cached("INSERT OR REPLACE INTO discarded VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![bit, n, epoch, writer])?;
            }
            Ok(())
        })?;
        self.sync()
    }

    /// What commands changed about the configured targets, by name.
    pub fn target_changes(&self) -> Result<Vec<TargetChange>> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached("SELECT name, uri, configured FROM target_change ORDER BY name")?;
            let rows = statement.query_map([], |row| {
                Ok(TargetChange { name: row.get(0)?, uri: row.get(1)?, configured: row.get(2)? })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Remembers a change, in place of an earlier one of the same name; durable.
    pub fn remember_change(&self, change: &TargetChange) -> Result<()> {
        self.write(|tx| {
            tx.conn().prepare_cached("INSERT OR REPLACE INTO target_change VALUES (?1, ?2, ?3)")?.execute(params![
                change.name,
                change.uri,
                change.configured
            ])?;
            Ok(())
        })?;
        self.sync()
    }

    /// Forgets what commands changed about a name: the configuration says it by now, or something newer.
    pub fn forget_change(&self, name: &str) -> Result<()> {
        self.write(|tx| {
            tx.conn().prepare_cached("DELETE FROM target_change WHERE name = ?1")?.execute([name])?;
            Ok(())
        })
    }

    /// One page of what would be where without target `bit`: up to `limit` chunks after `after` are added to `without`.
    /// Returns where to go on; `None` at the end.
    pub fn count_without(
        &self,
        bit: TargetBit,
        after: ChunkId,
        limit: usize,
        without: &mut Without,
    ) -> Result<Option<ChunkId>> {
        self.read(|conn| {
            let present = super::target::rows(conn)?.iter().fold(0, |mask, row| mask | row.bit.mask());
            let others = present & !bit.mask();
            let mut statement = conn.prepare_cached(
                "SELECT id, length, placed FROM chunk WHERE id > ?1 AND dead_seq IS NULL ORDER BY id LIMIT ?2",
            )?;
            let mut local = conn.prepare_cached("SELECT coalesce(sum(length), 0) FROM location WHERE chunk = ?1")?;
            let mut rows = statement.query(params![after, limit as i64])?;
            let mut last = None;
            while let Some(row) = rows.next()? {
                let chunk: ChunkId = row.get(0)?;
                last = Some(chunk);
                let length = row.get::<_, i64>(1)?.max(0) as u64;
                let copies = row.get::<_, i64>(2)? as u64 & others;
                match copies.count_ones() {
                    0 => {
                        let here: i64 = local.query_row([chunk], |row| row.get(0))?;
                        if here as u64 >= length {
                            without.local_bytes += length;
                        } else {
                            without.lost_chunks += 1;
                            without.lost_bytes += length;
                        }
                    }
                    1 => {
                        let index = copies.trailing_zeros() as u8;
                        let only = TargetBit::new(index)
                            .ok_or_else(|| Error::Damaged(format!("chunk {chunk} has bit {index}")))?;
                        match without.single.iter_mut().find(|(bit, _)| *bit == only) {
                            Some((_, bytes)) => *bytes += length,
                            None => without.single.push((only, length)),
                        }
                    }
                    _ => {}
                }
            }
            Ok(last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkHash;
    use crate::meta::target::Configured;
    use crate::meta::testing::store;

    fn bit(index: u8) -> TargetBit {
        TargetBit::new(index).unwrap()
    }

    fn targets(meta: &Meta, names: &[&str]) {
        let of = |name: &&str| Configured { name: name.to_string(), uri: format!("memory://{name}"), id: None };
        meta.register_targets(&names.iter().map(of).collect::<Vec<_>>()).unwrap();
    }

    fn chunk(meta: &Meta, id: u64, placed: u64, local: bool) {
        meta.write(|tx| {
            tx.conn().execute(
                "INSERT INTO chunk (id, hash, length, bytes_referenced, placed, incomplete) VALUES (?1, ?2, 10, 10, ?3, 0)",
                params![ChunkId(id), ChunkHash::of(&id.to_le_bytes()), placed as i64],
            )?;
            if local {
                tx.conn().execute("INSERT INTO location VALUES (?1, 1, 0, 10, 0, 0)", [ChunkId(id)])?;
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn d7_what_would_exist_only_where_is_counted_before_a_target_goes() {
        let (_dir, meta) = store();
        targets(&meta, &["a", "b", "c"]);
        for (id, placed, local) in
            [(1, 0b111, false), (2, 0b110, false), (3, 0b100, true), (4, 0b100, false), (5, 0, true)]
        {
            chunk(&meta, id, placed, local);
        }
        let mut without = Without::default();
        let mut after = ChunkId(0);
        while let Some(last) = meta.count_without(bit(2), after, 2, &mut without).unwrap() {
            after = last;
        }
        let expected = Without { lost_chunks: 1, lost_bytes: 10, local_bytes: 20, single: vec![(bit(1), 10)] };
        assert_eq!(without, expected);
    }

    #[test]
    fn t6_the_bit_of_a_removed_target_is_not_used_again_before_no_chunk_has_it() {
        let (_dir, meta) = store();
        targets(&meta, &["a", "b"]);
        for id in 1..=5 {
            chunk(&meta, id, 0b10, false);
        }
        meta.remove_target(bit(1)).unwrap();
        assert_eq!(meta.new_target("c", "memory://c").unwrap(), bit(2));
        let mut after = ChunkId(0);
        while let Some(last) = meta.forget_placed(bit(1), after, 2).unwrap() {
            after = last;
        }
        assert_eq!(meta.retired().unwrap(), [bit(1)]);
        meta.release_bit(bit(1)).unwrap();
        assert_eq!(meta.new_target("d", "memory://d").unwrap(), bit(1));
        let placed: i64 =
            meta.read(|conn| Ok(conn.query_row("SELECT sum(placed) FROM chunk", [], |r| r.get(0))?)).unwrap();
        assert_eq!(placed, 0);
    }

    #[test]
    fn promise_2_the_bit_of_a_removed_target_is_no_copy() {
        let (_dir, meta) = store();
        targets(&meta, &["a", "b"]);
        chunk(&meta, 1, 0b10, true);
        let file = crate::id::ChunkFileId(1);
        meta.write(|tx| Ok(tx.conn().execute("INSERT INTO chunk_file VALUES (1, 'chunks/00/1', 10, 1)", [])?)).unwrap();
        meta.remove_target(bit(1)).unwrap();
        assert_eq!(meta.evict(file).unwrap(), None);
    }

    #[test]
    fn changes_are_remembered_by_name() {
        let (_dir, meta) = store();
        let change = |uri: Option<&str>| TargetChange {
            name: "a".into(),
            uri: uri.map(str::to_owned),
            configured: Some("fs:///old".into()),
        };
        meta.remember_change(&change(Some("fs:///new"))).unwrap();
        meta.remember_change(&change(None)).unwrap();
        assert_eq!(meta.target_changes().unwrap(), [change(None)]);
        meta.forget_change("a").unwrap();
        assert_eq!(meta.target_changes().unwrap(), []);
    }
}
