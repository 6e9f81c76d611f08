//! What lies on this machine, opened: chunk files, their room, who writes and who reads them.
//!
//! Owns: how the parts of the local side are put together. Does not own: the parts, targets' bookkeeping (`replication`).

use std::sync::Arc;

use tokio::runtime::Runtime;

use super::opened::Opened;
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::lease;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::Space;
use crate::compaction::rewrite::Rewriter;
use crate::config::{self, Config};
use crate::control::Error;
use crate::meta::Meta;
use crate::meta::target::TargetRow;
use crate::mount::settings::Target;
use crate::read::{Fetcher, Reader, Source};
use crate::vfs::Vfs;
use crate::write::pipeline::Pipeline;
use crate::write::{self, Files};

/// The local side of a mount.
pub(super) struct Storage {
    pub files: Arc<Files>,
    pub open_files: Arc<OpenFiles>,
    pub space: Arc<Space>,
    pub evictor: Arc<Evictor>,
    pub pipeline: Pipeline,
    pub fetcher: Arc<Fetcher>,
    pub vfs: Arc<Vfs>,
    /// Bytes of a full chunk.
    pub chunk_size: u64,
}

impl Storage {
    /// Sealers begin to work; nothing is recovered yet. Bytes that are not here are fetched on `runtime`.
    pub fn open(opened: &Opened, config: &Config, runtime: &Runtime, read_only: bool) -> Result<Storage, Error> {
        let Opened { meta, state_path, rows, targets, .. } = opened;
        let internal = |e: crate::meta::Error| Error::failed(e.to_string());
        let threads_failed = |e: std::io::Error| Error::failed(format!("start threads: {e}"));
        let chunk_files = ChunkFiles::new(state_path)
            .map_err(|e| Error::failed(format!("make folders in {}: {e}", state_path.display())))?;
        let open_files = Arc::new(OpenFiles::new(chunk_files));
        let used = meta.chunk_file_bytes().map_err(internal)?;
        let config::Cache { limit, reserve, wait, .. } = config.cache;
        let space = Arc::new(Space::reserved(state_path, limit.unwrap_or(u64::MAX), used, reserve, wait));
        space.tend();
        let full = space.clone();
        meta.when_full(Box::new(move |error| full.found_full(error.is_quota())));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let chunk_size = meta.chunk_size().map_err(internal)?;
        let (files, queue) = Files::new(write::Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        })
        .map_err(internal)?;
        // A mount that may not write seals nothing: what an interrupted one left stays as it is.
        let sealers =
            if read_only { 0 } else { std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)) };
        let pipeline = Pipeline::start(&files, queue, sealers, chunk_size).map_err(threads_failed)?;

        let fetcher =
            Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime.handle().clone());
        let source = |(row, target): (&TargetRow, &Target)| Source {
            bit: row.bit,
            name: row.name.clone(),
            target: target.store.clone(),
            priority: target.config.read_priority,
        };
        fetcher.set_sources(rows.iter().zip(targets).map(source).collect());
        let reader =
            Reader::new(meta.clone(), files.clone(), open_files.clone(), evictor.clone(), fetcher.clone(), chunk_size);
        let vfs = Arc::new(Vfs::new(reader, space.clone()).map_err(threads_failed)?);
        Ok(Storage { files, open_files, space, evictor, pipeline, fetcher, vfs, chunk_size })
    }

    /// What rewrites chunks of which little lives (S10).
    pub fn rewriter(&self, meta: &Arc<Meta>) -> Rewriter {
        Rewriter {
            meta: meta.clone(),
            open_files: self.open_files.clone(),
            space: self.space.clone(),
            evictor: self.evictor.clone(),
            fetcher: self.fetcher.clone(),
        }
    }
}

/// True if files in the state directory may be backing files: whether somebody still writes to one must show (S4).
pub(super) fn can_be_backed(files: &Files) -> bool {
    match lease::works_in(files.chunk_files().state_dir()) {
        Ok(works) => {
            if !works {
                files.passthrough().is_off("the filesystem of the state directory has no leases".into());
            }
            works
        }
        Err(error) => {
            files.passthrough().is_off(format!("leases could not be tried: {error}"));
            false
        }
    }
}
