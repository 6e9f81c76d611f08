//! The answers to `control` that read or wait: `status`, `whereis`, `flush`.
//!
//! Owns: putting together what metadata and running parts say.
//! Does not own: unmounting (`shutdown`), any wording for people (`cli`).

use std::collections::BTreeMap;
use std::path::Path;

use super::drain::{self, Goal};
use super::parts::{Dirty, Parts};
use crate::clock;
use crate::control::protocol::{CopyState, Whereis, WhereisTarget};
use crate::control::status::{self, Filesystem, Mode, Status, Unreplicated};
use crate::control::{self, Error, ErrorKind, Flush, Flushed, ProgressSender, Wait};
use crate::id::{InodeId, Seq, TargetBit};
use crate::meta::copies::{Copies, TargetCopy};
use crate::meta::placement::Tally;
use crate::meta::target::{self, TargetRow};
use crate::meta::{self, inode::Inode};
use crate::replication::gate::Gate;

/// Answers `status`.
pub fn status(parts: &dyn Parts, mountpoint: &Path, state_dir: &Path) -> Result<Status, Error> {
    let meta = parts.meta();
    let head = meta.head();
    let rows = meta.targets().map_err(internal)?;
    let tallies: BTreeMap<TargetBit, Tally> = meta.tallies().map_err(internal)?.into_iter().collect();
    let sums = meta.chunk_sums().map_err(internal)?;
    let targets = rows.iter().map(|row| target_status(parts, row, &tallies, head)).collect::<Result<Vec<_>, _>>()?;
    // A resyncer pins nothing; what it lacks is counted apart.
    let resyncing = targets.iter().filter_map(|target| target.resync);
    let resyncing = resyncing.map(|resync| resync.total_bytes - resync.placed_bytes).max().unwrap_or(0);
    let dirty = parts.dirty(None);
    let shipped = rows.iter().map(|row| row.shipped_seq).min().unwrap_or(head);
    let unreplicated = Unreplicated {
        files: meta.unshipped_files(shipped).map_err(internal)? + dirty.files,
        bytes: sums.incomplete_bytes.max(resyncing) + dirty.bytes,
        oldest_seconds: targets.iter().map(|target| target.lag_seconds).max().unwrap_or(0),
    };
    let (epoch, _, _) = meta.writer_identity().map_err(internal)?;
    Ok(Status {
        filesystem: Filesystem {
            name: meta.filesystem_text("name").map_err(internal)?,
            uuid: meta.filesystem().map_err(internal)?.to_string(),
            mountpoint: mountpoint.display().to_string(),
            state_dir: state_dir.display().to_string(),
            epoch: epoch.0,
            no_passthrough: parts.no_passthrough(),
        },
        // What only moves bytes from chunk to chunk makes nothing less safe.
        safe: dirty == Dirty::default()
            && (shipped >= head || meta.only_repacks_after(shipped).map_err(internal)?)
            && meta.latched().is_none(),
        unreplicated,
        targets,
        attention: parts.attention(),
        cache: parts.cache()?,
        garbage: parts.garbage()?,
        requests: parts.requests(),
        journal_seq: head.0,
    })
}

/// How far a resync is, and the chunks it lacks. A resyncer has no sum of what it needs; whoever follows has.
fn resync(row: &TargetRow, own: Tally, tallies: &BTreeMap<TargetBit, Tally>) -> (status::Resync, u64) {
    let all = tallies
        .values()
        .map(|tally| (tally.placed_bytes + tally.pending_bytes, tally.placed_chunks + tally.pending_chunks));
    let (bytes, chunks) = all.max().unwrap_or_default();
    let resync = status::Resync {
        seq: row.base_seq.0,
        placed_bytes: own.placed_bytes.min(bytes),
        total_bytes: bytes,
        estimate_seconds: None,
    };
    (resync, chunks.saturating_sub(own.placed_chunks))
}

