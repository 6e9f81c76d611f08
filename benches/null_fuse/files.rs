//! Open files: a handle is the descriptor's number.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fuser::{FileHandle, FopenFlags};

use super::{c_path, check};

thread_local! {
    /// Where a request's thread reads into; kept, as the largest request is 1 MiB.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Opens a file; the handle must be given to [`close`].
pub fn open(path: &Path, flags: i32, mode: u32) -> io::Result<FileHandle> {
    let path = c_path(path)?;
    // Where to append is said by the kernel with each request.
    let flags = flags & !(libc::O_NOFOLLOW | libc::O_APPEND | libc::O_DIRECT) | libc::O_CLOEXEC;
    // SAFETY: `path` is a NUL-terminated string that lives over the call.
    let descriptor = check(unsafe { libc::open(path.as_ptr(), flags, mode) }.into())?;
    Ok(FileHandle(descriptor as u64))
}

/// What the kernel may do with a file that was opened with `flags`.
pub fn flags(flags: i32) -> FopenFlags {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
        _ => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// The open file of a handle; it stays open.
pub fn borrow(handle: FileHandle) -> ManuallyDrop<File> {
    // SAFETY: the kernel names only handles that `open` made and that it has not released; the file is not dropped.
    ManuallyDrop::new(unsafe { File::from_raw_fd(handle.0 as RawFd) })
}

/// Closes a handle.
pub fn close(handle: FileHandle) {
    drop(ManuallyDrop::into_inner(borrow(handle)));
}

/// Reads `size` bytes from `offset`, fewer at the end, and passes them to `reply`.
pub fn read(handle: FileHandle, offset: u64, size: u32, reply: impl FnOnce(io::Result<&[u8]>)) {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(size as usize, 0);
        match borrow(handle).read_at(buffer, offset) {
            Ok(count) => reply(Ok(&buffer[..count])),
            Err(error) => reply(Err(error)),
        }
    });
}

/// Writes all of `data` at `offset`.
pub fn write(handle: FileHandle, offset: u64, data: &[u8]) -> io::Result<()> {
    borrow(handle).write_all_at(data, offset)
}

/// `fsync(2)` or `fdatasync(2)`.
pub fn sync(handle: FileHandle, data_only: bool) -> io::Result<()> {
    if data_only { borrow(handle).sync_data() } else { borrow(handle).sync_all() }
}
