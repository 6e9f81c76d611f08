//! Targets come and go while the filesystem is in use (T4, T7, T9, D7).

use std::path::Path;

use crate::support::mounted::{Mounted, Place, has_whole_history, wait_for};
use crate::support::run::{Finished, finish, shell};
use crate::support::tree::{self, Depth, Tree, assert_same, noise};

pub(super) fn read(place: &Place) -> Tree {
    tree::read(&place.mnt(), Depth::Restored)
}

/// `tandemfs target NAME MOUNTPOINT ARGUMENTS`.
fn target(place: &Place, name: &str, arguments: &[&str]) -> Finished {
    finish(place.tandemfs().arg("target").arg(name).arg(place.mnt()).args(arguments))
}

#[track_caller]
pub(super) fn done(finished: Finished) -> String {
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// The command was refused with this exit code, a text that has this, and a hint.
#[track_caller]
fn refused(finished: Finished, code: i32, says: &str) {
    assert_eq!(finished.code, code, "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains(says), "{}", finished.stderr);
    assert!(finished.stderr.contains("hint: "), "{}", finished.stderr);
}

fn status_of(mounted: &Mounted<'_>, name: &str) -> serde_json::Value {
    let status = mounted.status();
    let targets = status["targets"].as_array().unwrap();
    targets.iter().find(|target| target["name"] == name).cloned().unwrap_or_default()
}

fn names(mounted: &Mounted<'_>) -> Vec<String> {
    let status = mounted.status();
    status["targets"].as_array().unwrap().iter().map(|target| target["name"].as_str().unwrap().to_owned()).collect()
}

pub(super) fn follows(mounted: &Mounted<'_>, name: &str) {
    wait_for(&format!("{name} follows"), || status_of(mounted, name)["mode"] == "follow");
}

pub(super) fn whole(mounted: &Mounted<'_>) {
    wait_for("every target is whole", || mounted.status()["safe"] == true);
}

pub(super) fn unplug(place: &Place, name: &str) {
    std::fs::rename(place.path(name), place.path(&format!("{name} is away"))).unwrap();
}

pub(super) fn plug(place: &Place, name: &str) {
    std::fs::rename(place.path(&format!("{name} is away")), place.path(name)).unwrap();
}

/// Each of these directories alone gives `expected`.
#[track_caller]
pub(super) fn each_alone(place: &Place, dirs: &[&str], expected: &Tree) {
    for dir in dirs {
        for other in dirs.iter().filter(|other| *other != dir) {
            unplug(place, other);
        }
        let state = format!("alone-{dir}");
        let uri = format!("fs://{}", place.path(dir).display());
        let restored = place.restore(&state, std::slice::from_ref(&uri));
        assert_eq!(restored.code, 0, "{}", restored.stderr);
        let mut command = place.tandemfs();
        command.arg("mount").arg(place.mnt()).arg("--state-dir").arg(place.path(&state));
        command.args(["--read-only", "--target"]).arg(format!("{dir}={uri}"));
        done(finish(&mut command));
        let mounted = Mounted::found(place, &state);
        assert_same(&format!("restored from {dir} alone"), expected, &read(place));
        mounted.umount();
        std::fs::remove_dir_all(place.path(&state)).unwrap();
        for other in dirs.iter().filter(|other| *other != dir) {
            plug(place, other);
        }
    }
}

/// Some files, large and small.
fn fill(place: &Place, name: &str, seed: u64) {
    let dir = place.mnt().join(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("large"), noise(seed, 6 << 20)).unwrap();
    for n in 0..40 {
        std::fs::write(dir.join(format!("small {n}")), noise(seed * 100 + n, 3_000)).unwrap();
    }
}

pub(super) fn chunk_bytes(dir: &Path) -> u64 {
    tree::files_below(&dir.join("chunks")).iter().map(|(_, chunk)| chunk.len()).sum()
}

/// A mount with a configuration file that begins with `settings` and names these targets.
pub(super) fn configured(place: &mut Place, settings: &str, targets: &[&str]) {
    write_config(place, settings, targets);
    place.use_config(&place.path("fs.toml"));
}

fn write_config(place: &Place, settings: &str, targets: &[&str]) {
    let mut text = format!("{settings}\n");
    for name in targets {
        text += &format!("[target.{name}]\nuri = \"fs://{}\"\n", place.path(name).display());
    }
    std::fs::write(place.path("fs.toml"), text).unwrap();
}

#[test]
fn t4_a_target_is_added_in_use_goes_on_after_a_kill_and_is_remembered() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    mounted.umount();
    while has_whole_history(&place.path("state")) {
        place.mount().umount();
    }
    // Local history is gone: c cannot follow from the beginning.
    let mounted = place.mount();
    fill(&place, "second", 2);
    whole(&mounted);
    let c = format!("c=fs://{}", place.path("c").display());
    let said = done(target(&place, "add", &[&c]));
    assert!(said.contains("is being filled"), "{said}");
    shell(&place.mnt(), "mv first/large moved; rm second/'small 3'");
    mounted.kill();
    // The arguments of the mount do not name it.
    let mounted = place.mount();
    assert_eq!(names(&mounted), ["a", "b", "c"]);
    let attention = mounted.status()["attention"].to_string();
    assert!(attention.contains("was added by command"), "{attention}");
    follows(&mounted, "c");
    fill(&place, "third", 3);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b", "c"], &expected);
}

#[test]
fn d7_a_target_is_removed_and_stays_removed_and_comes_back_anew() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    let said = done(target(&place, "remove", &["b"]));
    assert!(said.contains("will exist on target \"a\" only"), "{said}");
    assert!(said.contains("was removed"), "{said}");
    refused(target(&place, "remove", &["a"]), 2, "is the last one");
    refused(target(&place, "remove", &["b"]), 1, "there is no target \"b\"");
    fill(&place, "second", 2);
    whole(&mounted);
    mounted.umount();
    // Its arguments still name b.
    let mounted = place.mount();
    assert_eq!(names(&mounted), ["a"]);
    assert!(mounted.status()["attention"].to_string().contains("was removed by command"));
    // What lies there is a state of before: it does not come back by itself.
    let b = format!("b=fs://{}", place.path("b").display());
    refused(target(&place, "add", &[&b]), 2, "holds this filesystem already");
    std::fs::remove_dir_all(place.path("b")).unwrap();
    done(target(&place, "add", &[&b]));
    follows(&mounted, "b");
    let expected = read(&place);
    whole(&mounted);
    mounted.umount();
    let mounted = place.mount();
    assert_eq!(names(&mounted), ["a", "b"]);
    assert_eq!(mounted.status()["attention"].as_array().unwrap().len(), 0, "configuration and targets agree");
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

#[test]
fn d7_a_target_out_of_reach_or_with_the_only_copy_goes_only_by_force() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    unplug(&place, "b");
    fill(&place, "second", 2);
    wait_for("b is out of reach", || status_of(&mounted, "b")["mode"] == "blocked");
    refused(target(&place, "remove", &["b"]), 1, "is out of reach");
    let said = done(target(&place, "remove", &["b", "--force"]));
    assert!(said.contains("will exist on target \"a\" only"), "{said}");
    // What waited for it does not wait any more.
    whole(&mounted);
    wait_for("nothing is pinned for it", || mounted.status()["cache"]["pinned_bytes"] == 0);
    mounted.umount();
    // Nothing is here but names, and b is away: a has the only copy.
    assert_eq!(place.restore("again", &[place.uri("a")]).code, 0);
    let mounted = place.mount_state("again");
    refused(target(&place, "remove", &["a"]), 1, "files that they belong to can no longer be read");
    let said = done(target(&place, "remove", &["a", "--force"]));
    assert!(said.contains("are on target \"a\" only, and nowhere else"), "{said}");
    assert_eq!(names(&mounted), ["b"]);
    mounted.kill();
}

