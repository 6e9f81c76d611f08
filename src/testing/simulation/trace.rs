//! What happened in a world, as a hash: two runs of a seed that differ anywhere, differ here.
//!
//! Owns: the hash, and telling each line of it with `TANDEMFS_TRACE`.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock;

/// The history of a world. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Trace(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    // Without a key of its own: the same in every process.
    hasher: DefaultHasher,
    tells: Option<bool>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({:x})", self.hash())
    }
}

impl Trace {
    /// Something happened now.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:?} {what}", clock::simulated::now().unwrap_or_default());
        let mut state = self.0.lock();
        line.hash(&mut state.hasher);
        let tells = *state.tells.get_or_insert_with(|| std::env::var_os("TANDEMFS_TRACE").is_some());
        if tells {
            eprintln!("{line}");
        }
    }

    /// The hash of everything so far.
    pub(super) fn hash(&self) -> u64 {
        self.0.lock().hasher.finish()
    }
}
