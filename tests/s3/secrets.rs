//! Wrong credentials stop one target and nothing else.

use crate::stage::Stage;
use crate::support::mounted::wait_for;
use crate::support::run::finish;
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
    let one = mounted.command("flush", &["--wait", "one", "--timeout", "60"]);
    assert_eq!(one.code, 0, "{}\n{}", one.stderr, mounted.log());
    wait_for("status names the reason", || mounted.status()["targets"][0]["reason"].is_string());
    let status = mounted.status();
    let [cloud, other] = [&status["targets"][0], &status["targets"][1]];
    assert_eq!((&other["health"], &other["pending_bytes"]), (&"healthy".into(), &0.into()), "{status:#}");
    assert!(cloud["reason"].as_str().unwrap().contains("credentials"), "{status:#}");
    assert!(cloud["hint"].as_str().unwrap().contains("keys"), "{status:#}");
    assert_eq!((&cloud["mode"], &cloud["health"]), (&"blocked".into(), &"down".into()), "{status:#}");
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