fn target_status(
    parts: &dyn Parts,
    row: &TargetRow,
    tallies: &BTreeMap<TargetBit, Tally>,
    head: Seq,
) -> Result<status::Target, Error> {
    let tally = tallies.get(&row.bit).copied().unwrap_or_default();
    let resync = (row.mode == target::Mode::Resync).then(|| match parts.lacking(row.bit) {
        Some((lacking, estimate_seconds)) => {
            let placed_bytes = lacking.total_bytes.saturating_sub(lacking.bytes);
            let total_bytes = lacking.total_bytes;
            let resync = status::Resync { seq: row.base_seq.0, placed_bytes, total_bytes, estimate_seconds };
            (resync, lacking.chunks)
        }
        None => resync(row, tally, tallies),
    });
    let (pending_objects, pending_bytes) = match resync {
        Some((resync, chunks)) => (chunks, resync.total_bytes - resync.placed_bytes),
        None => (tally.pending_chunks, tally.pending_bytes),
    };
    let backlog = parts.meta().shipping_backlog(row.bit).map_err(internal)?;
    let now = clock::now();
    let (health, last_error) = parts.health(row.bit);
    let (reason, hint) = match parts.complaint(row.bit) {
        Some((reason, hint)) => (Some(reason), Some(hint)),
        None => (row.reason.clone(), None),
    };
    let caught_up = row.shipped_seq >= head;
    // It holds everything that happened before the oldest record that it lacks.
    let behind_since = match row.mode {
        _ if caught_up => None,
        // The journal does not reach back to what it lacks; what it held when it stopped following is noted.
        target::Mode::Resync if row.whole_secs.is_some() => row.whole_secs,
        _ => backlog.oldest.map(clock::Timestamp::secs),
    };
    let lag = |since: i64| parts.meta().age(row.shipped_seq.next(), now.secs().saturating_sub(since));
    let lag_seconds = behind_since.map_or(Ok(0), lag).map_err(internal)?;
    let whole_as_of = clock::Timestamp::new(now.secs().saturating_sub(lag_seconds as i64), 0).ok();
    Ok(status::Target {
        name: row.name.clone(),
        uri: row.uri.clone(),
        health,
        mode: match (parts.gate(row.bit), row.mode) {
            (Gate::Fenced { .. }, _) | (_, target::Mode::Fenced) => Mode::Fenced,
            (Gate::Blocked { .. }, _) | (_, target::Mode::Blocked) => Mode::Blocked,
            (_, target::Mode::Resync) => Mode::Resync,
            (_, target::Mode::Follow) => Mode::Follow,
        },
        reason,
        hint,
        whole_as_of: match row.mode {
            _ if !row.initialised || (row.shipped_seq == Seq::ZERO && !caught_up) => None,
            target::Mode::Resync if row.whole_secs.is_none() && !caught_up => None,
            _ => whole_as_of.map(crate::format::utc),
        },
        resync: resync.map(|(resync, _)| resync),
        pending_objects,
        pending_bytes,
        lag_seconds,
        placed_bytes: tally.placed_bytes,
        shipped_seq: row.shipped_seq.0,
        last_error,
    })
}

/// Answers `whereis`.
pub fn whereis(parts: &dyn Parts, paths: &[control::Path]) -> Result<Vec<Whereis>, Error> {
    paths.iter().map(|path| whereis_one(parts, path)).collect()
}

fn whereis_one(parts: &dyn Parts, path: &control::Path) -> Result<Whereis, Error> {
    let inode = resolve(parts, path)?;
    let (copies, targets) = copies(parts, inode.ino).map_err(internal)?;
    let unsealed = copies.unsealed || parts.dirty(Some(inode.ino)).files > 0;
    Ok(Whereis {
        path: path.clone(),
        inode: inode.ino.0,
        size: copies.size,
        // Bytes not sealed yet are nowhere else.
        local_bytes: if unsealed { copies.size } else { copies.local_bytes },
        targets,
    })
}

