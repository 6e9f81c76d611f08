//! Priority of threads: what works behind the back of programs stands back when processors are few.
//!
//! Owns: how far.
//! Does not own: which threads (`write::pipeline`, `mount`).

/// How much less a thread that stands back counts (nice(2)): about a tenth of one that a program waits for.
const NICENESS: i32 = 10;

/// Makes the calling thread stand back behind those that programs wait for.
///
/// On two processors a `cp -r` of small files otherwise shares them with the sealing and sending of the files before: a
/// half of all work is that. On Linux niceness belongs to the thread. Not for threads that hold what others wait for.
pub fn stand_back() {
    // It fails only for a value that is already higher: nothing to do then.
    let _ = rustix::process::nice(NICENESS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_stands_back() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let behind = std::thread::spawn(move || {
            stand_back();
            niceness()
        });
        assert_eq!(behind.join().unwrap(), (before + NICENESS).min(19));
        assert_eq!(niceness(), before);
    }
}
