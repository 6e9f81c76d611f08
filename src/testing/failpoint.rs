//! Named places where a test makes the daemon die, stand still, or meet an I/O error.
//!
//! Owns: the names, what the environment asks for, carrying it out.
//! Does not own: what must hold afterwards (`tests/crash`).
//!
//! Always compiled, so that the program that is tested is the one that is shipped; unset, a place costs one relaxed load of
//! a flag that nobody writes. Read once, at the start of a mount or restore:
//!
//! ```text
//! TANDEMFS_FAILPOINT=commit              die there, as by kill -9, at the first pass
//! TANDEMFS_FAILPOINT=commit:7            at the seventh
//! TANDEMFS_FAILPOINT=sync_staged:2=eio   the second pass fails with EIO; one pass only, as the kernel tells an error once
//! TANDEMFS_FAILPOINT=seal=stop:/tmp/m    create /tmp/m, then stand still for ever: whoever waits for the file cuts the power
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The environment variable.
pub const VARIABLE: &str = "TANDEMFS_FAILPOINT";

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All places.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// Its name in the environment variable.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// A file is made and has its name, it is not open yet.
    Create = "create",
    /// A session began: its file is there, nothing is written.
    Stage = "stage",
    /// Data is in the staged file, its range is not on record.
    Ranges = "ranges",
    /// A slot was reserved, nobody was told.
    Slot = "slot",
    /// The staged file is synced, no mark says so.
    Mark = "mark",
    /// The mark is synced, the slot is not renewed.
    Marked = "marked",
    /// A rotation froze all sessions.
    Rotate = "rotate",
    /// A session is read and hashed, not synced.
    Seal = "seal",
    /// A batch is hashed and synced, not committed.
    Commit = "commit",
    /// A batch is committed, its transaction not synced, no file removed.
    Committed = "committed",
    /// A lent file's rows are gone durably and it has its session's name; its slot is not reserved.
    Thaw = "thaw",
    /// A rename is committed, nobody was told.
    Rename = "rename",
    /// Chunk files are about to be unlinked, their rows are gone durably.
    Unlink = "unlink",
    /// Rows of local ranges were deleted, not synced.
    LocationDelete = "location_delete",
    /// A hole is punched into a staged file, its range is not on record.
    Punch = "punch",
    /// A target has a chunk, no bit says so.
    Upload = "upload",
    /// Placements are recorded.
    Placement = "placement",
    /// An object lies in a directory target's `tmp/`, not under its name.
    Place = "place",
    /// A segment and its number are stored, not sent.
    SegmentStored = "segment_stored",
    /// A segment is sent, not confirmed.
    SegmentSent = "segment_sent",
    /// A part of a checkpoint is sent.
    CheckpointPart = "checkpoint_part",
    /// `complete.json` is sent, its row is not complete.
    Complete = "complete",
    /// A target is about to become a resyncer, or to follow again.
    Resync = "resync",
    /// A session of an earlier mount was recovered, the mount is not usable.
    Recovered = "recovered",
    /// Chunks of a target lost their bits durably, no DELETE is sent.
    GcBegun = "gc_begun",
    /// DELETEs are answered, nothing says so.
    GcDeleted = "gc_deleted",
    /// The kernel's mount is gone, targets are not drained.
    Unmount = "unmount",
    /// A restore has written metadata, nothing says that it is whole.
    Restore = "restore",
    /// A new chunk of a rewrite is on disk, no row knows it (S10).
    RepackFile = "repack_file",
    /// The first references of a rewrite have moved, others have not (O5).
    Repack = "repack",
    /// `fdatasync` of a staged file.
    SyncStaged = "sync_staged",
    /// `fdatasync` of a range record.
    SyncRanges = "sync_ranges",
    /// `fsync` of the directory of a chunk file.
    SyncEntry = "sync_entry",
    /// Sync of sealed files before their commit.
    SyncSealed = "sync_sealed",
    /// Moving the metadata log into the database.
    WalCheckpoint = "wal_checkpoint",
    /// `fdatasync` of the metadata log.
    SyncWal = "sync_wal",
}

/// What happens at the place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Kill,
    Error,
    Stop(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    point: Point,
    nth: u64,
    action: Action,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static ASKED: OnceLock<Asked> = OnceLock::new();
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Reads the environment; to be called before any other thread of ours runs. An error says what it does not understand.
pub fn arm() -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let asked = parse(&text)?;
    tracing::warn!(failpoint = text, "this process is made to fail by {VARIABLE}");
    // A second mount of one process keeps what the first was told.
    let _ = ASKED.set(asked);
    ARMED.store(true, Ordering::Relaxed);
    Ok(())
}

fn parse(text: &str) -> Result<Asked, String> {
    let (place, action) = text.split_once('=').unwrap_or((text, "kill"));
    let (name, nth) = place.split_once(':').unwrap_or((place, "1"));
    let point = Point::ALL.iter().copied().find(|point| point.name() == name);
    let point = point.ok_or_else(|| format!("{VARIABLE}: there is no place {name:?}"))?;
    let nth = nth.parse().map_err(|_| format!("{VARIABLE}: {nth:?} is no number"))?;
    let action = match action.split_once(':') {
        None if action == "kill" => Action::Kill,
        None if action == "eio" => Action::Error,
        Some(("stop", marker)) => Action::Stop(marker.into()),
        _ => return Err(format!("{VARIABLE}: {action:?} is none of kill, eio, stop:FILE")),
    };
    Ok(Asked { point, nth, action })
}

/// Passes a place that may be made to fail.
pub fn check(point: Point) -> io::Result<()> {
    if !ARMED.load(Ordering::Relaxed) { Ok(()) } else { reached(point) }
}

/// Passes a place that cannot fail: an error asked for here is none.
pub fn pass(point: Point) {
    let _ = check(point);
}

#[cold]
fn reached(point: Point) -> io::Result<()> {
    let Some(asked) = ASKED.get().filter(|asked| asked.point == point) else { return Ok(()) };
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 != asked.nth {
        return Ok(());
    }
    match &asked.action {
        Action::Error => Err(io::Error::from_raw_os_error(libc::EIO)),
        Action::Kill => {
            // SAFETY: kill(2) on this very process. Nothing runs after it: no destructor, no buffer is flushed.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            stand_still()
        }
        Action::Stop(marker) => {
            if let Err(error) = std::fs::File::create(marker) {
                tracing::error!(%error, marker = %marker.display(), "the marker of a failpoint cannot be made");
            }
            stand_still()
        }
    }
}

fn stand_still() -> ! {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_says_place_pass_and_action() {
        let asked = |point, nth, action| Ok(Asked { point, nth, action });
        assert_eq!(parse("commit"), asked(Point::Commit, 1, Action::Kill));
        assert_eq!(parse("commit:7"), asked(Point::Commit, 7, Action::Kill));
        assert_eq!(parse("sync_wal:2=eio"), asked(Point::SyncWal, 2, Action::Error));
        assert_eq!(parse("seal=stop:/m:1"), asked(Point::Seal, 1, Action::Stop("/m:1".into())));
        for wrong in ["", "nowhere", "commit:x", "commit=sleep", "commit:1=stop"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn unset_every_place_is_passed() {
        for point in Point::ALL {
            check(*point).unwrap();
        }
    }

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
