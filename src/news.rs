//! Values whose changes are told to whoever waits for them.
//!
//! Owns: nothing of its own in the program, which uses tokio's channel. That one wakes those who wait in a random order; in
//! tests another takes its place, with the same rules, that wakes them in the order in which they came: a simulated world
//! could not be lived again otherwise.

#[cfg(not(test))]
pub use tokio::sync::watch::{Receiver, Sender, channel};

#[cfg(test)]
pub use in_order::{Receiver, Sender, channel};

#[cfg(test)]
mod in_order {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
    use tokio::sync::Notify;

    #[derive(Debug)]
    struct Shared<T> {
        /// Beside its version.
        value: RwLock<(u64, T)>,
        senders: AtomicUsize,
        changed: Notify,
    }

    /// The one who tells.
    #[derive(Debug)]
    pub struct Sender<T>(Arc<Shared<T>>);

    /// One who listens.
    #[derive(Debug)]
    pub struct Receiver<T> {
        shared: Arc<Shared<T>>,
        seen: u64,
    }

    /// Nobody tells any more.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Ended;

    /// A sender and its first receiver, which has seen the first value.
    pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    impl<T> Sender<T> {
        pub fn new(value: T) -> Sender<T> {
            let shared =
                Shared { value: RwLock::new((0, value)), senders: AtomicUsize::new(1), changed: Notify::new() };
            Sender(Arc::new(shared))
        }

        pub fn subscribe(&self) -> Receiver<T> {
            Receiver { shared: Arc::clone(&self.0), seen: self.0.value.read().0 }
        }

        pub fn borrow(&self) -> MappedRwLockReadGuard<'_, T> {
            RwLockReadGuard::map(self.0.value.read(), |(_, value)| value)
        }

        pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            let modified = {
                let mut value = self.0.value.write();
                let modified = modify(&mut value.1);
                value.0 += u64::from(modified);
                modified
            };
            if modified {
                self.0.changed.notify_waiters();
            }
            modified
        }

        pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
            self.send_if_modified(|value| {
                modify(value);
                true
            });
        }

        pub fn send_replace(&self, value: T) -> T {
            let mut value = value;
            self.send_modify(|old| std::mem::swap(old, &mut value));
            value
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Sender<T> {
            self.0.senders.fetch_add(1, Ordering::AcqRel);
            Sender(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.0.changed.notify_waiters();
            }
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Receiver<T> {
            Receiver { shared: Arc::clone(&self.shared), seen: self.seen }
        }
    }

    impl<T> Receiver<T> {
        pub fn borrow(&self) -> MappedRwLockReadGuard<'_, T> {
            RwLockReadGuard::map(self.shared.value.read(), |(_, value)| value)
        }

        pub fn borrow_and_update(&mut self) -> MappedRwLockReadGuard<'_, T> {
            let value = self.shared.value.read();
            self.seen = value.0;
            RwLockReadGuard::map(value, |(_, value)| value)
        }

        pub fn mark_unchanged(&mut self) {
            self.seen = self.shared.value.read().0;
        }

        pub async fn changed(&mut self) -> Result<(), Ended> {
            loop {
                // Registered before the look, so that no change falls between.
                let changed = self.shared.changed.notified();
                let version = self.shared.value.read().0;
                if version != self.seen {
                    self.seen = version;
                    return Ok(());
                }
                if self.shared.senders.load(Ordering::Acquire) == 0 {
                    return Err(Ended);
                }
                changed.await;
            }
        }

        pub async fn wait_for(
            &mut self,
            mut wanted: impl FnMut(&T) -> bool,
        ) -> Result<MappedRwLockReadGuard<'_, T>, Ended> {
            loop {
                let holds = {
                    let value = self.shared.value.read();
                    self.seen = value.0;
                    wanted(&value.1)
                };
                if holds {
                    return Ok(self.borrow());
                }
                self.changed().await?;
            }
        }
    }
}