/// What each target holds of an inode.
fn copies(parts: &dyn Parts, ino: InodeId) -> meta::Result<(Copies, Vec<WhereisTarget>)> {
    let copies = parts.meta().copies(ino)?;
    let dirty = parts.dirty(Some(ino));
    let unsealed = copies.unsealed || dirty.files > 0;
    let rows: BTreeMap<TargetBit, TargetRow> = parts.meta().targets()?.into_iter().map(|row| (row.bit, row)).collect();
    let state = |copy: &TargetCopy| {
        let row = rows.get(&copy.bit)?;
        let safe = !unsealed && copy.lacking_bytes == 0 && copy.shipped_seq >= copies.last_seq;
        let stuck = !row.initialised || !matches!(parts.gate(copy.bit), Gate::Open | Gate::Unknown);
        Some(WhereisTarget {
            name: row.name.clone(),
            state: match safe {
                true => CopyState::Safe,
                false if stuck && copy.lacking_bytes == copies.size => CopyState::Absent,
                false => CopyState::Pending,
            },
            pending_bytes: copy.lacking_bytes + dirty.bytes,
        })
    };
    let targets = copies.targets.iter().filter_map(state).collect();
    Ok((copies, targets))
}

/// The value of `user.tandemfs.targets`: `aws=safe oss=pending`.
pub fn targets_attribute(parts: &dyn Parts, ino: InodeId) -> meta::Result<String> {
    let (_, targets) = copies(parts, ino)?;
    let words: Vec<String> = targets
        .iter()
        .map(|target| {
            let state = match target.state {
                CopyState::Safe => "safe",
                CopyState::Pending => "pending",
                CopyState::Absent => "absent",
            };
            format!("{}={state}", target.name)
        })
        .collect();
    Ok(words.join(" "))
}

/// Answers `flush`.
pub async fn flush(parts: &dyn Parts, request: Flush, progress: ProgressSender) -> Result<Flushed, Error> {
    let deadline = request.timeout_seconds.map(|seconds| clock::instant() + std::time::Duration::from_secs(seconds));
    let inodes = request.paths.iter().map(|path| resolve(parts, path)).collect::<Result<Vec<Inode>, Error>>()?;
    let covered = parts.settle()?;
    // History is one: a place is reached only after all before it. So an old file is waited for no longer than needed.
    let mut seq = Seq::ZERO;
    for inode in &inodes {
        seq = seq.max(parts.meta().last_seq_below(inode.ino).map_err(internal)?);
    }
    let seq = if inodes.iter().any(|inode| inode.ino == InodeId::ROOT) { covered } else { seq };
    let goal = Goal { seq, wait: request.wait, deadline };
    if request.wait == Wait::Local {
        drain::until_durable(parts, goal).await?;
    } else {
        drain::drain(parts, goal, Some(&progress)).await?;
    }
    Ok(Flushed { seq: seq.0 })
}

fn resolve(parts: &dyn Parts, path: &control::Path) -> Result<Inode, Error> {
    parts.meta().resolve(&path.0).map_err(|error| match error {
        meta::Error::Refused(errno) => {
            let error = Error::new(ErrorKind::NotFound, format!("{path}: {}", std::io::Error::from(errno)));
            if errno == rustix::io::Errno::NOTDIR {
                error.hint("symbolic links inside the filesystem are not followed: name the file itself")
            } else {
                error.hint("the path is looked for in the filesystem, from its root")
            }
        }
        error => internal(error),
    })
}

