//! What `umount`, `flush`, `status` and `whereis` say about targets is true.

use crate::support::mounted::Place;
use crate::support::run::{finish, tandemfs};
use crate::support::tree::noise;

#[test]
fn status_becomes_safe_after_flush_and_names_every_target() {
    let place = Place::new(&["a", "b"]);
    let mounted = place.mount();
    std::fs::write(mounted.path("f"), noise(1, 100_000)).unwrap();
    let flushed = finish(tandemfs().arg("flush").arg(mounted.path("f")).args(["--timeout", "600"]));
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
    let flushed = mounted.command("flush", &["--timeout", "600"]);
    assert_eq!(flushed.code, 0, "{}\n{}", flushed.stderr, mounted.log());
    let status = mounted.status();
    assert_eq!(status["safe"], true, "{status:#}");
    assert_eq!(status["unreplicated"]["files"], 0);
    let names: Vec<_> = status["targets"].as_array().unwrap().iter().map(|target| target["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(status["targets"][0]["pending_bytes"], 0);

    let mut value = [0u8; 100];
    let length = rustix::fs::getxattr(mounted.path("f"), "user.tandemfs.targets", &mut value).unwrap();
    assert_eq!(&value[..length], b"a=safe b=safe");
    let whereis = finish(tandemfs().arg("whereis").arg(mounted.path("f")));
    assert_eq!(whereis.code, 0, "{}", whereis.stderr);
    assert_eq!(whereis.stdout.matches("safe").count(), 2, "{}", whereis.stdout);
    let whereis = finish(tandemfs().arg("whereis").arg(mounted.path("absent")));
    assert_eq!(whereis.code, 1);
    assert!(whereis.stderr.contains("hint: "), "{}", whereis.stderr);
    mounted.umount();
}

#[test]
fn umount_with_a_dead_target_gives_up_in_time_and_stays_mounted() {
    let mut place = Place::new(&["a"]);
    // Its parent does not exist: the place of an unplugged disk.
    place.add_target("dead", &format!("fs://{}", place.path("unplugged/disk").display()));
    let mounted = place.mount();
    std::fs::write(mounted.path("f"), "bytes").unwrap();
    let finished = mounted.command("umount", &["--timeout", "2"]);
    assert_eq!(finished.code, 3, "{}\n{}", finished.stderr, mounted.log());
    assert!(finished.stderr.contains("dead"), "{}", finished.stderr);
    assert!(finished.stderr.contains("hint: "), "{}", finished.stderr);
    assert_eq!(std::fs::read_to_string(mounted.path("f")).unwrap(), "bytes");
    let finished = mounted.command("umount", &["--timeout", "1", "--force"]);
    assert_eq!(finished.code, 3, "{}", finished.stderr);
    mounted.wait_end();
    // Once the disk is there, the next mount goes on.
    std::fs::create_dir(place.path("unplugged")).unwrap();
    let mounted = place.mount();
    assert_eq!(std::fs::read_to_string(mounted.path("f")).unwrap(), "bytes");
    mounted.umount();
    assert!(place.path("unplugged/disk/tandemfs.json").exists());
}

#[test]
fn a_busy_mount_is_not_taken_away_and_the_program_is_named() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let open = std::fs::File::create(mounted.path("f")).unwrap();
    let finished = mounted.command("umount", &["--timeout", "600"]);
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stderr.contains(&format!("({})", std::process::id())), "{}", finished.stderr);
    drop(open);
    mounted.umount();
}
