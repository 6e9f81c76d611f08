//! Input that makes no sense or is too large gets the errno that a plain directory gives, and leaves the mount alive.
//!
//! The plain directory must be on a filesystem like ext4.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::calls::{self, Gave, as_user, c, call, gave};
use crate::support::mounted::Place;

/// Runs `calls` in a directory of the mount and in a plain one; the results must be the same.
fn check(what: &str, calls: impl Fn(&Path) -> Vec<Gave>) {
    let place = Place::new(&["a"]);
    std::fs::create_dir(place.path("plain")).unwrap();
    assert_eq!(call!(chmod(c(&place.path("")).as_ptr(), 0o755)), Ok(0));
    let mounted = place.mount_with("state", &["-o".as_ref(), "allow_other,suid,dev".as_ref()]);
    let [on_mount, on_plain] = [place.mnt(), place.path("plain")].map(|root| {
        assert_eq!(call!(chmod(c(&root).as_ptr(), 0o777)), Ok(0));
        calls(&root)
    });
    assert_eq!(on_mount.len(), on_plain.len());
    for (index, (mount, plain)) in on_mount.iter().zip(&on_plain).enumerate() {
        assert_eq!(mount, plain, "{what}: call {index} on the mount, then on the plain directory");
    }
    std::fs::write(place.mnt().join("still alive"), "x").unwrap();
    mounted.umount();
}

