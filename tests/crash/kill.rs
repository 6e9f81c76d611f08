//! `kill -9` at random moments and at every failpoint: what `close` returned for is there, each file is wholly one of its
//! contents, each target restores to the same tree.

use std::time::Duration;

use super::model::{Crash, Found, Past, assert_same};
use super::rig::{Rig, run, wait_until};
use super::workload::Random;
use super::{seed, setting};
use crate::support::run::tandemfs;
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

#[test]
fn what_was_closed_survives_kill_9_wherever_it_strikes() {
    let kills = setting("TANDEMFS_KILLS", 12);
    let mut random = Random(seed("kills"));
    let rig = Rig::new(&["a", "b"]);
    let (mut start, mut past) = (Found::new(), Past::default());
    let (mut struck, mut cuts) = (0, 0);
    for round in 0..kills {
        // Every second one at a failpoint, all of them in turn; the first of a short run differ from run to run.
        let point = (round % 2 == 0).then(|| EVERYDAY[random.below(EVERYDAY.len() as u64) as usize]);
        let failpoint = point.map(|point| format!("{}:{}", point.name(), 1 + random.below(12)));
        let what = format!("kill {round} at {}", failpoint.as_deref().unwrap_or("some moment"));
        let Ok(mut daemon) = rig.try_mount(failpoint.as_deref()) else {
            // It died in its recovery. Once more, and with the same result (S7): the next round looks.
            struck += 1;
            let daemon = rig.mount();
            let found = rig.scan(&daemon);
            assert_same(&format!("{what}: a recovery that was interrupted changed something"), &start, &found);
            daemon.kill();
            continue;
        };
        let (child, log) = rig.workload(&mut random, 400, 1500);
        let moment = match point {
            Some(_) => Duration::from_millis(1500),
            None => Duration::from_millis(random.below(900)),
        };
        daemon.wait_for(moment);
        struck += u64::from(point.is_some() && daemon.has_ended());
        daemon.kill();
        let history = rig.history(child, &log);
        past.note(&start, &history);
        if round % 4 == 1 {
            cuts += u64::from(rig.check_cut("b", &past));
        }
        let daemon = rig.mount();
        let found = rig.scan(&daemon);
        rig.check(&what, &start, &history, &found, Crash::Kill);
        if round % 5 == 4 {
            // Killed in the middle of recovery's work, once more.
            daemon.kill();
            let daemon = rig.mount();
            assert_same(&format!("{what}: the second recovery gives what the first gave"), &found, &rig.scan(&daemon));
            daemon.kill();
        } else if round % 25 == 24 || round + 1 == kills {
            rig.check_targets(daemon);
        } else {
            daemon.kill();
        }
        start = found;
    }
    eprintln!("{kills} kills, {struck} of them at failpoints, {cuts} restores from a target as the crash left it");
    assert!(struck > 0 || kills < 4, "failpoints strike");
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
    let points = [Point::CheckpointPart, Point::Complete, Point::Resync, Point::SegmentSent];
    let mut rig = Rig::new(&["a"]);
    let daemon = rig.mount();
    fill(&rig, &daemon, "first");
    rig.umount(daemon);
    // The rows of the journal are gone by now: who comes later gets a checkpoint.
    let rounds = if setting("TANDEMFS_KILLS", 0) > 0 { points.len() } else { 3 };
    for (index, point) in points[..rounds].iter().enumerate() {
        let name = format!("late{index}");
        rig.targets.push((name.clone(), rig.base.join(&name)));
        let mut daemon = rig.try_mount(Some(point.name())).unwrap();
        wait_until(&format!("{} strikes", point.name()), || daemon.has_ended());
        daemon.kill();
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
