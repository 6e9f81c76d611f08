//! What other programs read.

use crate::support::mounted::Place;

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn status_json_has_the_documented_shape() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let status = mounted.status();
    let names =
        ["attention", "cache", "filesystem", "garbage", "journal_seq", "requests", "safe", "targets", "unreplicated"];
    assert_eq!(keys(&status), names);
    assert_eq!(keys(&status["filesystem"]), ["epoch", "mountpoint", "name", "state_dir", "uuid"]);
    assert_eq!(keys(&status["unreplicated"]), ["bytes", "files", "oldest_seconds"]);
    assert_eq!(keys(&status["cache"]), ["limit_bytes", "pinned_bytes", "used_bytes"]);
    assert_eq!(
        keys(&status["targets"][0]),
        [
            "health",
            "hint",
            "lag_seconds",
            "last_error",
            "mode",
            "name",
            "pending_bytes",
            "pending_objects",
            "placed_bytes",
            "reason",
            "resync",
            "shipped_seq",
            "uri",
            "whole_as_of"
        ]
    );
    assert_eq!(status["filesystem"]["name"], "mnt");
    let text = mounted.command("status", &[]).stdout;
    assert!(text.starts_with("mnt on "), "{text}");
    mounted.umount();
}
