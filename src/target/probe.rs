//! What a store really does, found out by trying (T8).
//!
//! Owns: the conditional-create probe, and the table that `tandemfs check` prints.
//! Does not own: what follows from it (`shipper` lists `writers/` the more often the weaker fencing is).
//!
//! Of five S3 servers two accept a second create-only put silently and one lets two of eight at the same moment win, so a
//! store is believed only if it refuses a second put *and* exactly one of several at once wins. All objects lie under
//! `tmp/` and are removed afterwards.

use bytes::Bytes;
use futures::future::join_all;

use super::classify::{CLOCK_SECS_MAX, clock_words};
use super::operator::OperatorTarget;
use super::{Abilities, Body, Existing, Kind, Result, Target};
use crate::format::key;

/// Seconds that a clock may be off without a word.
const CLOCK_SECS_GOOD: i64 = 30;
/// Puts for the same key at the same moment.
const RACERS: usize = 4;

/// Tries what `Existing::Refuse` would rest on.
pub(super) async fn abilities(store: &OperatorTarget) -> Result<Abilities> {
    let keys = [fresh_key(), fresh_key()];
    let result = try_create_only(store, &keys).await;
    for key in &keys {
        // What stays is nobody's data.
        let _ = store.delete(key).await;
    }
    result
}

async fn try_create_only(store: &OperatorTarget, [twice, race]: &[String; 2]) -> Result<Abilities> {
    let body = Body::from(Bytes::from_static(b"tandemfs: may this be created twice?\n"));
    let asks = store.can_ask_create_only();
    let checksum = match store.put_once(twice, &body, asks).await {
        // It knows the header and refuses it, or never heard of it.
        Err(error) if asks && matches!(error.kind, Kind::Unsupported | Kind::Failed | Kind::Exists) => {
            return Ok(Abilities { create_only: false, checksum: store.put_once(twice, &body, false).await? });
        }
        result => result?,
    };
    let mut create_only = asks && wins(store.put_once(twice, &body, true).await)? == Some(false);
    if create_only {
        let racers = join_all((0..RACERS).map(|_| store.put_once(race, &body, true))).await;
        let mut winners = 0;
        for outcome in racers {
            winners += usize::from(wins(outcome)? == Some(true));
        }
        create_only = winners == 1;
    }
    Ok(Abilities { create_only, checksum })
}

/// Whether a create-only put won; `None` if the store would not say.
fn wins(outcome: Result<bool>) -> Result<Option<bool>> {
    match outcome {
        Ok(_) => Ok(Some(true)),
        Err(error) if error.kind == Kind::Exists => Ok(Some(false)),
        Err(error) if matches!(error.kind, Kind::Failed | Kind::Unsupported | Kind::Invalid) => Ok(None),
        Err(error) => Err(error),
    }
}

fn fresh_key() -> String {
    key::temporary(&format!("probe-{:016x}", crate::chance::u64()))
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was tried: `write`, `read back` …
    pub what: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// How a trial went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Works,
    /// The store cannot do it; the text says what is done instead, or what it may lead to.
    Weak(String),
    /// It fails, and so would replication.
    Fails(String),
}

/// Tries everything that replication needs. The place must exist; a directory that was not initialised yet takes it too.
pub async fn table(target: &dyn Target) -> Vec<Finding> {
    let probe = fresh_key();
    let bytes = Bytes::from_static(b"tandemfs: is this written, read, listed and removed?\n");
    let mut findings = Vec::new();
    let mut note = |what, outcome: Result<bool>, wrong: &str| {
        let outcome = match outcome {
            Ok(true) => Outcome::Works,
            Ok(false) => Outcome::Fails(wrong.to_owned()),
            Err(error) => Outcome::Fails(error.to_string()),
        };
        let works = outcome == Outcome::Works;
        findings.push(Finding { what, outcome });
        works
    };
    let put = target.put(&probe, bytes.clone().into(), Existing::Replace).await;
    if !note("write", put.map(|()| true), "") {
        return findings;
    }
    let length = bytes.len() as u64;
    note("read back", target.get(&probe, length).await.map(|read| read == bytes), "other bytes came back");
    let range = target.get_range(&probe, 10, 20).await;
    note("read a range", range.map(|read| read == bytes[10..30]), "other bytes came back");
    note("look up", target.stat(&probe).await.map(|found| found == Some(length)), "another length came back");
    let listed = listed(target, &probe).await;
    note("list after write", listed, "what was written is not listed");
    let put = target.put(&probe, bytes.into(), Existing::Refuse).await;
    let refused = match put {
        Err(error) if error.kind == Kind::Exists => Ok(true),
        result => result.map(|()| false),
    };
    note("refuse what exists", refused, "an existing object was replaced");
    note("remove", target.delete(&probe).await.map(|()| true), "");
    note("look up what is gone", target.stat(&probe).await.map(|found| found.is_none()), "it is still there");
    match target.abilities().await {
        Ok(Abilities { create_only, checksum }) => {
            let weak = |able, instead: &str| if able { Outcome::Works } else { Outcome::Weak(instead.to_owned()) };
            let looks = "it does not; looked up before writing, so fencing of a second writer is weak";
            findings.push(Finding { what: "create once, even in a race", outcome: weak(create_only, looks) });
            let stat = "it does not; the length is looked up after writing";
            findings.push(Finding { what: "verify a checksum", outcome: weak(checksum, stat) });
        }
        Err(error) => {
            findings.push(Finding { what: "create once, even in a race", outcome: Outcome::Fails(error.to_string()) });
        }
    }
    findings.extend(target.ahead_secs().map(|ahead| Finding { what: "keep the time", outcome: clock(ahead) }));
    findings
}

/// What a store's clock means. A few seconds are the way of the answer.
fn clock(ahead_secs: i64) -> Outcome {
    let words = clock_words(ahead_secs);
    match ahead_secs.abs() {
        0..=CLOCK_SECS_GOOD => Outcome::Works,
        off if off < CLOCK_SECS_MAX => {
            Outcome::Weak(format!("{words}; from {CLOCK_SECS_MAX} s on stores refuse requests"))
        }
        _ => Outcome::Fails(format!("{words}: it may refuse what we sign; set the clocks")),
    }
}

async fn listed(target: &dyn Target, wanted: &str) -> Result<bool> {
    let mut after = None;
    loop {
        let page = target.list(key::TEMPORARY, after.as_deref()).await?;
        if page.objects.iter().any(|object| object.key == wanted) {
            return Ok(true);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_and_one_that_is_far_off_cannot_be_relied_on() {
        assert_eq!(clock(-20), Outcome::Works);
        assert!(matches!(clock(100), Outcome::Weak(words) if words.contains("100 s ahead of ours")));
        assert!(matches!(clock(-3_600), Outcome::Fails(words) if words.contains("3600 s behind ours")));
    }
}
