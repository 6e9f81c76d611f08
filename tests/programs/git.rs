//! git: packs, renames over open files, hard links, mapped indexes, lock files.

use crate::support::mounted::Place;
use crate::support::run::{installed, shell};

#[test]
fn clones_collects_and_finds_nothing_wrong() {
    if !installed(&["git"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=gc.autoDetach
         export GIT_CONFIG_VALUE_0=false GIT_CONFIG_KEY_1=maintenance.autoDetach GIT_CONFIG_VALUE_1=false GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.com
         export GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.com
         git init -q work; cd work; cp -r \"$CARGO_MANIFEST_DIR/src\" .; git add -A; git commit -qm one
         for round in 2 3 4; do
           for file in src/*/mod.rs; do echo \"// $round\" >> $file; done; git mv src/lib.rs src/lib$round.rs
           git commit -qam $round; git mv src/lib$round.rs src/lib.rs; git commit -qam back$round
         done
         git checkout -q -b side HEAD~3; echo side > side; git add side; git commit -qm side; git rebase -q main || git rebase -q master
         git gc -q --aggressive --prune=now; git fsck --strict --full
         git clone -q . ../clone; git clone -q --no-hardlinks . ../copy; git worktree add -q ../tree HEAD~1
         for each in ../clone ../copy ../tree .; do
           git -C $each fsck; test -z \"$(git -C $each status --porcelain)\"
         done
         git stash list; git grep -q Seq; git bundle create -q ../bundle --all; git bundle verify -q ../bundle
         git -C ../copy pull -q; git clean -fdxq",
    );
    mounted.umount();
    // Closed and opened again by another daemon.
    let mounted = place.mount();
    shell(&place.mnt(), "export HOME=$PWD; for each in work clone copy; do git -C $each fsck --strict --full; done");
    mounted.umount();
}
