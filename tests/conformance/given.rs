//! A service that runs somewhere, named by the environment.
//!
//! ```text
//! TANDEMFS_SERVICE='moto;s3;creates once;checks;bucket=b;endpoint=http://127.0.0.1:5000;...'
//!                   name;scheme;[creates once];[checks];[below=/path];option=value;...
//! ```
//!
//! *creates once*: it must be seen to refuse a second create-only put, in a race too (T8). *checks*: it verifies a checksum.
//! Each trial gets a prefix of its own beneath `below` as its option `root`, which must not be among those given.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use tandemfs::target::Abilities;
use tandemfs::target::pace::Pacer;
use tandemfs::target::service::{self, Options, Scheme};

use super::Store;
use super::support::run::program;
use super::support::tree::{self, Depth, assert_same, make_awkward};

/// What the environment says.
pub struct Given {
    name: String,
    scheme: String,
    abilities: Abilities,
    below: String,
    options: Options,
}

impl Given {
    /// `None` without the variable.
    pub fn from_environment() -> Option<Given> {
        let text = std::env::var("TANDEMFS_SERVICE").ok()?;
        let mut parts = text.split(';');
        let mut next = || parts.next().expect("name and scheme come first").to_owned();
        let (name, scheme) = (next(), next());
        let mut given = Given {
            name,
            scheme,
            abilities: Abilities { create_only: false, checksum: false },
            below: String::new(),
            options: Options::new(),
        };
        for part in parts {
            match part.split_once('=') {
                Some(("below", path)) => given.below = path.to_owned(),
                Some((key, value)) => drop(given.options.insert(key.to_owned(), value.to_owned())),
                None if part == "creates once" => given.abilities.create_only = true,
                None if part == "checks" => given.abilities.checksum = true,
                None => panic!("{part:?} says nothing"),
            }
        }
        Some(given)
    }

    /// A prefix that nobody used before.
    fn options(&self) -> Options {
        let root = format!("{}/conformance/{:016x}", self.below, getrandom::u64().unwrap());
        let mut options = self.options.clone();
        options.insert("root".to_owned(), root);
        options
    }

    /// The table of a target `it` under a prefix of its own.
    fn table(&self) -> String {
        let mut table = format!("[target.it]\nuri = \"{}://\"\n", self.scheme);
        for (key, value) in self.options() {
            table.push_str(&format!("{key} = {value:?}\n"));
        }
        table
    }

    /// The store, under a prefix of its own.
    pub fn store(&self) -> Store {
        let Scheme::Known(service) = service::find(&self.scheme) else { panic!("{} is not compiled in", self.scheme) };
        let options = self.options();
        service.check(&options).unwrap();
        Store {
            name: self.name.clone(),
            target: service.build(&options, Pacer::default()).unwrap(),
            abilities: self.abilities,
            collections: matches!(self.scheme.as_str(), "webdav" | "sftp"),
            _server: None,
            _dir: tempfile::tempdir().unwrap(),
        }
    }
}

fn tandemfs(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tandemfs")).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "tandemfs {arguments:?}: {}\n{said}", output.status);
    said
}

/// A mount that is given up when a test fails in the middle.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut umount = Command::new(env!("CARGO_BIN_EXE_tandemfs"));
            let _ = umount.args(["umount", "--force"]).arg(&self.0).stdin(Stdio::null()).output();
        }
    }
}

#[test]
fn a_filesystem_on_it_alone_is_checked_scrubbed_and_restored() {
    let Some(given) = Given::from_environment() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let config = path("config.toml");
    std::fs::write(&config, given.table()).unwrap();
    let mountpoint = path("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let mount = |state: &str| {
        tandemfs(&["mount", &mountpoint, "--config", &config, "--state-dir", &path(state)]);
        Mounted(mountpoint.clone().into())
    };
    let content =
        |number: u64, length: u64| -> Vec<u8> { (0..length).map(|at| ((at * (number | 1)) >> 7) as u8).collect() };
    let files = [(1, 0), (2, 1), (3, 5_000), (4, 300_000), (5, 9 << 20)];

    let mounted = mount("state");
    println!("{}", tandemfs(&["check", &config]));
    for (number, length) in files {
        std::fs::write(mounted.0.join(format!("file {number}")), content(number, length)).unwrap();
    }
    tandemfs(&["flush", &mountpoint, "--wait", "all", "--timeout", "5m"]);
    println!("{}", tandemfs(&["scrub", &mountpoint, "--level", "deep"]));
    tandemfs(&["umount", &mountpoint, "--timeout", "5m"]);
    std::fs::remove_dir_all(path("state")).unwrap();

    tandemfs(&["restore", "--from", "it", "--config", &config, "--state-dir", &path("restored")]);
    let mounted = mount("restored");
    for (number, length) in files {
        let read = std::fs::read(mounted.0.join(format!("file {number}"))).unwrap();
        assert!(read == content(number, length), "file {number} is another one");
    }
    tandemfs(&["umount", &mountpoint, "--timeout", "5m"]);
}

#[test]
fn a_tree_that_was_copied_beside_a_directory_is_restored_from_it_alone() {
    let Some(given) = Given::from_environment() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (it, disk) = (given.table(), format!("[target.disk]\nuri = \"fs://{}\"\n", path("disk")));
    std::fs::write(path("both.toml"), format!("{it}{disk}")).unwrap();
    std::fs::write(path("it.toml"), it).unwrap();
    make_awkward(dir.path().join("original").as_path());
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    program("cp", ["-a".as_ref(), sources.as_ref(), dir.path().join("original").as_os_str()]);
    let mountpoint = path("mnt");
    std::fs::create_dir(&mountpoint).unwrap();

    tandemfs(&["mount", &mountpoint, "--config", &path("both.toml"), "--state-dir", &path("state")]);
    let mounted = Mounted(mountpoint.clone().into());
    program("cp", ["-a".as_ref(), dir.path().join("original").as_os_str(), mounted.0.join("copy").as_os_str()]);
    tandemfs(&["flush", &mountpoint, "--wait", "all", "--timeout", "10m"]);
    let copied = tree::read(&mounted.0, Depth::Restored);
    tandemfs(&["umount", &mountpoint, "--timeout", "5m"]);
    std::fs::remove_dir_all(path("state")).unwrap();
    std::fs::remove_dir_all(path("disk")).unwrap();

    tandemfs(&["restore", "--from", "it", "--config", &path("it.toml"), "--state-dir", &path("restored")]);
    let arguments =
        ["mount", &mountpoint, "--config", &path("it.toml"), "--state-dir", &path("restored"), "--read-only"];
    tandemfs(&arguments);
    let mounted = Mounted(mountpoint.clone().into());
    assert_same("restored from it alone", &copied, &tree::read(&mounted.0, Depth::Restored));
    let original = tree::read(&dir.path().join("original"), Depth::Copied);
    assert_same("as it was copied", &original, &tree::read(&mounted.0.join("copy"), Depth::Copied));
    tandemfs(&["umount", &mountpoint, "--timeout", "5m"]);
}
