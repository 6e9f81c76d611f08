//! Scrubs: bad copies are found before somebody needs them, and made good again.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{Finished, finish, shell};
use crate::support::tree::{self, Depth, assert_same, make_awkward, noise};

/// The exit code and the reports, in the order of the targets.
fn scrub(mounted: &Mounted<'_>, arguments: &[&str]) -> (i32, Vec<Value>) {
    let done = mounted.command("scrub", &[&["--json"], arguments].concat());
    let reports = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}\n{}", done.stdout, done.stderr));
    (done.code, reports)
}

fn chunks(place: &Place, target: &str) -> Vec<PathBuf> {
    let found = shell(&place.path(""), &format!("find {target}/chunks -type f | sort"));
    found.lines().map(|line| place.path(line)).collect()
}

/// Files on both targets: small ones, and large ones with chunks of their own.
fn filled(place: &Place) -> Mounted<'_> {
    let mounted = place.mount();
    make_awkward(&mounted.path("tree"));
    for index in 0..3 {
        std::fs::write(mounted.path(&format!("large{index}")), noise(index, 5 << 20)).unwrap();
    }
    assert_eq!(mounted.command("flush", &[]).code, 0);
    mounted
}

#[test]
fn every_kind_of_bad_copy_is_found_and_repaired() {
    let place = Place::new(&["a", "b"]);
    let mounted = filled(&place);
    let (code, clean) = scrub(&mounted, &["--level", "deep"]);
    assert_eq!(code, 0, "{clean:#?}");
    let objects = chunks(&place, "a");
    assert_eq!(clean[0]["verified"], objects.len(), "{clean:#?}");
    assert_eq!((&clean[0]["history"], &clean[0]["unneeded"]), (&Value::Null, &0.into()), "{clean:#?}");

    std::fs::remove_file(&objects[0]).unwrap();
    std::fs::File::options().write(true).open(&objects[1]).unwrap().set_len(1).unwrap();
    let mut flipped = std::fs::read(&objects[2]).unwrap();
    flipped[0] ^= 1;
    std::fs::write(&objects[2], &flipped).unwrap();
    std::fs::write(place.path("a/chunks/notes.txt"), "mine").unwrap();

    let (code, listed) = scrub(&mounted, &["--target", "a"]);
    assert_eq!((code, listed.len()), (4, 1), "{listed:#?}");
    assert_eq!((&listed[0]["bad"], &listed[0]["repaired"]), (&2.into(), &0.into()), "a listing shows two of them");
    assert_eq!(listed[0]["foreign"], 1);
    let (code, deep) = scrub(&mounted, &["--level", "deep"]);
    assert_eq!((code, &deep[0]["bad"], &deep[1]["bad"]), (4, &3.into(), &0.into()), "{deep:#?}");
    assert!(!objects[0].exists(), "without --repair nothing is touched");

    let (code, repaired) = scrub(&mounted, &["--level", "deep", "--repair"]);
    assert_eq!((code, &repaired[0]["repaired"]), (0, &3.into()), "{repaired:#?}\n{}", mounted.log());
    let (code, after) = scrub(&mounted, &["--level", "deep"]);
    assert_eq!((code, &after[0]["bad"], &after[0]["verified"]), (0, &0.into(), &objects.len().into()), "{after:#?}");
    assert_eq!(std::fs::read(place.path("a/chunks/notes.txt")).unwrap(), b"mine", "what is not ours is left alone");
    let kept = shell(&place.path("state"), "cat quarantine/copy-a-*").into_bytes().len();
    assert!(kept > 0, "the bad bytes are kept for whoever asks why");

    let expected = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    assert_eq!(place.restore("again", &[place.uri("a")]).code, 0);
    let restored = place.mount_read_only("again");
    assert_same("restored from the mended target", &expected, &tree::read(&place.mnt(), Depth::Restored));
    restored.umount();
}

#[test]
fn a_bad_history_is_found_by_restoring_it_on_trial() {
    let place = Place::new(&["a", "b"]);
    let mounted = filled(&place);
    let segment = shell(&place.path(""), "find b/journal -type f | sort | sed -n 1p");
    std::fs::write(place.path(segment.trim()), "no segment").unwrap();
    let (code, reports) = scrub(&mounted, &["--level", "deep"]);
    assert_eq!((code, &reports[0]["history"]), (4, &Value::Null), "{reports:#?}");
    assert!(reports[1]["history"].is_string(), "{reports:#?}");
    assert!(!place.path("state/scrub/1").exists(), "what was restored on trial is thrown away");
    mounted.umount();
}

