//! Compaction in a world: what is left of sparse chunks, and areas in many pieces, move to new chunks while everything else
//! goes on (S10, O5).
//!
//! Owns: its settings, its pace. Does not own: what must hold afterwards: that is what must hold anyway.
//!
//! A world is one thread, and a rewrite blocks on what it fetches: so it has no sources of its own. What a reader brings here
//! (`compact` asks for some of it) it takes; the rest it finds stuck, as when no target answers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::world::World;
use crate::chunk::evict::Evictor;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::Space;
use crate::clock;
use crate::compaction::plan::Policy;
use crate::compaction::rewrite::Rewriter;
use crate::compaction::{Compactor, Outcome};
use crate::id::ChunkId;
use crate::meta::Meta;
use crate::read::Fetcher;
use crate::read::fetch::Wanted;

/// Rewrites in a row.
const AT_ONCE: usize = 6;
/// Chunks that are brought here for it at a time.
const FETCHED: usize = 2;

/// Small enough for a world: its files have some kilobytes, its minutes are days. Drawn from the seed alone, so that what else
/// happens in a world stays as it is.
fn policy(seed: u64, chunk_size: u64) -> Policy {
    Policy {
        chunk_size,
        rate: 1 << 30,
        min_garbage: [1, 1 << 10, 1 << 14][(seed % 3) as usize],
        quiet: Duration::from_secs(20),
        settle: Duration::from_secs([0, 0, 2][(seed / 3 % 3) as usize]),
        pieces_max: [1, 3][(seed % 2) as usize],
        lag_max: [1 << 14, u64::MAX, u64::MAX][(seed / 2 % 3) as usize],
    }
}

/// A runtime that has nothing to do but to say that no source has a chunk.
fn nowhere() -> &'static Runtime {
    static NOWHERE: OnceLock<Runtime> = OnceLock::new();
    NOWHERE.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_time().build().expect("a thread can be started")
    })
}

/// The compactor of a mount.
pub(super) fn compactor(
    seed: u64,
    chunk_size: u64,
    meta: &Arc<Meta>,
    open_files: &Arc<OpenFiles>,
    space: &Arc<Space>,
    evictor: &Arc<Evictor>,
) -> Compactor {
    let (meta, open_files, space, evictor) = (meta.clone(), open_files.clone(), space.clone(), evictor.clone());
    let runtime = nowhere().handle().clone();
    let fetcher = Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime);
    let rewriter = Rewriter { meta: meta.clone(), open_files, space, evictor, fetcher };
    Compactor::new(meta, rewriter, policy(seed, chunk_size))
}

impl World {
    /// Compaction has its turn.
    pub(super) fn compact(&mut self) {
        self.bring_sparse_chunks();
        for _ in 0..AT_ONCE {
            let mounted = self.mounted.as_mut().expect("mounted");
            match mounted.compactor.round(clock::instant()).unwrap() {
                Outcome::Wrote(bytes) => {
                    self.life.repacks += 1;
                    self.trace.note(format_args!("repacked {bytes}"));
                }
                Outcome::Walked => {}
                Outcome::Idle | Outcome::Held(_) => break,
            }
        }
        self.learn();
    }

    /// Some of what lies on targets only is read.
    fn bring_sparse_chunks(&mut self) {
        let meta = self.meta();
        let elsewhere = meta.sparse_chunks(ChunkId(0), 20).unwrap().into_iter().filter_map(|sparse| {
            let sources = meta.chunk_sources(sparse.id).unwrap()?;
            sources.pieces.is_empty().then_some(Wanted {
                chunk: sources.chunk.id,
                hash: sources.chunk.hash,
                length: sources.chunk.length,
                placed: sources.placed,
            })
        });
        for wanted in elsewhere.take(FETCHED).collect::<Vec<_>>() {
            let fetcher = self.mounted.as_ref().expect("mounted").fetcher.clone();
            // No target may have it for us now.
            let _ = self.drive("fetch", async move {
                let fetched = fetcher.fetch(wanted).await;
                fetcher.landed().await;
                fetched
            });
        }
    }
}
