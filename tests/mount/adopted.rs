//! Targets that a state directory meets for the first time: those of a restored filesystem that were no source of the
//! restore, and new ones that come late (D6, T4, T7).

use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::run::{finish, program};
use crate::support::tree::{self, Depth, Tree, assert_same, make_awkward, noise};

/// Copies an awkward tree, and some chunks' worth of bytes, into the mount.
fn fill(place: &Place, name: &str) {
    let original = place.path("original");
    if !original.exists() {
        make_awkward(&original);
        std::fs::write(original.join("large"), noise(7, 3 << 20)).unwrap();
    }
    program("cp", ["-a".as_ref(), original.as_os_str(), place.mnt().join(name).as_os_str()]);
    std::fs::write(place.mnt().join(name).join("its own"), noise(name.len() as u64 + 100, 2 << 20)).unwrap();
}

fn read(place: &Place) -> Tree {
    tree::read(&place.mnt(), Depth::Restored)
}

/// Loses the machine.
fn lose(place: &Place, state: &str) {
    std::fs::remove_dir_all(place.path(state)).unwrap();
}

fn restore(place: &Place, state: &str, from: &[&str]) {
    let uris: Vec<String> = from.iter().map(|name| place.uri(name)).collect();
    let finished = place.restore(state, &uris);
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
}

/// Each target alone, while the others are away, gives `expected`.
fn assert_each_alone(place: &Place, targets: &[&str], expected: &Tree) {
    for name in targets {
        for other in targets.iter().filter(|other| *other != name) {
            unplug(place, other);
        }
        let state = format!("alone-{name}");
        restore(place, &state, &[name]);
        let mounted = place.mount_read_only(&state);
        assert_same(&format!("restored from {name} alone"), expected, &read(place));
        mounted.umount();
        lose(place, &state);
        for other in targets.iter().filter(|other| *other != name) {
            plug(place, other);
        }
    }
}

fn unplug(place: &Place, name: &str) {
    std::fs::rename(place.path(name), place.path(&format!("{name} is away"))).unwrap();
}

fn plug(place: &Place, name: &str) {
    std::fs::rename(place.path(&format!("{name} is away")), place.path(name)).unwrap();
}

fn target<'a>(status: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let targets = status["targets"].as_array().unwrap();
    targets.iter().find(|target| target["name"] == name).unwrap()
}

fn mode(mounted: &Mounted<'_>, name: &str) -> String {
    target(&mounted.status(), name)["mode"].as_str().unwrap().to_owned()
}

/// A filesystem with targets a and b that both hold everything.
fn whole() -> (Place, Tree) {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first");
    let tree = read(&place);
    mounted.umount();
    (place, tree)
}

/// As [`whole`], and then a mount that only a saw.
fn b_is_behind() -> (Place, Tree) {
    let (place, _) = whole();
    unplug(&place, "b");
    let mounted = place.mount();
    fill(&place, "second");
    std::fs::remove_file(place.mnt().join("first/large")).unwrap();
    let tree = read(&place);
    let wait = mounted.command("flush", &["--wait", "1", "--timeout", "600"]);
    assert_eq!(wait.code, 0, "{}\n{}", wait.stderr, mounted.log());
    mounted.kill();
    plug(&place, "b");
    (place, tree)
}

#[test]
fn d6_a_target_that_holds_the_same_goes_on_after_a_restore_from_the_other() {
    let (place, tree) = whole();
    lose(&place, "state");
    restore(&place, "new", &["a"]);
    let mounted = place.mount_state("new");
    assert_same("restored", &tree, &read(&place));
    wait_for("b follows", || mode(&mounted, "b") == "follow");
    fill(&place, "later");
    let tree = read(&place);
    mounted.umount();
    assert_each_alone(&place, &["a", "b"], &tree);

    // The next mount knows both.
    let mounted = place.mount_state("new");
    fill(&place, "later still");
    let tree = read(&place);
    mounted.umount();
    assert_each_alone(&place, &["a", "b"], &tree);
}

#[test]
fn d6_nothing_needs_to_be_written_for_a_target_to_be_brought_forward() {
    let (place, tree) = b_is_behind();
    lose(&place, "state");
    restore(&place, "new", &["a"]);
    place.mount_state("new").umount();
    assert_each_alone(&place, &["a", "b"], &tree);
    // A mount that writes nothing at all comes between: its checkpoint still counts.
    place.mount_state("new").umount();
    assert_each_alone(&place, &["a", "b"], &tree);
}