fn file(root: &Path) -> i32 {
    calls::open(&root.join("file"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap() as i32
}

#[test]
fn names_and_paths_that_are_too_long() {
    check("long names", |root| {
        let mut gave = Vec::new();
        for length in [255, 256, 4000] {
            let path = root.join("n".repeat(length));
            let other = root.join("o".repeat(length));
            gave.push(
                calls::open(&path, libc::O_CREAT | libc::O_WRONLY, 0o644).map(|fd| calls::close(fd as i32).unwrap()),
            );
            gave.push(calls::rename(&path, &other, 0));
            gave.push(call!(link(c(&other).as_ptr(), c(&path).as_ptr())));
            gave.push(call!(mkdir(c(&root.join("d".repeat(length))).as_ptr(), 0o755)));
            gave.push(call!(symlink(c"x".as_ptr(), c(&root.join("s".repeat(length))).as_ptr())));
            gave.push(call!(mknod(c(&root.join("f".repeat(length))).as_ptr(), libc::S_IFIFO | 0o600, 0)));
            gave.push(calls::stat(&path, 0).map(|stat| stat.links as i64));
            gave.push(call!(unlink(c(&path).as_ptr())));
        }
        gave
    });
    check("long paths", |root| {
        // Relative to the root of the twin, so that both paths have the same length.
        let directory = calls::open(root, libc::O_PATH | libc::O_DIRECTORY, 0).unwrap() as i32;
        [4094, 4095, 4096, 9000]
            .into_iter()
            .map(|length| {
                let path = CString::new("./".repeat(length / 2) + if length % 2 == 1 { "." } else { "" }).unwrap();
                call!(faccessat(directory, path.as_ptr(), libc::F_OK, 0))
            })
            .chain([4094, 4095, 4096].map(|length| {
                let target = CString::new("t".repeat(length)).unwrap();
                call!(symlinkat(target.as_ptr(), directory, CString::new(format!("link{length}")).unwrap().as_ptr()))
            }))
            .chain([call!(symlinkat(c"".as_ptr(), directory, c"empty".as_ptr())), calls::close(directory)])
            .collect()
    });
}

#[test]
fn xattrs_beyond_their_limits() {
    check("xattrs", |root| {
        calls::close(file(root)).unwrap();
        let path = root.join("file");
        let long = format!("user.{}", "n".repeat(250));
        let longer = format!("user.{}", "n".repeat(251));
        let mut gave = vec![
            calls::setxattr(&path, &long, b"v", 0),
            calls::setxattr(&path, &longer, b"v", 0),
            calls::getxattr(&path, &longer).0,
            calls::removexattr(&path, &longer),
            calls::setxattr(&path, "user.v", &[7; 65_537], 0),
            calls::setxattr(&path, "user.", b"v", 0),
            calls::setxattr(&path, "", b"v", 0),
            calls::setxattr(&path, "nospace", b"v", 0),
            calls::setxattr(&path, "odd.space", b"v", 0),
            calls::setxattr(&path, "system.odd", b"v", 0),
            calls::getxattr(&path, "odd.space").0,
            calls::removexattr(&path, "odd.space"),
            calls::setxattr(&path, "user.v", b"v", libc::XATTR_REPLACE),
            calls::setxattr(&path, "user.v", b"value", libc::XATTR_CREATE),
            calls::setxattr(&path, "user.v", b"v", libc::XATTR_CREATE),
            calls::setxattr(&path, "user.v", b"v", 77),
            calls::getxattr(&path, "user.absent").0,
            calls::removexattr(&path, "user.absent"),
            calls::setxattr(&path, "system.posix_acl_access", b"no acl", 0),
            calls::setxattr(&path, "system.posix_acl_default", &[2, 0, 0, 0], 0),
        ];
        // A buffer that is too small, and asking for the size only.
        let name = c"user.v".as_ptr();
        let mut small = [0u8; 3];
        gave.push(call!(getxattr(c(&path).as_ptr(), name, small.as_mut_ptr().cast(), small.len())));
        gave.push(call!(getxattr(c(&path).as_ptr(), name, std::ptr::null_mut(), 0)));
        gave.push(call!(listxattr(c(&path).as_ptr(), small.as_mut_ptr().cast(), small.len())));
        // Only files and directories take those of the user.
        assert_eq!(call!(symlink(c"file".as_ptr(), c(&root.join("link")).as_ptr())), Ok(0));
        assert_eq!(call!(mknod(c(&root.join("fifo")).as_ptr(), libc::S_IFIFO | 0o600, 0)), Ok(0));
        gave.push(calls::setxattr(&root.join("link"), "user.v", b"v", 0));
        gave.push(calls::setxattr(&root.join("fifo"), "user.v", b"v", 0));
        // Not everybody may set them.
        gave.push(as_user(1234, || calls::setxattr(&path, "user.v", b"v", 0)));
        gave.push(as_user(1234, || calls::setxattr(&path, "trusted.v", b"v", 0)));
        gave.push(as_user(1234, || calls::setxattr(&path, "system.posix_acl_access", &[2, 0, 0, 0], 0)));
        gave
    });
}

#[test]
fn sizes_and_offsets_out_of_range() {
    check("sizes and offsets", |root| {
        let fd = file(root);
        let read_only = calls::open(&root.join("file"), libc::O_RDONLY, 0).unwrap() as i32;
        let byte = [1u8];
        let max = i64::MAX;
        let mut gave = vec![
            calls::pwrite(fd, &byte, -1),
            calls::pwrite(fd, &byte, max),
            calls::pwrite(fd, b"four", max - 1),
            calls::pread(fd, 1, -1).0,
            calls::pread(fd, 1, max).0,
            calls::pread(fd, 10, 1 << 40).0,
            call!(ftruncate(fd, -1)),
            call!(ftruncate(fd, i64::MIN)),
            call!(truncate(c(&root.join("file")).as_ptr(), -1)),
            call!(ftruncate(read_only, 5)),
            call!(truncate(c(root).as_ptr(), 5)),
            calls::pwrite(read_only, &byte, 0),
            calls::seek(fd, -1, libc::SEEK_SET),
            calls::seek(fd, 0, libc::SEEK_DATA),
            calls::seek(fd, 0, libc::SEEK_HOLE),
            calls::seek(fd, -1, libc::SEEK_DATA),
            calls::seek(fd, -1, libc::SEEK_HOLE),
            calls::seek(fd, 0, 99),
            call!(fallocate(fd, 0, -1, 10)),
            call!(fallocate(fd, 0, 10, -1)),
            call!(fallocate(fd, 0, 0, 0)),
            call!(fallocate(fd, 0, max - 1, 10)),
            call!(fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE, 0, 10)),
            call!(fallocate(fd, 0x4000, 0, 10)),
            call!(fallocate(read_only, 0, 0, 10)),
            calls::copy_file_range(fd, -1, fd, 0, 10),
            calls::copy_file_range(fd, 0, fd, -1, 10),
            calls::copy_file_range(fd, 0, read_only, 0, 10),
            calls::copy_file_range(fd, 1 << 40, fd, 0, 10),
        ];
        // Within the range of off_t, beyond that of the filesystem: too large, never a truncated number.
        for size in [max, max - 4096, 1 << 62] {
            gave.push(call!(ftruncate(fd, size)));
            gave.push(call!(fallocate(fd, 0, size - 4096, 4096)));
        }
        assert_eq!(calls::pwrite(fd, b"0123456789", 0), Ok(10));
        gave.push(calls::copy_file_range(fd, 0, fd, 5, 5));
        gave.push(calls::copy_file_range(fd, 0, fd, 4, 5));
        gave.push(calls::pread(fd, 100, 0).0);
        gave.push(calls::seek(fd, 0, libc::SEEK_HOLE));
        gave.push(calls::seek(fd, 10, libc::SEEK_DATA));
        gave.push(calls::close(read_only));
        gave.push(calls::close(fd));
        gave
    });
}

/// The largest file of ext4 with blocks of 4 KiB; of ours as well, where the state directory is on such a one (D3).
///
/// The kernel knows that of ext4 (`s_maxbytes`), and takes `MAX_LFS_FILESIZE` for every FUSE filesystem, which cannot tell it
/// another. So it does not ask us where these differ, and nothing can be done: `generic_file_llseek_size` lets `SEEK_SET` go
/// there and `generic_copy_file_checks` copies nothing of an empty file, which ext4 answers with `EINVAL` and `EFBIG`.
const EXT4_MAX: i64 = (1 << 44) - 4096;

#[test]
fn sizes_around_the_largest_that_ext4_takes() {
    check("the largest sizes", |root| {
        let fd = file(root);
        let path = c(&root.join("file"));
        let mut gave = Vec::new();
        let sizes = [EXT4_MAX - 1, EXT4_MAX, EXT4_MAX + 1, 1 << 44, (1 << 53) - 1, 1 << 53, i64::MAX - 4096, i64::MAX];
        for size in sizes {
            gave.push(call!(ftruncate(fd, size)));
            gave.push(call!(ftruncate(fd, 0)));
            gave.push(call!(truncate(path.as_ptr(), size)));
            gave.push(call!(ftruncate(fd, 0)));
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            for mode in [0, keep, libc::FALLOC_FL_ZERO_RANGE, libc::FALLOC_FL_PUNCH_HOLE | keep] {
                gave.push(call!(fallocate(fd, mode, size - 4096, 4096)));
                gave.push(calls::stat(&root.join("file"), 0).map(|stat| stat.size));
                gave.push(call!(ftruncate(fd, 0)));
            }
            for length in [1usize, 2, 4096, 8192] {
                // Ends there, begins before and ends beyond, begins there.
                for offset in [size - length as i64, size - length as i64 / 2, size] {
                    gave.push(calls::pwrite(fd, &vec![7; length], offset));
                    gave.push(calls::stat(&root.join("file"), 0).map(|stat| stat.size));
                    gave.push(calls::pread(fd, 10, offset).0);
                    gave.push(call!(ftruncate(fd, 0)));
                }
            }
            gave.push(calls::pwrite(fd, b"0123456789", 0));
            gave.push(calls::copy_file_range(fd, 0, fd, size, 10));
            gave.push(calls::copy_file_range(fd, 0, fd, size.saturating_sub(5), 10));
            gave.push(call!(ftruncate(fd, 0)));
        }
        gave.push(calls::close(fd));
        gave
    });
}

#[test]
fn what_only_root_may_do() {
    check("privileges", |root| {
        calls::close(file(root)).unwrap();
        let at = |name: &str| c(&root.join(name));
        let mut gave = Vec::new();
        for user in [1234, 0] {
            as_user(user, || {
                let name = |what: &str| format!("{what}{user}");
                gave.push(call!(mknod(at(&name("char")).as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3))));
                gave.push(call!(mknod(at(&name("block")).as_ptr(), libc::S_IFBLK | 0o666, libc::makedev(7, 0))));
                gave.push(call!(mknod(at(&name("fifo")).as_ptr(), libc::S_IFIFO | 0o666, 0)));
                gave.push(call!(mknod(at(&name("directory")).as_ptr(), libc::S_IFDIR | 0o777, 0)));
                gave.push(call!(mknod(at(&name("nonsense")).as_ptr(), 0o170_000 | 0o600, 0)));
                gave.push(call!(chmod(at("file").as_ptr(), 0o6777)));
                gave.push(call!(chown(at("file").as_ptr(), 1235, 1235)));
                gave.push(call!(unlink(at("nothing").as_ptr())));
                gave.push(call!(rmdir(at("file").as_ptr())));
                gave.push(call!(unlink(c(root).as_ptr())));
            });
        }
        gave
    });
}

