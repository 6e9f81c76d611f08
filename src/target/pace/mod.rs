//! Bandwidth limits: bodies go to a target in small frames, each when its turn has come.
//!
//! Owns: the limit of one target and the one that all share, waiting for a turn, deadlines that do not count that waiting.
//! Does not own: cutting a body into frames (`wire`, `directory`), which rate holds now (`schedule`, set by the mount).
//!
//! Only what is sent is limited: reads are somebody's wait.
//!
//! A body in the background (backfill, repair) stands back on a link that is busy: it reserves its frame only when nobody's
//! frame waits, or after it has stood back for `STAND_BACK` times the frame's own time. So all bodies in the background
//! together slow what is new by an eighth at most with eight of them, and never stand still.

mod bucket;
mod schedule;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::bucket::{Bucket, Turn};
pub use self::schedule::{Rate, Schedule, ScheduleError};
use crate::clock::{self, Instant};

/// Bytes of a frame: small enough that two bodies share a slow link evenly, large enough to cost nothing on a fast one.
pub(super) const FRAME: usize = 64 << 10;

/// How long a frame in the background stands back, in times that the link needs for it.
const STAND_BACK: u32 = 64;

/// A limit that can be changed while bodies wait for it.
#[derive(Debug)]
pub struct Limit {
    bucket: Mutex<Bucket>,
    changed: Notify,
}

impl Limit {
    /// A limit at `rate`.
    pub fn new(rate: Rate) -> Arc<Limit> {
        Arc::new(Limit { bucket: Mutex::new(Bucket::new(rate)), changed: Notify::new() })
    }

    /// Changes the rate, for what waits already, too.
    pub fn set(&self, rate: Rate) {
        let mut bucket = self.bucket.lock();
        if bucket.rate() != rate {
            bucket.set_rate(rate, clock::instant());
            drop(bucket);
            self.changed.notify_waiters();
        }
    }

    /// The rate now.
    pub fn rate(&self) -> Rate {
        self.bucket.lock().rate()
    }

    /// Waits until so many bytes may go.
    pub async fn turn(&self, bytes: u64) {
        loop {
            // Registered before the look, so that no change falls between.
            let changed = self.changed.notified();
            let turn = self.bucket.lock().reserve(bytes, clock::instant());
            match turn {
                Turn::After(Duration::ZERO) => return,
                Turn::After(wait) => tokio::select! {
                    () = clock::sleep(wait) => return,
                    // At a slow rate a frame waits for seconds, and several one after the other.
                    () = changed => {}
                },
                Turn::Closed => changed.await,
            }
        }
    }

    /// Waits until no frame waits, but not for ever.
    async fn stand_back(&self, bytes: u64) {
        let began = clock::instant();
        loop {
            let (busy, takes) = {
                let bucket = self.bucket.lock();
                (bucket.busy(clock::instant()), bucket.takes(bytes))
            };
            let left = (takes * STAND_BACK).saturating_sub(clock::instant().since(began));
            if busy.is_zero() || left.is_zero() {
                return;
            }
            clock::sleep(busy.min(left)).await;
        }
    }

    fn is_unlimited(&self) -> bool {
        self.bucket.lock().rate() == Rate::Unlimited
    }
}

/// The limits that hold for one target, and what it was sent.
#[derive(Debug, Clone)]
pub struct Pacer {
    own: Arc<Limit>,
    shared: Arc<Limit>,
    sent: Arc<AtomicU64>,
}

impl Default for Pacer {
    /// Sends as fast as it goes.
    fn default() -> Pacer {
        Pacer::new(Limit::new(Rate::Unlimited), Limit::new(Rate::Unlimited))
    }
}

impl Pacer {
    /// A pacer that keeps to the limit of one target and to the one that all targets share.
    pub fn new(own: Arc<Limit>, shared: Arc<Limit>) -> Pacer {
        Pacer { own, shared, sent: Arc::default() }
    }

    /// Bytes of bodies given to the target so far, those of failed attempts too.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits for the turn of a frame. The time counts as [`Held`], not as the target's.
    pub(super) async fn turn(&self, bytes: usize, held: &Held) {
        if !(self.own.is_unlimited() && self.shared.is_unlimited()) {
            let _holding = held.begin();
            for limit in [&self.own, &self.shared] {
                if held.background {
                    limit.stand_back(bytes as u64).await;
                }
                limit.turn(bytes as u64).await;
            }
        }
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

tokio::task_local! {
    static HELD: Held;
}

/// How long the body of a call waited for its turns, and whether it stands back for others.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    spans: Arc<Mutex<Spans>>,
    background: bool,
}

#[derive(Debug, Default)]
struct Spans {
    over: Duration,
    since: Option<Instant>,
}

impl Held {
    /// Of the call that this task makes.
    pub(super) fn of_this_call() -> Held {
        HELD.try_with(Held::clone).unwrap_or_default()
    }

