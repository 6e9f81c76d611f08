//! The table of `docs/durability.md`: acknowledgement policies and what survives which loss. What a call acknowledged is there
//! after it; what no policy promises may be gone, but never half.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, setxattr};

use super::power::{Disk, power_cut};
use super::rig::{Rig, run};

const POLICIES: [&str; 6] = ["cached", "local", "one", "2", "quorum", "all"];

/// What a file holds that was acknowledged.
static CONTENT: [u8; 70_000] = [7; 70_000];

/// A directory for each call and policy.
fn directories() -> impl Iterator<Item = (&'static str, &'static str, String)> {
    let calls = ["close", "fsync"].into_iter();
    calls.flat_map(|call| POLICIES.map(|policy| (call, policy, format!("{call}-{policy}"))))
}

/// No machine is so slow that a call fails for want of time.
fn patient(mut rig: Rig) -> Rig {
    rig.settings = "[acknowledge]\ndeadline = \"10m\"".into();
    rig
}

/// Makes them, on every target.
fn prepare(rig: &Rig) {
    for (call, policy, dir) in directories() {
        std::fs::create_dir(rig.mnt().join(&dir)).unwrap();
        let other = if call == "close" { "fsync=local" } else { "close=cached" };
        let value = format!("{call}={policy},{other}");
        setxattr(rig.mnt().join(&dir), "user.tandemfs.policy", value.as_bytes(), XattrFlags::empty()).unwrap();
    }
    let flushed = run(tandemfs().arg("flush").arg(rig.mnt()).args(["--timeout", "600"]));
    assert_eq!(flushed.code, 0, "{}", flushed.stderr);
}

fn tandemfs() -> Command {
    crate::support::run::tandemfs()
}

/// Writes a file under one policy. What stays open is given back.
fn acknowledge(path: &Path, call: &str) -> Option<File> {
    let mut file = File::create(path).unwrap();
    file.write_all(&CONTENT).unwrap();
    if call == "fsync" {
        file.sync_all().unwrap();
        return Some(file);
    }
    // SAFETY: the descriptor was just taken out of its owner.
    assert_eq!(
        unsafe { libc::close(file.into_raw_fd()) },
        0,
        "{}: {}",
        path.display(),
        std::io::Error::last_os_error()
    );
    None
}

/// Which directories have the file as it was acknowledged. One that is there and differs fails, unless it is as empty as
/// its creation left it.
fn kept(mnt: &Path) -> BTreeMap<String, bool> {
    directories()
        .map(|(_, _, dir)| {
            let found = std::fs::read(mnt.join(&dir).join("file")).unwrap_or_default();
            assert!(found.is_empty() || found == CONTENT, "{dir}: half of it: {} bytes", found.len());
            (dir, !found.is_empty())
        })
        .collect()
}

fn assert_kept(what: &str, kept: &BTreeMap<String, bool>, promised: impl Fn(&str, &str) -> bool) {
    for (call, policy, dir) in directories() {
        assert!(kept[&dir] || !promised(call, policy), "{what}: {dir} was acknowledged, and is gone: {kept:?}");
    }
}

#[test]
fn d3_every_policy_survives_the_end_of_the_program_and_of_the_daemon() {
    let rig = patient(Rig::new(&["a", "b", "c"]));
    let daemon = rig.mount();
    prepare(&rig);
    // A program that dies while it has the file open: what it wrote is written.
    for (_, _, dir) in directories() {
        let path = rig.mnt().join(&dir).join("program");
        let script = format!("exec 3>'{}'; head -c 70000 /dev/zero | tr '\\0' '\\7' >&3; kill -9 $$", path.display());
        assert!(!Command::new("sh").args(["-c", &script]).status().unwrap().success());
        assert!(std::fs::read(&path).unwrap() == CONTENT, "{dir}");
    }
    let write = |(call, _, dir): (&str, &str, String)| acknowledge(&rig.mnt().join(dir).join("file"), call);
    let open: Vec<File> = directories().filter_map(write).collect();
    daemon.kill();
    drop(open);
    let daemon = rig.mount();
    assert_kept("after kill -9", &kept(&rig.mnt()), |_, _| true);
    rig.check_targets(daemon);
}

#[test]
fn d3_every_policy_but_cached_survives_a_power_cut() {
    let Some(disk) = Disk::new("ext4") else { return };
    let rig = patient(Rig::on(Some(&disk.mnt), &["a", "b", "c"]));
    let mut daemon = rig.mount();
    prepare(&rig);
    // One after the other: the sync of one would help those before it. "2" and "quorum" differ from "one" in nothing local.
    for (call, policy, dir) in directories().filter(|(_, policy, _)| !["2", "quorum"].contains(policy)) {
        let open = acknowledge(&rig.mnt().join(&dir).join("file"), call);
        power_cut(&rig, &disk, daemon, || drop(open));
        daemon = rig.mount();
        let kept = kept(&rig.mnt());
        assert!(kept[&dir] || policy == "cached", "{dir} was acknowledged, and is gone");
    }
    rig.check_targets(daemon);
}

#[test]
fn d3_every_policy_survives_the_loss_of_a_target() {
    let rig = patient(Rig::new(&["a", "b", "c"]));
    let daemon = rig.mount();
    prepare(&rig);
    let write = |(call, _, dir): (&str, &str, String)| acknowledge(&rig.mnt().join(dir).join("file"), call);
    let open: Vec<File> = directories().filter_map(write).collect();
    let place = |target: &str| rig.base.join(target);
    std::fs::rename(place("c"), place("lost")).unwrap();
    assert_kept("without a target", &kept(&rig.mnt()), |_, _| true);
    drop(open);
    // The others get all of it, whatever the lost one lacks.
    let flushed = run(tandemfs().arg("flush").arg(rig.mnt()).args(["--wait", "2", "--timeout", "600"]));
    assert_eq!(flushed.code, 0, "{}", flushed.stderr);
    daemon.kill();
    for target in ["a", "b"] {
        assert_kept(target, &rig.restored(target, kept), |_, _| true);
    }
    std::fs::remove_dir_all(place("lost")).unwrap();
    let daemon = rig.mount();
    assert_kept("in the next mount", &kept(&rig.mnt()), |_, _| true);
    daemon.kill();
}

#[test]
fn d3_what_two_targets_have_survives_the_loss_of_the_machine_and_of_one_of_them() {
    let rig = patient(Rig::new(&["a", "b", "c"]));
    let daemon = rig.mount();
    prepare(&rig);
    let place = |target: &str| rig.base.join(target);
    // Only two can take it: "quorum" and "2" mean these, "one" means at least one of them.
    std::fs::rename(place("c"), place("c-away")).unwrap();
    let mut open = Vec::new();
    for (call, _, dir) in directories().filter(|(_, policy, _)| *policy != "all") {
        open.extend(acknowledge(&rig.mnt().join(dir).join("file"), call));
    }
    for target in ["a", "b"] {
        std::fs::rename(place(target), place(&format!("{target}-then"))).unwrap();
    }
    daemon.kill();
    drop(open);
    let mut on_one = BTreeMap::new();
    for target in ["a", "b"] {
        std::fs::rename(place(&format!("{target}-then")), place(target)).unwrap();
        let kept = rig.restored(target, kept);
        assert_kept(&format!("{target} alone"), &kept, |_, policy| ["2", "quorum"].contains(&policy));
        for (dir, kept) in kept {
            *on_one.entry(dir).or_default() |= kept;
        }
    }
    assert_kept("a or b", &on_one, |_, policy| ["one", "2", "quorum"].contains(&policy));
}
