//! The kinds of work, in the order in which a round does them: each finds what the ones before it left.

use std::path::{Path, PathBuf};

use crate::cost::{self, Cost};
use crate::options::Options;
use crate::report::{Beside, Goal};
use crate::support::work;
use crate::systems::{Needs, System};

/// What is copied in; made once.
pub struct Sources {
    dir: PathBuf,
}

impl Sources {
    /// Makes the files and trees, and reads them once, so that they are in memory.
    pub fn make(dir: &Path, options: &Options) -> Sources {
        std::fs::create_dir_all(dir).unwrap();
        work::noise_file(&dir.join("large"), options.large_mib << 20);
        work::small_files(&dir.join("small"), options.files, options.directories());
        let tree = dir.join("tree");
        work::source_tree(&tree, options.sources);
        work::run(Some(dir), "tar", &[&"-cf", &"tree.tar", &"tree"]);
        let git = |args: &[&dyn AsRef<std::ffi::OsStr>]| work::run(Some(&tree), "git", args);
        git(&[&"init", &"-q"]);
        git(&[&"add", &"."]);
        git(&[&"-c", &"user.name=b", &"-c", &"user.email=b@b", &"commit", &"-qm", &"all"]);
        git(&[&"gc", &"-q"]);
        if options.build {
            work::rust_program(&dir.join("program"));
        }
        Sources { dir: dir.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    CopyLarge,
    ReadWarm,
    ReadCold,
    Overwrite,
    CopySmall,
    FindFirst,
    ListFirst,
    FindAgain,
    ListAgain,
    Remove,
    Clone,
    Unpack,
    Build,
}

impl Work {
    /// What is needed to do what is asked for, in order.
    pub fn all(options: &Options) -> Vec<Work> {
        use Work::*;
        let large = [CopyLarge, ReadWarm, ReadCold, Overwrite];
        let small = [CopySmall, FindFirst, ListFirst, FindAgain, ListAgain, Remove];
        let wanted = |works: &[Work]| works.iter().any(|work| options.reports(work.name()));
        let mut all = Vec::new();
        for (index, group) in [&large[..], &small[..]].into_iter().enumerate() {
            for &work in group {
                // The first of a group makes what the others work on.
                let first = work == group[0] && wanted(group);
                let listed = index == 1 && matches!(work, FindFirst | ListFirst) && wanted(&[FindAgain, ListAgain]);
                if first || listed || options.reports(work.name()) {
                    all.push(work);
                }
            }
        }
        let alone: &[Work] = if options.build { &[Clone, Unpack, Build] } else { &[Clone, Unpack] };
        all.extend(alone.iter().filter(|work| options.reports(work.name())));
        all
    }

    pub fn name(self) -> &'static str {
        match self {
            Work::CopyLarge => "cp of a large file",
            Work::ReadWarm => "read it back, warm",
            Work::ReadCold => "read it back, cold",
            Work::Overwrite => "1,000 random 4 KiB overwrites, fsync",
            Work::CopySmall => "cp -r of small files",
            Work::FindFirst => "find, first after mount",
            Work::ListFirst => "ls -lR, first after mount",
            Work::FindAgain => "find, again",
            Work::ListAgain => "ls -lR, again",
            Work::Remove => "rm -rf of small files",
            Work::Clone => "git clone",
            Work::Unpack => "untar of a source tree",
            Work::Build => "cargo build",
        }
    }

    /// What it shall cost at most.
    pub fn goal(self) -> Goal {
        let (beside, ratio) = match self {
            Work::CopyLarge | Work::ReadWarm | Work::ReadCold => (Beside::Ext4, 1.1),
            Work::FindAgain | Work::ListAgain => (Beside::Ext4, 1.2),
            Work::CopySmall | Work::FindFirst | Work::ListFirst | Work::Remove => (Beside::Null, 1.5),
            Work::Overwrite => (Beside::Null, 2.0),
            Work::Clone | Work::Unpack | Work::Build => (Beside::Null, 1.3),
        };
        Goal { beside, ratio }
    }

    pub fn needs(self) -> Needs {
        match self {
            Work::ReadCold => Needs::ColdPages,
            Work::FindFirst | Work::ListFirst => Needs::FreshMount,
            _ => Needs::Rest,
        }
    }

    /// Does it, and returns what that cost.
    pub fn run(self, sources: &Sources, system: &dyn System) -> Cost {
        let root = system.root();
        let timed = |work: &dyn Fn()| cost::of(system.daemon(), work);
        let (large, small) = (root.join("large"), root.join("small"));
        match self {
            Work::CopyLarge => {
                work::run(None, "cp", &[&sources.path("large"), &"/dev/null"]);
                timed(&|| work::run(None, "cp", &[&sources.path("large"), &large]))
            }
            Work::ReadWarm => {
                work::run(None, "cat", &[&large]);
                timed(&|| work::run(None, "cat", &[&large]))
            }
            Work::ReadCold => timed(&|| work::run(None, "cat", &[&large])),
            Work::Overwrite => timed(&|| work::overwrite(&large, 1000).sync_all().unwrap()),
            Work::CopySmall => {
                read_all(&sources.path("small"));
                timed(&|| work::run(None, "cp", &[&"-r", &sources.path("small"), &small]))
            }
            Work::FindFirst | Work::FindAgain => timed(&|| work::run(None, "find", &[&small])),
            Work::ListFirst | Work::ListAgain => timed(&|| work::run(None, "ls", &[&"-lR", &small])),
            Work::Remove => timed(&|| work::run(None, "rm", &[&"-rf", &small])),
            Work::Clone => {
                let url = format!("file://{}", sources.path("tree").display());
                timed(&|| work::run(None, "git", &[&"clone", &"-q", &url, &root.join("clone")]))
            }
            Work::Unpack => {
                work::run(None, "cp", &[&sources.path("tree.tar"), &"/dev/null"]);
                timed(&|| work::run(Some(&root), "tar", &[&"-xf", &sources.path("tree.tar")]))
            }
            Work::Build => {
                work::run(None, "cp", &[&"-r", &sources.path("program"), &root.join("program")]);
                let program = root.join("program");
                let target = program.join("target");
                timed(&|| {
                    work::run(Some(&program), "cargo", &[&"build", &"-q", &"--offline", &"--target-dir", &target])
                })
            }
        }
    }
}

/// Brings a tree into memory.
fn read_all(dir: &Path) {
    work::run(None, "tar", &[&"-cf", &"/dev/stdout", &"-C", &dir, &"."]);
}
