//! Several users: the kernel checks permissions, and users without privileges mount through `fusermount3`.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mounted::Place;
use crate::support::run::{Finished, finish, installed, program, shell};
use crate::support::tree::{self, Depth, assert_same};

/// Two users that exist nowhere else.
const ANN: u32 = 61_234;
const BEN: u32 = 61_235;
/// One that every machine has: the helper asks for a name.
const NOBODY: u32 = 65_534;

fn open_to_all(place: &Place) {
    std::fs::set_permissions(place.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a line of shell as a user, in `directory`.
fn as_user(user: u32, directory: &Path, line: &str) -> Finished {
    let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()];
    finish(Command::new("setpriv").args(ids).args(["bash", "-c", line]).current_dir(directory))
}

#[test]
fn with_allow_other_everybody_gets_what_the_permissions_say() {
    if !installed(&["setpriv", "setfacl"]) {
        return;
    }
    let place = Place::new(&["a"]);
    open_to_all(&place);
    let mounted = place.mount_with("state", &["-o".as_ref(), "allow_other,suid".as_ref()]);
    let mnt = place.mnt();
    for (name, mode, owner) in [("common", 0o1777, 0), ("anns", 0o700, ANN), ("roots", 0o755, 0)] {
        std::fs::create_dir(mounted.path(name)).unwrap();
        std::fs::set_permissions(mounted.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        chown(mounted.path(name), Some(owner), Some(owner)).unwrap();
    }
    let check = |user: u32, line: &str, allowed: bool| {
        let finished = as_user(user, &mnt, line);
        assert_eq!(finished.code == 0, allowed, "user {user}: {line}: {}", finished.stderr);
    };
    check(ANN, "echo ann > anns/file && umask 027 && echo ann > common/ann && cat common/ann", true);
    check(BEN, "ls anns", false);
    check(BEN, "cat common/ann", false);
    check(BEN, "echo ben > roots/file", false);
    check(BEN, "echo ben > common/ben", true);
    let made = std::fs::metadata(mounted.path("common/ben")).unwrap();
    assert_eq!((made.uid(), made.gid()), (BEN, BEN), "a file belongs to who makes it");
    // The sticky bit.
    check(BEN, "rm -f common/ann", false);
    check(BEN, "mv common/ann common/x", false);
    check(ANN, "mv common/ann common/a2 && rm common/a2", true);
    // Changing hands, and what only an owner may.
    check(BEN, &format!("chown {ANN} common/ben"), false);
    check(ANN, "chmod 777 common/ben", false);
    // A list that names a user beats the mode.
    check(BEN, "chmod 600 common/ben", true);
    check(ANN, "cat common/ben", false);
    program("setfacl", ["-m", &format!("u:{ANN}:r"), mounted.path("common/ben").to_str().unwrap()]);
    check(ANN, "cat common/ben", true);
    check(ANN, "echo x >> common/ben", false);
    // A write by another takes the set-id bits away.
    check(BEN, "cp /bin/true common/tool && chmod 6777 common/tool", true);
    check(ANN, "printf x >> common/tool", true);
    assert_eq!(std::fs::metadata(mounted.path("common/tool")).unwrap().mode() & 0o7777, 0o777);
    mounted.umount();
}

#[test]
fn without_allow_other_only_the_one_who_mounted_gets_in() {
    if !installed(&["setpriv"]) {
        return;
    }
    let place = Place::new(&["a"]);
    open_to_all(&place);
    let mounted = place.mount();
    std::fs::write(mounted.path("file"), "x").unwrap();
    std::fs::set_permissions(mounted.path("file"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let finished = as_user(ANN, &place.path(""), "cat mnt/file");
    assert!(finished.code != 0 && finished.stderr.contains("Permission denied"), "{}", finished.stderr);
    mounted.umount();
}

/// The program where everybody may run it: the build directory may be in somebody's home.
fn program_for_all(place: &Place) -> PathBuf {
    let path = place.path("tandemfs");
    std::fs::copy(env!("CARGO_BIN_EXE_tandemfs"), &path).unwrap();
    path
}

#[test]
fn a_user_without_privileges_mounts_through_fusermount3_or_is_told_to_install_it() {
    if !installed(&["setpriv", "fusermount3", "unshare", "findmnt", "tar"]) {
        return;
    }
    let place = Place::new(&[]);
    open_to_all(&place);
    for name in ["home", "run", "targets", "device"] {
        std::fs::create_dir(place.path(name)).unwrap();
    }
    for name in ["mnt", "home", "run", "targets"] {
        chown(place.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // What takes a user's permission to read it back would not come back.
    tree::make_awkward(&place.path("tree"));
    let pack = "tar --format=posix --xattrs --sparse --exclude=mode0 -cf tree.tar tree && chmod 644 tree.tar";
    shell(&place.path(""), pack);
    let program = program_for_all(&place);
    // In a mount namespace of its own, so that /dev/fuse may be open to all there, as udev makes it on most machines.
    let script =
        "set -eu; mount -t tmpfs tmpfs device; mknod -m 666 device/fuse c 10 229; mount --bind device/fuse /dev/fuse
        exec setpriv --reuid=$NOBODY --regid=$NOBODY --clear-groups bash -euc '
          mount=\"mount mnt --target a=fs://$PLACE/targets/a -o fsname=tank\"
          PATH=/nowhere $PROGRAM $mount 2> run/said && exit 1; echo $?; cat run/said
          $PROGRAM $mount
          findmnt -no FSTYPE,SOURCE -M $PLACE/mnt
          echo mine > mnt/file; cat mnt/file; stat -c %u mnt/file
          $PROGRAM status mnt --json > run/status && echo status
          mkdir home/local; for there in home/local mnt; do tar --xattrs -xpf tree.tar -C $there; done
          cp -a mnt/tree home/back
          $PROGRAM umount mnt --timeout 600 2> /dev/null; ! findmnt -M $PLACE/mnt; ls mnt'";
    let finished = finish(
        Command::new("unshare")
            .args(["-m", "bash", "-c", script])
            .current_dir(place.path(""))
            .env("NOBODY", NOBODY.to_string())
            .env("PROGRAM", &program)
            .env("PLACE", place.path("").to_str().unwrap().trim_end_matches('/'))
            .env("HOME", place.path("home"))
            .env("XDG_RUNTIME_DIR", place.path("run"))
            .env_remove("XDG_STATE_HOME"),
    );
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let (refused, mounted) = lines.split_at(3);
    assert_eq!(refused[0], "1");
    assert!(refused[1].contains("fusermount3 is needed for users other than root"), "{refused:?}");
    assert!(refused[2].starts_with("hint: mount as root, or install fusermount3"), "{refused:?}");
    assert_eq!(
        mounted.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        ["fuse.tandemfs tank", "mine", &NOBODY.to_string(), "status"]
    );
    let status: serde_json::Value = serde_json::from_slice(&std::fs::read(place.path("run/status")).unwrap()).unwrap();
    let why = status["filesystem"]["no_passthrough"].as_str().unwrap();
    // Older kernels have none for anybody.
    assert!(why.contains("CAP_SYS_ADMIN") || why.contains("the kernel does not offer it"), "{why}");
    let [local, back] = ["home/local/tree", "home/back"].map(|path| tree::read(&place.path(path), Depth::Copied));
    assert!(local.len() > 350 && local.values().any(|line| line.contains("user.large")));
    assert_same("unpacked on a local disk and through the mount", &local, &back);
}
