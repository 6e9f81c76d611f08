//! Time that passes when a test says so, for everything that happens on this thread.
//!
//! Owns: the time of a simulated world, and who waits for it. Does not own: when it passes (`testing::simulation`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Longer than any world lives: who waits for that waits for something else.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

thread_local! {
    static TIME: RefCell<Option<Time>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Time {
    now: Duration,
    /// Drawn for each sleeper, so that those of one moment wake in the order in which they came.
    next: u64,
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

/// While it lives, time on this thread is simulated.
pub(crate) struct Guard(());

/// Starts the time of a world.
pub(crate) fn begin() -> Guard {
    TIME.set(Some(Time::default()));
    Guard(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Wakers may own what looks at the clock when it is dropped.
        let time = TIME.take();
        drop(time);
    }
}

/// True if this thread lives in a simulated world.
pub(crate) fn is_on() -> bool {
    TIME.with_borrow(Option::is_some)
}

/// How long the world exists; `None` in the real one.
pub(crate) fn now() -> Option<Duration> {
    TIME.with_borrow(|time| time.as_ref().map(|time| time.now))
}

/// How long it is until the next sleeper wakes.
pub(crate) fn until_next() -> Option<Duration> {
    TIME.with_borrow(|time| {
        let time = time.as_ref()?;
        let ((due, _), _) = time.sleepers.first_key_value()?;
        (*due < time.now + NEVER).then(|| due.saturating_sub(time.now))
    })
}

/// Lets time pass.
pub(crate) fn pass(duration: Duration) {
    let awake = TIME.with_borrow_mut(|time| {
        let Some(time) = time else { return Vec::new() };
        time.now += duration;
        let later = time.sleepers.split_off(&(time.now + Duration::from_nanos(1), 0));
        std::mem::replace(&mut time.sleepers, later).into_values().collect()
    });
    awake.into_iter().for_each(Waker::wake);
}

/// One who waits; who gives up waiting is forgotten.
struct Sleeper {
    due: Duration,
    key: Option<(Duration, u64)>,
}

impl Sleeper {
    fn poll(&mut self, waker: &Waker) -> Poll<()> {
        TIME.with_borrow_mut(|time| {
            let Some(time) = time else { return Poll::Pending };
            if time.now >= self.due {
                return Poll::Ready(());
            }
            let next = &mut time.next;
            let key = *self.key.get_or_insert_with(|| {
                *next += 1;
                (self.due, *next)
            });
            time.sleepers.insert(key, waker.clone());
            Poll::Pending
        })
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let waker = TIME.try_with(|time| time.borrow_mut().as_mut().and_then(|time| time.sleepers.remove(&key)));
        drop(waker);
    }
}

pub(super) async fn sleep(duration: Duration) {
    let mut sleeper = Sleeper { due: now().unwrap_or_default().saturating_add(duration), key: None };
    poll_fn(|context| sleeper.poll(context.waker())).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn time_passes_when_it_is_told_to_and_who_gives_up_is_forgotten() {
        let _time = begin();
        let before = (clock::instant(), clock::now());
        assert!(clock::timeout(Duration::ZERO, std::future::pending::<()>()).await.is_err());
        let sleeper = tokio::spawn(clock::sleep(Duration::from_secs(60)));
        let given_up = tokio::spawn(clock::sleep(Duration::from_secs(30)));
        tokio::task::yield_now().await;
        given_up.abort();
        assert!(given_up.await.is_err());
        assert_eq!(until_next(), Some(Duration::from_secs(60)));
        pass(Duration::from_secs(59));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        pass(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock::instant().since(before.0), Duration::from_secs(60));
        assert_eq!(clock::now().since(before.1), Duration::from_secs(60));
        assert_eq!(until_next(), None);
    }
}
