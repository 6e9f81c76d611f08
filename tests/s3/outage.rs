//! A cloud that is away for a while.

use crate::stage::Stage;
use crate::support::mounted::wait_for;
use crate::support::proxy::{Faults, Proxy};
use crate::support::run::program;
use crate::support::s3::S3Server;
use crate::support::tree::{self, Depth, assert_same, make_awkward, noise};

#[test]
fn an_outage_is_invisible_to_writers_and_ends_by_itself() {
    let mut stage = Stage::new(&["cloud"]);
    let tables = [stage.bucket("cloud", "s3://cloud/p"), stage.directory("disk")];
    let config = stage.configure("config.toml", &tables);
    let port = stage.server.port();
    let Stage { place, server } = stage;
    make_awkward(&place.path("original"));
    let mounted = place.mount();
    program("cp", ["-a".as_ref(), place.path("original").as_os_str(), mounted.path("before").as_os_str()]);
    // In the middle of its uploads.
    drop(server);

    program("cp", ["-a".as_ref(), place.path("original").as_os_str(), mounted.path("during").as_os_str()]);
    std::fs::write(mounted.path("large"), noise(7, 24 << 20)).unwrap();
    program("rm", ["-rf".as_ref(), mounted.path("before").as_os_str()]);
    let one = mounted.command("flush", &["--wait", "one", "--timeout", "600"]);
    assert_eq!(one.code, 0, "the directory goes on: {}\n{}", one.stderr, mounted.log());
    wait_for("status says what is wrong", || {
        let cloud = &mounted.status()["targets"][0];
        cloud["reason"].is_string() && cloud["hint"].is_string() && cloud["health"] != "healthy"
    });
    let status = mounted.status();
    assert_eq!(status["safe"], false, "{status:#}");
    let [cloud, disk] = [&status["targets"][0], &status["targets"][1]];
    assert_eq!((&cloud["name"], &disk["name"]), (&"cloud".into(), &"disk".into()));
    assert!(cloud["pending_bytes"].as_u64().unwrap() >= 24 << 20, "{status:#}");
    assert_eq!((&disk["health"], &disk["pending_bytes"]), (&"healthy".into(), &0.into()), "{status:#}");
    let all = mounted.command("flush", &["--timeout", "1"]);
    assert_eq!(all.code, 3, "{}", all.stderr);
    let error = all.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(error.contains("cloud") && !error.contains("disk"), "{}", all.stderr);

    let server = S3Server::start_at(&place.path("server"), port);
    wait_for("the backlog drains by itself", || mounted.status()["safe"] == true);
    let before = tree::read(&mounted.path(""), Depth::Restored);
    mounted.umount();

    std::fs::remove_dir_all(place.path("state")).unwrap();
    std::fs::remove_dir_all(place.path("disk")).unwrap();
    let restored = place.restore_by(&config, "new", &["cloud"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = place.mount_read_only("new");
    assert_same("restored from the cloud", &before, &tree::read(&mounted.path(""), Depth::Restored));
    mounted.umount();
    drop(server);
}

/// What is not local and what no target gives is an error in time, and none any more when a target is back.
#[test]
fn with_every_target_away_local_files_go_on_and_others_are_eio_until_one_is_back() {
    let mut stage = Stage::new(&["one", "two"]);
    let proxy = Proxy::to(stage.server.address());
    let behind = format!("http://{}", proxy.address);
    let tables = ["one", "two"]
        .map(|name| stage.bucket(name, &format!("s3://{name}/p")).replace(&stage.server.endpoint, &behind));
    let config = stage.configure("config.toml", &tables);
    let mounted = stage.place.mount();
    for (index, name) in ["here", "gone"].into_iter().enumerate() {
        std::fs::write(mounted.path(name), noise(index as u64, 1_500_000)).unwrap();
    }
    mounted.umount();
    let restored = stage.place.restore_by(&config, "new", &["one", "two"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = stage.place.mount_state("new");
    assert!(std::fs::read(mounted.path("here")).unwrap() == noise(0, 1_500_000));
    std::fs::write(mounted.path("written"), noise(2, 1_000_000)).unwrap();

    proxy.set(Faults { refuse: true, ..Faults::default() });
    assert!(std::fs::read(mounted.path("here")).unwrap() == noise(0, 1_500_000), "what was read before is local");
    assert!(std::fs::read(mounted.path("written")).unwrap() == noise(2, 1_000_000));
    std::fs::write(mounted.path("during"), noise(3, 1_000_000)).unwrap();
    assert!(std::fs::read(mounted.path("during")).unwrap() == noise(3, 1_000_000));
    let error = std::fs::read(mounted.path("gone")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    proxy.set(Faults::default());
    // Nobody mounts or opens anything anew: a program that asks again is answered.
    wait_for("the file can be read again", || {
        std::fs::read(mounted.path("gone")).is_ok_and(|bytes| bytes == noise(1, 1_500_000))
    });
    wait_for("every target is whole", || mounted.status()["safe"] == true);
    mounted.umount();
}

#[test]
fn a_cloud_that_is_away_at_the_first_mount_is_filled_later() {
    let mut stage = Stage::new(&["cloud"]);
    let tables = [stage.bucket("cloud", "s3://cloud/p"), stage.directory("disk")];
    stage.configure("config.toml", &tables);
    let port = stage.server.port();
    let Stage { place, server } = stage;
    drop(server);
    let mounted = place.mount();
    std::fs::write(mounted.path("file"), noise(1, 100_000)).unwrap();
    let one = mounted.command("flush", &["--wait", "one", "--timeout", "600"]);
    assert_eq!(one.code, 0, "{}", one.stderr);
    let server = S3Server::start_at(&place.path("server"), port);
    wait_for("the cloud is filled", || mounted.status()["safe"] == true);
    mounted.umount();
    assert!(place.path("server/cloud/p/tandemfs.json").exists());
    drop(server);
}

#[test]
fn a_limited_target_is_sent_no_more_than_its_limit_and_the_other_does_not_wait_for_it() {
    let mut stage = Stage::new(&["cloud"]);
    let limited = format!("{}bandwidth = \"512 KiB/s\"\n", stage.bucket("cloud", "s3://cloud/p"));
    let tables = [limited, stage.directory("disk")];
    stage.configure("config.toml", &tables);
    let Stage { place, server } = stage;
    let mounted = place.mount();
    let began = std::time::Instant::now();
    std::fs::write(mounted.path("file"), noise(1, 2 << 20)).unwrap();
    let one = mounted.command("flush", &["--wait", "one", "--timeout", "600"]);
    assert_eq!(one.code, 0, "{}", one.stderr);
    // The one may be the cloud, where the disk is slower than the limit.
    wait_for("the other has it", || mounted.status()["targets"][1]["pending_bytes"] == 0);
    // 2 MiB at this rate last four seconds; a quarter of a second is in hand. Nothing here is an upper bound: a machine
    // may be slow, but never faster than the limit.
    wait_for("the cloud has it", || mounted.status()["safe"] == true);
    assert!(began.elapsed() >= std::time::Duration::from_millis(3_500), "{:?}", began.elapsed());
    mounted.umount();
    drop(server);
}
