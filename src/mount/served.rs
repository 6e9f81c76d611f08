//! The daemon as `control` sees it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::collector::Collector;
use super::drain::{self, Goal};
use super::ending::{Ending, REST_AFTER_UMOUNT};
use super::parts::Parts;
use super::scrubs::Scrubs;
use super::targets::LiveTargets;
use super::{answers, unmount};
use crate::clock;
use crate::control::protocol::{Phase, Whereis};
use crate::control::{
    Daemon, Error, ErrorKind, Flush, Flushed, Path, Progress, ProgressSender, Said, Scrub, Status, TargetOp, Umount,
    Unmounted, Wait,
};
use crate::scrub;

/// How long the end of a session may take to be noticed after its mount left the kernel's table.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

/// Answers requests.
pub struct Served {
    pub parts: Arc<dyn Parts>,
    pub mountpoint: PathBuf,
    /// The type that the kernel's table shows for the mount.
    pub kind: String,
    pub state_dir: PathBuf,
    pub read_only: bool,
    pub ending: Arc<Ending>,
    pub scrubs: Arc<Scrubs>,
    pub targets: Arc<LiveTargets>,
    pub collector: Arc<Collector>,
}

#[async_trait]
impl Daemon for Served {
    async fn status(&self) -> Result<Status, Error> {
        answers::status(&*self.parts, &self.mountpoint, &self.state_dir)
    }

    async fn whereis(&self, paths: Vec<Path>) -> Result<Vec<Whereis>, Error> {
        answers::whereis(&*self.parts, &paths)
    }

    async fn flush(&self, request: Flush, progress: ProgressSender) -> Result<Flushed, Error> {
        answers::flush(&*self.parts, request, progress).await
    }

    async fn umount(&self, request: Umount, progress: ProgressSender) -> Result<Unmounted, Error> {
        if !self.read_only {
            let deadline = request.timeout_seconds.map(|seconds| clock::instant() + Duration::from_secs(seconds));
            let drained = match self.parts.settle() {
                Ok(seq) => drain::drain(&*self.parts, Goal { seq, wait: Wait::All, deadline }, Some(&progress)).await,
                Err(error) => Err(error),
            };
            match drained {
                Ok(()) => self.ending.set_rest(REST_AFTER_UMOUNT),
                // Whoever insists does not want to wait any longer.
                Err(_) if request.force => self.ending.set_rest(Duration::ZERO),
                Err(error) => return Err(error),
            }
        }
        progress.send(Progress { phase: Phase::Unmounting, targets: Vec::new() });
        let (mountpoint, kind) = (self.mountpoint.clone(), self.kind.clone());
        let unmounted = tokio::task::spawn_blocking(move || match request.force {
            true => unmount::unmount(&mountpoint, &kind, true),
            false => unmount::unmount_in_a_moment(&mountpoint, &kind),
        })
        .await;
        match unmounted.map_err(|panic| Error::failed(panic.to_string()))? {
            Ok(()) => self.ending.outcome().await,
            Err(unmount::Error::Busy { users }) => Err(Error::new(
                ErrorKind::Busy,
                format!("{} is in use by {}", self.mountpoint.display(), users.join(", ")),
            )
            .hint("end these programs, or let them finish with it: tandemfs umount --force")),
            Err(unmount::Error::Io(e)) => Err(Error::failed(format!("unmount {}: {e}", self.mountpoint.display()))),
        }
    }

    async fn scrub(&self, request: Scrub, progress: ProgressSender) -> Result<Vec<scrub::Report>, Error> {
        self.scrubs.run(&request, Some(&progress)).await
    }

    async fn scrub_cost(&self, request: Scrub) -> Result<Vec<scrub::Cost>, Error> {
        self.scrubs.cost(&request)
    }

    async fn hand_over(&self) -> Result<(), Error> {
        // umount(8) returns before this daemon has noticed that the mount is gone.
        let gone = !unmount::is_mounted(&self.mountpoint, &self.kind).unwrap_or(true);
        if gone {
            let _ = tokio::time::timeout(NOTICED_WITHIN, self.ending.unmounted()).await;
        }
        if !self.ending.is_unmounted() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "state directory {} is in use: it is mounted at {}",
                    self.state_dir.display(),
                    self.mountpoint.display()
                ),
            )
            .hint(format!("unmount it first: tandemfs umount {}", self.mountpoint.display())));
        }
        self.ending.ask_to_hand_over();
        Ok(())
    }

    async fn target(&self, op: TargetOp) -> Result<Said, Error> {
        let targets = self.targets.clone();
        // A change that has begun is finished, whether its client waits or not.
        tokio::spawn(async move { targets.change(op).await }).await.map_err(|panic| Error::failed(panic.to_string()))?
    }

    async fn reload(&self) -> Result<Said, Error> {
        let targets = self.targets.clone();
        tokio::spawn(async move { targets.reload().await }).await.map_err(|panic| Error::failed(panic.to_string()))?
    }

    async fn gc(&self, dry_run: bool) -> Result<Said, Error> {
        if self.read_only {
            return Err(Error::new(ErrorKind::Usage, "a read-only mount changes nothing").hint("mount it for writing"));
        }
        let collector = self.collector.clone();
        let work = async move { if dry_run { collector.dry_run().await } else { collector.now().await } };
        tokio::spawn(work).await.map_err(|panic| Error::failed(panic.to_string()))?
    }
}