#[test]
fn a_target_that_is_away_is_unverifiable_and_no_finding() {
    let place = Place::new(&["a", "b"]);
    let mounted = filled(&place);
    std::fs::rename(place.path("b"), place.path("away")).unwrap();
    let (code, reports) = scrub(&mounted, &["--repair"]);
    assert_eq!((code, &reports[0]["bad"], &reports[1]["bad"]), (1, &0.into(), &0.into()), "{reports:#?}");
    assert!(reports[1]["unverifiable"].as_u64().unwrap() > 0, "{reports:#?}");
    std::fs::rename(place.path("away"), place.path("b")).unwrap();
    let (code, reports) = scrub(&mounted, &[]);
    assert_eq!((code, &reports[1]["unverifiable"]), (0, &0.into()), "{reports:#?}");

    let unknown = mounted.command("scrub", &["--target", "c"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("there is no target \"c\"\nhint: targets are: a, b"), "{}", unknown.stderr);
    let dry = mounted.command("scrub", &["--level", "deep", "--dry-run"]);
    assert!(dry.code == 0 && dry.stderr.contains("a: at most ") && dry.stdout.is_empty(), "{}", dry.stderr);
    mounted.umount();
}

/// A program that runs beside others until it is dropped.
struct Beside(Child);

impl Beside {
    fn start(command: &mut Command) -> Beside {
        Beside(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn refused(finished: Finished, code: i32, says: &str) {
    assert_eq!(finished.code, code, "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains(says) && finished.stderr.contains("\nhint: "), "{}", finished.stderr);
}

#[test]
fn a_scrub_during_a_restore_runs_beside_it_and_one_of_what_is_being_restored_is_refused() {
    let place = Place::new(&["a", "b"]);
    let mounted = filled(&place);
    // It stands still when all is read, before its state directory is put in place.
    let reached = place.path("reached");
    let mut restore = place.tandemfs();
    restore.env("TANDEMFS_FAILPOINT", format!("restore=stop:{}", reached.display()));
    restore.args(["restore", "--from", &place.uri("a"), "--state-dir"]).arg(place.path("again"));
    let restoring = Beside::start(&mut restore);
    wait_for("the restore is under way", || reached.exists());
    let (code, reports) = scrub(&mounted, &["--level", "deep", "--repair"]);
    assert_eq!((code, &reports[0]["bad"], &reports[0]["unverifiable"]), (0, &0.into(), &0.into()), "{reports:#?}");
    std::fs::create_dir(place.path("mnt2")).unwrap();
    refused(finish(place.tandemfs().arg("scrub").arg(place.path("mnt2"))), 1, "no TandemFS is mounted");
    assert!(!place.path("again").exists(), "nothing is there before all of it is");
    drop(restoring);
    mounted.umount();
}

#[test]
fn a_second_scrub_of_a_target_and_one_that_would_never_end_are_refused() {
    let place = Place::new(&["a", "b"]);
    let mounted = filled(&place);
    refused(mounted.command("scrub", &["--bandwidth", "1KiB"]), 2, "the lowest rate of a scrub is 16 KiB/s");
    // As slow as can be: it reads for a quarter of an hour.
    let start = || {
        let mut first = place.tandemfs();
        first.arg("scrub").arg(place.mnt()).args(["--target", "a", "--level", "deep", "--bandwidth", "16KiB"]);
        Beside::start(&mut first)
    };
    let first = std::cell::RefCell::new(start());
    wait_for("the first one reads", || {
        // It may have met the look of before, and been refused itself.
        if first.borrow_mut().0.try_wait().unwrap().is_some() {
            first.replace(start());
        }
        mounted.command("scrub", &["--target", "a"]).code == 1
    });
    refused(mounted.command("scrub", &["--target", "a"]), 1, "is being scrubbed already");
    assert_eq!(mounted.command("scrub", &["--target", "b"]).code, 0, "the other target is free");
    drop(first);
    wait_for("a scrub ends with who asked for it", || mounted.command("scrub", &["--target", "a"]).code == 0);
    mounted.umount();
}