#[test]
fn a_paused_target_gets_nothing_until_it_is_resumed_and_stays_paused_over_a_restart() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    refused(target(&place, "resume", &["b"]), 2, "is not paused");
    refused(target(&place, "pause", &["b", "--until", "2020-01-01T00:00:00Z"]), 2, "over already");
    refused(target(&place, "pause", &["b", "--until", "soon"]), 2, "is no time");
    done(target(&place, "pause", &["b"]));
    let before = chunk_bytes(&place.path("b"));
    fill(&place, "second", 2);
    assert_eq!(done(mounted.command("flush", &["--wait", "1", "--timeout", "600"])), "");
    assert_eq!(status_of(&mounted, "b")["health"], "paused");
    let forced = mounted.command("umount", &["--force"]);
    assert_eq!(forced.code, 3, "{}", forced.stderr);
    assert!(forced.stderr.contains("paused by the operator"), "{}", forced.stderr);
    mounted.wait_end();
    let mounted = place.mount();
    assert_eq!(status_of(&mounted, "b")["health"], "paused");
    assert_eq!(chunk_bytes(&place.path("b")), before, "nothing was sent to it");
    done(target(&place, "resume", &["b"]));
    whole(&mounted);
    // A pause that ends by itself.
    done(target(&place, "pause", &["b", "--until", "10s"]));
    fill(&place, "third", 3);
    whole(&mounted);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

