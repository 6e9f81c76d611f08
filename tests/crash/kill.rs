//! `kill -9` at random moments and at every failpoint: what `close` returned for is there, each file is wholly one of its
//! contents, each target restores to the same tree. As the kill left them, each target restores to a cut with what it had
//! acknowledged, and all together to what any of them has.

use std::time::Duration;

use super::model::{Crash, Found, assert_same};
use super::past::{Acked, Past};
use super::rig::{PATIENCE, Rig, run, wait_until};
use super::{seed, setting};
use crate::support::mounted::has_whole_history;
use crate::support::run::tandemfs;
use tandemfs::chance::Seeded;
use tandemfs::testing::failpoint::{Point, VARIABLE};

/// Places that a plain workload passes.
const EVERYDAY: &[Point] = &[
    Point::Stage,
    Point::Ranges,
    Point::Slot,
    Point::Mark,
    Point::Marked,
    Point::Rotate,
    Point::Seal,
    Point::Commit,
    Point::Committed,
    Point::Rename,
    Point::Unlink,
    Point::LocationDelete,
    Point::Punch,
    Point::Upload,
    Point::Placement,
    Point::Place,
    Point::SegmentStored,
    Point::SegmentSent,
    Point::Recovered,
];
/// Places that a target passes which comes late.
const LATE: &[Point] = &[Point::CheckpointPart, Point::Complete, Point::Resync, Point::SegmentSent];
/// Places of the collector.
const COLLECTING: &[Point] = &[Point::GcBegun, Point::GcDeleted];
/// Places with a test of their own, here.
const ONCE: &[Point] = &[Point::Unmount, Point::Restore];
/// The same, where what they are about is tested: `tests/mount/{half_created,lent,compaction}`.
const ELSEWHERE: &[Point] = &[Point::Create, Point::Thaw, Point::RepackFile, Point::Repack];
/// Calls that fail in `disk_errors`; a kill there is one at the place before or after.
const SYNCS: &[Point] =
    &[Point::SyncStaged, Point::SyncRanges, Point::SyncEntry, Point::SyncSealed, Point::WalCheckpoint, Point::SyncWal];

#[test]
fn a_test_strikes_at_every_place() {
    let struck = [EVERYDAY, LATE, COLLECTING, ONCE, ELSEWHERE, SYNCS].concat();
    for point in Point::ALL {
        assert!(struck.contains(point), "no test kills at {:?}", point.name());
    }
}

/// A mount that is killed again and again, and all that its files ever held.
struct Killed {
    rig: Rig,
    random: Seeded,
    start: Found,
    past: Past,
    rounds: u64,
    /// Each so many rounds targets are restored as the kill left them.
    look: u64,
    looks: u64,
}

impl Killed {
    /// One more kill; returns whether it was at the failpoint. With `moment` that is as far away, at most; without, as far
    /// as a workload lasts.
    fn round(&mut self, point: Option<Point>, nth: u64, moment: Option<Duration>) -> bool {
        let Killed { rig, random, start, past, rounds: round, look, looks } = self;
        let failpoint = point.map(|point| format!("{}:{nth}", point.name()));
        let what = format!("kill {round} at {}", failpoint.as_deref().unwrap_or("some moment"));
        *round += 1;
        let acked = [Acked::All, Acked::One, Acked::Local][*round as usize % 3];
        rig.acknowledge(acked);
        let Ok(mut daemon) = rig.try_mount(failpoint.as_deref()) else {
            // It died in its recovery. Once more, and with the same result (S7): the next round looks.
            let daemon = rig.mount();
            let found = rig.scan(&daemon);
            assert_same(&format!("{what}: a recovery that was interrupted changed something"), start, &found);
            daemon.kill();
            return true;
        };
        let (mut child, log) = rig.workload(random, 400, 1500);
        match moment {
            Some(moment) => daemon.wait_for(moment),
            // As long as the workload lasts, and what it left to be done in the background.
            None => {
                let ended = || child.try_wait().unwrap().is_some();
                daemon.wait_for_or(PATIENCE, ended);
                daemon.wait_for(Duration::from_secs(5));
            }
        }
        let struck = point.is_some() && daemon.has_ended();
        daemon.kill();
        let history = rig.history(child, &log);
        let left = if *round % *look == 0 { rig.as_left() } else { None };
        let daemon = rig.mount();
        let found = rig.scan(&daemon);
        let files = rig.check(&what, start, &history, &found, Crash::Kill);
        past.note(start, &history, &found, &files, acked);
        if let Some(left) = left {
            left.check(&what, rig, past);
            *looks += 1;
        }
        if *round % 5 == 0 {
            // Killed in the middle of recovery's work, once more.
            daemon.kill();
            let daemon = rig.mount();
            assert_same(&format!("{what}: the second recovery gives what the first gave"), &found, &rig.scan(&daemon));
            daemon.kill();
        } else if *round % 25 == 0 {
            rig.check_targets(daemon);
            past.drained();
        } else {
            daemon.kill();
        }
        *start = found;
        struck
    }
}

