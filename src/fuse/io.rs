//! Requests on open files: opening, reading, writing.
//!
//! What has to wait is answered by a task: a read that is not local, a write for which there is no space now, a write
//! that is synced (`O_SYNC`). So no thread of the session waits for a target or for space.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use fuser::{FileHandle, FopenFlags, ReplyData, ReplyWrite};
use futures::FutureExt;

use super::adapter::{Adapter, catch, failpoint, panicked};
use super::errno::reply as errno;
use crate::id::InodeId;
use crate::read::Outcome;
use crate::vfs::io::{Opened, Written};
use crate::vfs::{Caller, Result};

thread_local! {
    /// Where a request's thread reads local bytes into; kept, as the largest request is 1 MiB.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Handle and flags of an open file, as the kernel wants them.
pub(super) fn opened(opened: &Opened) -> (FileHandle, FopenFlags) {
    let flags = [(opened.keep_cache, FopenFlags::FOPEN_KEEP_CACHE), (opened.noflush, FopenFlags::FOPEN_NOFLUSH)];
    let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
    (FileHandle(opened.handle), flags)
}

impl Adapter {
    /// Reads and answers, now if the bytes are local.
    pub(super) fn reply_read(&self, ino: InodeId, offset: u64, size: u32, reply: ReplyData) {
        BUFFER.with_borrow_mut(|buffer| {
            match catch(&self.panics, "read", || self.vfs.read(ino, offset, size, buffer)) {
                Ok(Outcome::Ready) => reply.data(buffer),
                Ok(Outcome::Pending(fetch)) => self.later("read", fetch, move |fetched| match fetched {
                    Ok(bytes) => reply.data(&bytes),
                    Err(error) => reply.error(errno(error)),
                }),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    /// Writes and answers, now if that takes no waiting. `kill_set_ids`: the kernel leaves clearing set-id bits to us, for
    /// this caller.
    pub(super) fn reply_write(
        &self,
        ino: InodeId,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_set_ids: Option<Caller>,
        reply: ReplyWrite,
    ) {
        let length = data.len() as u32;
        let written = catch(&self.panics, "write", || {
            if let Some(caller) = &kill_set_ids {
                self.vfs.clear_set_ids(caller, ino)?;
            }
            self.vfs.write_now(ino, handle, offset, data)
        });
        match written {
            Ok(Written::Done) => reply.written(length),
            Ok(Written::Later) => {
                let write = self.vfs.clone().write_later(ino, handle, offset, data.to_vec());
                self.later("write", write, move |written| match written {
                    Ok(()) => reply.written(length),
                    Err(error) => reply.error(errno(error)),
                });
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Answers when `work` is done, from a task.
    pub(super) fn later<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let panics = Arc::clone(&self.panics);
        self.runtime.spawn(async move {
            let work = async move {
                failpoint(operation);
                work.await
            };
            let result = AssertUnwindSafe(work).catch_unwind().await;
            answer(result.unwrap_or_else(|panic| panicked(&panics, operation, &*panic)));
        });
    }
}
