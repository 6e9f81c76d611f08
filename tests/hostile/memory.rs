//! What this process allocates, so that a test can say that a bound holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged; only counters are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests that look at the peak take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Runs `work` and fails if at some moment it held more than `max` bytes more than at its start.
pub fn within<T>(what: &str, max: usize, work: impl FnOnce() -> T) -> T {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let value = work();
    let held = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(held <= max, "{what}: {held} bytes were held at a time, at most {max} are allowed");
    value
}

#[test]
fn the_bound_is_noticed() {
    within("small", 1 << 20, || std::hint::black_box(vec![1u8; 1000]));
    let large = std::panic::catch_unwind(|| within("large", 1 << 20, || std::hint::black_box(vec![1u8; 4 << 20])));
    assert!(large.is_err());
}
