//! What others put into a bucket.

use crate::stage::{Stage, contents};
use crate::support::mounted::wait_for;
use crate::support::run::finish;
use crate::support::tree::{self, Depth, assert_same, noise};

#[test]
fn foreign_objects_under_the_prefix_are_ignored_and_kept() {
    let mut stage = Stage::new(&["cloud"]);
    let table = stage.bucket("cloud", "s3://cloud/p");
    let config = stage.configure("config.toml", &[table]);
    let foreign = [
        "readme.txt",
        "chunks/zz/not-a-hash",
        "chunks/ab/abab",
        "journal/notes.txt",
        "journal/0000000001-nobody/0000000001.jsonl.zst.bak",
        "checkpoints/old/backup.tar",
        "writers/me.json",
    ];
    let put = |name: &str| {
        let path = stage.bucket_path("cloud").join("p").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("foreign {name}")).unwrap();
    };
    // Before anything of ours is there, too.
    put("before");
    let mounted = stage.place.mount();
    wait_for("the target is initialised", || stage.bucket_path("cloud").join("p/tandemfs.json").exists());
    foreign.iter().copied().for_each(put);
    std::fs::write(mounted.path("file"), noise(1, 100_000)).unwrap();
    let before = tree::read(&mounted.path(""), Depth::Restored);
    mounted.umount();
    std::fs::remove_dir_all(stage.place.path("state")).unwrap();
    let restored = stage.place.restore_by(&config, "state", &["cloud"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    // Those among ours; what lies beside them is not even listed.
    assert!(restored.stdout.contains("ignored 6 foreign objects"), "{}", restored.stdout);
    let mounted = stage.place.mount();
    assert_same("restored", &before, &tree::read(&mounted.path(""), Depth::Restored));
    mounted.umount();
    for name in foreign.into_iter().chain(["before"]) {
        let path = stage.bucket_path("cloud").join("p").join(name);
        assert_eq!(std::fs::read_to_string(path).unwrap(), format!("foreign {name}"));
    }
}

#[test]
fn a_bucket_of_another_filesystem_refuses_the_mount_and_nothing_is_touched() {
    let mut stage = Stage::new(&["theirs", "empty"]);
    let theirs = stage.bucket("theirs", "s3://theirs/p");
    stage.configure("theirs.toml", std::slice::from_ref(&theirs));
    let mounted = stage.place.mount_state("their-state");
    std::fs::write(mounted.path("file"), "theirs").unwrap();
    mounted.umount();

    let before = contents(&stage.place.path("server"));
    let tables = [stage.bucket("empty", "s3://empty"), stage.directory("disk"), theirs];
    stage.configure("ours.toml", &tables);
    let refused = finish(&mut stage.place.mount_command("state"));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("error: ") && refused.stderr.contains("theirs"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
    assert!(contents(&stage.place.path("server")) == before, "no bucket was touched");
    assert!(!stage.place.path("disk").exists(), "nor the directory");
    assert!(std::fs::read_dir(stage.place.mnt()).unwrap().next().is_none());
    // Without it the same state directory is as good as new.
    let table = stage.directory("disk");
    stage.configure("without.toml", &[table]);
    stage.place.mount().umount();
}
