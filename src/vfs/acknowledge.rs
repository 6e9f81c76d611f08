//! When `close` and `fsync` may return: acknowledgement policies (D3).
//!
//! Owns: which policy holds for a file, the order of its steps, deadlines and what programs get when one passes.
//! Does not own: syncing and cutting sessions (`write::slots`), waiting for targets ([`Acknowledger`], `mount`).
//!
//! ```text
//! fsync  ─▶ sync bytes, record, place ─▶ sync metadata ─┬ local: reply
//!                                                       └ one … all: cut ─▶ enough targets have the newest record ─▶ reply
//! FLUSH  ─▶ place in history ─┬ cached: reply
//!                             ├ local: as fsync
//!                             └ one … all: cut ─▶ enough targets … ─▶ reply
//! ```
//!
//! - Whatever may wait is a future of its own: no thread of the session and none of the runtime is held meanwhile.
//! - FLUSH waits for the newest place that the file has at that moment, never for what comes later. A descriptor that
//!   cannot write never waits, unless its open emptied the file.
//! - A deadline that passes is an error to the program (`ETIMEDOUT` from `fsync`, `EIO` from `close`, which has no other);
//!   nothing is undone: the data stays queued. So the next `fsync` or `close` waits for it again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::RwLock;
use rustix::io::Errno;

use super::{Result, Vfs, errno};
use crate::clock::{self, Instant};
use crate::config::{Acknowledge, Policy, Stated};
use crate::id::{InodeId, Seq};
use crate::meta::Meta;

/// Something that enough targets shall have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Of whom: its chunks go before others.
    pub ino: InodeId,
    /// A record about it.
    pub seq: Seq,
    /// All records before that one, too: a directory is as safe as every name in it.
    pub all_before: bool,
    pub policy: Policy,
    /// Then it is an error.
    pub deadline: Instant,
}

/// Why an acknowledgement is refused. The data stays queued all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not in time.
    Late,
    /// Targets that are needed take nothing more from this mount.
    Hopeless,
}

/// Brings records to targets and says when enough of them have them.
#[async_trait]
pub trait Acknowledger: Send + Sync {
    /// Waits until enough targets have what is wanted.
    async fn acknowledged(&self, wanted: Wanted) -> std::result::Result<(), Refusal>;
}

/// What the operator wants, and what directories state.
pub struct Policies {
    mount: Acknowledge,
    stated: RwLock<HashMap<InodeId, Stated>>,
    /// Of `stated`, so that a mount without any asks nobody.
    count: AtomicUsize,
}

impl Policies {
    /// Reads what directories state.
    pub fn load(mount: Acknowledge, meta: &Meta) -> crate::meta::Result<Policies> {
        let stated: HashMap<InodeId, Stated> = meta.stated_policies()?.into_iter().collect();
        let count = AtomicUsize::new(stated.len());
        Ok(Policies { mount, stated: RwLock::new(stated), count })
    }

    /// `ino` states this from now on, or nothing.
    pub(super) fn state(&self, ino: InodeId, stated: Option<Stated>) {
        let mut all = self.stated.write();
        match stated {
            Some(stated) => all.insert(ino, stated),
            None => all.remove(&ino),
        };
        self.count.store(all.len(), Ordering::Release);
    }

    /// What holds for `ino`: what it states itself, else the nearest directory above it, else the mount; for each call
    /// apart.
    fn of(&self, ino: InodeId, meta: &Meta) -> crate::meta::Result<Acknowledge> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(self.mount);
        }
        let (mut close, mut fsync) = (None, None);
        let mut at = ino;
        // A tree is no deeper than this; what is, is damaged, and the policy of the mount holds.
        for _ in 0..4096 {
            if let Some(stated) = self.stated.read().get(&at) {
                close = close.or(stated.close);
                fsync = fsync.or(stated.fsync);
            }
            if at == InodeId::ROOT || (close.is_some() && fsync.is_some()) {
                break;
            }
            at = meta.inode(at)?.parent;
        }
        let Acknowledge { close: of_mount, fsync: of_mount_fsync, deadline } = self.mount;
        Ok(Acknowledge { close: close.unwrap_or(of_mount), fsync: fsync.unwrap_or(of_mount_fsync), deadline })
    }
}

/// What FLUSH came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// The file has its place in history: `close` may return.
    Done,
    /// `close` promises more than that: the caller goes on with [`Vfs::flush_later`].
    Later(Policy),
}

impl Vfs {
    /// Says what the operator wants, and who asks targets; the first word stands.
    pub fn acknowledge_by(&self, policies: Policies, by: Box<dyn Acknowledger>) {
        let _ = self.acknowledgement.set((policies, by));
    }

    /// The policies that hold for `ino`.
    pub fn policies(&self, ino: InodeId) -> Result<Acknowledge> {
        match self.acknowledgement.get() {
            Some((policies, _)) => policies.of(ino, &self.meta).map_err(|error| errno("policy", ino, &error)),
            None => Ok(Acknowledge::default()),
        }
    }

    /// Notes what `ino` states from now on, as the attribute that was just set says.
    pub(super) fn states(&self, ino: InodeId, value: Option<&[u8]>) {
        if let Some((policies, _)) = self.acknowledgement.get() {
            let text = value.and_then(|value| std::str::from_utf8(value).ok());
            policies.state(ino, text.and_then(|text| text.parse().ok()));
        }
    }