fn internal(error: meta::Error) -> Error {
    Error::failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::parts::testing::Fake;

    fn status_of(parts: &Fake) -> Status {
        status(parts, Path::new("/mnt"), Path::new("/state")).unwrap()
    }

    #[test]
    fn safe_means_every_record_on_every_target_and_nothing_dirty() {
        let mut parts = Fake::new(&[("a", 2), ("b", 0)]);
        parts.file("f");
        let status = status_of(&parts);
        assert!(!status.safe);
        assert_eq!(status.targets[1].whole_as_of, None);
        let mut parts_whole = Fake::new(&[("a", 2), ("b", 2)]);
        parts_whole.file("f");
        assert!(status_of(&parts_whole).safe);
        parts_whole.dirty = Dirty { files: 1, bytes: 10 };
        let status = status_of(&parts_whole);
        assert!(!status.safe);
        assert_eq!((status.unreplicated.files, status.unreplicated.bytes), (1, 10));
        parts.fence("b");
        assert_eq!(status_of(&parts).targets[1].mode, Mode::Fenced);
    }

    #[test]
    fn t4_how_far_a_resync_is_is_measured_by_those_that_follow() {
        let tally = |pending, placed| Tally {
            pending_chunks: pending,
            pending_bytes: 10 * pending,
            placed_chunks: placed,
            placed_bytes: 10 * placed,
        };
        let bit = |index| TargetBit::new(index).unwrap();
        let row = TargetRow { base_seq: Seq(9), ..Fake::new(&[("a", 2)]).meta().targets().unwrap().remove(0) };
        let tallies = BTreeMap::from([(bit(0), tally(0, 3)), (bit(1), tally(2, 6))]);
        let (resync, lacks) = resync(&row, tally(0, 3), &tallies);
        assert_eq!((resync.seq, resync.placed_bytes, resync.total_bytes, lacks), (9, 30, 80, 5));
        // It may hold chunks that nobody refers to any more.
        let (resync, lacks) = super::resync(&row, tally(0, 9), &tallies);
        assert_eq!((resync.placed_bytes, resync.total_bytes, lacks), (80, 80, 0));
    }

    #[test]
    fn d8_what_several_targets_lack_is_counted_once() {
        let parts = Fake::new(&[("a", 2), ("b", 2)]);
        let bit = |index| TargetBit::new(index).unwrap();
        for (id, length) in [(1u64, 10), (2, 100)] {
            let insert = |tx: &mut meta::Tx<'_>| {
                tx.conn().execute(
                    "INSERT INTO chunk (id, hash, length, bytes_referenced, incomplete) VALUES (?1, ?2, ?3, ?3, 1)",
                    rusqlite::params![id as i64, crate::id::ChunkHash::of(&id.to_le_bytes()), length as i64],
                )?;
                tx.chunks_inserted(1, length)
            };
            parts.meta().write(insert).unwrap();
        }
        let place = |target, id| parts.meta().place(bit(target), &[crate::id::ChunkId(id)]).unwrap();
        place(0, 1);
        place(1, 2);
        let status = status_of(&parts);
        let pending: Vec<u64> = status.targets.iter().map(|target| target.pending_bytes).collect();
        assert_eq!(pending, [100, 10]);
        assert_eq!(status.unreplicated.bytes, 110, "not the 100 of the worst");
        place(1, 1);
        place(0, 2);
        assert_eq!(status_of(&parts).unreplicated.bytes, 0);
    }

    #[test]
    fn a_file_is_safe_where_the_record_that_names_it_is() {
        let parts = Fake::new(&[("a", 2), ("b", 0)]);
        parts.file("f");
        let found = whereis(&parts, &[control::Path(b"f".to_vec())]).unwrap();
        let states: Vec<_> = found[0].targets.iter().map(|target| target.state).collect();
        assert_eq!(states, [CopyState::Safe, CopyState::Absent]);
        let ino = parts.meta().resolve(b"f").unwrap().ino;
        assert_eq!(targets_attribute(&parts, ino).unwrap(), "a=safe b=absent");
        let error = whereis(&parts, &[control::Path(b"g".to_vec())]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_flush_of_an_old_file_does_not_wait_for_what_came_later() {
        let parts = Fake::new(&[("a", 2)]);
        parts.file("old");
        parts.file("new");
        let flush_of = |name: &str| Flush {
            paths: vec![control::Path(name.as_bytes().to_vec())],
            wait: Wait::All,
            timeout_seconds: Some(0),
        };
        let (progress, _reports) = ProgressSender::channel();
        assert_eq!(flush(&parts, flush_of("old"), progress.clone()).await.unwrap().seq, 2);
        assert_eq!(flush(&parts, flush_of("new"), progress).await.unwrap_err().kind, ErrorKind::Timeout);
    }
}
