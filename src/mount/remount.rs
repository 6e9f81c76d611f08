//! `mount -o remount,…`: the flags that a mount has from then on, from the words that mount(8) hands to its helper.
//!
//! Owns: what the words mean, what cannot be changed.
//! Does not own: words at mount (`fuse_options`), the call (`fuse::device`), what makes a mount read-only for good (its daemon).
//!
//! mount(8) hands over the whole set: the words of the table of mounts, in which case the numbers of the user who mounted
//! are among them, or those of fstab's line, with those of the command line; a flag that none of them names is off. It
//! drops a word that only takes a flag away (`exec`). Of set-id programs and devices a line of fstab that says nothing means
//! no (D5), so such a line never allows what was not allowed before.
//!
//! The kernel does the rest: it refuses `ro` with `EBUSY` while files are open for writing, or open without a name, and
//! preserves how access times are kept where no word says it.

use super::fuse_options;
use super::table::Mount;
use crate::control::{Error, ErrorKind};
use crate::fuse::device::Flags;

/// Words that set flags and clear others; later ones win.
const WORDS: [(&str, Flags, Flags); 24] = [
    ("ro", libc::MS_RDONLY, 0),
    ("rw", 0, libc::MS_RDONLY),
    ("nosuid", libc::MS_NOSUID, 0),
    ("suid", 0, libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV, 0),
    ("dev", 0, libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC, 0),
    ("exec", 0, libc::MS_NOEXEC),
    ("noatime", libc::MS_NOATIME, libc::MS_RELATIME | libc::MS_STRICTATIME),
    ("atime", 0, libc::MS_NOATIME),
    ("relatime", libc::MS_RELATIME, libc::MS_NOATIME | libc::MS_STRICTATIME),
    ("norelatime", 0, libc::MS_RELATIME),
    ("strictatime", libc::MS_STRICTATIME, libc::MS_NOATIME | libc::MS_RELATIME),
    ("nostrictatime", 0, libc::MS_STRICTATIME),
    ("nodiratime", libc::MS_NODIRATIME, 0),
    ("diratime", 0, libc::MS_NODIRATIME),
    ("lazytime", libc::MS_LAZYTIME, 0),
    ("nolazytime", 0, libc::MS_LAZYTIME),
    ("sync", libc::MS_SYNCHRONOUS, 0),
    ("async", 0, libc::MS_SYNCHRONOUS),
    ("dirsync", libc::MS_DIRSYNC, 0),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
    ("remount", 0, 0),
];
/// Missing in the C library's crate: `MS_NOSYMFOLLOW`.
const NOSYMFOLLOW: Flags = 256;

/// What the kernel's table says of a FUSE mount beside flags: as it is, and stays.
const OF_THE_TABLE: [&str; 6] = ["user_id=", "group_id=", "rootmode=", "fd=", "max_read=", "blksize="];

/// True if the words ask for a mount to be changed, not made.
pub fn is_asked(lists: &[String]) -> bool {
    lists.iter().flat_map(|list| fuse_options::words(list)).any(|word| word == "remount")
}

/// The flags that `lists` of words ask for, of the mount that the table shows as `now`.
pub fn flags(lists: &[String], now: &Mount) -> Result<Flags, Error> {
    let words: Vec<String> = lists.iter().flat_map(|list| fuse_options::words(list)).collect();
    let names = |word: &str| words.iter().any(|named| named == word);
    let mut flags = 0;
    let mut others = Vec::new();
    for word in &words {
        match WORDS.iter().find(|(name, ..)| name == word) {
            Some((_, set, clear)) => flags = flags & !clear | set,
            None if OF_THE_TABLE.iter().any(|begin| word.starts_with(begin)) => {}
            None if word == "mand" => {
                return Err(Error::new(ErrorKind::Usage, "mandatory locks do not exist on FUSE").hint("leave out mand"));
            }
            None => others.push(word.clone()),
        }
    }
    if fuse_options::of_words(others)?.mount.allow_other && !now.has("allow_other") {
        return Err(Error::new(ErrorKind::Usage, "allow_other cannot be changed while it is mounted")
            .hint("unmount it and mount it again"));
    }
    if !words.iter().any(|word| word.starts_with("user_id=")) {
        for (restriction, permission, flag) in [("nosuid", "suid", libc::MS_NOSUID), ("nodev", "dev", libc::MS_NODEV)] {
            if now.has(restriction) && !names(permission) {
                flags |= flag;
            }
        }
        if now.has("ro") && !names("rw") {
            flags |= libc::MS_RDONLY;
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::table::Table;

    fn flags_of(words: &str, now: &str) -> Result<Flags, Error> {
        let (own, all) = now.split_once(' ').unwrap();
        let line = format!("36 35 0:50 / /m {own} shared:1 - fuse.tandemfs tank {all}\n");
        flags(&[words.to_owned()], Table::parse(line.as_bytes()).at(std::path::Path::new("/m")).unwrap())
    }

    const NOW: &str = "rw,nosuid,nodev,relatime rw,user_id=0,group_id=0,default_permissions";
    const SUID: &str = "rw,relatime rw,user_id=0,group_id=0,default_permissions,allow_other";
    const SAFE: Flags = libc::MS_NOSUID | libc::MS_NODEV;

    #[test]
    fn the_words_of_the_table_are_the_whole_set() {
        let table = "remount,user_id=0,group_id=0,default_permissions";
        let check = |words: &str, expected| {
            assert_eq!(flags_of(&format!("{words},{table}"), NOW).unwrap(), expected, "{words}")
        };
        check("ro,nosuid,nodev,relatime", libc::MS_RDONLY | SAFE | libc::MS_RELATIME);
        check("rw,nosuid,nodev,relatime,noatime", SAFE | libc::MS_NOATIME);
        check("rw,nodev,noexec", libc::MS_NODEV | libc::MS_NOEXEC);
        check("ro,rw", 0);
    }

    #[test]
    fn d5_a_line_that_says_nothing_of_set_id_programs_and_devices_does_not_allow_them() {
        let check = |words, now, expected| assert_eq!(flags_of(words, now).unwrap(), expected, "{words}");
        check("ro,remount,nofail,state_dir=/s,x-systemd.automount,user", NOW, libc::MS_RDONLY | SAFE);
        check("rw,remount,suid", NOW, libc::MS_NODEV);
        check("remount", NOW, SAFE);
        check("remount,ro", SUID, libc::MS_RDONLY);
        check("remount", "ro,nosuid ro,user_id=0", libc::MS_RDONLY | libc::MS_NOSUID);
        check("remount,rw", "ro,nosuid ro,user_id=0", libc::MS_NOSUID);
    }

    #[test]
    fn what_cannot_be_changed_or_is_unknown_is_refused() {
        for (words, now) in [("remount,mand", NOW), ("remount,allow_other", NOW), ("remount,alow_other", SUID)] {
            let error = flags_of(words, now).unwrap_err();
            assert!(error.kind == ErrorKind::Usage && error.hint.is_some(), "{words}: {error}");
        }
        assert!(flags_of("remount,allow_other", SUID).is_ok());
    }

    #[test]
    fn a_call_for_a_remount_is_told_from_one_for_a_mount() {
        let asked = |list: &str| is_asked(&["rw".to_owned(), list.to_owned()]);
        assert!(asked("ro,remount") && !asked("fsname=remount") && !asked(r"fsname=a\,remount"));
    }
}
