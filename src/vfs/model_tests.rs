//! `Vfs` without a kernel gives every program what a local directory gives it: random histories of calls, made in both.
//!
//! The calls are those of `testing::posix`, which the tests of the mount make there (`tests/posix/twins.rs`). [`kernel`]
//! takes the kernel's part. What the two show is compared after each call; everything there is, after every few and in the
//! end. A history that fails is made as short as it can be; keep it as `regression_…`.
//!
//! `TANDEMFS_HISTORIES` says how many histories, `TANDEMFS_SEED` chooses others.

mod kernel;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::tests::Rig;
use crate::testing::posix::call::{Call, Dice, Shown, brief, invent_with_user};
use crate::testing::posix::plain::Plain;
use crate::testing::posix::syscall::{self, Errno, call, gave};
use crate::testing::posix::{DIRECTORIES, HANDLES, MAPS, NAMES};
use kernel::Kernel;

const HISTORIES: u64 = 10;
/// Steps of a history.
const STEPS: usize = 400;
/// Everything is compared after so many calls.
const LOOK_AFTER: usize = 40;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Call(u32, Call),
    /// Open files take their place in history.
    Rotate,
    /// All that is closed is committed.
    Settle,
}

fn step(dice: &mut Dice) -> Step {
    match dice.below(50) {
        0 => Step::Rotate,
        1 => Step::Settle,
        _ => {
            let (user, call) = invent_with_user(dice);
            // Whether somebody may list a directory is the kernel's business; for root there is always something to compare.
            let user = if matches!(call, Call::Look { .. }) { 0 } else { user };
            Step::Call(user, call)
        }
    }
}

/// A directory and a filesystem in which the same calls are made.
struct Pair {
    plain: Plain,
    kernel: Kernel,
    _directory: tempfile::TempDir,
}

impl Pair {
    fn new() -> Pair {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        // For the users that are not root.
        for path in [directory.path(), &root] {
            assert_eq!(call!(chmod(syscall::c(path).as_ptr(), 0o777)), Ok(0));
        }
        Pair { plain: Plain::new(root), kernel: Kernel::new(Rig::new()), _directory: directory }
    }

    /// Makes a call in both, and says how they differ.
    fn perform(&mut self, user: u32, call: &Call) -> Result<(), String> {
        let plain = syscall::as_user(user, || self.plain.perform(call));
        let denied = |gave: &Result<i64, Errno>| matches!(gave, Err(Errno(libc::EACCES | libc::EPERM)));
        // The kernel checks permissions before it asks the filesystem, by the attributes and lists that it shows. That these
        // are right is compared; nothing may have happened.
        let refused = match &plain {
            Some(Shown::Gave(gave) | Shown::Bytes(gave, _)) => denied(gave),
            Some(Shown::Looked(Err(errno), ..)) => denied(&Err(*errno)),
            _ => false,
        };
        if refused {
            return Ok(());
        }
        let ours = self.kernel.perform(user, call);
        if ours == plain { Ok(()) } else { Err(format!("{}, not {}", brief(&ours), brief(&plain))) }
    }

    /// Compares every name and every byte.
    fn look(&mut self) -> Result<(), String> {
        for directory in DIRECTORIES {
            for name in NAMES.iter().chain(&["d1", "d2", "sub"]) {
                let path = Path::new(directory).join(name);
                self.look_at(&path).map_err(|differ| format!("looked at {path:?}: {differ}"))?;
            }
        }
        // Files without a name, too.
        for slot in 0..HANDLES {
            let read = Call::Read { slot, offset: 0, length: 1 << 20 };
            self.perform(0, &read).map_err(|differ| format!("handle {slot}: {differ}"))?;
        }
        Ok(())
    }