#[test]
fn t4_a_target_that_is_behind_is_resynced_and_an_interrupted_resync_goes_on() {
    let (place, tree) = b_is_behind();
    lose(&place, "state");
    restore(&place, "new", &["a"]);
    // What b lacks cannot be had for now: the resync cannot end.
    let chunks = place.path("a/chunks");
    let away = place.path("a/chunks are away");
    std::fs::rename(&chunks, &away).unwrap();
    let mounted = place.mount_state("new");
    // Its row is one of a resyncer from the beginning; what b has counts once it was listed.
    wait_for("b was met", || {
        let status = mounted.status();
        let b = target(&status, "b");
        b["mode"] == "resync" && b["resync"]["placed_bytes"].as_u64().unwrap() > 0
    });
    let status = mounted.status();
    let b = target(&status, "b");
    assert_eq!((&b["mode"], &status["safe"]), (&"resync".into(), &false.into()), "{status:#}");
    let (placed, total) = (b["resync"]["placed_bytes"].as_u64().unwrap(), b["resync"]["total_bytes"].as_u64().unwrap());
    assert!(0 < placed && placed < total, "{status:#}");
    assert!(b["pending_bytes"].as_u64().unwrap() > 0, "{status:#}");
    let text = mounted.command("status", &[]);
    assert!(text.stdout.contains("resyncing"), "{}", text.stdout);
    // New changes come meanwhile, and are not lost with the daemon.
    std::fs::write(place.mnt().join("meanwhile"), noise(3, 300_000)).unwrap();
    let flushed = mounted.command("flush", &["--wait", "1", "--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
    mounted.kill();
    // Until the resync ends, b alone gives what it held before.
    restore(&place, "old", &["b"]);
    lose(&place, "old");

    std::fs::create_dir_all(&chunks).unwrap();
    program("cp", ["-a".into(), away.join(".").into_os_string(), chunks.clone().into_os_string()]);
    std::fs::remove_dir_all(&away).unwrap();
    let mounted = place.mount_state("new");
    let now = read(&place);
    assert!(now.len() == tree.len() + 1 && tree.iter().all(|(path, line)| now.get(path) == Some(line)));
    wait_for("b follows", || mode(&mounted, "b") == "follow");
    mounted.umount();
    assert_each_alone(&place, &["a", "b"], &now);
}

#[test]
fn t7_a_target_with_changes_that_the_restored_state_lacks_refuses_the_mount_and_stays_as_it_is() {
    let (place, newer) = b_is_behind();
    lose(&place, "state");
    restore(&place, "new", &["b"]);
    let before = (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b")));
    for read_only in [false, true] {
        let mut command = place.mount_command("new");
        if read_only {
            command.arg("--read-only");
        }
        let refused = finish(&mut command);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("\"a\" has changes up to "), "{}", refused.stderr);
        assert!(refused.stderr.contains("that the restored state lacks"), "{}", refused.stderr);
        assert!(refused.stderr.contains("hint: restore anew, from \"a\" too"), "{}", refused.stderr);
    }
    assert!(
        before == (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b"))),
        "nothing was written"
    );

    // As the hint says.
    restore(&place, "both", &["b", "a"]);
    let mounted = place.mount_state("both");
    assert_same("restored from both", &newer, &read(&place));
    wait_for("b follows", || mode(&mounted, "b") == "follow");
    mounted.umount();
    assert_each_alone(&place, &["a", "b"], &newer);
}

#[test]
fn d6_a_restore_from_both_goes_on_with_both() {
    let (place, tree) = whole();
    lose(&place, "state");
    restore(&place, "new", &["a", "b"]);
    let mounted = place.mount_state("new");
    assert_same("restored", &tree, &read(&place));
    fill(&place, "later");
    let tree = read(&place);
    mounted.umount();
    assert_each_alone(&place, &["a", "b"], &tree);
}

#[test]
fn d6_a_read_only_mount_reads_from_the_other_target_and_writes_to_none() {
    let (place, tree) = whole();
    lose(&place, "state");
    restore(&place, "new", &["a"]);
    std::fs::remove_dir_all(place.path("a/chunks")).unwrap();
    std::fs::create_dir(place.path("a/chunks")).unwrap();
    let before = (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b")));
    let mounted = place.mount_read_only("new");
    assert_same("read from b", &tree, &read(&place));
    mounted.umount();
    assert!(
        before == (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b"))),
        "nothing was written"
    );
}

#[test]
fn d6_a_target_that_was_away_at_the_mount_is_met_when_it_comes() {
    let mut place = Place::new(&["a"]);
    // A disk: without it, not even the parent of the target is there.
    std::fs::create_dir(place.path("disk")).unwrap();
    let uri = format!("fs://{}", place.path("disk/b").display());
    place.add_target("b", &uri);
    let mounted = place.mount();
    fill(&place, "first");
    mounted.umount();
    lose(&place, "state");
    restore(&place, "new", &["a"]);
    unplug(&place, "disk");
    let mounted = place.mount_state("new");
    fill(&place, "later");
    let tree = read(&place);
    assert_eq!(target(&mounted.status(), "b")["placed_bytes"], 0);
    plug(&place, "disk");
    wait_for("b follows", || mode(&mounted, "b") == "follow");
    mounted.umount();
    unplug(&place, "a");
    restore(&place, "alone", &["b"]);
    let mounted = place.mount_read_only("alone");
    assert_same("restored from b alone", &tree, &read(&place));
    mounted.umount();
}

#[test]
fn t4_a_target_that_is_added_when_history_was_dropped_comes_to_hold_everything() {
    let mut place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    fill(&place, "first");
    mounted.umount();
    // Every record was shipped, so the next mount drops them; and bytes that are on both targets may go.
    place.mount().umount();
    let uri = format!("fs://{}", place.path("c").display());
    place.add_target("c", &uri);
    let mounted = place.mount();
    fill(&place, "second");
    wait_for("c follows", || mode(&mounted, "c") == "follow");
    fill(&place, "third");
    let tree = read(&place);
    mounted.umount();
    assert_each_alone(&place, &["a", "b", "c"], &tree);
}

#[test]
fn t1_targets_whose_places_were_swapped_are_refused_with_what_to_do() {
    let (place, tree) = whole();
    std::fs::rename(place.path("a"), place.path("x")).unwrap();
    std::fs::rename(place.path("b"), place.path("a")).unwrap();
    std::fs::rename(place.path("x"), place.path("b")).unwrap();
    let before = (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b")));
    let refused = finish(&mut place.mount_command("state"));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("target \"a\" has the place of target \"b\""), "{}", refused.stderr);
    assert!(refused.stderr.contains("swap them back"), "{}", refused.stderr);
    assert!(
        before == (tree::bytes_below(&place.path("a")), tree::bytes_below(&place.path("b"))),
        "nothing was written"
    );
    std::fs::rename(place.path("a"), place.path("x")).unwrap();
    std::fs::rename(place.path("b"), place.path("a")).unwrap();
    std::fs::rename(place.path("x"), place.path("b")).unwrap();
    let mounted = place.mount();
    assert_same("swapped back", &tree, &read(&place));
    mounted.umount();
}

#[test]
fn t1_swapped_names_of_two_targets_are_only_names() {
    let (place, tree) = whole();
    let (a, b) = (place.uri("a"), place.uri("b"));
    let mut swapped = Place::new(&[]);
    swapped.add_target("a", &b);
    swapped.add_target("b", &a);
    std::fs::rename(place.path("state"), swapped.path("state")).unwrap();
    let mounted = swapped.mount();
    assert_same("with swapped names", &tree, &read(&swapped));
    assert_eq!(target(&mounted.status(), "a")["uri"], b.as_str());
    mounted.umount();
}

#[test]
fn t1_two_uris_of_one_place_are_refused_after_a_restore_too() {
    let (place, _) = whole();
    lose(&place, "state");
    restore(&place, "new", &["a"]);
    std::os::unix::fs::symlink(place.path("b"), place.path("link")).unwrap();
    let mut command = place.mount_command("new");
    command.arg("--target").arg(format!("c=fs://{}", place.path("link").display()));
    let before = tree::bytes_below(&place.path("b"));
    let refused = finish(&mut command);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
    assert!(before == tree::bytes_below(&place.path("b")), "nothing was written");
}