#[test]
fn a_target_is_replaced_by_where_it_was_moved_to_and_by_an_empty_place() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    std::fs::rename(place.path("b"), place.path("moved")).unwrap();
    let moved = format!("b=fs://{}", place.path("moved").display());
    let said = done(target(&place, "replace", &[&moved]));
    assert!(said.contains("the same objects lie there"), "{said}");
    fill(&place, "second", 2);
    whole(&mounted);
    let old = chunk_bytes(&place.path("moved"));
    let new = format!("b=fs://{}", place.path("new").display());
    let said = done(target(&place, "replace", &[&new]));
    assert!(said.contains("being filled"), "{said}");
    refused(target(&place, "replace", &[&new]), 2, "is at fs://");
    follows(&mounted, "b");
    fill(&place, "third", 3);
    whole(&mounted);
    assert_eq!(chunk_bytes(&place.path("moved")), old, "what lies there stays there");
    let expected = read(&place);
    mounted.umount();
    // Remembered: the arguments of the mount name the first place.
    let mounted = place.mount();
    assert!(status_of(&mounted, "b")["uri"].as_str().unwrap().ends_with("/new"));
    mounted.umount();
    each_alone(&place, &["a", "new"], &expected);
}

#[test]
fn t1_places_that_cannot_be_targets_are_refused_with_what_to_do() {
    let other = Place::new(&["x"]);
    let mounted = other.mount();
    std::fs::write(mounted.path("f"), b"f").unwrap();
    mounted.umount();

    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    let at = |name: &str, path: &Path| format!("{name}=fs://{}", path.display());
    let add = |name: &str, path: &Path| target(&place, "add", &[&at(name, path)]);
    refused(add("c", &other.path("x")), 1, "holds another filesystem");
    refused(add("c", &place.path("a")), 2, "are the same place");
    refused(add("c", &place.path("a/in")), 2, "lie inside one another");
    refused(add("c", &place.path("mnt/in")), 2, "lies in");
    refused(add("c", &place.path("state/in")), 2, "lies in");
    refused(add("c", &place.path("no/such/disk")), 1, "is the disk mounted?");
    refused(add("a", &place.path("c")), 2, "there is a target \"a\" already");
    refused(target(&place, "add", &["c"]), 2, "is not in the configuration");
    refused(target(&place, "add", &["c=nonsense"]), 2, "is no URI");
    refused(target(&place, "add", &["c=s3://b/p?secret_access_key=hush"]), 2, "visible to all users");
    refused(target(&place, "adopt", &["a", "--discard-theirs"]), 2, "is not in the hands of another mount");
    std::os::unix::fs::symlink(place.path("b"), place.path("link")).unwrap();
    refused(add("c", &place.path("link")), 2, "are the same place");
    std::fs::create_dir(place.path("strange")).unwrap();
    std::fs::write(place.path("strange/tandemfs.json"), b"{}").unwrap();
    refused(add("c", &place.path("strange")), 1, "cannot be read");
    assert_eq!(names(&mounted), ["a", "b"]);
    whole(&mounted);
    mounted.umount();
}

