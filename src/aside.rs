//! Work that blocks, away from the threads that must not.
//!
//! Owns: where a task sends work that may wait for the disk. Does not own: the work.

use tokio::runtime::Handle;
use tokio::task::{self, JoinError};

/// Runs `work` where it may block. An error: it panicked, or the runtime ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    #[cfg(test)]
    if crate::clock::simulated::is_on() {
        // A simulated world has one thread: what happens at the same time, happens in the order that its seed says.
        return Ok(work());
    }
    task::spawn_blocking(work).await
}

/// Has `work` done where it may block; nobody waits for it.
pub fn detached(runtime: &Handle, work: impl FnOnce() + Send + 'static) {
    #[cfg(test)]
    if crate::clock::simulated::is_on() {
        return work();
    }
    runtime.spawn_blocking(work);
}
