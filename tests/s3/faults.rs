//! A bad network path to one of two targets: programs notice nothing, the other target goes on, and it ends by itself.

use std::time::Duration;

use crate::stage::Stage;
use crate::support::mounted::{Mounted, wait_at_most, wait_for};
use crate::support::proxy::{Faults, Proxy};
use crate::support::run::program;
use crate::support::tree::{self, Depth, assert_same, make_awkward, noise};

/// Every way in which the path can be bad, with a name.
pub fn faults() -> Vec<(&'static str, Faults)> {
    let none = Faults::default();
    vec![
        ("100 ms each way", Faults { latency: Duration::from_millis(100), ..none }),
        ("1 MB/s", Faults { bytes_per_second: 1_000_000, ..none }),
        ("resets in the middle of bodies", Faults { reset_every: 700_000, ..none }),
        ("a storm of 503", Faults { storm: true, ..none }),
        ("truncated answers", Faults { truncate_at: 60, ..none }),
        ("corrupted answers", Faults { flip_at: 20, ..none }),
        ("wrong lengths", Faults { wrong_length: true, ..none }),
        ("silence", Faults { silent: true, ..none }),
        ("an outage", Faults { refuse: true, ..none }),
    ]
}

/// A place with a bucket behind a bad path, and a directory.
pub fn stage() -> (Stage, Proxy, std::path::PathBuf) {
    let mut stage = Stage::new(&["cloud"]);
    let proxy = Proxy::to(stage.server.address());
    let cloud =
        stage.bucket("cloud", "s3://cloud/p").replace(&stage.server.endpoint, &format!("http://{}", proxy.address));
    let tables = [cloud, stage.directory("disk")];
    let config = stage.configure("config.toml", &tables);
    (stage, proxy, config)
}

fn disk_has_it(mounted: &Mounted<'_>, fault: &str) {
    let one = mounted.command("flush", &["--wait", "one", "--timeout", "600"]);
    assert_eq!(one.code, 0, "the directory waits for nobody ({fault}): {}\n{}", one.stderr, mounted.log());
    // The one may be the cloud, where the disk is slower than the fault.
    wait_for(&format!("the directory has it ({fault})"), || mounted.status()["targets"][1]["pending_bytes"] == 0);
}

#[test]
fn writers_and_the_other_target_notice_no_fault_of_the_path_and_all_is_caught_up() {
    let (stage, proxy, config) = stage();
    make_awkward(&stage.place.path("original"));
    let mounted = stage.place.mount();
    for (index, (name, fault)) in faults().into_iter().enumerate() {
        proxy.set(fault);
        let copy = format!("copy{index}");
        program("cp", ["-a".as_ref(), stage.place.path("original").as_os_str(), mounted.path(&copy).as_os_str()]);
        std::fs::write(mounted.path(&format!("large{index}")), noise(index as u64, 3 << 20)).unwrap();
        disk_has_it(&mounted, name);
        // The next fault meets what this one left undone.
    }
    assert!(proxy.harmed() > 0, "the path was bad indeed");
    proxy.set(Faults::default());
    wait_for("the backlog drains by itself", || mounted.status()["safe"] == true);
    let scrubbed = mounted.command("scrub", &["--level", "deep"]);
    assert_eq!(scrubbed.code, 0, "{}{}", scrubbed.stdout, scrubbed.stderr);
    let before = tree::read(&mounted.path(""), Depth::Restored);
    mounted.umount();

    let restored = stage.place.restore_by(&config, "new", &["cloud"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = stage.place.mount_read_only("new");
    assert_same("restored over the mended path", &before, &tree::read(&mounted.path(""), Depth::Restored));
    mounted.umount();
}

#[test]
fn readers_get_right_bytes_over_a_bad_path_or_from_the_other_target() {
    let (stage, proxy, config) = stage();
    let mounted = stage.place.mount();
    let files: Vec<Vec<u8>> = (0..18).map(|index| noise(index, 1_200_000)).collect();
    for (index, bytes) in files.iter().enumerate() {
        std::fs::write(mounted.path(&format!("file{index}")), bytes).unwrap();
    }
    mounted.umount();
    let restored = stage.place.restore_by(&config, "new", &["cloud", "disk"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    let mounted = stage.place.mount_read_only("new");
    for (pair, (name, fault)) in files.chunks(2).enumerate().zip(faults()) {
        let (round, pair) = pair;
        proxy.set(Faults { truncate_at: fault.truncate_at * 1000, flip_at: fault.flip_at * 1000, ..fault });
        for (index, bytes) in pair.iter().enumerate() {
            let read = std::fs::read(mounted.path(&format!("file{}", 2 * round + index)));
            assert!(read.unwrap_or_else(|error| panic!("{name}: {error}")) == *bytes, "wrong bytes with {name}");
        }
    }
    proxy.set(Faults::default());
    mounted.umount();
}

/// What it costs to begin anew: a chunk is one put, so a reset loses the part of one chunk. Long: see the testing page.
#[test]
#[ignore = "moves 3 GiB"]
fn resets_cost_less_than_a_twentieth_of_a_large_upload() {
    const SIZE: u64 = 1536 << 20;
    let (stage, proxy, _) = stage();
    let mounted = stage.place.mount();
    proxy.set(Faults { reset_every: 64 << 20, ..Faults::default() });
    let before = proxy.sent();
    let mut file = std::fs::File::create(mounted.path("large")).unwrap();
    for piece in 0..SIZE >> 20 {
        std::io::Write::write_all(&mut file, &noise(piece, 1 << 20)).unwrap();
    }
    drop(file);
    wait_at_most(Duration::from_secs(1800), "the cloud has it", || mounted.status()["safe"] == true);
    let sent = proxy.sent() - before;
    eprintln!("{} resets, {:.2} % sent again", proxy.harmed(), (sent as f64 / SIZE as f64 - 1.0) * 100.0);
    // Some 24 of them; never fewer than half as many.
    assert!(proxy.harmed() >= 12 && sent < SIZE + SIZE / 20, "{} resets, {sent} of {SIZE} bytes", proxy.harmed());
    mounted.umount();
}