#[test]
fn opens_with_flags_that_do_not_fit() {
    check("flags of open", |root| {
        calls::close(file(root)).unwrap();
        let path = root.join("file");
        assert_eq!(call!(symlink(c"file".as_ptr(), c(&root.join("link")).as_ptr())), Ok(0));
        assert_eq!(call!(symlink(c"loop".as_ptr(), c(&root.join("loop")).as_ptr())), Ok(0));
        let opened = |path: &PathBuf, flags| calls::open(path, flags, 0o644).map(|fd| calls::close(fd as i32).unwrap());
        vec![
            opened(&path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY),
            opened(&path, libc::O_DIRECTORY),
            opened(&root.join("link"), libc::O_NOFOLLOW),
            opened(&root.join("loop"), libc::O_RDONLY),
            opened(&root.join("file/below"), libc::O_RDONLY),
            opened(&root.join("file/below"), libc::O_CREAT | libc::O_WRONLY),
            opened(&root.join("absent/below"), libc::O_CREAT | libc::O_WRONLY),
            opened(&root.to_owned(), libc::O_WRONLY),
            opened(&root.to_owned(), libc::O_RDWR | libc::O_CREAT),
            opened(&path, libc::O_WRONLY | libc::O_TRUNC | libc::O_APPEND),
            opened(&path, libc::O_PATH),
        ]
    });
}

#[test]
fn a_file_without_a_name_from_the_start_is_clearly_not_supported() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    // The FUSE crate has no such request: programs fall back to a name, as they do on other filesystems.
    let opened = calls::open(&place.mnt(), libc::O_TMPFILE | libc::O_RDWR, 0o600);
    assert_eq!(opened, Err(calls::Errno(libc::EOPNOTSUPP)));
    mounted.umount();
}
