//! Nearly empty chunks are rewritten, what they leave is collected, and nobody notices (S10, O5, T9); seen from outside, with
//! small thresholds.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::targets::{chunk_bytes, configured, done, each_alone, plug, read, unplug, whole};
use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{finish, program, shell};
use crate::support::tree::{self, Depth, Tree, assert_same, noise};

const SETTINGS: &str = "chunk_size = \"64 KiB\"\n[gc]\ngrace = \"1s\"\n";
/// The rest of the configuration.
const COMPACTION: &str =
    "[compaction]\nquiet = \"1s\"\nmin_garbage = \"128 KiB\"\nlag_max = \"64 KiB\"\nrate = \"64 MiB/s\"\n";
/// What may be stored beyond twice what lives: as 64 MiB to the default of `min_garbage`.
const SLACK: u64 = 512 << 10;

/// Small files that share chunks, and a larger one.
fn fill(place: &Place) {
    std::fs::create_dir(place.mnt().join("small")).unwrap();
    for n in 0..300 {
        std::fs::write(place.mnt().join(format!("small/{n}")), noise(n, 4_000)).unwrap();
    }
    std::fs::write(place.mnt().join("large"), noise(1000, 2 << 20)).unwrap();
}

/// Most of what lies in gathered chunks goes, and much of the larger file is written anew in small pieces.
fn wear(place: &Place) {
    shell(&place.mnt(), "cp small/9 copy; rm small/*[0-8]");
    for round in 0..4 {
        let large = std::fs::OpenOptions::new().write(true).open(place.mnt().join("large")).unwrap();
        for block in (round..500).step_by(12) {
            large.write_all_at(format!("new {block}").as_bytes(), block * 4096).unwrap();
        }
    }
}

fn rewritten(mounted: &Mounted<'_>) -> u64 {
    mounted.status()["garbage"]["rewritten_bytes"].as_u64().unwrap()
}

/// Waits until what is stored on these targets is little more than what lives.
fn settled(place: &Place, mounted: &Mounted<'_>, names: &[&str]) {
    wait_for("stored bytes settle", || {
        let live = mounted.status()["garbage"]["live_bytes"].as_u64().unwrap();
        names.iter().all(|name| chunk_bytes(&place.path(name)) <= 2 * live + SLACK)
    });
}

#[test]
fn s10_nearly_empty_chunks_are_rewritten_and_every_target_settles_and_restores() {
    let mut place = Place::new(&["a", "b"]);
    configured(&mut place, &format!("{SETTINGS}{COMPACTION}"), &["a", "b"]);
    let mounted = place.mount();
    fill(&place);
    whole(&mounted);
    // A target that lags: nothing is rewritten, and it is said why.
    unplug(&place, "b");
    std::fs::write(place.mnt().join("more"), noise(2000, 1 << 20)).unwrap();
    // Only then is there something to rewrite: sooner, it would be done before the target lags.
    wait_for("the target lags", || mounted.status()["garbage"]["held"].is_string());
    wear(&place);
    wait_for("there is much to rewrite", || mounted.status()["garbage"]["sparse_bytes"].as_u64().unwrap() > 512 << 10);
    let plan = done(mounted.command("gc", &["--dry-run"]));
    assert!(plan.contains("to be rewritten: ") && plan.contains("not now: target \"b\" lags"), "{plan}");
    assert_eq!(rewritten(&mounted), 0);
    let text = mounted.command("status", &[]).stdout;
    // The text leaves out what is less than 1 MiB.
    assert!(!text.contains("rewriting") || text.contains("lags"), "{text}");
    // One file is open with changes, another is being read.
    let open = std::fs::OpenOptions::new().write(true).open(place.mnt().join("small/19")).unwrap();
    open.write_all_at(b"not closed", 100).unwrap();
    let reading = std::fs::File::open(place.mnt().join("small/29")).unwrap();
    let expected = read(&place);
    plug(&place, "b");
    wait_for("it is rewritten", || rewritten(&mounted) > 0);
    settled(&place, &mounted, &["a", "b"]);
    assert_same("after it was rewritten", &expected, &read(&place));
    let mut bytes = vec![0; 4_000];
    reading.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(29, 4_000));
    drop((open, reading));
    whole(&mounted);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mount-examples/restore.py");
    program("python3", [script.as_ref(), place.path("a").as_os_str(), place.path("out").as_os_str()]);
    let place_of = |root: std::path::PathBuf| tree::read(&root, Depth::Copied);
    let mounted = place.mount();
    assert_same("restore.py", &place_of(place.mnt()), &place_of(place.path("out")));
    mounted.umount();
}

/// Files as they are after [`wear`], with nothing rewritten yet.
fn worn(place: &mut Place) -> Tree {
    configured(place, &format!("{SETTINGS}[compaction]\nenabled = false\n"), &["a", "b"]);
    let mounted = place.mount();
    fill(place);
    whole(&mounted);
    wear(place);
    whole(&mounted);
    let expected = read(place);
    mounted.umount();
    configured(place, &format!("{SETTINGS}{COMPACTION}"), &["a", "b"]);
    expected
}

/// Mounts with a failpoint, and waits until it strikes.
fn strike(place: &mut Place, point: &str) {
    place.set_env("TANDEMFS_FAILPOINT", point);
    let started = finish(&mut place.mount_command("state"));
    // Compaction begins before the mount is usable: it may have struck by then.
    let struck = started.code != 0;
    assert!(!struck || started.stderr.contains("signal: 9"), "{}", started.stderr);
    let mounted = Mounted::found(place, "state");
    wait_for(&format!("{point} strikes"), || {
        if mounted.daemon().is_some() {
            // Collecting waits for two checkpoints, which a command takes at once.
            let _ = mounted.command("gc", &[]);
            std::thread::sleep(Duration::from_millis(300));
        }
        mounted.daemon().is_none()
    });
    mounted.kill();
    place.unset_env("TANDEMFS_FAILPOINT");
}

#[test]
fn o5_t9_a_kill_in_the_middle_of_rewriting_or_collecting_harms_nobody() {
    let mut place = Place::new(&["a", "b"]);
    let expected = worn(&mut place);
    for point in ["repack_file", "repack", "repack", "gc_begun", "gc_deleted"] {
        strike(&mut place, point);
    }
    let mounted = place.mount();
    assert_same("after the kills", &expected, &read(&place));
    settled(&place, &mounted, &["a", "b"]);
    whole(&mounted);
    assert_same("when all is done", &expected, &read(&place));
    let scrubbed = mounted.command("scrub", &["--level", "deep"]);
    assert_eq!(scrubbed.code, 0, "{}\n{}", scrubbed.stdout, scrubbed.stderr);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}
