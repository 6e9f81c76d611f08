//! Changing and reading the content of live files.
//!
//! Owns: write, truncate, fallocate on the staged session; the plan of who answers for a read.
//! Does not own: reading committed content (`read`), waiting for space (`vfs::io`).

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::files::Files;
use super::layers::{self, Source};
use super::live::{Attributes, LiveFile, State};
use super::ranges::RANGES_MAX;
use super::session::Staged;
use crate::clock::{self, Timestamp};
use crate::id::InodeId;
use crate::meta::Result;

/// The largest file: what a record can carry, as JSON has it.
pub const SIZE_MAX: u64 = crate::id::NUMBER_MAX;

/// A range of a read and where its bytes are.
#[derive(Debug, Clone)]
pub struct Planned {
    pub range: Range<u64>,
    pub from: From,
}

/// Where bytes of a file are.
#[derive(Debug, Clone)]
pub enum From {
    /// The staged session's file, at the same offset; what lies beyond its end is zeros.
    Staged(Arc<File>),
    /// A frozen session's file by name, likewise.
    Frozen(String),
    /// The committed content.
    Manifest,
    /// Nowhere: zeros.
    Hole,
}

impl Files {
    /// Writes `data` at `offset` of an open file, so much of it as a file can have there; at least a byte. The caller has
    /// been admitted (`chunk::space`).
    pub fn write(&self, ino: InodeId, offset: u64, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= SIZE_MAX {
            return Err(rustix::io::Errno::FBIG.into());
        }
        let data = &data[..data.len().min((SIZE_MAX - offset) as usize)];
        let _gate = self.gate.read();
        self.with_live(ino, InodeId::ROOT, |file, state| {
            let (staged, attributes) = self.staged(ino, state)?;
            let written = match staged.write_at(offset, data) {
                Ok(written) => written,
                Err(error) => {
                    staged.take_back(attributes.size);
                    return Err(self.refused(format!("write to inode {ino}"), error));
                }
            };
            let grown = staged.account(written as u64);
            let now = clock::now();
            attributes.size = attributes.size.max(offset + written as u64);
            attributes.mtime = now;
            attributes.ctime = now;
            self.space.add(grown);
            staged.changed_by_us().map_err(|e| self.refused(format!("write to inode {ino}"), e))?;
            // D8: a session does not hold more ranges than this; one whose sync is under way goes on a little longer.
            if staged.ranges.len() > RANGES_MAX
                && let Some(_syncing) = file.syncing.try_lock()
            {
                self.begin_anew(file, state)?;
            }
            Ok(written)
        })
    }

    /// Sets the size of a regular file, through a handle or by its name. A closed file is a session filled at once (O3).
    pub fn truncate(&self, ino: InodeId, size: u64, time: Timestamp) -> Result<()> {
        if size > SIZE_MAX {
            return Err(rustix::io::Errno::FBIG.into());
        }
        let promised = self.promised(ino);
        let _still = self.still(promised.as_ref());
        let file: Result<_> = self.with_live(ino, InodeId::ROOT, |file, state| {
            self.keep_promised(file, state, promised.as_ref())?;
            self.set_size(ino, state, size, time)?;
            if state.opens() == 0 {
                self.close_last(file, state)?;
            }
            Ok(file.clone())
        });
        self.forget_if_idle(&file?);
        Ok(())
    }

    /// Gives the session of an open file to the sealers, so that the next write begins another. A file without a name keeps
    /// its session: it takes no slot, and nobody would find its bytes again.
    fn begin_anew(&self, file: &Arc<LiveFile>, state: &mut State) -> Result<()> {
        self.observe(file.ino, state)?;
        let has_content = state.staged.as_ref().is_some_and(|staged| staged.is_dirty() || staged.has_slot);
        if has_content && self.reserve(file.ino, state, false)?.is_some() {
            self.push_frozen(file, state);
        }
        Ok(())
    }

    /// The file, if its session holds bytes that an `fsync` promised. Whoever is about to take them away waits for a sync
    /// that is under way, before the gate: nobody waits for a sync behind it.
    pub(super) fn promised(&self, ino: InodeId) -> Option<Arc<LiveFile>> {
        self.find(ino).filter(|file| file.state.read().staged.as_ref().is_some_and(Staged::holds_promised))
    }

