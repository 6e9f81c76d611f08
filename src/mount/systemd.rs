//! What systemd is told about a mount that it started with `Type=notify`: sd_notify(3). Without systemd nobody is told.
//!
//! Does not own: when a mount is ready, how long draining may take (`daemon`, `ending`).

use std::time::Duration;

use sd_notify::NotifyState;

use super::ending::Ending;
use super::parts::Parts;
use super::{drain, live::Live};
use crate::clock;
use crate::id::Seq;

/// How often it is looked whether bytes move.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long systemd waits after it was told that bytes moved: a chunk of the default size takes so long at 70 kB/s.
const EXTENSION: Duration = Duration::from_secs(60);

/// The filesystem is usable.
pub fn ready() {
    tell(&NotifyState::Ready);
}

/// The mount is gone; what targets lack is still brought to them.
pub fn stopping() {
    tell(&NotifyState::Stopping);
}

/// Keeps systemd from killing the daemon while bytes move to targets and the ending allows it (D7). Never returns.
pub async fn extend(live: &Live, ending: &Ending) {
    let deadline = clock::instant() + ending.rest();
    let mut before = None;
    loop {
        let now = measure(live);
        if now != before && clock::instant() < deadline {
            tell(&NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32));
        }
        before = now;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What targets lack: bytes and records of each.
fn measure(live: &Live) -> Option<Vec<(u64, u64)>> {
    let rows = live.meta().targets().ok()?;
    let lacking = drain::measure(live, Seq(u64::MAX), &rows).ok()?;
    Some(lacking.iter().map(|target| (target.pending_bytes, target.pending_records)).collect())
}

fn tell(state: &NotifyState) {
    // Fails only where systemd asked for it and does not listen any more.
    let _ = sd_notify::notify(std::slice::from_ref(state));
}
