//! Requests on open files: opening, reading, writing.
//!
//! What has to wait is answered by a task: a read that is not local, a write for which there is no space now, a write
//! that is synced (`O_SYNC`). So no thread of the session waits for a target or for space.

use std::cell::RefCell;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, ReplyCreate, ReplyData, ReplyOpen, ReplyWrite};
use futures::FutureExt;

use super::adapter::{Adapter, failpoint, panicked};
use super::attr::{GENERATION, TTL, file_attr};
use super::errno::reply as errno;
use super::operation::Operation;
use crate::id::InodeId;
use crate::read::Outcome;
use crate::vfs::io::{Creating, Written};
use crate::vfs::{Attributes, Caller, Result};
use crate::write::iomode::Io;
use crate::write::opening::{Backing, Kernel, Opened};

thread_local! {
    /// Where a request's thread reads local bytes into; kept, as the largest request is 1 MiB.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kernel's side of an OPEN or a CREATE.
pub(super) struct Opening<R> {
    /// Taken when it is answered.
    pub reply: Option<R>,
    /// Of the file that was made, for CREATE.
    pub created: Option<Attributes>,
}

impl<R> Opening<R> {
    pub(super) fn new(reply: R) -> Opening<R> {
        Opening { reply: Some(reply), created: None }
    }
}

/// A request that opens a file.
pub(super) trait OpenReply {
    fn register(&self, file: &File) -> std::io::Result<BackingId>;
    fn answer(self, handle: FileHandle, flags: FopenFlags, backing: Option<&BackingId>, created: Option<&Attributes>);
}

impl OpenReply for ReplyOpen {
    fn register(&self, file: &File) -> std::io::Result<BackingId> {
        self.open_backing(file)
    }

    fn answer(self, handle: FileHandle, flags: FopenFlags, backing: Option<&BackingId>, _: Option<&Attributes>) {
        match backing {
            Some(backing) => self.opened_passthrough(handle, flags, backing),
            None => self.opened(handle, flags),
        }
    }
}

impl OpenReply for ReplyCreate {
    fn register(&self, file: &File) -> std::io::Result<BackingId> {
        self.open_backing(file)
    }

    fn answer(self, handle: FileHandle, flags: FopenFlags, backing: Option<&BackingId>, created: Option<&Attributes>) {
        let attr = file_attr(created.expect("a file is made before it is opened"));
        match backing {
            Some(backing) => self.created_passthrough(&TTL, &attr, GENERATION, handle, flags, backing),
            None => self.created(&TTL, &attr, GENERATION, handle, flags),
        }
    }
}

impl<R: OpenReply> Kernel for Opening<R> {
    fn register(&self, file: &File) -> std::io::Result<Backing> {
        let reply = self.reply.as_ref().expect("a file is registered before the answer");
        Ok(Arc::new(reply.register(file)?))
    }

    fn opened(&mut self, opened: &Opened, backing: Option<&Backing>) {
        let Some(reply) = self.reply.take() else { return };
        let passthrough = opened.handle.io != Io::Plain;
        let flags = [
            (opened.keep_cache, FopenFlags::FOPEN_KEEP_CACHE),
            (opened.noflush, FopenFlags::FOPEN_NOFLUSH),
            (opened.handle.io == Io::Direct, FopenFlags::FOPEN_DIRECT_IO),
        ];
        let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
        let backing = backing.map(|backing| {
            backing.downcast_ref::<BackingId>().expect("backing files are registered by this module only")
        });
        debug_assert_eq!(passthrough, backing.is_some(), "passthrough needs a backing file, and nothing else has one");
        reply.answer(FileHandle(opened.handle.number()), flags, backing, self.created.as_ref());
    }
}

impl Creating for Opening<ReplyCreate> {
    fn created(&mut self, attributes: &Attributes) {
        failpoint("created");
        self.created = Some(*attributes);
    }
}

impl Adapter {
    /// Reads and answers, now if the bytes are local.
    pub(super) fn reply_read(&self, ino: InodeId, offset: u64, size: u32, reply: ReplyData) {
        BUFFER.with_borrow_mut(|buffer| {
            match self.asked(Operation::Read, || self.vfs.read(ino, offset, size, buffer)) {
                Ok(Outcome::Ready) => reply.data(buffer),
                Ok(Outcome::Pending(fetch)) => self.later(Operation::Read, fetch, move |fetched| match fetched {
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
        let written = self.asked(Operation::Write, || {
            if let Some(caller) = &kill_set_ids {
                self.vfs.clear_set_ids(caller, ino)?;
            }
            self.vfs.write_now(ino, handle, offset, data)
        });
        match written {
            Ok(Written::Done(written)) => reply.written(written as u32),
            Ok(Written::Later) => {
                let write = self.vfs.clone().write_later(ino, handle, offset, data.to_vec());
                self.later(Operation::Write, write, move |written| match written {
                    Ok(written) => reply.written(written as u32),
                    Err(error) => reply.error(errno(error)),
                });
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Answers when `work` is done, from a task.
    pub(super) fn later<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let panics = Arc::clone(&self.panics);
        self.runtime.spawn(async move {
            let work = async move {
                failpoint(operation.name());
                work.await
            };
            let result = AssertUnwindSafe(work).catch_unwind().await;
            answer(result.unwrap_or_else(|panic| panicked(&panics, operation, &*panic)));
        });
    }
}