    /// Bytes that an `fsync` promised are not cut off or punched out where they lie: a power cut may keep that and lose what
    /// was to replace them, and the session would count for nothing (S3). They go to the sealers as they are, and the
    /// change begins a session of its own. `syncing`: the file whose sync lock the caller holds.
    pub(super) fn keep_promised(
        &self,
        file: &Arc<LiveFile>,
        state: &mut State,
        syncing: Option<&Arc<LiveFile>>,
    ) -> Result<()> {
        if !state.staged.as_ref().is_some_and(Staged::holds_promised) {
            return Ok(());
        }
        if syncing.is_some_and(|held| Arc::ptr_eq(held, file)) {
            return self.begin_anew(file, state);
        }
        // It was promised a moment ago.
        match file.syncing.try_lock() {
            Some(_syncing) => self.begin_anew(file, state),
            None => Ok(()),
        }
    }

    pub(super) fn set_size(&self, ino: InodeId, state: &mut State, size: u64, time: Timestamp) -> Result<()> {
        let failed = |e| self.refused(format!("truncate of inode {ino}"), e);
        let (staged, attributes) = self.staged(ino, state)?;
        staged.set_size(size).map_err(failed)?;
        *attributes = Attributes { size, mtime: time, ctime: time };
        staged.changed_by_us().map_err(failed)
    }

    /// `fallocate(2)`: allocate (`keep_size` or growing), punch a hole, or zero a range.
    pub fn fallocate(&self, ino: InodeId, range: Range<u64>, mode: Fallocate) -> Result<()> {
        if range.end > SIZE_MAX {
            return Err(rustix::io::Errno::FBIG.into());
        }
        let promised = self.promised(ino).filter(|_| matches!(mode, Fallocate::Zero { .. }));
        let _still = self.still(promised.as_ref());
        self.with_live(ino, InodeId::ROOT, |file, state| {
            if matches!(mode, Fallocate::Zero { .. }) {
                self.keep_promised(file, state, promised.as_ref())?;
            }
            let (staged, attributes) = self.staged(ino, state)?;
            let size = attributes.size;
            let failed = |e| self.refused(format!("fallocate on inode {ino}"), e);
            match mode {
                Fallocate::Allocate { keep_size } => staged.allocate(range.clone(), keep_size).map_err(failed)?,
                Fallocate::Zero { keep_size } => {
                    if !keep_size && range.end > size {
                        staged.set_size(range.end).map_err(failed)?;
                    }
                    let visible = if keep_size { size } else { size.max(range.end) };
                    let inside = range.start.min(visible)..range.end.min(visible);
                    staged.zero(range.clone(), inside).map_err(failed)?;
                }
            }
            let grows = match mode {
                Fallocate::Allocate { keep_size } | Fallocate::Zero { keep_size } => !keep_size,
            };
            let now = clock::now();
            attributes.size = if grows { size.max(range.end) } else { size };
            attributes.mtime = now;
            attributes.ctime = now;
            staged.changed_by_us().map_err(failed)
        })
    }

    /// Who answers for `range` of `ino`, cut at the end of the file. `None`: no session lives, the committed content
    /// answers for all of it.
    pub fn plan(&self, ino: InodeId, range: Range<u64>) -> Option<Vec<Planned>> {
        let file = self.find(ino)?;
        let state = file.state.read();
        let attributes = state.current_attributes()?;
        let layers = state.layers();
        if layers.is_empty() {
            return None;
        }
        let range = range.start.min(attributes.size)..range.end.min(attributes.size);
        let staged = usize::from(state.staged.is_some());
        let planned = layers::plan(&layers, range)
            .into_iter()
            .map(|segment| Planned {
                range: segment.range,
                from: match segment.source {
                    Source::Layer(0) if staged == 1 => {
                        From::Staged(state.staged.as_ref().expect("layer 0 is the staged session").file.clone())
                    }
                    Source::Layer(index) => {
                        let frozen = &state.frozen[index - staged];
                        match frozen.kept.get() {
                            Some(file) => From::Staged(file.clone()),
                            None => From::Frozen(frozen.path.clone()),
                        }
                    }
                    Source::Manifest => From::Manifest,
                    Source::Hole => From::Hole,
                },
            })
            .collect();
        Some(planned)
    }
}

/// What `fallocate(2)` is asked to do, of the modes that exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// Mode 0 or `FALLOC_FL_KEEP_SIZE`.
    Allocate { keep_size: bool },
    /// `FALLOC_FL_PUNCH_HOLE` (always with keep size) or `FALLOC_FL_ZERO_RANGE`.
    Zero { keep_size: bool },
}
