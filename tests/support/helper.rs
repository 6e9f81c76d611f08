//! Shell in which `/sbin` has the program under a helper's name, where mount(8) looks for it: in a mount namespace of the
//! test's own, so nothing is installed.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use super::mounted::Place;
use super::run::{Finished, finish, installed, skipped};

/// Runs lines of shell where `/sbin/NAME` is the program, with these variables, and with `MNT` and `PLACE` for the mountpoint
/// and the folder of the test. `None`: this machine does not let us.
pub fn with_helper(place: &Place, name: &str, variables: &[(&str, &OsStr)], lines: &str) -> Option<Finished> {
    if !installed(&["unshare", "mount", "umount", "findmnt"]) {
        return None;
    }
    let helpers = place.path("helpers");
    std::fs::create_dir_all(&helpers).unwrap();
    let link = helpers.join(name);
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tandemfs"), link).unwrap();
    }
    let script = format!(
        "set -eu; sbin=$(readlink -f /sbin); mount -t overlay overlay -o lowerdir=\"$HELPERS:$sbin\" \"$sbin\" || exit 77\n\
         set -x; {lines}"
    );
    let finished = finish(
        Command::new("unshare")
            .args(["-m", "bash", "-c", &script])
            .env("HELPERS", &helpers)
            .env("MNT", place.mnt())
            .env("PLACE", place.path(""))
            .envs(variables.iter().copied())
            .stdin(Stdio::null()),
    );
    if finished.code == 77 {
        skipped(&format!("no overlay over /sbin here: {}", finished.stderr.trim()));
        return None;
    }
    Some(finished)
}
