//! Seconds that no setting of a wall clock moves, across mounts: grace periods are counted in them (T9).
//!
//! Owns: what they are, their note in the store (key `steady` of the table `filesystem`; local), the age of a record.
//! Does not own: reading time (`clock`), what is counted (`gc`, `mount::answers`).
//!
//! ```text
//! this boot     noted ──── runs with the machine, mounted or not ────▶ now
//! another boot  noted, and on from there: how long the machine was off only a wall clock knows, and that may be years off
//! ```
//!
//! They begin as seconds since 1970, and with every boot lag behind them a little more: nothing else may take them for that.

use rusqlite::{Connection, OptionalExtension};

use super::{Meta, Result, Tx};
use crate::clock;
use crate::id::Seq;

/// Where these seconds stand, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Steady {
    secs: i64,
    /// Seconds that the machine had been up then.
    up: u64,
    boot: String,
}

const KEY: &str = "steady";

impl Steady {
    /// Goes on from the note in a store, or begins.
    pub(super) fn of(conn: &Connection) -> Result<Steady> {
        let noted: Option<String> = conn
            .query_row("SELECT CAST(value AS TEXT) FROM filesystem WHERE key = ?1", [KEY], |row| row.get(0))
            .optional()?;
        let newest: Option<i64> = conn.query_row("SELECT max(secs) FROM seq_time", [], |row| row.get(0))?;
        // Where the kernel does not tell its boots apart, each mount counts as one.
        let boot = clock::boot_id().unwrap_or_default();
        let begin = newest.unwrap_or_else(|| clock::now().secs());
        Ok(Steady::go_on(noted.as_deref().and_then(Steady::parse), begin, clock::uptime().as_secs(), boot))
    }

    /// `begin` is where they begin without a note. Pure.
    fn go_on(noted: Option<Steady>, begin: i64, up: u64, boot: String) -> Steady {
        let secs = match noted {
            Some(noted) if noted.boot == boot && !boot.is_empty() => noted.at(up),
            Some(noted) => noted.secs,
            None => begin,
        };
        Steady { secs, up, boot }
    }

    fn at(&self, up: u64) -> i64 {
        self.secs.saturating_add(i64::try_from(up.saturating_sub(self.up)).unwrap_or(i64::MAX))
    }

    fn parse(text: &str) -> Option<Steady> {
        let mut words = text.split(' ');
        let (secs, up) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Steady { secs, up, boot: words.next()?.to_owned() })
    }
}

impl Meta {
    /// The seconds of this moment.
    pub fn steady_secs(&self) -> i64 {
        self.steady.at(clock::uptime().as_secs())
    }

    /// For how many seconds a record has been in history, of which the wall clock says `by_wall`: that is believed within
    /// what was seen of the journal in steady seconds, so that a clock that jumped makes nothing a year old.
    pub fn age(&self, seq: Seq, by_wall: i64) -> Result<u64> {
        let now = self.steady_secs();
        let (younger, older): (Option<i64>, Option<i64>) = self.read(|conn| {
            let sql = "SELECT (SELECT min(secs) FROM seq_time WHERE seq >= ?1), (SELECT max(secs) FROM seq_time WHERE seq < ?1)";
            Ok(conn.prepare_cached(sql)?.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?)
        })?;
        let at_least = younger.map_or(0, |seen| now.saturating_sub(seen)).max(0);
        let at_most = older.map_or(i64::MAX, |seen| now.saturating_sub(seen)).max(at_least);
        Ok(by_wall.clamp(at_least, at_most) as u64)
    }
}

impl Tx<'_> {
    /// Notes where the steady seconds stand.
    pub(super) fn note_steady(&self, steady: &Steady) -> Result<()> {
        let up = clock::uptime().as_secs();
        let text = format!("{} {up} {}", steady.at(up), steady.boot);
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO filesystem (key, value) VALUES (?1, ?2)")?
            .execute([KEY, &text])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::{file, store};
    use crate::meta::{Options, testing};

    fn steady(secs: i64, up: u64, boot: &str) -> Steady {
        Steady { secs, up, boot: boot.into() }
    }

    #[test]
    fn t9_steady_seconds_run_with_the_machine_and_stand_still_between_boots() {
        let go_on = |up, boot: &str| Steady::go_on(Some(steady(1_000, 50, "one")), 7, up, boot.into());
        assert_eq!(go_on(90, "one"), steady(1_040, 90, "one"));
        assert_eq!(go_on(40, "one"), steady(1_000, 40, "one"), "never back");
        assert_eq!(go_on(9_000, "two"), steady(1_000, 9_000, "two"));
        assert_eq!(Steady::go_on(Some(steady(1_000, 50, "")), 7, 90, "".into()).secs, 1_000);
        assert_eq!(Steady::go_on(None, 7, 90, "one".into()), steady(7, 90, "one"));
        assert_eq!(go_on(90, "one").at(100), 1_050);
    }

    #[test]
    fn t9_the_note_is_found_again_and_the_wall_clock_not_asked() {
        let (dir, meta) = store();
        meta.write(|tx| {
            let up = clock::uptime().as_secs();
            tx.note_steady(&steady(5_000, up, &clock::boot_id().unwrap()))
        })
        .unwrap();
        drop(meta);
        let meta = Meta::open(&dir.path().join("meta.sqlite"), &Options::default()).unwrap();
        let now = meta.steady_secs();
        assert!((5_000..5_600).contains(&now), "{now}");
    }

    #[test]
    fn an_age_is_what_the_wall_clock_says_within_what_was_seen() {
        let (_dir, meta) = store();
        let now = meta.steady_secs();
        for (name, ago) in [(b"a", 500), (b"b", 300)] {
            meta.write(|tx| {
                testing::file(tx, name);
                Ok(())
            })
            .unwrap();
            meta.note_time(now - ago, 0).unwrap();
        }
        meta.write(|tx| {
            file(tx, b"c");
            Ok(())
        })
        .unwrap();
        let year = 365 * 24 * 3600;
        let near = |age: u64, expected: u64| (expected..expected + 60).contains(&age);
        // The first was there 500 s ago, and maybe long before.
        assert!(near(meta.age(Seq(1), -year).unwrap(), 500));
        assert_eq!(meta.age(Seq(1), 900).unwrap(), 900);
        assert!(near(meta.age(Seq(2), -year).unwrap(), 300) && near(meta.age(Seq(2), year).unwrap(), 500));
        assert_eq!(meta.age(Seq(2), 400).unwrap(), 400);
        // The newest was not there 300 s ago.
        assert!(near(meta.age(Seq(3), year).unwrap(), 300));
        assert_eq!(meta.age(Seq(3), -year).unwrap(), 0);
        assert_eq!(meta.age(Seq(3), 7).unwrap(), 7);
    }
}
