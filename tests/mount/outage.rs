//! A target that is away: nobody waits for it, nothing is lost, and it ends by itself (promise 5).

use crate::support::mounted::{Place, wait_for};
use crate::support::run::shell;
use crate::support::tree::{self, Depth, assert_same};

#[test]
fn what_was_written_during_an_outage_arrives_after_it() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    std::fs::write(mounted.path("before"), b"before").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "600"]).code, 0);
    // As an unmounted disk: the place is gone.
    std::fs::rename(place.path("a"), place.path("away")).unwrap();
    shell(
        &place.mnt(),
        "mkdir d; for i in 1 2 3 4 5; do head -c 300000 /dev/urandom > d/f$i; done; mv d e; rm e/f3; chmod 700 e/f1",
    );
    // The other target goes on by itself.
    let flushed = mounted.command("flush", &["--wait", "1", "--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
    let expected = tree::read(&place.mnt(), Depth::Restored);
    std::fs::rename(place.path("away"), place.path("a")).unwrap();
    mounted.umount();
    std::fs::rename(place.path("b"), place.path("gone")).unwrap();
    let restored = place.restore("state2", &[place.uri("a")]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_read_only("state2");
    assert_same("after the outage", &expected, &tree::read(&place.mnt(), Depth::Restored));
    mounted.umount();
}

#[test]
fn status_counts_a_synced_file_that_waits() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    std::fs::write(mounted.path("before"), b"before").unwrap();
    assert_eq!(mounted.command("flush", &["--timeout", "60"]).code, 0);
    std::fs::rename(place.path("a"), place.path("away")).unwrap();
    let mut file = std::fs::File::create(mounted.path("f")).unwrap();
    std::io::Write::write_all(&mut file, &[7; 5000]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // Its session is over then, and all that is known of it is a record.
    wait_for("it is a chunk that waits", || mounted.status()["targets"][0]["pending_objects"] == 1);
    let status = mounted.status();
    assert_eq!((&status["unreplicated"]["files"], &status["safe"]), (&1.into(), &false.into()), "{status:#}");
    let told = mounted.command("status", &[]).stdout;
    assert!(told.contains("waiting: 1 file, 4.9 KiB"), "{told}");
    std::fs::rename(place.path("away"), place.path("a")).unwrap();
    mounted.umount();
}

#[test]
fn t1_an_empty_place_is_blocked_not_filled() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    std::fs::write(mounted.path("first"), b"first").unwrap();
    mounted.umount();
    std::fs::rename(place.path("b"), place.path("away")).unwrap();
    std::fs::create_dir(place.path("b")).unwrap();
    let mounted = place.mount();
    std::fs::write(mounted.path("second"), b"second").unwrap();
    let b = || {
        let status = mounted.status();
        let targets = status["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().find(|target| target["name"] == "b").unwrap_or_default()
    };
    wait_for("b is blocked", || b()["mode"] == "blocked");
    assert!(b()["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{:#}", b());
    let forced = mounted.command("umount", &["--force"]);
    assert_eq!(forced.code, 3, "{}", forced.stderr);
    mounted.wait_end();
    assert_eq!(std::fs::read_dir(place.path("b")).unwrap().count(), 0, "nothing was written there");
    std::fs::remove_dir(place.path("b")).unwrap();
    std::fs::rename(place.path("away"), place.path("b")).unwrap();
    place.mount().umount();
}

#[test]
fn killed_again_and_again_every_target_is_whole_in_the_end() {
    let place = Place::new(&["a", "b"]);
    let mut mounted = place.mount();
    shell(&place.mnt(), "head -c 3000000 /dev/urandom > old");
    for round in 0..4 {
        shell(
            &place.mnt(),
            &format!(
                "mkdir r{round}; for i in $(seq 30); do head -c $((i * 1000)) /dev/urandom > r{round}/f$i; done
                 printf x{round} | dd of=old bs=1 seek=$((1000000 + {round} * 7)) conv=notrunc status=none
                 mv r{round}/f1 r{round}/moved; rm r{round}/f2; truncate -s 100 r{round}/f3
                 ln r{round}/f5 r{round}/link; mv r{round}/f6 r{round}/f7"
            ),
        );
        let expected = tree::read(&place.mnt(), Depth::Restored);
        mounted.kill();
        mounted = place.mount();
        assert_same(&format!("after kill {round}"), &expected, &tree::read(&place.mnt(), Depth::Restored));
    }
    let expected = tree::read(&place.mnt(), Depth::Restored);
    mounted.umount();
    for (target, other) in [("a", "b"), ("b", "a")] {
        std::fs::rename(place.path(other), place.path("gone")).unwrap();
        let state = format!("state-{target}");
        let restored = place.restore(&state, &[place.uri(target)]);
        assert_eq!(restored.code, 0, "{}", restored.stderr);
        let mounted = place.mount_read_only(&state);
        assert_same(&format!("restored from {target}"), &expected, &tree::read(&place.mnt(), Depth::Restored));
        mounted.umount();
        std::fs::rename(place.path("gone"), place.path(other)).unwrap();
    }
}
