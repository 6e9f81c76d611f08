//! The whole help is a snapshot, so that documentation and program cannot drift apart unseen.

use crate::support::run::{succeed, tandemfs};

#[test]
fn help_of_every_command() {
    let mut text = succeed(tandemfs().arg("--help"));
    for command in ["mount", "umount", "flush", "status", "whereis", "restore", "check", "target", "demo"] {
        text += &format!("\n---- {command}\n{}", succeed(tandemfs().args([command, "--help"])));
    }
    insta::assert_snapshot!(text);
}
