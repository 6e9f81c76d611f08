//! The named background threads of a mount.
//!
//! Owns: starting them, ending them together.
//! Does not own: what they do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that work until they are stopped.
#[derive(Debug, Default)]
pub struct Tasks {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Starts a thread that works until the flag it is given becomes true; it is woken from `park` then. Returns a handle
    /// that wakes it.
    pub fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> io::Result<std::thread::Thread> {
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&stop))?;
        let handle = thread.thread().clone();
        self.threads.push(thread);
        Ok(handle)
    }

    /// Starts a thread that does `work` every `interval`.
    pub fn every(
        &mut self,
        name: &str,
        interval: Duration,
        mut work: impl FnMut() + Send + 'static,
    ) -> io::Result<std::thread::Thread> {
        self.spawn(name, move |stop| {
            while !stop.load(Ordering::Acquire) {
                work();
                std::thread::park_timeout(interval);
            }
        })
    }

    /// Ends all threads and waits for them.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        for thread in &self.threads {
            thread.thread().unpark();
        }
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or("?").to_owned();
            if thread.join().is_err() {
                tracing::error!(name, "a background thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_end_when_they_are_told_to_however_long_they_sleep() {
        let mut tasks = Tasks::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        tasks.every("test", Duration::from_secs(3600), move || sender.send(()).unwrap()).unwrap();
        receiver.recv().unwrap();
        tasks.stop();
    }
}
