//! The words of `-o`: what mount(8), fstab(5) and systemd hand to a filesystem.

use crate::control::{Error, ErrorKind};
use crate::fuse::device::MountOptions;

/// What the words ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FuseOptions {
    pub mount: MountOptions,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
}

/// Words of fstab that are for others, or say what is so anyway.
const OTHERS: [&str; 22] = [
    "defaults",
    "rw",
    "exec",
    "nosuid",
    "nodev",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "async",
    "relatime",
    "noatime",
    "nodiratime",
    "default_permissions",
    "silent",
    "loud",
    "lazytime",
];
/// Words that mean something here.
const OURS: [&str; 6] = ["allow_other", "suid", "dev", "noexec", "ro", "nonempty"];

/// Reads lists of words divided by commas. Later words win.
pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<FuseOptions, Error> {
    let mut options = FuseOptions::default();
    for word in lists.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
        match word {
            "allow_other" => options.mount.allow_other = true,
            "suid" => options.mount.suid = true,
            "nosuid" => options.mount.suid = false,
            "dev" => options.mount.dev = true,
            "nodev" => options.mount.dev = false,
            "noexec" => options.mount.noexec = true,
            "exec" => options.mount.noexec = false,
            "ro" => options.mount.read_only = true,
            "rw" => options.mount.read_only = false,
            "nonempty" => options.nonempty = true,
            word if word.is_empty() || OTHERS.contains(&word) => {}
            // "x-systemd.automount", "comment=…": for other programs by convention.
            word if word.starts_with("x-") || word.starts_with("comment=") => {}
            word => {
                return Err(Error::new(ErrorKind::Usage, format!("mount option {word:?} is unknown"))
                    .hint(format!("options are: {}", OURS.join(", "))));
            }
        }
    }
    Ok(options)
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
    fn an_unknown_word_is_an_error_that_names_the_known() {
        let error = parse(["alow_other"]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(error.hint.unwrap().contains("allow_other"));
    }
}
