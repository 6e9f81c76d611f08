//! What a piece of work allocates, so that a test can say that a bound holds. Other tests run at the same time: only threads
//! that say that they belong to it are counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

struct Counting;

/// By the threads that are counted; memory may come from one thread and go in another, so it may be less than nothing.
static USED: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// What this thread allocates from now on is counted: for those that [`within`]'s work starts.
pub fn count_this_thread() {
    COUNTED.set(true);
}

/// False also where a thread ends: nothing large comes or goes there.
fn is_counted() -> bool {
    COUNTED.try_with(Cell::get).unwrap_or(false)
}

// SAFETY: every call is passed on unchanged; only counters are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_counted() {
            let size = layout.size() as i64;
            PEAK.fetch_max(USED.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if is_counted() {
            USED.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests that look at the peak take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Ends the counting of this thread, also after a panic.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        COUNTED.set(false);
    }
}

/// Runs `work` and fails if at some moment it held more than `max` bytes more than at its start.
pub fn within<T>(what: &str, max: usize, work: impl FnOnce() -> T) -> T {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let value = {
        let _counted = Counted;
        count_this_thread();
        work()
    };
    let held = PEAK.load(Ordering::Relaxed) - before;
    assert!(held <= max as i64, "{what}: {held} bytes were held at a time, at most {max} are allowed");
    value
}

#[test]
fn the_bound_is_noticed() {
    let hold = |bytes: usize| std::hint::black_box(vec![1u8; bytes]).len();
    within("small", 1 << 20, || hold(1000));
    let large = || within("large", 1 << 20, || hold(4 << 20));
    assert!(std::panic::catch_unwind(large).is_err());
    let elsewhere = || {
        within("in a thread of its own", 1 << 20, || {
            let thread = std::thread::spawn(move || {
                count_this_thread();
                hold(4 << 20)
            });
            thread.join().unwrap()
        })
    };
    assert!(std::panic::catch_unwind(elsewhere).is_err());
    // Of others nothing is counted.
    within("beside others", 1 << 20, || std::thread::spawn(move || hold(4 << 20)).join().unwrap());
}
