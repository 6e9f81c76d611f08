//! Limits of bandwidth that change while uploads wait for them; seen from outside.
//!
//! Nothing here waits for time: at the rate of the limits the uploads would take half an hour.

use super::targets::{configured, done, whole};
use crate::support::mounted::{Mounted, Place, wait_for};
use crate::support::tree::noise;

/// Bytes that take half an hour at [`SLOW`].
const BYTES: usize = 32 << 20;
/// The least that is no mistake.
const SLOW: &str = "\"16 KiB/s\"";

fn write_config(place: &Place, total: &str, of_b: &str) {
    let of = |name: &str| format!("[target.{name}]\nuri = \"fs://{}\"\n", place.path(name).display());
    let text = format!("bandwidth = {total}\n{}{}bandwidth = {of_b}\n", of("a"), of("b"));
    std::fs::write(place.path("fs.toml"), text).unwrap();
}

/// Bytes that the two targets lack.
fn pending(mounted: &Mounted<'_>) -> [u64; 2] {
    let status = mounted.status();
    [0, 1].map(|target| status["targets"][target]["pending_bytes"].as_u64().unwrap())
}

fn write(mounted: &Mounted<'_>, seed: u64) {
    std::fs::write(mounted.path(&format!("file{seed}")), noise(seed, BYTES)).unwrap();
}

#[test]
fn a_limit_in_total_or_of_one_target_is_changed_while_uploads_wait_for_it() {
    let mut place = Place::new(&["a", "b"]);
    configured(&mut place, "", &["a", "b"]);
    write_config(&place, "\"unlimited\"", SLOW);
    let mounted = place.mount();
    write(&mounted, 1);
    wait_for("the one without a limit has it", || {
        mounted.status()["targets"][0]["placed_bytes"].as_u64().unwrap() >= BYTES as u64
    });
    assert!(pending(&mounted)[1] > 0, "{:#}", mounted.status());
    write_config(&place, "\"unlimited\"", "\"unlimited\"");
    done(mounted.command("reload", &[]));
    whole(&mounted);

    // In total: neither goes on. A window that holds now and always is a limit, too.
    write_config(&place, &format!("{{ \"00:00-12:00\" = {SLOW}, \"12:00-00:00\" = {SLOW} }}"), "\"unlimited\"");
    done(mounted.command("reload", &[]));
    write(&mounted, 2);
    wait_for("it is sealed", || pending(&mounted).iter().all(|bytes| *bytes > 0));
    write_config(&place, "\"unlimited\"", "\"unlimited\"");
    done(mounted.command("reload", &[]));
    whole(&mounted);
    mounted.umount();
}
