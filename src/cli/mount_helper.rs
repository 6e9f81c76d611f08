//! What mount(8), fstab(5) and `mount.fuse` call: `mount.fuse.tandemfs SOURCE MOUNTPOINT -o options`.
//!
//! Owns: translating such a call into `tandemfs mount`, which then is all there is: SOURCE is the configuration file; with
//! `-o remount` into `tandemfs remount`.
//! Does not own: the words of `-o` (`mount::fuse_options`, `mount::remount`).
//!
//! | called by | as |
//! |---|---|
//! | mount(8), with a link to the program | `/sbin/mount.fuse.tandemfs SOURCE MOUNTPOINT [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` |
//! | mount(8) without one, through `mount.fuse` | `tandemfs SOURCE MOUNTPOINT -o OPTIONS` |

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Parser;

use crate::mount::remount;

/// Mount as mount(8) asks for it: SOURCE is a configuration file
#[derive(Debug, Parser)]
#[command(name = "mount.fuse.tandemfs", version)]
struct Helper {
    /// TOML file with the targets and settings
    source: OsString,
    /// An empty directory
    mountpoint: OsString,
    /// Options as in fstab(5)
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Do everything but mount: nothing
    #[arg(short = 'f')]
    fake: bool,
    /// Mount read-only
    #[arg(short = 'r')]
    read_only: bool,
    /// Mount for writing, as always
    #[arg(short = 'w')]
    writable: bool,
    /// For other filesystems: unknown options, /etc/mtab, verbosity
    #[arg(short = 's', short_aliases = ['n', 'v'], action = clap::ArgAction::Count)]
    others: u8,
    /// The type, which is ours
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// The namespace that mount(8) is in already
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
}

/// Arguments of `tandemfs`, whatever the program was called as. `None`: there is nothing to do.
pub fn translate(given: Vec<OsString>) -> Option<Vec<OsString>> {
    if !is_helper_call(&given) {
        return Some(given);
    }
    let Helper { source, mountpoint, options, fake, read_only, .. } = Helper::parse_from(given);
    if fake {
        return None;
    }
    if remount::is_asked(&options) {
        let mut arguments: Vec<OsString> = ["tandemfs", "remount"].map(OsString::from).into();
        let read_only = read_only.then(|| "ro".to_owned());
        arguments.extend(options.into_iter().chain(read_only).flat_map(|list| ["-o".into(), list.into()]));
        arguments.extend(["--".into(), mountpoint]);
        return Some(arguments);
    }
    let mut arguments: Vec<OsString> = ["tandemfs", "mount", "--config"].map(OsString::from).into();
    // So that mount(8) finds the line of fstab in the table of mounts, and `mount -a` does not mount it again.
    let mut name = OsString::from("fsname=");
    name.push(escape(&source));
    arguments.extend([source, "-o".into(), name]);
    for list in options {
        arguments.extend(["-o".into(), list.into()]);
    }
    if read_only {
        arguments.extend(["-o".into(), "ro".into()]);
    }
    arguments.extend(["--".into(), mountpoint]);
    Some(arguments)
}

/// Called under a helper's name, or with a path where commands have a name.
fn is_helper_call(given: &[OsString]) -> bool {
    let name = given.first().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    name.as_bytes().starts_with(b"mount.") || given.get(1).is_some_and(|first| first.as_bytes().contains(&b'/'))
}

/// A comma would end the value.
fn escape(source: &OsStr) -> String {
    source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, expected: Option<&str>) {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(translate(words(given)), expected.map(words), "{given}");
    }

    #[test]
    fn a_call_of_mount_is_a_mount_with_that_configuration() {
        check(
            "/sbin/mount.fuse.tandemfs /etc/t.toml /mnt/t -s -v -o rw,nosuid -t fuse.tandemfs",
            Some("tandemfs mount --config /etc/t.toml -o fsname=/etc/t.toml -o rw,nosuid -- /mnt/t"),
        );
        check("mount.tandemfs t.toml /mnt -rn", Some("tandemfs mount --config t.toml -o fsname=t.toml -o ro -- /mnt"));
    }

    #[test]
    fn the_program_itself_is_a_helper_when_a_path_comes_first() {
        check(
            "tandemfs /etc/a,b.toml /mnt -o ro",
            Some(r"tandemfs mount --config /etc/a,b.toml -o fsname=/etc/a\,b.toml -o ro -- /mnt"),
        );
        check("tandemfs mount /mnt --config /etc/t.toml", Some("tandemfs mount /mnt --config /etc/t.toml"));
        check("tandemfs", Some("tandemfs"));
    }

    #[test]
    fn a_remount_is_of_the_mountpoint_whatever_the_source() {
        check(
            "/sbin/mount.fuse.tandemfs tank /mnt/t -o ro,nosuid,remount,user_id=0 -n",
            Some("tandemfs remount -o ro,nosuid,remount,user_id=0 -- /mnt/t"),
        );
        check("mount.tandemfs t.toml /mnt -r -o remount", Some("tandemfs remount -o remount -o ro -- /mnt"));
        check("mount.tandemfs t.toml /mnt -f -o remount", None);
    }

    #[test]
    fn a_fake_mount_does_nothing() {
        check("mount.tandemfs /etc/t.toml /mnt -f", None);
    }
}
