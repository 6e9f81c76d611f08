//! The files in `mount-examples/` do what their comments say: with directories and loopback servers in place of disks and
//! clouds.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mounted::{Mounted, Place};
use crate::support::run::{finish, succeed, tandemfs};
use crate::support::s3::S3Server;
use crate::support::tree::{self, Depth, assert_same, make_awkward};

/// An example with some of its words replaced; each must occur.
fn example(place: &Place, name: &str, words: &[(&str, &str)]) -> PathBuf {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mount-examples").join(name);
    let mut text = std::fs::read_to_string(source).unwrap();
    for (word, by) in words {
        assert!(text.contains(word), "{name} says {word}");
        text = text.replace(word, by);
    }
    let path = place.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn check_example(place: &Place, configure: impl Fn(Command) -> Command, config: &Path, lost: &str, left: &str) {
    make_awkward(&place.path("original"));
    let run = |arguments: &[&str]| {
        let mut command = configure(tandemfs());
        let placed = arguments.iter().map(|argument| match *argument {
            "CONFIG" => config.display().to_string(),
            other => other.to_owned(),
        });
        command.args(placed);
        succeed(&mut command)
    };
    run(&["check", "CONFIG"]);
    run(&["mount", "--config", "CONFIG"]);
    let mounted = Mounted::found(place, "state");
    succeed(Command::new("cp").arg("-a").arg(place.path("original")).arg(mounted.path("documents")));
    let before = tree::read(&place.mnt(), Depth::Restored);
    let flushed = finish(tandemfs().arg("flush").arg(mounted.path("documents")));
    assert_eq!(flushed.code, 0, "{}", flushed.stderr);
    mounted.umount();
    std::fs::remove_dir_all(place.path("state")).unwrap();
    std::fs::remove_dir_all(place.path(lost)).unwrap();
    std::fs::create_dir_all(place.path(lost).parent().unwrap()).unwrap();
    let state = place.path("restored").display().to_string();
    run(&["restore", "--config", "CONFIG", "--from", left, "--state-dir", &state, "--full"]);
    run(&["mount", "--config", "CONFIG", "--state-dir", &state, "--read-only"]);
    let mounted = Mounted::found(place, "restored");
    assert_same("restored", &before, &tree::read(&place.mnt(), Depth::Restored));
    mounted.umount();
}

#[test]
fn two_directories() {
    let place = Place::new(&[]);
    std::fs::create_dir_all(place.path("disk1")).unwrap();
    std::fs::create_dir_all(place.path("disk2")).unwrap();
    let (mnt, state) = (place.mnt().display().to_string(), place.path("state").display().to_string());
    let (one, two) = (place.path("disk1").display().to_string(), place.path("disk2").display().to_string());
    let words = [("/mnt/home", &*mnt), ("/var/lib/tandemfs/home", &state), ("/mnt/disk1", &one), ("/mnt/disk2", &two)];
    let config = example(&place, "two-directories.toml", &words);
    check_example(&place, |command| command, &config, "disk1/tandemfs", "second");
}

#[test]
fn two_s3_buckets() {
    let place = Place::new(&[]);
    let (first, second) = (S3Server::start(&place.path("first")), S3Server::start(&place.path("second")));
    first.create_bucket("my-first-bucket");
    second.create_bucket("my-second-bucket");
    let (mnt, state) = (place.mnt().display().to_string(), place.path("state").display().to_string());
    let words = [
        ("/mnt/archive", &*mnt),
        ("/var/lib/tandemfs/archive", &state),
        ("https://s3.eu-central-1.amazonaws.com", &first.endpoint),
        ("https://s3.example.com", &second.endpoint),
    ];
    let config = example(&place, "two-s3.toml", &words);
    let configure = |mut command: Command| {
        command
            .env("FIRST_ACCESS_KEY_ID", &first.access_key)
            .env("FIRST_SECRET_ACCESS_KEY", &first.secret_key)
            .env("SECOND_ACCESS_KEY_ID", &second.access_key)
            .env("SECOND_SECRET_ACCESS_KEY", &second.secret_key);
        command
    };
    check_example(&place, configure, &config, "first/my-first-bucket", "second");
}

#[test]
fn s3_and_oss_is_a_valid_configuration() {
    let place = Place::new(&[]);
    let mnt = place.mnt().display().to_string();
    let endpoint = ("https://oss-eu-central-1.aliyuncs.com", "http://127.0.0.1:9");
    let region = ("region = \"eu-central-1\"", "region = \"eu-central-1\"\nendpoint = \"http://127.0.0.1:9\"");
    let config = example(&place, "s3-oss.toml", &[("/mnt/photos", &mnt), endpoint, region]);
    let mut command = tandemfs();
    for name in ["AWS_KEY", "AWS_SECRET", "OSS_KEY", "OSS_SECRET"] {
        command.env(name, "none");
    }
    // No store answers at this port: everything before that is right.
    let finished = finish(command.arg("check").arg(config));
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stdout.contains("valid, 2 targets"), "{}", finished.stdout);
    assert!(finished.stderr.contains("cannot use aws, oss"), "{}", finished.stderr);
}
