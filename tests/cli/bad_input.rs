//! Bad input (issue "Bad input"): exit code, a hint, and nothing touched.

use std::path::Path;

use crate::support::mounted::{Place, wait_for};
use crate::support::run::{Finished, finish, tandemfs};

/// Every path below `root`, to see that nothing came or went.
fn everything(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path.clone());
            }
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

#[track_caller]
fn check(what: &str, finished: &Finished, code: i32, word: &str) {
    assert_eq!(finished.code, code, "{what}: {}", finished.stderr);
    assert!(finished.stderr.starts_with("error: "), "{what}: {}", finished.stderr);
    assert!(finished.stderr.contains(word), "{what}: not {word:?} in {}", finished.stderr);
    assert!(finished.stderr.contains("\nhint: "), "{what} has no hint: {}", finished.stderr);
    assert_eq!(finished.stdout, "", "{what}");
}

#[test]
fn a_wrong_configuration_is_refused_with_the_place_and_the_next_step() {
    let place = Place::new(&[]);
    let target = format!("uri = \"fs://{}\"", place.path("t").display());
    for (what, text, word) in [
        ("unknown key", format!("nmae = \"x\"\n[target.a]\n{target}\n"), "nmae"),
        ("unknown key of a target", format!("[target.a]\n{target}\nurl = \"x\"\n"), "url"),
        ("no target", "name = \"x\"\n".to_owned(), "no target"),
        ("not TOML", "name = \n".to_owned(), "config.toml:1"),
        ("bad URI", "[target.a]\nuri = \"somewhere\"\n".to_owned(), "no URI"),
        ("unknown scheme", "[target.a]\nuri = \"s4://bucket\"\n".to_owned(), "s4"),
        ("relative directory", "[target.a]\nuri = \"fs://t\"\n".to_owned(), "absolute"),
        (
            "missing secret",
            "[target.a]\nuri = \"s3://bucket\"\nsecret_access_key = \"${TANDEMFS_NO_SUCH_SECRET}\"\n".to_owned(),
            "TANDEMFS_NO_SUCH_SECRET",
        ),
        (
            "missing secret file",
            "[target.a]\nuri = \"s3://bucket\"\nsecret_access_key = { file = \"/nowhere/secret\" }\n".to_owned(),
            "/nowhere/secret",
        ),
        ("unknown option of the store", "[target.a]\nuri = \"s3://bucket?regoin=x\"\n".to_owned(), "regoin"),
        (
            "two targets of one name",
            format!("[target.a]\n{target}\n[target.a]\nuri = \"fs:///elsewhere\"\n"),
            "config.toml:3",
        ),
        ("two targets in one place", format!("[target.a]\n{target}\n[target.b]\n{target}\n"), "same place"),
        ("chunk size", format!("chunk_size = \"5 MiB\"\n[target.a]\n{target}\n"), "chunk_size"),
    ] {
        let file = place.path("config.toml");
        std::fs::write(&file, text).unwrap();
        let before = everything(&place.path(""));
        for command in ["mount", "check"] {
            let mut command_line = tandemfs();
            command_line.arg(command);
            if command == "mount" {
                command_line.arg(place.mnt()).arg("--state-dir").arg(place.path("state")).arg("--config");
            }
            let finished = finish(command_line.arg(&file));
            check(&format!("{command}, {what}"), &finished, 2, word);
        }
        assert_eq!(everything(&place.path("")), before, "{what}: nothing is touched");
    }
}

#[test]
fn a_promise_that_is_not_kept_yet_is_refused() {
    let place = Place::new(&[]);
    let file = place.path("config.toml");
    let uri = place.path("t").display().to_string();
    std::fs::write(&file, format!("[target.a]\nuri = \"fs://{uri}\"\nlayout = \"files\"\n")).unwrap();
    let mut command = tandemfs();
    command.arg("mount").arg(place.mnt()).arg("--state-dir").arg(place.path("state")).arg("--config").arg(file);
    check("layout", &finish(&mut command), 2, "not built yet");
    assert!(!place.path("state").exists());
}

