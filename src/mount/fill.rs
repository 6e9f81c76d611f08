//! Bringing all bytes of a restored state directory to this machine at once (`restore --full`).
//!
//! Owns: the walk over chunks that are elsewhere.
//! Does not own: fetching and verifying one (`read::fetch`).

use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, stream};

use super::state_dir::StateDir;
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::control::Error;
use crate::id::ChunkId;
use crate::meta::{Meta, Options};
use crate::read::Fetcher;
use crate::read::fetch::{Source, Wanted};
use crate::target::DynTarget;

/// Chunks looked up at a time.
const PAGE: usize = 1000;
/// Chunks on their way at a time: as many as the fetcher lets fly.
const FETCHES: usize = 8;

/// Fetches everything that files refer to and that is not here, from the targets of these names. Tells `progress` of the
/// bytes that came. Returns how many chunks no target could give.
pub fn fill(state_dir: &Path, targets: &[(String, DynTarget)], progress: impl Fn(u64)) -> Result<u64, Error> {
    let failed = |e: std::io::Error| Error::failed(format!("fetch into {}: {e}", state_dir.display()));
    let internal = |e: crate::meta::Error| Error::failed(e.to_string());
    let state_dir = StateDir::lock(state_dir)?;
    let meta = Arc::new(Meta::open(&state_dir.meta(), &Options::default()).map_err(internal)?);
    let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(state_dir.path()).map_err(failed)?));
    let limits = Limits { used_max: u64::MAX, free_min: 64 << 20 };
    let space = Arc::new(Space::new(state_dir.path(), limits, meta.chunk_file_bytes().map_err(internal)?));
    let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fetch")
        .enable_all()
        .build()
        .map_err(failed)?;
    let fetcher = Fetcher::new(meta.clone(), open_files, space, evictor, runtime.handle().clone());
    let rows = meta.targets().map_err(internal)?;
    let sources = rows.iter().filter_map(|row| {
        let (name, target) = targets.iter().find(|(name, _)| *name == row.name)?;
        Some(Source { bit: row.bit, name: name.clone(), target: target.clone(), priority: 0 })
    });
    fetcher.set_sources(sources.collect());

    runtime.block_on(async {
        let mut after = ChunkId(0);
        loop {
            let page = meta.chunks_elsewhere(after, PAGE).map_err(internal)?;
            let Some((last, _)) = page.last() else {
                fetcher.landed().await;
                return Ok::<_, Error>(());
            };
            after = last.id;
            stream::iter(page)
                .for_each_concurrent(FETCHES, |(chunk, placed)| {
                    let wanted = Wanted { chunk: chunk.id, hash: chunk.hash, length: chunk.length, placed };
                    let flight = fetcher.fetch(wanted);
                    let progress = &progress;
                    async move {
                        if flight.await.is_ok() {
                            progress(chunk.length);
                        }
                    }
                })
                .await;
        }
    })?;
    let mut missing = 0;
    let mut after = ChunkId(0);
    loop {
        let page = meta.chunks_elsewhere(after, PAGE).map_err(internal)?;
        let Some((last, _)) = page.last() else { break };
        after = last.id;
        missing += page.len() as u64;
    }
    meta.sync().map_err(internal)?;
    Ok(missing)
}