    /// A policy that asks for more targets than there are could never be met.
    pub(super) fn check_stated(&self, value: &[u8]) -> Result<()> {
        let stated: Option<Stated> = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        let targets = self.meta.targets().map_err(|error| errno("setxattr", InodeId::ROOT, &error))?.len();
        let fits = |policy| !matches!(policy, Policy::Targets(count) if count as usize > targets);
        match stated {
            Some(stated) if stated.policies().all(fits) => Ok(()),
            _ => Err(Errno::INVAL),
        }
    }

    /// FLUSH: a descriptor was closed; dirty content takes its place in history (O1).
    pub fn flush_now(&self, ino: InodeId, handle: u64) -> Result<Flushed> {
        if !super::io::flushes(handle) {
            return Ok(Flushed::Done);
        }
        self.flush(ino)?;
        match self.policies(ino)?.close {
            Policy::Cached => Ok(Flushed::Done),
            policy => Ok(Flushed::Later(policy)),
        }
    }

    /// What `close` waits for after [`Vfs::flush_now`]. A program that closes knows no deadline: to it, not yet proven is
    /// an input/output error.
    pub async fn flush_later(self: Arc<Self>, ino: InodeId, policy: Policy) -> Result<()> {
        let deadline = self.deadline(ino)?;
        let done = match policy {
            Policy::Cached | Policy::Local => self.synced(ino, deadline).await,
            policy => self.on_targets(ino, policy, deadline).await,
        };
        done.map_err(|error| if error == Errno::TIMEDOUT { Errno::IO } else { error })
    }

    /// `fsync(2)`, `fdatasync(2)`.
    pub async fn fsync_later(self: Arc<Self>, ino: InodeId) -> Result<()> {
        let (policy, deadline) = (self.policies(ino)?.fsync, self.deadline(ino)?);
        if policy == Policy::Cached {
            return self.blocking(move |vfs| vfs.flush(ino)).await;
        }
        // On this disk first: whatever becomes of the targets, a power cut loses nothing then.
        self.clone().synced(ino, deadline).await?;
        if policy == Policy::Local { Ok(()) } else { self.on_targets(ino, policy, deadline).await }
    }

    /// `fsync(2)` of a directory: all names and attributes as of now.
    pub async fn fsync_directory_later(self: Arc<Self>, ino: InodeId) -> Result<()> {
        let (policy, deadline) = (self.policies(ino)?.fsync, self.deadline(ino)?);
        match policy {
            Policy::Cached => return Ok(()),
            Policy::Local => return self.blocking(move |vfs| vfs.sync_directory(ino)).await,
            _ => {}
        }
        let seq = self
            .clone()
            .blocking(move |vfs| {
                let refused = |error: crate::meta::Error| errno("fsyncdir", ino, &error);
                // Names of files that are being written come with their content: as it is now.
                vfs.files.rotate().map_err(refused)?;
                vfs.files.births().settled_all();
                vfs.meta.sync().map_err(refused)?;
                Ok(vfs.meta.inode(ino).map_err(refused)?.last_seq)
            })
            .await?;
        self.acknowledged(Wanted { ino, seq, all_before: true, policy, deadline }).await
    }

    /// Waits until what was written to `ino` is on this disk (S1).
    async fn synced(self: Arc<Self>, ino: InodeId, deadline: Instant) -> Result<()> {
        let refused = move |error: crate::meta::Error| errno("fsync", ino, &error);
        let frozen = self.clone().blocking(move |vfs| vfs.files.sync_open(ino).map_err(refused)).await?;
        if let Some(newest) = frozen {
            self.files.committed(ino, newest, deadline).await.map_err(refused)?;
        }
        self.blocking(move |vfs| vfs.meta.sync().map_err(refused)).await
    }

    /// Waits until enough targets have `ino` as it is now.
    async fn on_targets(self: Arc<Self>, ino: InodeId, policy: Policy, deadline: Instant) -> Result<()> {
        let cut = self.clone().blocking(move |vfs| vfs.files.cut_for(ino).map_err(|error| errno("fsync", ino, &error)));
        // Without a name there is nothing that could be lost.
        let Some(seq) = cut.await? else { return Ok(()) };
        self.acknowledged(Wanted { ino, seq, all_before: false, policy, deadline }).await
    }

    async fn acknowledged(&self, wanted: Wanted) -> Result<()> {
        let Some((_, by)) = self.acknowledgement.get() else { return Err(Errno::TIMEDOUT) };
        let (ino, seq, policy) = (wanted.ino, wanted.seq, wanted.policy);
        by.acknowledged(wanted).await.map_err(|refusal| {
            tracing::warn!(inode = ino.0, seq = seq.0, %policy, ?refusal, "not acknowledged; the data stays queued");
            Errno::TIMEDOUT
        })
    }

    fn deadline(&self, ino: InodeId) -> Result<Instant> {
        Ok(clock::instant() + self.policies(ino)?.deadline)
    }

    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Vfs) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        crate::aside::blocking(move || work(&self)).await.unwrap_or_else(|ended| Err(unwound(ended)))
    }
}

/// Work ended that was done elsewhere. A panic goes on here: it is counted and answered where panics of handlers are.
pub(super) fn unwound(ended: tokio::task::JoinError) -> Errno {
    match ended.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Errno::IO,
    }
}