#[test]
fn a_wrong_place_is_refused_and_nothing_is_touched() {
    let place = Place::new(&["a"]);
    for name in ["full", "full/x", "foreign"] {
        std::fs::create_dir(place.path(name)).unwrap();
    }
    std::fs::write(place.path("file"), "").unwrap();
    std::fs::write(place.path("foreign/thesis.tex"), "").unwrap();
    let before = everything(&place.path(""));
    let uri = |name: &str| format!("x=fs://{}", place.path(name).display());
    for (what, mountpoint, state, target, word) in [
        ("mountpoint missing", "absent", "state", uri("t"), "does not exist"),
        ("mountpoint no directory", "file", "state", uri("t"), "not a directory"),
        ("mountpoint not empty", "full", "state", uri("t"), "not empty"),
        ("target in the mountpoint", "mnt", "state", uri("mnt/t"), "lies in"),
        ("state directory in the mountpoint", "mnt", "mnt/state", uri("t"), "lies in"),
        ("target in the state directory", "mnt", "state", uri("state/t"), "lies in"),
        ("state directory is the target", "mnt", "t", uri("t"), "same directory"),
        ("state directory of something else", "mnt", "foreign", uri("t"), "thesis.tex"),
    ] {
        let mut command = tandemfs();
        command.arg("mount").arg(place.path(mountpoint)).arg("--state-dir").arg(place.path(state));
        check(what, &finish(command.arg("--target").arg(target)), 2, word);
        assert_eq!(everything(&place.path("")), before, "{what}: nothing is touched");
    }
}

#[test]
fn wrong_usage_is_refused() {
    let place = Place::new(&["a"]);
    let mnt = place.mnt().display().to_string();
    for (what, arguments, code, word) in [
        ("no such mount option", vec!["mount", &mnt, "-o", "alow_other", "--target", "a=fs:///x"], 2, "allow_other"),
        ("no name", vec!["mount", &mnt, "--target", "fs:///x"], 2, "NAME=URI"),
        ("secret in sight", vec!["mount", &mnt, "--target", "a=s3://b?secret_access_key=abc"], 2, "visible"),
        ("not mounted", vec!["umount", &mnt], 1, "no TandemFS is mounted"),
        ("not mounted", vec!["status", &mnt], 1, "no TandemFS is mounted"),
        ("not mounted", vec!["flush", &mnt], 1, "no TandemFS is mounted"),
        ("not mounted", vec!["whereis", &mnt], 1, "no TandemFS is mounted"),
    ] {
        check(what, &finish(tandemfs().args(&arguments)), code, word);
    }
    // clap's own refusals.
    for arguments in [vec![], vec!["mount", &mnt], vec!["umount", &mnt, "--timeout", "soon"], vec!["frobnicate"]] {
        let finished = finish(tandemfs().args(&arguments));
        assert_eq!(finished.code, 2, "{arguments:?}: {}", finished.stderr);
    }
}

#[test]
fn another_filesystems_target_refuses_the_mount_and_stays_as_it_is() {
    let theirs = Place::new(&["a"]);
    let mounted = theirs.mount();
    std::fs::write(mounted.path("f"), "theirs").unwrap();
    mounted.umount();
    let mut ours = Place::new(&["b"]);
    ours.add_target("a", &theirs.uri("a"));
    let before = (everything(&theirs.path("a")), everything(&ours.path("")));
    let finished = finish(&mut ours.mount_command("state"));
    check("another filesystem", &finished, 1, "another filesystem");
    assert_eq!(everything(&theirs.path("a")), before.0, "nothing is written to any target");
    assert!(!ours.path("b").exists(), "not even to the one that is empty");
    assert!(!ours.path("state/meta.sqlite").exists(), "the filesystem that was not mounted is given up");
}

#[test]
fn an_empty_place_that_was_a_target_is_not_filled() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    std::fs::write(mounted.path("f"), "x").unwrap();
    mounted.umount();
    // The disk is unplugged: its empty mountpoint is left.
    std::fs::rename(place.path("b"), place.path("unplugged")).unwrap();
    std::fs::create_dir(place.path("b")).unwrap();
    let mounted = place.mount();
    std::fs::write(mounted.path("g"), "y").unwrap();
    let flushed = mounted.command("flush", &["--wait", "one", "--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}", flushed.stderr);
    wait_for("b is blocked, with a hint", || {
        let status = mounted.status();
        let b = status["targets"].as_array().unwrap().iter().find(|target| target["name"] == "b").unwrap();
        b["mode"] == "blocked" && b["hint"].is_string()
    });
    assert_eq!(std::fs::read_dir(place.path("b")).unwrap().count(), 0, "nothing is written there");
    assert_eq!(mounted.command("umount", &["--timeout", "1", "--force"]).code, 3);
    mounted.wait_end();
}

#[test]
fn restore_refuses_what_is_no_target_and_what_is_in_the_way() {
    let place = Place::new(&["a"]);
    let absent = place.restore("new", &[place.uri("a")]);
    assert_eq!(absent.code, 1, "{}", absent.stderr);
    assert!(absent.stderr.starts_with("error: "), "{}", absent.stderr);
    assert!(!place.path("new").exists());
    let mounted = place.mount();
    mounted.umount();
    check("state directory in use", &place.restore("state", &[place.uri("a")]), 2, "not empty");
    check("twice the same", &place.restore("new", &[place.uri("a"), place.uri("a")]), 2, "same place");
}
