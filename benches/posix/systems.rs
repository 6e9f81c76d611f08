//! The systems that are compared: the plain directory, the null FUSE filesystem over one, TandemFS.
//!
//! Owns: their folders and daemons, turns, and that nothing of one's work is left to be done in another's time.
//! Does not own: the work (`works`).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::options::Options;
use crate::support::tandem::Tandem;

const TANDEMFS: &str = env!("CARGO_BIN_EXE_tandemfs");

/// What a kind of work needs before its time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing of what was done before is still to be written or uploaded.
    Rest,
    /// The same, and no page of a file is in memory.
    ColdPages,
    /// The same as [`Needs::Rest`], on a mount that was just made.
    FreshMount,
}

/// A place to work in.
pub trait System {
    fn name(&self) -> &str;
    /// Where the work is done.
    fn root(&self) -> PathBuf;
    /// The process that serves it.
    fn daemon(&self) -> Option<u32> {
        None
    }
    /// Makes an empty one in `dir` and mounts it.
    fn begin(&mut self, dir: &Path);
    /// Waits until it has nothing left to do.
    fn rest(&self) {}
    /// Mounts it anew.
    fn remount(&mut self) {}
    /// Unmounts it.
    fn end(&mut self) {}
}

/// All systems, and the folder that they are in.
pub struct Systems {
    dir: PathBuf,
    round_dir: PathBuf,
    systems: Vec<Box<dyn System>>,
}

impl Systems {
    /// The systems that are asked for; none is mounted yet.
    pub fn new(options: &Options) -> Systems {
        let dir = options.dir.clone().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let dir = dir.join(format!("posix-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the folder is writable");
        let mut systems: Vec<Box<dyn System>> = Vec::new();
        for name in &options.systems {
            systems.push(match name.as_str() {
                "ext4" => Box::new(Plain::default()),
                "null" => Box::new(NullFuse::default()),
                _ => Box::new(Mounted::new("tandem", TANDEMFS.into())),
            });
        }
        if let Some(program) = &options.compare {
            systems.push(Box::new(Mounted::new("other", program.clone())));
        }
        Systems { round_dir: dir.clone(), dir, systems }
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn names(&self) -> Vec<String> {
        self.systems.iter().map(|system| system.name().to_owned()).collect()
    }

    /// Makes all systems anew.
    pub fn begin_round(&mut self, round: usize) {
        self.round_dir = self.dir.join(format!("round-{round}"));
        for system in &mut self.systems {
            system.begin(&self.round_dir.join(system.name()));
        }
    }

    /// Ends all systems and makes room.
    pub fn end_round(&mut self) {
        for system in &mut self.systems {
            system.end();
        }
        std::fs::remove_dir_all(&self.round_dir).expect("nothing of the round is in use");
    }

    /// In which order the systems take their turn in this round.
    pub fn turn(&self, round: usize) -> Vec<usize> {
        let count = self.systems.len();
        (0..count).map(|place| (place + round) % count).collect()
    }

    /// Brings all systems to rest, and one of them into the state that the work needs.
    pub fn prepare(&mut self, index: usize, needs: Needs) -> &dyn System {
        for system in &self.systems {
            system.rest();
        }
        if needs == Needs::FreshMount {
            self.systems[index].remount();
        }
        let folder = File::open(&self.dir).expect("the folder is there");
        rustix::fs::syncfs(&folder).expect("the disk takes what was written");
        if needs == Needs::ColdPages {
            std::fs::write("/proc/sys/vm/drop_caches", "1").expect("reading cold needs root");
        }
        &*self.systems[index]
    }
}

impl Drop for Systems {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.systems.iter_mut().for_each(|system| system.end());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A directory of the disk itself.
#[derive(Default)]
struct Plain {
    dir: PathBuf,
}

impl System for Plain {
    fn name(&self) -> &str {
        "ext4"
    }

    fn root(&self) -> PathBuf {
        self.dir.clone()
    }

    fn begin(&mut self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        self.dir = dir.to_owned();
    }
}

/// The null FUSE filesystem, served by this program in another process.
#[derive(Default)]
struct NullFuse {
    dir: PathBuf,
    daemon: Option<Child>,
}

impl NullFuse {
    fn mount(&mut self) {
        let program = std::env::current_exe().expect("a running program has a path");
        let mut daemon = Command::new(program)
            .arg("--null-fuse")
            .args([self.dir.join("source"), self.root()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().expect("stdout is a pipe")).read_line(&mut line).unwrap();
        self.daemon = Some(daemon);
        assert_eq!(line, "mounted\n", "the null FUSE filesystem is mounted");
    }
}

impl System for NullFuse {
    fn name(&self) -> &str {
        "null"
    }

    fn root(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    fn begin(&mut self, dir: &Path) {
        std::fs::create_dir_all(dir.join("source")).unwrap();
        std::fs::create_dir_all(dir.join("mnt")).unwrap();
        self.dir = dir.to_owned();
        self.mount();
    }

    fn remount(&mut self) {
        self.end();
        self.mount();
    }

    fn end(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let unmounted = Command::new("umount").arg(self.root()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "the null FUSE filesystem is not in use");
        daemon.wait().expect("the daemon ends with its mount");
    }
}

/// TandemFS with two directory targets.
struct Mounted {
    name: &'static str,
    program: PathBuf,
    tandem: Option<Tandem>,
}

impl Mounted {
    fn new(name: &'static str, program: PathBuf) -> Mounted {
        Mounted { name, program, tandem: None }
    }

    fn tandem(&self) -> &Tandem {
        self.tandem.as_ref().expect("a round has begun")
    }
}

impl System for Mounted {
    fn name(&self) -> &str {
        self.name
    }

    fn root(&self) -> PathBuf {
        self.tandem().mountpoint()
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.tandem().daemon())
    }

    fn begin(&mut self, dir: &Path) {
        let tandem = Tandem::new(&self.program, dir);
        tandem.mount();
        self.tandem = Some(tandem);
    }

    fn rest(&self) {
        self.tandem().flush();
    }

    fn remount(&mut self) {
        self.tandem().unmount();
        self.tandem().mount();
    }

    fn end(&mut self) {
        let Some(tandem) = self.tandem.take() else { return };
        if std::thread::panicking() {
            tandem.force_unmount();
        } else {
            tandem.unmount();
        }
    }
}
