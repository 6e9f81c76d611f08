//! Wrong credentials stop one target and nothing else; renewed ones let it go on.

use crate::stage::Stage;
use crate::support::mounted::{Mounted, wait_for};
use crate::support::run::{finish, program};
use crate::support::tree::noise;

#[test]
fn a_wrong_secret_blocks_its_target_and_the_other_goes_on() {
    let mut stage = Stage::new(&["cloud", "other"]);
    stage.place.set_env("WRONG", "not-the-secret");
    let wrong = stage.bucket("cloud", "s3://cloud/p").replace("${S3_SECRET}", "${WRONG}");
    let tables = [wrong, stage.bucket("other", "s3://other/p")];
    let config = stage.configure("config.toml", &tables);

    let checked = finish(stage.place.tandemfs().arg("check").arg(&config));
    assert_eq!(checked.code, 1, "{}{}", checked.stdout, checked.stderr);
    assert!(checked.stdout.contains("FAILED"), "{}", checked.stdout);
    assert!(checked.stderr.contains("error: ") && checked.stderr.contains("cloud"), "{}", checked.stderr);
    assert!(checked.stderr.contains("hint: ") && !checked.stderr.contains("other"), "{}", checked.stderr);

    let mounted = stage.place.mount();
    std::fs::write(mounted.path("file"), noise(1, 100_000)).unwrap();
    let one = mounted.command("flush", &["--wait", "one", "--timeout", "600"]);
    assert_eq!(one.code, 0, "{}\n{}", one.stderr, mounted.log());
    // Now and then it is probed.
    wait_for("status names the reason", || {
        let cloud = &mounted.status()["targets"][0];
        cloud["reason"].is_string() && cloud["mode"] == "blocked" && cloud["health"] == "down"
    });
    let status = mounted.status();
    let [cloud, other] = [&status["targets"][0], &status["targets"][1]];
    assert_eq!((&other["health"], &other["pending_bytes"]), (&"healthy".into(), &0.into()), "{status:#}");
    assert!(cloud["reason"].as_str().unwrap().contains("credentials"), "{status:#}");
    assert!(cloud["hint"].as_str().unwrap().contains("keys"), "{status:#}");
    let text = mounted.command("status", &[]);
    assert!(!text.stdout.contains("not-the-secret"), "{}", text.stdout);
    let all = mounted.command("umount", &["--timeout", "1"]);
    assert_eq!(all.code, 3, "{}", all.stderr);
    assert!(all.stderr.contains("cloud"), "{}", all.stderr);

    // With the right secret the next mount goes on.
    let forced = mounted.command("umount", &["--timeout", "1", "--force"]);
    assert_eq!(forced.code, 3, "{}", forced.stderr);
    mounted.wait_end();
    stage.place.set_env("WRONG", &stage.server.secret_key.clone());
    let mounted = stage.place.mount();
    mounted.umount();
    assert!(stage.bucket_path("cloud").join("p/tandemfs.json").exists());
}

/// A cloud that takes its secret from a file, and a disk.
fn staged() -> Stage {
    let mut stage = Stage::new(&["cloud"]);
    let file = stage.place.path("secret");
    write_secret(&stage, &stage.server.secret_key);
    let from_file = format!("{{ file = {:?} }}", file.to_str().unwrap());
    let cloud = stage.bucket("cloud", "s3://cloud/p").replace("\"${S3_SECRET}\"", &from_file);
    let tables = [cloud, stage.directory("disk")];
    stage.configure("config.toml", &tables);
    stage
}

fn write_secret(stage: &Stage, secret: &str) {
    use std::os::unix::fs::PermissionsExt;
    let file = stage.place.path("secret");
    std::fs::write(&file, format!("{secret}\n")).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The vendor takes another secret now: the target is blocked with a hint, and programs and the other target go on.
fn expire(stage: &Stage, mounted: &Mounted<'_>, secret: &str) {
    std::fs::write(mounted.path("before"), noise(1, 100_000)).unwrap();
    wait_for("everything is safe", || mounted.status()["safe"] == true);
    stage.server.rotate(secret);
    std::fs::write(mounted.path("after"), noise(2, 100_000)).unwrap();
    wait_for("status names the reason and what to do", || {
        let cloud = &mounted.status()["targets"][0];
        let hint = cloud["hint"].as_str().is_some_and(|hint| hint.contains("credentials") || hint.contains("keys"));
        hint && cloud["reason"].is_string() && cloud["health"] != "healthy"
    });
    assert_eq!(mounted.status()["safe"], false);
    assert_eq!(std::fs::read(mounted.path("after")).unwrap(), noise(2, 100_000));
    wait_for("the other target goes on", || mounted.status()["targets"][1]["pending_bytes"] == 0);
}

#[test]
fn a_secret_that_is_renewed_in_its_file_is_taken_at_sighup() {
    let stage = staged();
    let mounted = stage.place.mount();
    expire(&stage, &mounted, "the-next-secret");
    write_secret(&stage, "the-next-secret");
    program("kill", ["-HUP".to_owned(), mounted.daemon().unwrap().to_string()]);
    wait_for("the target goes on", || mounted.status()["safe"] == true);
    mounted.umount();
}

#[test]
fn a_secret_that_is_renewed_in_its_file_is_taken_by_target_resume() {
    let stage = staged();
    let mounted = stage.place.mount();
    expire(&stage, &mounted, "the-next-secret");
    write_secret(&stage, "the-next-secret");
    let resumed = finish(stage.place.tandemfs().args(["target", "resume"]).arg(stage.place.mnt()).arg("cloud"));
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    wait_for("the target goes on", || mounted.status()["safe"] == true);
    let again = finish(stage.place.tandemfs().args(["target", "resume"]).arg(stage.place.mnt()).arg("cloud"));
    assert_ne!(again.code, 0, "{}", again.stdout);
    assert!(again.stderr.contains("not paused") && again.stderr.contains("hint: "), "{}", again.stderr);
    mounted.umount();
}
