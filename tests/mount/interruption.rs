//! However the daemon or its mount ends, nothing is lost and the next mount goes on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{program, succeed, tandemfs};
use crate::support::tree::{self, Depth, assert_same, make_awkward};

fn check_next_mount_goes_on(end: impl FnOnce(Mounted<'_>)) {
    let place = Place::new(&["a", "b"]);
    make_awkward(&place.path("original"));
    let mounted = place.mount();
    program("cp", ["-a".as_ref(), place.path("original").as_os_str(), place.mnt().join("copy").as_os_str()]);
    let before = tree::read(&place.mnt(), Depth::Restored);
    end(mounted);
    assert!(std::fs::read_dir(place.mnt()).unwrap().next().is_none(), "unmounted");
    let mounted = place.mount();
    assert_same("after the next mount", &before, &tree::read(&place.mnt(), Depth::Restored));
    mounted.umount();
    std::fs::remove_dir_all(place.path("state")).unwrap();
    std::fs::remove_dir_all(place.path("a")).unwrap();
    assert_eq!(place.restore("new", &[place.uri("b")]).code, 0);
    let mounted = place.mount_read_only("new");
    assert_same("restored", &before, &tree::read(&place.mnt(), Depth::Restored));
    mounted.umount();
}

#[test]
fn after_plain_umount() {
    check_next_mount_goes_on(|mounted| {
        succeed(Command::new("umount").arg(mounted.path("")));
        mounted.wait_end();
    });
}

#[test]
fn after_sigterm() {
    check_next_mount_goes_on(|mounted| {
        let pid = mounted.daemon().unwrap();
        program("kill", [pid.to_string()]);
        mounted.wait_end();
    });
}

#[test]
fn after_kill_9() {
    check_next_mount_goes_on(|mounted| mounted.kill());
}

#[test]
fn two_mounts_on_one_state_directory_refuse_each_other() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    // At its mountpoint, and at another one: there nothing but the lock of the state directory is in the way.
    let elsewhere = place.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let state = place.path("state").display().to_string();
    let (mnt, uri) = (place.mnt(), place.uri("a"));
    let way_out = format!("hint: unmount it first: tandemfs umount {}", mnt.display());
    for (mountpoint, says) in [
        (&mnt, format!("is mounted at {} already", mnt.display())),
        (&elsewhere, format!("state directory {state} is in use: it is mounted at {}", mnt.display())),
    ] {
        let mut command = tandemfs();
        command.arg("mount").arg(mountpoint).args(["--state-dir", &state, "--target", &format!("a={uri}")]);
        let second = crate::support::run::finish(&mut command);
        assert_eq!(second.code, 1, "{}", second.stderr);
        assert!(second.stderr.contains(&says) && second.stderr.contains(&way_out), "{}", second.stderr);
    }
    assert!(std::fs::read_dir(&elsewhere).unwrap().next().is_none(), "nothing is mounted there");
    wait_for("the first still answers", || mounted.status()["journal_seq"].is_u64());
    mounted.umount();
}

/// Closes one of two descriptors of a file that was rewritten, so that it is not sealed yet, and lets the machine start
/// anew: only what was synced counts then (S6). Returns what the file holds.
fn closed_before_a_power_cut(close: &str) -> (String, serde_json::Value) {
    let place = Place::new(&["a"]);
    let config = place.path("config.toml");
    let text = format!("[acknowledge]\nclose = {close:?}\n[target.a]\nuri = {:?}\n", place.uri("a"));
    std::fs::write(&config, text).unwrap();
    let mount = || {
        let mut command = tandemfs();
        command.arg("mount").arg(place.mnt()).arg("--state-dir").arg(place.path("state"));
        succeed(command.arg("--config").arg(&config));
        Mounted::found(&place, "state")
    };
    let mounted = mount();
    let path = mounted.path("f");
    std::fs::write(&path, "old").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    let open = || File::options().write(true).open(&path).unwrap();
    let (kept, closed) = (open(), open());
    closed.write_all_at(b"new", 0).unwrap();
    drop(closed);
    mounted.kill();
    drop(kept);
    let database = rusqlite::Connection::open(place.path("state/meta.sqlite")).unwrap();
    database.execute("UPDATE counter SET boot_id = 'another'", []).unwrap();
    drop(database);
    let mounted = mount();
    let (content, status) = (std::fs::read_to_string(&path).unwrap(), mounted.status());
    mounted.umount();
    (content, status)
}

#[test]
fn d3_under_local_a_close_survives_a_power_cut() {
    let (content, status) = closed_before_a_power_cut("local");
    assert_eq!(content, "new");
    assert_eq!(status["attention"].as_array().unwrap().len(), 0, "{status:#}");
}

#[test]
fn d3_under_cached_a_power_cut_may_take_a_close_that_was_not_synced() {
    let (content, status) = closed_before_a_power_cut("cached");
    assert_eq!(content, "old");
    let attention = &status["attention"][0];
    assert_eq!((attention["kind"].as_str(), attention["path"].as_str()), (Some("void"), Some("f")), "{status:#}");
}

#[test]
fn s7_local_files_that_no_row_names_are_kept_and_reported() {
    let place = Place::new(&["a"]);
    place.mount().umount();
    let stray = "0000000000000005-2-0-whole";
    std::fs::create_dir_all(place.path("state/chunks/05")).unwrap();
    std::fs::write(place.path("state/chunks/05").join(stray), [7; 5000]).unwrap();
    let mounted = place.mount();
    let quarantine = || {
        let status = mounted.status();
        status["attention"].as_array().unwrap().iter().find(|found| found["kind"] == "quarantine").cloned()
    };
    wait_for("the stray is reported", || quarantine().is_some());
    let found = quarantine().unwrap();
    assert!(found["bytes"].as_u64() >= Some(5000), "{found}");
    assert!(found["hint"].as_str().unwrap().contains("refers to: 1;"), "{found}");
    assert!(place.path("state/quarantine").join(stray).exists());
    mounted.umount();
}
