//! The kernel's mount table, `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Owns: reading its lines, under which paths a place is visible.
//! Does not own: what follows from it (`nesting`, `unmount`).
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
//!       dev  root  at    options               kind           options
//! ```

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of its filesystem.
    pub dev: Vec<u8>,
    /// The directory of that filesystem which is mounted.
    pub root: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// The type of the filesystem.
    pub kind: Vec<u8>,
    /// Flags of the mount, and options of its filesystem.
    options: [Vec<u8>; 2],
}

impl Mount {
    /// True if the table names this option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|list| list.split(|&byte| byte == b',').any(|word| word == option.as_bytes()))
    }
}

/// All mounts, in the order of mounting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table(Vec<Mount>);

impl Table {
    /// Reads the table of this process.
    pub fn read() -> io::Result<Table> {
        Ok(Table::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    pub(super) fn parse(text: &[u8]) -> Table {
        Table(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
    }

    /// The topmost mount at `path`.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.at == path)
    }

    /// The filesystem that `path`, which is absolute and without symbolic links, lies on, and where in it.
    pub fn place(&self, path: &Path) -> Option<(&[u8], PathBuf)> {
        // Later lines are mounted over earlier ones: of those as deep, the last.
        let on = self.0.iter().filter(|mount| path.starts_with(&mount.at));
        let mount = on.max_by_key(|mount| mount.at.components().count())?;
        let rest = path.strip_prefix(&mount.at).ok()?;
        Some((&mount.dev, join(&mount.root, rest)))
    }

    /// Every path under which what lies at `path` is visible, this one included: bind mounts show a directory twice.
    pub fn aliases(&self, path: &Path) -> Vec<PathBuf> {
        let mut found = vec![path.to_owned()];
        if let Some((dev, place)) = self.place(path) {
            for mount in self.0.iter().filter(|mount| mount.dev == dev) {
                if let Ok(rest) = place.strip_prefix(&mount.root) {
                    found.push(join(&mount.at, rest));
                }
            }
        }
        found
    }
}

/// As [`Path::join`], but without a `/` at the end.
fn join(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_owned() } else { path.join(rest) }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let dev = fields.nth(2)?.to_vec();
    let (root, at) = (path(fields.next()?), path(fields.next()?));
    let own = fields.next()?.to_vec();
    let mut of_filesystem = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = of_filesystem.next()?.to_vec();
    // The source is left out.
    let all = of_filesystem.nth(1).unwrap_or_default().to_vec();
    Some(Mount { dev, root, at, kind, options: [own, all] })
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| {
            digits.iter().try_fold(0u8, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
                _ => None,
            })
        });
        match octal {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        21 20 8:2 / /disk rw,noatime shared:3 - xfs /dev/sdb1 rw\n\
        22 20 8:2 /backup /srv/my\\040backup rw - xfs /dev/sdb1 rw\n\
        23 20 0:50 / /m rw - fuse tandemfs rw\n\
        24 20 0:51 / /m rw - fuse.tandemfs photos rw\n\
        25 20 8:1 /var /disk/var rw - ext4 /dev/sda1 rw\n\
        a line of some other kind\n";

    #[test]
    fn the_topmost_mount_of_a_place_is_found() {
        let table = Table::parse(TABLE);
        assert_eq!(table.at(Path::new("/m")).unwrap().kind, b"fuse.tandemfs");
        assert_eq!(table.at(Path::new("/srv/my backup")).unwrap().root, Path::new("/backup"));
        assert_eq!(table.at(Path::new("/m/x")), None);
        let disk = table.at(Path::new("/disk")).unwrap();
        assert!(disk.has("noatime") && disk.has("rw") && !disk.has("atime") && !disk.has("ro"));
    }

    #[test]
    fn a_place_is_known_under_every_path_that_shows_it() {
        let table = Table::parse(TABLE);
        assert_eq!(table.place(Path::new("/disk/backup/a")), Some((&b"8:2"[..], "/backup/a".into())));
        assert_eq!(table.place(Path::new("/srv/my backup/a")), Some((&b"8:2"[..], "/backup/a".into())));
        assert_eq!(table.place(Path::new("/disk/var/lib")), Some((&b"8:1"[..], "/var/lib".into())));
        let aliases = table.aliases(Path::new("/srv/my backup/a"));
        assert_eq!(aliases[1..], [PathBuf::from("/disk/backup/a"), "/srv/my backup/a".into()]);
        assert_eq!(table.aliases(Path::new("/disk/other")), [PathBuf::from("/disk/other"), "/disk/other".into()]);
    }

    #[test]
    fn escapes_are_octal() {
        assert_eq!(unescape(b"a\\040b\\134"), b"a b\\");
        assert_eq!(unescape(b"\\9\\"), b"\\9\\");
    }

    #[test]
    fn the_table_of_this_process_can_be_read() {
        assert!(Table::read().unwrap().place(Path::new("/")).is_some());
    }
}