#[test]
fn t4_what_is_kept_for_a_target_that_is_away_stays_bounded_and_it_comes_back() {
    let mut place = Place::new(&["a", "b"]);
    configured(&mut place, "[backlog]\nrecords = 500\nsuperseded = \"4 MiB\"", &["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    unplug(&place, "b");
    // Churn: the same files again and again.
    for round in 0..12 {
        std::fs::write(place.mnt().join("first/large"), noise(1000 + round, 6 << 20)).unwrap();
        shell(&place.mnt(), "for n in $(seq 40); do echo $RANDOM > first/churn$n; done");
    }
    assert_eq!(mounted.command("flush", &["--wait", "1", "--timeout", "600"]).code, 0);
    wait_for("b is given up as a follower", || {
        let text = mounted.command("status", &[]).stdout;
        text.contains("resyncing") && text.contains("whole as of") && text.contains(" ago")
    });
    // What was superseded is let go; what lives is less than 8 MiB.
    wait_for("local bytes are let go", || mounted.status()["cache"]["used_bytes"].as_u64().unwrap() < 20 << 20);
    wait_for("nothing is pinned for it", || mounted.status()["cache"]["pinned_bytes"] == 0);
    shell(&place.mnt(), "mkdir more; for n in $(seq 1500); do echo $n > more/$n; done; mv more less; rm less/1*");
    let expected = read(&place);
    plug(&place, "b");
    follows(&mounted, "b");
    whole(&mounted);
    assert_same("with b back", &expected, &read(&place));
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

#[test]
fn t7_a_target_that_lost_part_of_its_objects_is_made_whole_by_itself() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    fill(&place, "second", 2);
    whole(&mounted);
    mounted.umount();
    // An older copy of the disk: no journal of the last mount, half of the chunks.
    std::fs::remove_dir_all(place.path("b/journal")).unwrap();
    shell(&place.path("b"), "rm -rf chunks/[0-7]*");
    let mounted = place.mount();
    follows(&mounted, "b");
    fill(&place, "third", 3);
    whole(&mounted);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
    // And again, of a target that was listed anew; this time in use.
    let mounted = place.mount();
    fill(&place, "fourth", 4);
    whole(&mounted);
    unplug(&place, "b");
    fill(&place, "fifth", 5);
    wait_for("b is blocked", || status_of(&mounted, "b")["mode"] == "blocked");
    std::fs::remove_dir_all(place.path("b is away/journal")).unwrap();
    shell(&place.path("b is away"), "rm -rf chunks/[4-b]*");
    plug(&place, "b");
    whole(&mounted);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

#[test]
fn t1_a_place_that_was_lost_for_good_is_begun_anew_on_demand_only() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    std::fs::rename(place.path("b"), place.path("lost")).unwrap();
    std::fs::create_dir(place.path("b")).unwrap();
    fill(&place, "second", 2);
    wait_for("b is blocked", || status_of(&mounted, "b")["mode"] == "blocked");
    done(target(&place, "add", &["b", "--fresh"]));
    follows(&mounted, "b");
    whole(&mounted);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

#[test]
fn a_configuration_is_read_again_and_an_invalid_one_changes_nothing() {
    let mut place = Place::new(&["a", "b"]);
    configured(&mut place, "", &["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    std::fs::write(place.path("fs.toml"), "[target.a]\nurl = 3\n").unwrap();
    refused(mounted.command("reload", &[]), 2, "the old configuration stays");
    let pid = rustix::process::Pid::from_raw(mounted.daemon().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    wait_for("the log says so", || mounted.log().contains("the old configuration stays"));
    whole(&mounted);
    write_config(&place, "", &["a", "c"]);
    let said = done(mounted.command("reload", &[]));
    assert!(said.contains("target \"c\" was added") && said.contains("\"b\" is not in the configuration"), "{said}");
    assert_eq!(names(&mounted), ["a", "b", "c"]);
    follows(&mounted, "c");
    done(target(&place, "remove", &["b"]));
    let expected = read(&place);
    whole(&mounted);
    mounted.umount();
    let mounted = place.mount();
    assert_eq!(names(&mounted), ["a", "c"]);
    assert_eq!(mounted.status()["attention"].as_array().unwrap().len(), 0);
    mounted.umount();
    each_alone(&place, &["a", "c"], &expected);
}

#[test]
fn degrade_a_full_cache_gives_up_the_slowest_target_and_writers_go_on() {
    let mut place = Place::new(&["a", "b"]);
    // Writers wait as long as it takes until b is given up.
    configured(&mut place, "[cache]\nlimit = \"64 MiB\"\nwait = \"10m\"\non_full = \"degrade\"", &["a", "b"]);
    let mounted = place.mount();
    unplug_before_contact(&place, &mounted);
    for n in 0..30_u64 {
        std::fs::write(place.mnt().join(format!("f{n}")), noise(n, 6 << 20)).unwrap();
    }
    assert!(!status_of(&mounted, "b")["resync"].is_null());
    plug(&place, "b");
    follows(&mounted, "b");
    whole(&mounted);
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

/// b was in contact once, and is away.
fn unplug_before_contact(place: &Place, mounted: &Mounted<'_>) {
    std::fs::write(place.mnt().join("first"), b"first").unwrap();
    whole(mounted);
    unplug(place, "b");
}

#[test]
fn t9_what_nothing_refers_to_leaves_every_target_and_each_still_restores() {
    let mut place = Place::new(&["a", "b"]);
    configured(&mut place, "[gc]\ngrace = \"1s\"", &["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    for round in 0..5 {
        std::fs::write(place.mnt().join("first/large"), noise(1000 + round, 6 << 20)).unwrap();
        whole(&mounted);
    }
    assert!(chunk_bytes(&place.path("a")) > 30 << 20);
    // What died with the newest record of all waits for one more.
    std::fs::write(place.mnt().join("one more"), b"").unwrap();
    whole(&mounted);
    wait_for("the time of grace is over", || {
        let plan = done(mounted.command("gc", &["--dry-run"]));
        plan.contains("when two newer checkpoints are there") && plan.matches("target").count() == 2
    });
    assert!(chunk_bytes(&place.path("a")) > 30 << 20, "a dry run removes nothing");
    let said = done(mounted.command("gc", &[]));
    assert!(said.contains("objects removed"), "{said}");
    wait_for("stored bytes settle", || {
        // What had not passed its time of grace when the last one looked goes with the next.
        done(mounted.command("gc", &[]));
        ["a", "b"].iter().all(|name| chunk_bytes(&place.path(name)) < 8 << 20)
    });
    // What was removed is wanted again: it is put there a minute after its deletion.
    if std::env::var_os("TANDEMFS_LONG_TESTS").is_some() {
        std::fs::write(place.mnt().join("again"), noise(1000, 6 << 20)).unwrap();
    }
    let expected = read(&place);
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
}

#[test]
fn t7_a_target_that_another_mount_wrote_to_is_adopted_and_theirs_is_discarded() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first", 1);
    whole(&mounted);
    mounted.umount();
    // An old copy of the state directory is mounted, where only b can be reached.
    crate::support::run::program(
        "cp",
        ["-a".as_ref(), place.path("state").as_os_str(), place.path("copy").as_os_str()],
    );
    unplug(&place, "a");
    let theirs = place.mount_state("copy");
    fill(&place, "theirs", 2);
    assert_eq!(theirs.command("flush", &["--wait", "1", "--timeout", "600"]).code, 0);
    theirs.kill();
    plug(&place, "a");
    unplug(&place, "b");
    let mounted = place.mount();
    fill(&place, "ours", 3);
    assert_eq!(mounted.command("flush", &["--wait", "1", "--timeout", "600"]).code, 0);
    plug(&place, "b");
    wait_for("b is fenced", || status_of(&mounted, "b")["mode"] == "fenced");
    let without = target(&place, "adopt", &["b"]);
    assert_eq!((without.code, without.stderr.contains("--discard-theirs")), (2, true), "{}", without.stderr);
    let said = done(target(&place, "adopt", &["b", "--discard-theirs"]));
    assert!(said.contains("is ours"), "{said}");
    follows(&mounted, "b");
    whole(&mounted);
    fill(&place, "later", 4);
    whole(&mounted);
    let expected = read(&place);
    assert!(!expected.keys().any(|path| format!("{path:?}").contains("theirs")));
    mounted.umount();
    each_alone(&place, &["a", "b"], &expected);
    // The next mount knows both.
    place.mount().umount();
}
