//! Programs that wait: `fsync`, and a `close` that waits for targets (D3).
//!
//! Owns: the waits under way, and the check that none was answered before enough targets had the content. Does not own: the
//! policies themselves (`vfs::acknowledge`).

use std::sync::Arc;

use parking_lot::Mutex;

use super::oracle::Fsync;
use super::programs::Version;
use super::world::World;
use crate::config::Policy;
use crate::id::{InodeId, Seq};
use crate::vfs::acknowledge::Flushed;

/// Somebody waits.
pub(super) struct Wait {
    ino: InodeId,
    /// What it held when it was asked.
    version: Version,
    policy: Policy,
    /// An `fsync`, with the journal head when it was called.
    synced: Option<Seq>,
    answer: Arc<Mutex<Option<crate::vfs::Result<()>>>>,
}

impl World {
    fn wait(
        &mut self,
        ino: InodeId,
        policy: Policy,
        synced: Option<Seq>,
        call: impl Future<Output = crate::vfs::Result<()>> + Send + 'static,
    ) {
        let answer = Arc::new(Mutex::new(None));
        let version = self.programs.files[&ino].version();
        let wait = Wait { ino, version, policy, synced, answer: answer.clone() };
        let mounted = self.mounted.as_ref().expect("mounted");
        mounted.runtime.spawn(async move {
            let result = call.await;
            *answer.lock() = Some(result);
        });
        self.waits.push(wait);
    }

    /// `fsync`.
    pub(super) fn sync(&mut self, ino: InodeId) {
        let vfs = self.vfs();
        let policy = vfs.policies(ino).unwrap().fsync;
        self.trace.note(format_args!("fsync {ino} {policy}"));
        let head = self.meta().head();
        self.wait(ino, policy, Some(head), vfs.fsync_later(ino));
        // It has begun before the program goes on.
        self.run(1);
    }

    /// The FLUSH of a `close`, which may have to wait.
    pub(super) fn flush(&mut self, ino: InodeId, handle: u64) {
        let vfs = self.vfs();
        match vfs.flush_now(ino, handle).unwrap() {
            Flushed::Done => {}
            Flushed::Later(policy) => {
                self.wait(ino, policy, None, vfs.flush_later(ino, policy));
                self.run(1);
            }
        }
    }

    /// Looks at the answers that came.
    pub(super) fn check_answers(&mut self) {
        let (answered, waiting): (Vec<Wait>, Vec<Wait>) =
            std::mem::take(&mut self.waits).into_iter().partition(|wait| wait.answer.lock().is_some());
        self.waits = waiting;
        for wait in answered {
            let answer = wait.answer.lock().take();
            self.trace.note(format_args!("{} {}: {answer:?}", wait.ino, wait.policy));
            if answer == Some(Ok(())) {
                self.life.acks += 1;
                if let Some(called) = wait.synced {
                    let answered = self.meta().head();
                    self.truth.fsyncs.push(Fsync { ino: wait.ino, called, answered });
                }
                self.check_answer(&wait);
            }
        }
    }

    fn check_answer(&mut self, wait: &Wait) {
        // It lost its last name meanwhile: nothing is promised of it.
        let Some(file) = self.programs.files.get_mut(&wait.ino) else { return };
        if wait.policy != Policy::Cached {
            file.synced = file.synced.max(wait.version);
            file.placed = file.placed.max(wait.version);
        }
        let targets = self.places.len();
        let needed = match wait.policy {
            Policy::Cached | Policy::Local => return,
            Policy::Targets(count) => count as usize,
            Policy::Quorum => targets / 2 + 1,
            Policy::All => targets,
        };
        let promised: Vec<Vec<u8>> = file.versions.range(wait.version..).map(|(_, content)| content.clone()).collect();
        let mut holding = 0;
        for index in 0..targets {
            // What a place lost after it had confirmed it, was held when the answer was given.
            let held = self.places[index].has_lied() || {
                let content = self.content_on(index, wait.ino);
                content.is_some_and(|content| promised.contains(&content))
            };
            holding += usize::from(held);
        }
        assert!(
            holding >= needed,
            "world {}: {} was promised to be on {needed} targets, {holding} have it",
            self.seed,
            wait.ino
        );
    }
}