    fn begin(&self) -> impl Drop + use<> {
        struct Holding(Held);
        impl Drop for Holding {
            fn drop(&mut self) {
                let mut spans = self.0.spans.lock();
                if let Some(since) = spans.since.take() {
                    spans.over += clock::instant().since(since);
                }
            }
        }
        self.spans.lock().since = Some(clock::instant());
        Holding(self.clone())
    }

    fn total(&self) -> Duration {
        let spans = self.spans.lock();
        spans.over + spans.since.map_or(Duration::ZERO, |since| clock::instant().since(since))
    }
}

/// Makes a call whose body stands back for others.
pub async fn in_background<T>(call: impl Future<Output = T>) -> T {
    let held = Held { background: true, ..Held::default() };
    HELD.scope(held, call).await
}

/// A call took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// Makes a call that may take `patience`, not counting the time in which our own limits held its body back.
pub async fn within<T>(patience: Duration, call: impl Future<Output = T>) -> Result<T, Elapsed> {
    match HELD.try_with(Held::clone) {
        Ok(held) => watch(patience, held, call).await,
        Err(_) => {
            let held = Held::default();
            HELD.scope(held.clone(), watch(patience, held, call)).await
        }
    }
}

async fn watch<T>(patience: Duration, held: Held, call: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut call = std::pin::pin!(call);
    let credited = Cell::new(held.total());
    let mut left = patience;
    loop {
        if let Ok(value) = clock::timeout(left, call.as_mut()).await {
            return Ok(value);
        }
        let total = held.total();
        left = total.saturating_sub(credited.replace(total));
        if left.is_zero() {
            return Err(Elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes_per_second: u64) -> Rate {
        Rate::per_second(bytes_per_second).unwrap()
    }

    #[tokio::test]
    async fn a_closed_limit_opens_when_it_is_changed_and_the_wait_is_not_the_targets() {
        let own = Limit::new(Rate::Closed);
        let pacer = Pacer::new(own.clone(), Limit::new(Rate::Unlimited));
        let opener = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            own.set(Rate::Unlimited);
        });
        // A hundredth of the wait would end the call if the wait counted.
        let put = async { pacer.turn(1 << 20, &Held::of_this_call()).await };
        within(Duration::from_millis(20), within(Duration::from_millis(10), put)).await.unwrap().unwrap();
        opener.await.unwrap();
        assert_eq!(pacer.sent_bytes(), 1 << 20);
    }

    #[tokio::test]
    async fn a_changed_limit_holds_for_those_who_wait_already() {
        let limit = Limit::new(rate(16 << 10));
        limit.turn(16 << 10).await;
        // Each would wait for an hour behind the one before.
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let limit = limit.clone();
                tokio::spawn(async move { limit.turn(64 << 20).await })
            })
            .collect();
        while limit.bucket.lock().busy(clock::instant()) < Duration::from_secs(3600) {
            tokio::task::yield_now().await;
        }
        limit.set(Rate::Unlimited);
        for one in waiting {
            tokio::time::timeout(Duration::from_secs(60), one).await.expect("it goes at once").unwrap();
        }
    }

    #[tokio::test]
    async fn a_target_that_hangs_is_given_up_though_its_body_waited_before() {
        let pacer = Pacer::new(Limit::new(rate(1 << 20)), Limit::new(Rate::Unlimited));
        let put = async {
            for _ in 0..8 {
                pacer.turn(FRAME, &Held::of_this_call()).await;
            }
            std::future::pending::<()>().await
        };
        assert_eq!(within(Duration::from_millis(50), put).await, Err(Elapsed));
    }

    #[tokio::test]
    async fn the_shared_limit_holds_for_all_together() {
        let shared = Limit::new(rate(1 << 20));
        let pacers: Vec<_> = (0..4).map(|_| Pacer::new(Limit::new(Rate::Unlimited), shared.clone())).collect();
        let began = clock::instant();
        // 16 × 64 KiB = 1 s of the link, a quarter of it free.
        futures::future::join_all(pacers.iter().map(|pacer| async {
            for _ in 0..4 {
                pacer.turn(FRAME, &Held::default()).await;
            }
        }))
        .await;
        assert!(clock::instant().since(began) >= Duration::from_millis(600));
    }
}
