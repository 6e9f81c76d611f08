//! The README's first command.

use crate::support::run::{finish, tandemfs};

#[test]
fn the_demo_loses_a_target_and_restores_everything_from_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let finished = finish(tandemfs().arg("demo").env("TMPDIR", dir.path()));
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains(": identical"), "{}", finished.stdout);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it removes what it made");
}
