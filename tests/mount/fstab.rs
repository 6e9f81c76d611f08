//! mount(8), fstab and systemd drive the filesystem as they drive any other.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::helper;
use crate::support::mounted::{Mounted, PATIENCE, Place, wait_for};
use crate::support::run::{Finished, finish, installed, program, tandemfs};

/// A configuration file with one directory target, and one more whose parent does not exist if `lacking`.
fn config(place: &Place, lacking: bool) -> PathBuf {
    let mut text = format!("name = \"tank\"\nstate_dir = \"{}\"\n", place.path("state").display());
    text += &format!("[target.a]\nuri = \"{}\"\n", place.uri("a"));
    if lacking {
        text += &format!("[target.lacking]\nuri = \"fs://{}\"\n", place.path("absent/target").display());
    }
    let path = place.path("tank.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs lines of shell where `/sbin/NAME` is the program. `None`: this machine does not let us.
fn with_helper(place: &Place, name: &str, config: &Path, lines: &str) -> Option<Finished> {
    helper::with_helper(place, name, &[("CONFIG", config.as_os_str())], lines)
}

fn assert_lines(finished: &Finished, expected: &[&str]) {
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    let lines: Vec<&str> = finished.stdout.lines().map(str::trim).collect();
    assert_eq!(lines, expected, "{}", finished.stderr);
}

#[test]
fn mount_8_and_umount_8_work_as_with_any_filesystem() {
    let place = Place::new(&["a"]);
    let config = config(&place, false);
    let finished = with_helper(
        &place,
        "mount.fuse.tandemfs",
        &config,
        "mount -t fuse.tandemfs \"$CONFIG\" \"$MNT\" -o nofail,_netdev,x-systemd.requires=network-online.target,allow_other
         findmnt -no FSTYPE -M \"$MNT\"
         test \"$(findmnt -no SOURCE -M \"$MNT\")\" = \"$CONFIG\"
         findmnt -no OPTIONS -M \"$MNT\" | tr , '\\n' | grep -E '^(rw|nosuid|nodev|allow_other|default_permissions)$' | sort
         echo hello > \"$MNT/file\"
         umount \"$MNT\"; ! findmnt -M \"$MNT\"
         mount -t fuse.tandemfs \"$CONFIG\" \"$MNT\" -o ro
         cat \"$MNT/file\"; if touch \"$MNT/file\"; then exit 9; fi
         umount \"$MNT\"",
    );
    let Some(finished) = finished else { return };
    let _ended = Mounted::found(&place, "state");
    assert_lines(&finished, &["fuse.tandemfs", "allow_other", "default_permissions", "nodev", "nosuid", "rw", "hello"]);
}

#[test]
fn a_line_of_fstab_mounts_it_once() {
    let place = Place::new(&["a"]);
    let config = config(&place, false);
    let finished = with_helper(
        &place,
        "mount.fuse.tandemfs",
        &config,
        "echo \"$CONFIG $MNT fuse.tandemfs user,noauto,nofail,_netdev,x-systemd.automount,X-mount.mkdir,suid,state_dir=$PLACE/elsewhere 0 0\" > \"$PLACE/fstab\"
         mount -T \"$PLACE/fstab\" \"$MNT\"
         findmnt -no FSTYPE -M \"$MNT\"; test -e \"$PLACE/elsewhere/lock\"
         sed -i s/noauto/auto/ \"$PLACE/fstab\"
         mount -T \"$PLACE/fstab\" -a; findmnt -no FSTYPE -M \"$MNT\"
         echo hello > \"$MNT/file\"; umount -T \"$PLACE/fstab\" \"$MNT\" 2> /dev/null || umount \"$MNT\"
         ! mount -t fuse.tandemfs \"$CONFIG\" \"$MNT\" -o alow_other 2> \"$PLACE/said\"; grep -o 'option \"alow_other\" is unknown' \"$PLACE/said\"",
    );
    let Some(finished) = finished else { return };
    let _ended = Mounted::found(&place, "elsewhere");
    assert_lines(&finished, &["fuse.tandemfs", "fuse.tandemfs", "option \"alow_other\" is unknown"]);
}

/// What the kernel's table says of the mount, of the flags that are changed here.
const SHOW: &str = "show() { findmnt -no OPTIONS -M \"$MNT\" | tr , '\\n' | grep -E '^(ro|rw|no.*|allow_other)$' | sort -u | tr '\\n' ' '; echo; }";

#[test]
fn remount_changes_flags_and_nothing_else() {
    let place = Place::new(&["a"]);
    let config = config(&place, false);
    let lines = format!(
        "{SHOW}
         mount -t fuse.tandemfs \"$CONFIG\" \"$MNT\" -o allow_other; echo hello > \"$MNT/file\"
         exec 5> \"$MNT/open\"
         ! mount -o remount,ro \"$MNT\" 2> \"$PLACE/said\"; grep -o 'files are open for writing' \"$PLACE/said\"; show
         echo written >&5; exec 5>&-
         mount -o remount,ro \"$MNT\"; show
         for change in touch \"rm -f\" \"chmod 600\"; do if $change \"$MNT/file\"; then exit 9; fi; done; cat \"$MNT/file\" \"$MNT/open\"
         mount -o remount,rw,noexec,noatime \"$MNT\"; show; echo more >> \"$MNT/file\"
         mount -o remount \"$MNT\"; show
         mount -o remount,exec \"$MNT\"; show
         echo \"$CONFIG $MNT fuse.tandemfs noauto,nofail,_netdev,state_dir=$PLACE/state 0 0\" > \"$PLACE/fstab\"
         mount -T \"$PLACE/fstab\" -o remount,ro \"$MNT\"; show
         if mount -o remount,mand \"$MNT\"; then exit 9; fi
         umount \"$MNT\"
         mount -t fuse.tandemfs \"$CONFIG\" \"$MNT\" -o ro; mount -o remount,noexec \"$MNT\"; show
         ! mount -o remount,rw \"$MNT\" 2> \"$PLACE/said\"; grep -o 'was mounted read-only' \"$PLACE/said\"; show
         cat \"$MNT/file\"; umount \"$MNT\"
         ! mount.fuse.tandemfs \"$CONFIG\" \"$MNT\" -o remount,ro 2> \"$PLACE/said\"; grep -o 'no TandemFS is mounted' \"$PLACE/said\"",
    );
    let finished = with_helper(&place, "mount.fuse.tandemfs", &config, &lines);
    let Some(finished) = finished else { return };
    let _ended = Mounted::found(&place, "state");
    assert_lines(
        &finished,
        &[
            "files are open for writing",
            "allow_other nodev nosuid rw",
            "allow_other nodev nosuid ro",
            "hello",
            "written",
            "allow_other noatime nodev noexec nosuid rw",
            "allow_other noatime nodev noexec nosuid rw",
            "allow_other noatime nodev nosuid rw",
            "allow_other noatime nodev nosuid ro",
            "nodev noexec nosuid ro",
            "was mounted read-only",
            "nodev noexec nosuid ro",
            "hello",
            "more",
            "no TandemFS is mounted",
        ],
    );
}

#[test]
fn mount_fuse_finds_the_program_by_its_own_name() {
    if !installed(&["mount.fuse"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let config = config(&place, false);
    let finished = with_helper(
        &place,
        "tandemfs",
        &config,
        "mount -t fuse.tandemfs \"$CONFIG\" \"$MNT\" -o rw,noatime,nofail,_netdev
         findmnt -no FSTYPE -M \"$MNT\"; echo hello > \"$MNT/file\"
         mount -o remount,ro \"$MNT\"; if touch \"$MNT/file\"; then exit 9; fi; umount \"$MNT\"",
    );
    let Some(finished) = finished else { return };
    let _ended = Mounted::found(&place, "state");
    assert_lines(&finished, &["fuse.tandemfs"]);
}

#[test]
fn source_and_type_are_what_the_options_say_and_our_commands_know_the_mount() {
    let place = Place::new(&["a"]);
    for (options, kind, source) in [
        ("fsname=my tank,subtype=photos", "fuse.photos", "my tank"),
        ("nosubtype", "fuse", "mnt"),
        ("rw", "fuse.tandemfs", "mnt"),
    ] {
        let mount = || place.mount_with("state", &["-o".as_ref(), options.as_ref()]);
        let mounted = mount();
        let found = |column: &str| {
            program("findmnt", ["-no".as_ref(), column.as_ref(), "-M".as_ref(), place.mnt().as_os_str()])
        };
        assert_eq!((found("FSTYPE").trim(), found("SOURCE").trim()), (kind, source));
        std::fs::write(mounted.path("file"), options).unwrap();
        let again = finish(&mut place.mount_command("other"));
        assert!(again.code == 1 && again.stderr.contains("is mounted at"), "{}", again.stderr);
        // A daemon that died leaves a mount of that type behind, which the next one takes away.
        let daemon = mounted.daemon().unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(daemon as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        wait_for("the daemon is gone", || mounted.daemon().is_none());
        assert_eq!(found("FSTYPE").trim(), kind, "the dead mount");
        let dead = mounted;
        let mounted = mount();
        // Its end would be that of the new one.
        std::mem::forget(dead);
        assert_eq!(std::fs::read_to_string(mounted.path("file")).unwrap(), options);
        mounted.umount();
        assert!(std::fs::read_dir(place.mnt()).unwrap().next().is_none(), "still mounted");
    }
}

/// What the daemon told systemd, until `last`.
fn told(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while told.last().is_none_or(|line: &String| !line.starts_with(last)) {
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{e}, after {told:?}"));
        told.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
    }
    told
}

#[test]
fn systemd_is_told_when_it_is_ready_and_waits_while_it_drains() {
    let place = Place::new(&["a"]);
    // One target is not there: draining takes as long as it may.
    let mut text = std::fs::read_to_string(config(&place, true)).unwrap();
    text.insert_str(0, "shutdown_timeout = \"3s\"\n");
    std::fs::write(place.path("tank.toml"), text).unwrap();
    let socket = UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut daemon = tandemfs()
        .arg("mount")
        .arg("--foreground")
        .arg(place.mnt())
        .arg("--config")
        .arg(place.path("tank.toml"))
        .env("NOTIFY_SOCKET", place.path("notify"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mounted = Mounted::found(&place, "state");
    assert_eq!(told(&socket, "READY"), ["READY=1"]);
    std::fs::write(mounted.path("file"), "x").unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM).unwrap();
    let told = told(&socket, "EXTEND");
    assert_eq!(told, ["STOPPING=1", "EXTEND_TIMEOUT_USEC=60000000"]);
    assert_eq!(daemon.wait().unwrap().code(), Some(3), "not drained in time");
    mounted.wait_end();
}

#[test]
fn the_first_signal_after_umount_8_does_not_cut_draining_short() {
    let place = Place::new(&["a"]);
    let mut text = std::fs::read_to_string(config(&place, true)).unwrap();
    text.insert_str(0, "shutdown_timeout = \"10m\"\n");
    std::fs::write(place.path("tank.toml"), text).unwrap();
    let mut daemon = tandemfs()
        .args(["mount", "--foreground"])
        .arg(place.mnt())
        .arg("--config")
        .arg(place.path("tank.toml"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mounted = Mounted::found(&place, "state");
    wait_for("it is mounted", || mounted.log().contains(" mounted"));
    std::fs::write(mounted.path("file"), "x").unwrap();
    program("umount", [place.mnt()]);
    wait_for("it drains", || mounted.log().contains("unmounted"));
    let pid = rustix::process::Pid::from_child(&daemon);
    // What systemd does to the processes of a mount unit that was unmounted.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_for("the signal is noticed", || mounted.log().contains("the next one ends at once"));
    assert!(daemon.try_wait().unwrap().is_none(), "it goes on");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(1));
    mounted.wait_end();
}
