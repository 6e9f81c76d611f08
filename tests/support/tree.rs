//! A tree of files as a value that can be compared: everything that `stat`, `read`, `readlink` and `getxattr` tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What a tree is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names, types, modes, owners, sizes, bytes, mtimes, link targets, hard link groups, xattrs: what `cp -a` keeps.
    Copied,
    /// Besides inode numbers, link counts and ctimes: what a restore keeps.
    Restored,
}

/// One line per name, by path relative to the root of the tree.
pub type Tree = BTreeMap<Vec<u8>, String>;

/// Reads the whole tree at `root`, without `root` itself.
pub fn read(root: &Path, depth: Depth) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let mut names: Vec<_> =
            std::fs::read_dir(root.join(&directory)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = directory.join(name);
            let full = root.join(&path);
            let meta = std::fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            let mut line = format!(
                "{:o} {}:{} mtime {}.{:09}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            if meta.is_dir() {
                pending.push(path.clone());
            } else {
                write!(line, " size {}", meta.len()).unwrap();
            }
            if meta.is_file() {
                write!(line, " blake3 {}", hash(&full)).unwrap();
            }
            if meta.is_symlink() {
                write!(line, " -> {:?}", std::fs::read_link(&full).unwrap()).unwrap();
            }
            if meta.rdev() != 0 {
                write!(line, " device {:x}", meta.rdev()).unwrap();
            }
            if meta.nlink() > 1 && !meta.is_dir() {
                let first = first_names.entry(meta.ino()).or_insert_with(|| path.clone());
                write!(line, " same as {first:?}").unwrap();
            }
            for (name, value) in xattrs(&full) {
                write!(line, " {}={:?}", String::from_utf8_lossy(&name), value).unwrap();
            }
            if depth == Depth::Restored {
                write!(
                    line,
                    " ino {} nlink {} ctime {}.{:09}",
                    meta.ino(),
                    meta.nlink(),
                    meta.ctime(),
                    meta.ctime_nsec()
                )
                .unwrap();
            }
            tree.insert(path.into_os_string().into_vec(), line);
        }
    }
    tree
}

/// Fails with the first differences if the trees are not the same.
#[track_caller]
pub fn assert_same(what: &str, left: &Tree, right: &Tree) {
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys()).collect::<std::collections::BTreeSet<_>>() {
        if left.get(path) != right.get(path) {
            differences.push(format!(
                "{:?}\n  left:  {}\n  right: {}",
                String::from_utf8_lossy(path),
                left.get(path).map_or("absent", |line| line),
                right.get(path).map_or("absent", |line| line)
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: {} of {} names differ\n{}",
        differences.len(),
        left.len(),
        differences[..differences.len().min(8)].join("\n")
    );
}

fn hash(path: &Path) -> blake3::Hash {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if count == 0 {
            return hasher.finalize();
        }
        hasher.update(&buffer[..count]);
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0u8; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return Vec::new() };
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"security."))
        .map(|name| {
            let mut value = vec![0u8; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    found.sort();
    found
}

/// Makes a tree with everything that is awkward: odd names, sizes around every boundary, holes, links, special files,
/// odd modes, times and xattrs. Always the same.
pub fn make_awkward(root: &Path) {
    std::fs::create_dir(root).unwrap();
    let names: [&[u8]; 9] = [
        b"plain",
        b" lead and trail ",
        b"new\nline",
        b"\xff\xfe raw bytes",
        "üñí☃".as_bytes(),
        b"-rf",
        b"a'b\"c\\d",
        b"$(x)",
        &[b'n'; 255],
    ];
    let directory = root.join("names");
    std::fs::create_dir(&directory).unwrap();
    for (index, name) in names.iter().enumerate() {
        std::fs::write(directory.join(std::ffi::OsStr::from_bytes(name)), noise(index as u64, 100 * index)).unwrap();
    }
    let sizes = root.join("sizes");
    std::fs::create_dir(&sizes).unwrap();
    for size in [0, 1, 4095, 4096, 4097, 65536, (1 << 20) - 1, 1 << 20, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20]
    {
        std::fs::write(sizes.join(size.to_string()), noise(size as u64, size)).unwrap();
    }
    let holes = File::create(root.join("holes")).unwrap();
    holes.set_len(64 << 20).unwrap();
    holes.write_all_at(b"in the middle", 33 << 20).unwrap();
    File::create(root.join("only a hole")).unwrap().set_len(5 << 20).unwrap();
    std::fs::write(root.join("zeros"), vec![0; 3 << 20]).unwrap();

    let deep = (0..40).fold(root.join("deep"), |path, level| path.join(format!("level{level}")));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "bottom").unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    let many = root.join("many");
    std::fs::create_dir(&many).unwrap();
    for index in 0..300 {
        std::fs::write(many.join(format!("file{index}")), noise(index, 200 * index as usize)).unwrap();
    }

    symlink("sizes/4096", root.join("relative link")).unwrap();
    symlink("/nowhere/at all", root.join("dangling link")).unwrap();
    symlink("x".repeat(3000), root.join("long link")).unwrap();
    std::fs::hard_link(root.join("sizes/65536"), root.join("second name")).unwrap();
    std::fs::hard_link(root.join("sizes/65536"), root.join("names/third name")).unwrap();
    super::run::program("mkfifo", [root.join("fifo")]);

    for mode in [0o000, 0o400, 0o644, 0o755, 0o1777, 0o2755, 0o4711, 0o7777] {
        let path = root.join(format!("mode{mode:o}"));
        std::fs::write(&path, "mode").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("names/plain"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(root.join("relative link"), Some(1), Some(2)).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("names/plain"), "user.text", b"value", flags).unwrap();
    rustix::fs::setxattr(root.join("empty"), "user.bytes", b"\0\xff\n", flags).unwrap();
    rustix::fs::setxattr(root.join("zeros"), "user.empty", b"", flags).unwrap();
    rustix::fs::setxattr(root.join("zeros"), "user.large", &[7; 2000], flags).unwrap();
    for (name, time) in [
        ("sizes/1", "2001-02-03 04:05:06.789012345"),
        ("sizes/0", "1969-12-31 23:59:58.25 UTC"),
        ("empty", "2037-01-01"),
    ] {
        super::run::program("touch", [std::ffi::OsStr::new("-d"), time.as_ref(), root.join(name).as_os_str()]);
    }
}

/// Every file below a directory, as far as it is still there: somebody may be removing some. A place that is away has none.
pub fn files_below(root: &Path) -> Vec<(PathBuf, std::fs::Metadata)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match std::fs::symlink_metadata(entry.path()) {
                Ok(meta) if meta.is_dir() => pending.push(entry.path()),
                Ok(meta) => found.push((entry.path(), meta)),
                Err(_) => {}
            }
        }
    }
    found
}

/// Bytes that do not compress, always the same for a seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// `truncate(2)`, by name: no descriptor is opened for it.
pub fn truncate(path: &Path, size: i64) -> std::io::Result<()> {
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())).unwrap();
    // SAFETY: the path ends with a zero byte and lives as long as the call.
    if unsafe { libc::truncate(path.as_ptr(), size) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Every file below a directory with its bytes.
pub fn bytes_below(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
