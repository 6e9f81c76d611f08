//! Worlds: one seed, one filesystem with targets that fail in every way, on a clock of its own.
//!
//! Real is everything between the calls of a program and the calls to a target: `vfs`, sessions and their chunk files,
//! sealing and commit, the store, recovery, driver and planner, shippers, checkpoints, resync, compaction, GC,
//! acknowledgement, eviction, reads, restore. Made up are time ([`crate::clock`]), randomness ([`crate::chance`]), the targets ([`place`]) and the order
//! in which things happen. One thread, one runtime without timers, nothing that asks the real clock: a seed that fails, fails
//! again, with the same history to the last call ([`trace`]).
//!
//! Owns: what happens in a world, the oracle (DESIGN §10). Does not own: the kernel, passthrough, real power cuts and kills
//! (`tests/crash`).
//!
//! ```text
//! step: a call of a program │ a seal, a commit │ eviction │ time passes │ faults come and go │ a target is paused, replaced
//!       │ kill, or power cut, and remount │ a look at a target
//! end:  faults off ─▶ everything drains ─▶ scrub finds nothing ─▶ every target alone restores to all of it
//! ```
//!
//! | what must hold | where |
//! |---|---|
//! | a segment or `complete.json` arrives after every chunk that it names | [`place`], at each put |
//! | no object but a chunk is ever replaced; no chunk is deleted within the time of grace | [`place`] |
//! | no chunk is deleted that one of the two newest checkpoints names | [`named`] |
//! | after a crash: all that was acknowledged, each file wholly one of its contents | [`programs`] |
//! | recovery twice = recovery once | [`world`] |
//! | a target restores to its records and no other; what is missing conflicts with nothing that is there (O6) | [`oracle`] |
//! | what `fsync` promised to be on targets, is there | [`acks`] |
//! | faults off: everything drains, scrub finds nothing | [`world`] |

mod acks;
mod again;
mod late;
mod named;
mod oracle;
mod place;
mod programs;
mod repacks;
mod trace;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};

use self::world::{Life, World};

/// Lives one world.
fn run(seed: u64) -> Life {
    World::new(seed).whole_life()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("it is a number"))
}

/// Many worlds, on as many threads as there are processors. A failure names the seed, and the same seed fails again.
#[test]
fn worlds_full_of_faults_lose_nothing_and_end_whole() {
    let first = number("TANDEMFS_WORLD").or_else(|| number("TANDEMFS_WORLDS_FROM")).unwrap_or(0);
    let count = if number("TANDEMFS_WORLD").is_some() { 1 } else { number("TANDEMFS_WORLDS").unwrap_or(WORLDS) };
    let all = std::env::var_os("TANDEMFS_WORLDS_ALL").is_some();
    let next = AtomicU64::new(first);
    let (total, failed) = (parking_lot::Mutex::new(Life::default()), parking_lot::Mutex::new(Vec::new()));
    let work = || {
        while failed.lock().is_empty() || all {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            match std::panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
                Ok(life) => total.lock().add(&life),
                Err(_) => {
                    eprintln!("world {seed} failed: TANDEMFS_WORLD={seed} makes it again");
                    failed.lock().push(seed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, |threads| threads.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner();
    let total = total.into_inner();
    eprintln!("{count} worlds from {first}: {total:?}");
    assert!(failed.is_empty(), "worlds {failed:?} failed");
    assert!(count < WORLDS || total.repacks > 0, "nothing was ever compacted");
}

/// In a plain `cargo test`.
const WORLDS: u64 = 200;

/// The history of a world is what its seed says: each call to a target with its answer and its time, each call of a program.
#[test]
fn the_same_seed_makes_the_same_history() {
    let seeds = 1_000_000..1_000_003;
    let histories: Vec<u64> = seeds.clone().map(|seed| run(seed).history).collect();
    for (seed, history) in seeds.zip(&histories) {
        assert_eq!(run(seed).history, *history, "world {seed} was another one the second time");
    }
    assert!(histories.windows(2).all(|pair| pair[0] != pair[1]), "another seed makes another history");
}