#[test]
fn what_was_closed_survives_kill_9_wherever_it_strikes() {
    let kills = setting("TANDEMFS_KILLS", 4);
    // A look costs three restores.
    let look = if kills > 50 { 2 } else { 7 };
    let random = Seeded(seed("kills"));
    let mut rig = Rig::new(&["a", "b"]);
    // What a workload of a second leaves is rewritten at once, and while it goes on: a kill strikes in the middle of that, too.
    rig.settings = "[compaction]\nquiet = \"1s\"\nmin_garbage = \"64 KiB\"\nlag_max = \"1 GiB\"".into();
    let mut killed = Killed { rig, random, start: Found::new(), past: Past::default(), rounds: 0, look, looks: 0 };
    // Each place once. One that was not passed in its round comes again: a recovery needs something to recover.
    let mut waiting: std::collections::VecDeque<Point> = EVERYDAY.iter().copied().collect();
    let mut struck = 0;
    while let Some(point) = waiting.pop_front() {
        assert!(killed.rounds < 8 * EVERYDAY.len() as u64, "nothing passes {:?}", point.name());
        if killed.round(Some(point), 1, None) { struck += 1 } else { waiting.push_back(point) }
    }
    for _ in 0..kills {
        // Every second one at a failpoint.
        let point = (killed.rounds.is_multiple_of(2)).then(|| EVERYDAY[killed.random.below(EVERYDAY.len())]);
        let nth = 1 + killed.random.below_u64(12);
        let moment = if point.is_some() { 1500 } else { killed.random.below_u64(900) };
        struck += u64::from(killed.round(point, nth, Some(Duration::from_millis(moment))));
    }
    let Killed { rig, start, rounds, looks, .. } = killed;
    let daemon = rig.mount();
    assert_same("at the end", &start, &rig.scan(&daemon));
    rig.check_targets(daemon);
    assert!(looks > 0, "no kill left two targets to restore from");
    eprintln!(
        "{rounds} kills, {struck} of them at failpoints; {looks} times restored from each target and from all as it left them"
    );
}

/// Makes a small tree, and one file larger than a chunk.
fn fill(rig: &Rig, daemon: &super::rig::Daemon, name: &str) {
    let _watch = daemon.watch();
    let dir = rig.mnt().join(name);
    std::fs::create_dir(&dir).unwrap();
    for index in 0..20 {
        std::fs::write(dir.join(format!("f{index}")), crate::support::tree::noise(index, 3000 * index as usize))
            .unwrap();
    }
    std::fs::write(dir.join("large"), crate::support::tree::noise(99, 5 << 20)).unwrap();
}

#[test]
fn a_kill_while_a_late_target_is_brought_up_to_date_leaves_all_whole() {
    let mut rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    fill(&rig, &daemon, "first");
    rig.umount(daemon);
    // Once history is gone, who comes later gets a checkpoint.
    while has_whole_history(&rig.state) {
        rig.umount(rig.mount());
    }
    let rounds = if setting("TANDEMFS_KILLS", 0) > 0 { LATE.len() } else { 3 };
    for (index, point) in LATE[..rounds].iter().enumerate() {
        let name = format!("late{index}");
        rig.targets.push((name.clone(), rig.base.join(&name)));
        // It may strike before the mount is usable.
        if let Ok(mut daemon) = rig.try_mount(Some(point.name())) {
            wait_until(&format!("{} strikes", point.name()), || daemon.has_ended());
            daemon.kill();
        }
        let daemon = rig.mount();
        fill(&rig, &daemon, &name);
        rig.check_targets(daemon);
    }
}

