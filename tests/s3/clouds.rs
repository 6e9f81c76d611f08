//! Two clouds from a configuration file: each alone brings everything back.

use crate::stage::{Stage, contents};
use crate::support::mounted::Mounted;
use crate::support::run::{finish, program, succeed};
use crate::support::tree::{self, Depth, assert_same, make_awkward};

#[test]
fn a_copied_tree_is_restored_from_each_bucket_alone() {
    let mut stage = Stage::new(&["first", "second"]);
    // One in a folder of the bucket, one at its root.
    let tables = [stage.bucket("east", "s3://first/some/prefix"), stage.bucket("west", "s3://second")];
    let config = stage.configure("both.toml", &tables);
    make_awkward(&stage.place.path("original"));

    let mounted = stage.place.mount();
    program("cp", ["-a".as_ref(), stage.place.path("original").as_os_str(), mounted.path("copy").as_os_str()]);
    let original = tree::read(&stage.place.path("original"), Depth::Copied);
    assert_same("the copy", &original, &tree::read(&mounted.path("copy"), Depth::Copied));
    let before = tree::read(&mounted.path(""), Depth::Restored);
    let status = mounted.command("status", &[]);
    assert!(!status.stdout.contains(&stage.server.secret_key), "{}", status.stdout);
    mounted.umount();

    std::fs::remove_dir_all(stage.place.path("state")).unwrap();
    for (name, table, gone) in [("east", &tables[0], "second"), ("west", &tables[1], "first")] {
        std::fs::rename(stage.bucket_path(gone), stage.place.path("gone")).unwrap();
        let state = format!("state-from-{name}");
        let restored = stage.place.restore_by(&config, &state, &[name]);
        assert_eq!(restored.code, 0, "restore from {name}: {}", restored.stderr);
        stage.configure(&format!("{name}.toml"), std::slice::from_ref(table));
        let mounted = stage.place.mount_read_only(&state);
        assert_same(&format!("restored from {name}"), &before, &tree::read(&mounted.path(""), Depth::Restored));
        mounted.umount();
        std::fs::rename(stage.place.path("gone"), stage.bucket_path(gone)).unwrap();
    }
}

#[test]
fn a_restore_by_uri_says_how_to_mount_what_it_restored() {
    let mut stage = Stage::new(&["only"]);
    let table = stage.bucket("cloud", "s3://only/x");
    stage.configure("config.toml", &[table]);
    let mounted = stage.place.mount();
    std::fs::write(mounted.path("file"), "bytes").unwrap();
    mounted.umount();

    let uri = format!(
        "s3://only/x?endpoint={}&access_key_id=${{S3_ID}}&secret_access_key=${{S3_SECRET}}",
        stage.server.endpoint
    );
    let restored = stage.place.restore("restored", &[uri]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    assert!(!restored.stdout.contains(&stage.server.secret_key), "{}", restored.stdout);
    let line = restored.stdout.lines().find_map(|line| line.strip_prefix("now mount it: tandemfs "));
    let line = line.expect("it says how").replace("MOUNTPOINT", stage.place.mnt().to_str().unwrap());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" {line}"), env!("CARGO_BIN_EXE_tandemfs")]);
    shell.env("S3_ID", &stage.server.access_key).env("S3_SECRET", &stage.server.secret_key);
    succeed(&mut shell);
    let mounted = Mounted::found(&stage.place, "restored");
    assert_eq!(std::fs::read_to_string(mounted.path("file")).unwrap(), "bytes");
    mounted.umount();
}

#[test]
fn a_bucket_and_a_directory_together() {
    let mut stage = Stage::new(&["cloud"]);
    let tables = [stage.bucket("cloud", "s3://cloud/p"), stage.directory("disk")];
    let config = stage.configure("config.toml", &tables);

    // `check` before, in between and after, never makes anything.
    let check = |expected: [&str; 2]| {
        let checked = finish(stage.place.tandemfs().arg("check").arg(&config));
        assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
        let lines: Vec<&str> = checked.stdout.lines().collect();
        assert!(lines[0].ends_with("config.toml: valid, 2 targets"), "{}", lines[0]);
        for (name, says) in ["cloud", "disk"].into_iter().zip(expected) {
            let of_target = lines.iter().position(|line| line.trim_start().starts_with(name)).unwrap();
            assert!(lines[of_target + 1].contains(says), "{says:?} in {}", checked.stdout);
        }
        assert!(!checked.stdout.contains(&stage.server.secret_key));
    };
    check(["empty; ", "does not exist yet"]);
    assert!(!stage.place.path("disk").exists());
    assert_eq!(contents(&stage.bucket_path("cloud")).values().flatten().count(), 0);

    make_awkward(&stage.place.path("original"));
    let mounted = stage.place.mount();
    program("cp", ["-a".as_ref(), stage.place.path("original").as_os_str(), mounted.path("copy").as_os_str()]);
    let before = tree::read(&mounted.path("copy"), Depth::Restored);
    mounted.umount();
    check(["holds filesystem \"mnt\"", "holds filesystem \"mnt\""]);

    std::fs::remove_dir_all(stage.place.path("state")).unwrap();
    let restore = |sources: &[&str], state: &str| {
        let restored = stage.place.restore_by(&config, state, sources);
        assert_eq!(restored.code, 0, "{}", restored.stderr);
    };
    // From one of two: the other is met again, and what it holds is not sent a second time.
    restore(&["cloud"], "from-one");
    let chunks = |name: &str| contents(&stage.place.path(name).join("chunks")).values().flatten().count();
    let (cloud, disk) = (chunks("server/cloud/p"), chunks("disk"));
    let mounted = stage.place.mount_state("from-one");
    assert_same("restored from one", &before, &tree::read(&mounted.path("copy"), Depth::Restored));
    std::fs::write(mounted.path("later"), "news").unwrap();
    mounted.umount();
    assert_eq!((chunks("server/cloud/p"), chunks("disk")), (cloud + 1, disk + 1));

    // The disk is lost for good. Another one takes its place and is filled from the cloud; then it is enough alone.
    std::fs::remove_dir_all(stage.place.path("disk")).unwrap();
    std::fs::create_dir(stage.place.path("disk")).unwrap();
    restore(&["cloud"], "from-cloud");
    let mounted = stage.place.mount_state("from-cloud");
    assert_eq!(std::fs::read_to_string(mounted.path("later")).unwrap(), "news");
    mounted.umount();
    assert_eq!(chunks("disk"), disk + 1);
    std::fs::rename(stage.bucket_path("cloud"), stage.place.path("gone")).unwrap();
    restore(&["disk"], "from-disk");
    let table = stage.directory("disk");
    stage.configure("disk.toml", &[table]);
    let mounted = stage.place.mount_read_only("from-disk");
    assert_same("restored from the disk", &before, &tree::read(&mounted.path("copy"), Depth::Restored));
    mounted.umount();
}
