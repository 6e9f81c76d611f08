//! A wall clock that jumps, while a filesystem is mounted and between mounts: times of grace keep their length (T9), and
//! `status` says what is so.

use std::collections::BTreeSet;
use std::ffi::OsString;

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::tree::{self, Depth, assert_same, noise};
use tandemfs::clock::JUMP_VARIABLE;

const YEAR: i64 = 365 * 24 * 3600;

/// A place whose clock is as wrong as [`jump`] says, with garbage that may go after `grace`.
fn place(grace: &str) -> Place {
    let mut place = Place::new(&["a", "b"]);
    let mut text = format!("chunk_size = \"64 KiB\"\n[gc]\ngrace = \"{grace}\"\n");
    for name in ["a", "b"] {
        text += &format!("[target.{name}]\nuri = \"{}\"\n", place.uri(name));
    }
    let config = place.path("tandemfs.toml");
    std::fs::write(&config, text).unwrap();
    place.use_config(&config);
    let file = place.path("jump");
    place.set_env(JUMP_VARIABLE, file.to_str().unwrap());
    jump(&place, 0);
    place
}

fn jump(place: &Place, seconds: i64) {
    let (file, new) = (place.path("jump"), place.path("jump.new"));
    std::fs::write(&new, seconds.to_string()).unwrap();
    std::fs::rename(new, file).unwrap();
}

fn flush(mounted: &Mounted<'_>) {
    let flushed = mounted.command("flush", &["--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
}

fn overwrite(mounted: &Mounted<'_>, rounds: u64) {
    for round in 0..rounds {
        std::fs::write(mounted.path("f"), noise(round, 200_000)).unwrap();
        flush(mounted);
    }
    std::fs::write(mounted.path("one more"), b"").unwrap();
    flush(mounted);
}

/// The names of the chunks on a target that is not away. New ones come at any time, when what was written is gathered.
fn objects(place: &Place, target: &str) -> BTreeSet<OsString> {
    let found = tree::files_below(&place.path(target).join("chunks"));
    found.into_iter().map(|(path, _)| path.file_name().unwrap().to_owned()).collect()
}

/// Collects what may go; says what is left on each.
fn collect(place: &Place, mounted: &Mounted<'_>) -> [BTreeSet<OsString>; 2] {
    let collected = mounted.command("gc", &[]);
    assert_eq!(collected.code, 0, "{}", collected.stderr);
    ["a", "b"].map(|target| objects(place, target))
}

/// Ages in `status` are those of this test, however wrong the clock is.
fn sane(mounted: &Mounted<'_>) {
    let status = mounted.status();
    let mut ages = vec![status["unreplicated"]["oldest_seconds"].as_u64().unwrap()];
    ages.extend(status["targets"].as_array().unwrap().iter().map(|target| target["lag_seconds"].as_u64().unwrap()));
    assert!(ages.iter().all(|age| *age < 3000), "{status:#}");
}

#[test]
fn t9_a_clock_that_jumps_makes_no_time_of_grace_shorter_or_longer() {
    if !cfg!(debug_assertions) {
        return crate::support::run::skipped("a release build has no clock that jumps");
    }
    let place = self::place("1h");
    let mounted = place.mount();
    overwrite(&mounted, 3);
    let all = collect(&place, &mounted);
    assert!(all[0].len() > 9 && all[0] == all[1], "{all:?}");
    let all = &all[0];
    std::fs::rename(place.path("b"), place.path("b is away")).unwrap();
    std::fs::write(mounted.path("waits"), b"for b").unwrap();
    for seconds in [YEAR, -YEAR] {
        jump(&place, seconds);
        let left = &collect(&place, &mounted)[0];
        assert!(left.is_superset(all), "the clock is {seconds} s off: {left:?} of {all:?}");
        std::fs::write(mounted.path("later"), seconds.to_string()).unwrap();
        sane(&mounted);
    }
    std::fs::rename(place.path("b is away"), place.path("b")).unwrap();
    flush(&mounted);
    sane(&mounted);
    let tree = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    for seconds in [2 * YEAR, -2 * YEAR] {
        jump(&place, seconds);
        let mounted = place.mount();
        sane(&mounted);
        let left = collect(&place, &mounted);
        assert!(
            left.iter().all(|left| left.is_superset(all)),
            "mounted with a clock that is {seconds} s off: {left:?} of {all:?}"
        );
        assert_same("after the jump", &tree, &tree::read(&place.mnt(), Depth::Restored));
        mounted.umount();
    }
    // With a time of grace that is over soon.
    let config = place.path("tandemfs.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("1h", "1s");
    std::fs::write(&config, text).unwrap();
    jump(&place, 0);
    let mounted = place.mount();
    overwrite(&mounted, 2);
    jump(&place, -YEAR);
    wait_for("garbage goes, although it is last year", || {
        overwrite(&mounted, 1);
        collect(&place, &mounted).iter().all(|left| !left.is_superset(all))
    });
    mounted.umount();
}