#[test]
fn a_kill_between_unmounting_and_the_last_upload_loses_nothing() {
    let rig = Rig::new(&["a", "b"]);
    let mut daemon = rig.try_mount(Some(Point::Unmount.name())).unwrap();
    fill(&rig, &daemon, "files");
    let before = {
        let _watch = daemon.watch();
        super::rig::whole(&rig.mnt())
    };
    assert!(std::process::Command::new("umount").arg(rig.mnt()).status().unwrap().success());
    wait_until("unmount strikes", || daemon.has_ended());
    drop(daemon);
    let daemon = rig.mount();
    {
        let _watch = daemon.watch();
        crate::support::tree::assert_same("after the kill", &before, &super::rig::whole(&rig.mnt()));
    }
    rig.check_targets(daemon);
}

#[test]
fn t9_a_kill_in_the_middle_of_gc_loses_nothing_and_garbage_goes_all_the_same() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.settings = "chunk_size = \"64 KiB\"\n[gc]\ngrace = \"1s\"".into();
    let gc = |rig: &Rig, daemon: &super::rig::Daemon| {
        // What died with the newest record of all waits for one more.
        let _watch = daemon.watch();
        let _ = std::fs::write(rig.mnt().join("one more"), b"");
        run(tandemfs().arg("gc").arg(rig.mnt()))
    };
    let overwrite = |rig: &Rig, daemon: &super::rig::Daemon, seed: u64| {
        let _watch = daemon.watch();
        for round in 0..2 {
            std::fs::write(rig.mnt().join("f"), crate::support::tree::noise(seed + round, 300_000)).unwrap();
            let flushed = run(tandemfs().arg("flush").arg(rig.mnt()).args(["--timeout", "600"]));
            assert_eq!(flushed.code, 0, "{}", flushed.stderr);
        }
        std::fs::write(rig.mnt().join("one more"), b"").unwrap();
    };
    let stored = |rig: &Rig, target: &str| {
        let chunks = crate::support::tree::files_below(&rig.base.join(target).join("chunks"));
        chunks.iter().map(|(_, chunk)| chunk.len()).sum::<u64>()
    };
    for (index, point) in COLLECTING.iter().enumerate() {
        let mut daemon = rig.try_mount(Some(point.name())).unwrap();
        overwrite(&rig, &daemon, 100 * index as u64);
        let before = rig.scan(&daemon);
        wait_until(&format!("{} strikes", point.name()), || {
            let _ = gc(&rig, &daemon);
            daemon.has_ended()
        });
        daemon.kill();
        let daemon = rig.mount();
        assert_same("after the kill", &before, &rig.scan(&daemon));
        wait_until("garbage is gone", || {
            let collected = gc(&rig, &daemon);
            assert_eq!(collected.code, 0, "{}\n{}", collected.stderr, rig.log());
            ["a", "b"].iter().all(|target| stored(&rig, target) < 400_000)
        });
        assert_same("after gc", &before, &rig.scan(&daemon));
        rig.check_targets(daemon);
    }
}

#[test]
fn a_restore_that_was_killed_is_begun_anew() {
    let rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    fill(&rig, &daemon, "files");
    rig.umount(daemon);
    let state = rig.base.join("restored");
    let restore = || {
        let mut command = tandemfs();
        command.arg("restore").arg("--from").arg(rig.uri("a")).arg("--state-dir").arg(&state);
        command
    };
    assert_eq!(run(restore().env(VARIABLE, Point::Restore.name())).code, -1, "killed");
    assert!(!state.join("meta.sqlite").exists(), "half a restore is no state directory");
    let finished = run(&mut restore());
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let tree = rig.restored("a", |mnt| super::rig::scan(mnt).unwrap());
    assert_eq!(tree.len(), 22);
}

#[test]
fn a_failpoint_that_does_not_exist_is_refused() {
    let rig = Rig::new(&["a"]);
    let error = rig.try_mount(Some("nowhere")).err().expect("not mounted");
    assert!(error.contains("there is no place"), "{error}");
}
