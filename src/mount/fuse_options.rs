//! The words of `-o`: what mount(8), fstab(5) and systemd hand to a filesystem.

use std::path::PathBuf;

use crate::control::{Error, ErrorKind};
use crate::fuse::device::MountOptions;

/// What the words ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseOptions {
    pub mount: MountOptions,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// Where the local state lies.
    pub state_dir: Option<PathBuf>,
    /// Let the kernel read and write local files by itself where it can.
    pub passthrough: bool,
}

impl Default for FuseOptions {
    fn default() -> FuseOptions {
        FuseOptions { mount: MountOptions::default(), nonempty: false, state_dir: None, passthrough: true }
    }
}

/// Words of fstab that are for others, or say what is so anyway.
const OTHERS: [&str; 25] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "async",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "default_permissions",
    "silent",
    "loud",
];
/// Of "x-systemd.automount", "comment=…", "user=…": for other programs by convention, and notes of mount(8) to itself.
const OTHERS_BEGIN: [&str; 6] = ["x-", "X-", "comment=", "user=", "uhelper=", "helper="];
/// Words that mean something here.
const OURS: [&str; 11] = [
    "allow_other",
    "suid",
    "dev",
    "noexec",
    "ro",
    "nonempty",
    "no_passthrough",
    "fsname=NAME",
    "subtype=NAME",
    "nosubtype",
    "state_dir=DIR",
];

/// Reads lists of words divided by commas; a backslash makes the next character part of a word. Later words win.
pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<FuseOptions, Error> {
    of_words(lists.into_iter().flat_map(words))
}

/// The same, of words.
pub(super) fn of_words(words: impl IntoIterator<Item = String>) -> Result<FuseOptions, Error> {
    let mut options = FuseOptions::default();
    for word in words {
        let word = word.trim();
        match word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value))) {
            ("allow_other", None) => options.mount.allow_other = true,
            ("suid", None) => options.mount.suid = true,
            ("nosuid", None) => options.mount.suid = false,
            ("dev", None) => options.mount.dev = true,
            ("nodev", None) => options.mount.dev = false,
            ("noexec", None) => options.mount.noexec = true,
            ("exec", None) => options.mount.noexec = false,
            ("ro", None) => options.mount.read_only = true,
            ("rw", None) => options.mount.read_only = false,
            ("nonempty", None) => options.nonempty = true,
            ("passthrough", None) => options.passthrough = true,
            ("no_passthrough", None) => options.passthrough = false,
            ("fsname", Some(name)) if !name.is_empty() => options.mount.source = name.into(),
            ("subtype", Some(name)) if is_subtype(name) => options.mount.subtype = Some(name.into()),
            ("nosubtype", None) => options.mount.subtype = None,
            ("state_dir", Some(path)) if path.starts_with('/') => options.state_dir = Some(path.into()),
            (key @ ("fsname" | "subtype" | "state_dir"), _) => return Err(bad_value(key, word)),
            ("remount", None) => {
                return Err(Error::new(ErrorKind::Usage, "a mount is changed by mount(8)")
                    .hint("as root: mount -o remount,ro MOUNTPOINT"));
            }
            _ if word.is_empty() || OTHERS.contains(&word) => {}
            _ if OTHERS_BEGIN.iter().any(|begin| word.starts_with(begin)) => {}
            _ => {
                return Err(Error::new(ErrorKind::Usage, format!("mount option {word:?} is unknown"))
                    .hint(format!("options are: {}", OURS.join(", "))));
            }
        }
    }
    Ok(options)
}

/// The words of one list.
pub(super) fn words(list: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        let last = words.last_mut().expect("there is one from the start");
        match character {
            ',' => words.push(String::new()),
            '\\' => last.extend(characters.next()),
            other => last.push(other),
        }
    }
    words
}

/// It becomes a part of the filesystem's type in tables that are divided by spaces.
fn is_subtype(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn bad_value(key: &str, word: &str) -> Error {
    let wants = match key {
        "fsname" => "fsname= names what mount and df show as source",
        "subtype" => "subtype= takes up to 64 letters, digits, dots, dashes and underscores",
        _ => "state_dir= takes an absolute path",
    };
    Error::new(ErrorKind::Usage, format!("mount option {word:?} has no good value")).hint(wants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fstab_is_understood() {
        let options = parse(["rw,nosuid,nodev,_netdev,x-systemd.automount,allow_other", "ro"]).unwrap();
        assert!(options.mount.allow_other && options.mount.read_only && !options.mount.suid);
        assert_eq!(parse([""]).unwrap(), FuseOptions::default());
    }

    #[test]
    fn source_and_type_are_what_the_words_say() {
        let kind = |list| parse([list]).unwrap().mount.kind();
        assert_eq!(kind("rw"), "fuse.tandemfs");
        assert_eq!(kind("subtype=photos"), "fuse.photos");
        assert_eq!(kind("subtype=photos,nosubtype"), "fuse");
        let options = parse([r"fsname=a\,b\\c,state_dir=/s=1,user=me,nofail,X-mount.mkdir,_netdev,noauto"]).unwrap();
        assert_eq!(options.mount.source, r"a,b\c");
        assert_eq!(options.state_dir.as_deref(), Some(std::path::Path::new("/s=1")));
        for list in ["fsname=", "fsname", "subtype=", "subtype=a b", "subtype=a/b", "state_dir=here", "state_dir"] {
            let error = parse([list]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage, "{list}");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn an_unknown_word_is_an_error_that_names_the_known() {
        let error = parse(["alow_other"]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(error.hint.unwrap().contains("allow_other"));
    }
}
