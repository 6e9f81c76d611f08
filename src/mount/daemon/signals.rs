//! Signals: what they ask of a mount, from before it exists to its end.
//!
//! Owns: handling SIGHUP, SIGTERM and SIGINT, waiting for the end of the mount, taking it away when a signal asks for it.
//! Does not own: what an end takes (`ending`, `drain`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock;
use crate::fuse;
use crate::mount::targets::LiveTargets;
use crate::mount::unmount;

/// After SIGTERM, how long programs have to let go of the mount before it is taken away lazily (D7).
const LET_GO: Duration = Duration::from_secs(5);

/// The signals that the daemon handles, from when this is made; in a runtime.
pub(super) struct Signals {
    pub hangup: Signal,
    pub asking: Asking,
}

/// SIGTERM and SIGINT ask it to end.
pub(super) struct Asking {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Signals> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Signals { hangup: signal(SignalKind::hangup())?, asking: Asking { terminate, interrupt } })
    }
}

impl Asking {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until the mount is gone. After a signal takes it away itself: lazily when programs do not let go in time. Returns
/// true if it was a signal that asked for it.
pub(super) async fn wait_unmounted(
    session: &fuse::Session,
    (mountpoint, kind): (&Path, &str),
    signals: &mut Asking,
    unwanted: bool,
) -> bool {
    let look = Duration::from_millis(20);
    let mut asked = unwanted.then(clock::instant);
    let mut lazily_at = None;
    while !session.has_ended() {
        if let Some(since) = asked {
            let lazy = unwanted || clock::instant().since(since) >= LET_GO;
            match unmount::unmount(mountpoint, kind, lazy) {
                Ok(()) if lazy => lazily_at = lazily_at.or(Some(clock::instant())),
                Ok(()) | Err(unmount::Error::Busy { .. }) => {}
                Err(unmount::Error::Io(error)) => tracing::warn!(%error, "cannot unmount, will be tried again"),
            }
            // Out of the tree, but still in use: what programs write from here on is not waited for.
            if lazily_at.is_some_and(|at| clock::instant().since(at) > Duration::from_secs(1)) {
                return true;
            }
        }
        tokio::select! {
            () = signals.next() => match asked {
                None => {
                    tracing::info!("asked to end by a signal");
                    asked = Some(clock::instant());
                }
                Some(_) => {
                    tracing::warn!("asked to end by a second signal: ending at once");
                    std::process::exit(1);
                }
            },
            () = tokio::time::sleep(look) => {}
        }
    }
    asked.is_some()
}

/// Waits for the signal that ends draining: the second one, also when the mount went without any (D7: systemd signals the
/// daemons of a mount unit right after umount(8)).
pub(super) async fn end_asked(signals: &mut Asking, asked: bool) {
    if !asked {
        signals.next().await;
        tracing::info!("asked to end by a signal; the next one ends at once");
    }
    signals.next().await;
}

/// SIGHUP reads the configuration again; what came of it is in the log.
pub(super) async fn reload_on_hangup(targets: Arc<LiveTargets>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        if let Err(error) = targets.reload().await {
            tracing::error!(%error, hint = error.hint, "not reloaded");
        }
    }
}
