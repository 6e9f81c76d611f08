//! Mountpoints that stand empty: the system's list says that something is mounted there, and nothing is.
//!
//! Owns: reading `/etc/fstab` (fstab(5)), whether a path lies in such a mountpoint.
//! Does not own: what follows (`directory`): a place is not made there (T1).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The system's list.
pub(super) const FSTAB: &str = "/etc/fstab";

/// The mountpoint at or above `path` that `fstab` names and where nothing is mounted, if there is one.
pub(super) fn unmounted_above(fstab: &Path, path: &Path) -> Option<PathBuf> {
    let points = mountpoints(&std::fs::read(fstab).ok()?);
    // As far as it exists, without symbolic links: that is how the list names it.
    let existing = path.ancestors().find_map(|at| at.canonicalize().ok())?;
    existing.ancestors().find(|at| points.iter().any(|point| point == at) && !is_mounted(at)).map(Path::to_owned)
}

/// Something else is mounted there than above it.
fn is_mounted(at: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    at.parent().is_none_or(|parent| device(at) != device(parent))
}

/// The mountpoints of devices and network filesystems; a bind mount is of the same device as what is above it.
fn mountpoints(fstab: &[u8]) -> Vec<PathBuf> {
    let point = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let (device, point, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next());
        let bind =
            options.is_some_and(|options| options.split(|&byte| byte == b',').any(|word| word.ends_with(b"bind")));
        let counts = !device.starts_with(b"#") && point.starts_with(b"/") && kind != b"swap" && !bind;
        counts.then(|| OsString::from_vec(unescaped(point)).into())
    };
    fstab.split(|&byte| byte == b'\n').filter_map(point).collect()
}

/// A space is written `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut parts = field.split(|&byte| byte == b'\\');
    let mut bytes = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let digits = part.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part[3..]);
            }
            None => {
                bytes.push(b'\\');
                bytes.extend_from_slice(part);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_of_devices_are_read() {
        let fstab = b"# /dev/sda1 /old ext4\n/dev/sda1  /  ext4 defaults 0 1\nUUID=1\t/mnt/my\\040disk\text4 noauto\n\
            /dev/sda2 none swap sw 0 0\n/a /b none ro,bind 0 0\nnas:/x /nfs nfs\nbroken\n\xff\xfe";
        assert_eq!(mountpoints(fstab), [PathBuf::from("/"), "/mnt/my disk".into(), "/nfs".into()]);
    }

    #[test]
    fn t1_a_mountpoint_that_stands_empty_is_found_from_below_and_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("disk/deep")).unwrap();
        std::os::unix::fs::symlink("disk", root.join("link")).unwrap();
        let fstab = root.join("fstab");
        std::fs::write(&fstab, format!("/dev/sdz9 {} ext4 defaults\n", root.join("disk").display())).unwrap();
        for below in ["disk", "disk/new", "disk/deep/new", "link/new"] {
            assert_eq!(unmounted_above(&fstab, &root.join(below)), Some(root.join("disk")), "{below}");
        }
        assert_eq!(unmounted_above(&fstab, &root.join("other")), None);
        assert_eq!(unmounted_above(&root.join("no fstab"), &root.join("disk")), None);
        // Something is mounted there: not the device of what is above.
        std::fs::write(&fstab, "proc /proc proc defaults\n").unwrap();
        assert_eq!(unmounted_above(&fstab, Path::new("/proc/self")), None);
    }
}