    fn look_at(&mut self, path: &Path) -> Result<(), String> {
        let slot = HANDLES;
        self.perform(0, &Call::Look { path: path.to_owned() })?;
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW;
        self.perform(0, &Call::Open { slot, path: path.to_owned(), flags, mode: 0 })?;
        self.perform(0, &Call::Read { slot, offset: 0, length: 1 << 20 })?;
        self.perform(0, &Call::Close { slot })
    }
}

/// Makes the calls of a history. What it panics with is an error, too.
fn live(steps: &[Step]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| live_in(&mut Pair::new(), steps))).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        Err(said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default())
    })
}

fn live_in(pair: &mut Pair, steps: &[Step]) -> Result<(), String> {
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Call(user, call) => pair.perform(*user, call).map_err(|differ| format!("{step:?}: {differ}"))?,
            Step::Rotate => pair.kernel.rig.rotate(),
            Step::Settle => pair.kernel.rig.settle(),
        }
        if number % LOOK_AFTER == LOOK_AFTER - 1 {
            pair.look().map_err(|differ| format!("after {step:?}: {differ}"))?;
        }
    }
    pair.look().map_err(|differ| format!("in the end: {differ}"))?;
    (0..HANDLES).try_for_each(|slot| pair.perform(0, &Call::Close { slot }))?;
    (0..MAPS).try_for_each(|map| pair.perform(0, &Call::Unmap { map }))?;
    pair.kernel.rig.settle();
    pair.look().map_err(|differ| format!("when all is committed: {differ}"))
}

/// Leaves out of a history whatever it fails without.
fn shorten(mut steps: Vec<Step>) -> Vec<Step> {
    let mut at_once = steps.len() / 2;
    while at_once > 0 {
        let mut from = 0;
        while from < steps.len() {
            let mut shorter = steps.clone();
            shorter.drain(from..(from + at_once).min(steps.len()));
            if live(&shorter).is_err() {
                steps = shorter;
            } else {
                from += at_once;
            }
        }
        at_once /= 2;
    }
    steps
}

#[test]
fn vfs_without_a_kernel_gives_what_a_local_directory_gives() {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let first = number("TANDEMFS_SEED").unwrap_or(1);
    let histories = number("TANDEMFS_HISTORIES").unwrap_or(HISTORIES);
    as_programs(|| {
        for seed in first..first + histories {
            let mut dice = Dice(seed);
            check(&format!("seed {seed}"), (0..STEPS).map(|_| step(&mut dice)).collect());
        }
    });
}

/// Runs what makes calls as several users, with a mask of its own: modes are those that the calls say.
fn as_programs(body: impl FnOnce() + Send) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("TANDEMFS_SKIP_NOTHING").is_none_or(|set| set.is_empty()), "not tested: not root");
        eprintln!("SKIPPED: only root can be several users");
        return;
    }
    let body = || {
        assert_eq!(call!(unshare(libc::CLONE_FS)), Ok(0));
        assert_eq!(call!(umask(kernel::UMASK)).map(drop), Ok(()));
        body();
    };
    std::thread::scope(|scope| scope.spawn(body).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn check(which: &str, steps: Vec<Step>) {
    if let Err(why) = live(&steps) {
        let lines: Vec<String> = shorten(steps).iter().map(|step| format!("{step:?}")).collect();
        panic!("{which}: {why}\nas short as it can be:\n{}", lines.join("\n"));
    }
}

#[test]
fn regression_a_hole_beyond_the_end_changes_the_times_for_good() {
    let path = || PathBuf::from("a");
    let open = |slot| Call::Open { slot, path: path(), flags: libc::O_RDWR | libc::O_CREAT, mode: 0o644 };
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let calls = [
        open(0),
        Call::Close { slot: 0 },
        Call::Times { path: path(), seconds: 1, nanoseconds: 2 },
        open(1),
        Call::Allocate { slot: 1, mode: hole, offset: 4096, length: 4096 },
    ];
    as_programs(|| check("regression", calls.into_iter().map(|call| Step::Call(0, call)).collect()));
}
