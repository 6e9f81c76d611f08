//! A random workload in a process of its own: it may hang in a dead mount without taking the test with it.
//!
//! Owns: choosing operations, carrying them out, logging them.
//! Does not own: judging what became of them (`model`).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use tandemfs::chance::Seeded;

use super::model::{Model, Node, Op};
use super::rig::scan;
use crate::support::tree::noise;

const VARIABLE: &str = "TANDEMFS_CRASH_WORKLOAD";

/// What the process shall do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    pub root: PathBuf,
    pub log: PathBuf,
    pub seed: u64,
    /// Operations at most.
    pub ops: u64,
    /// Between two operations.
    pub pause_micros: u64,
}

/// Starts the process.
pub fn start(order: &Order) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "workload::child", "--nocapture"])
        .env(VARIABLE, serde_json::to_string(order).unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The process itself: a test that does nothing unless it is told to.
#[test]
fn child() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    run(&serde_json::from_str(&order).unwrap());
}

fn run(order: &Order) {
    let mut log = OpenOptions::new().append(true).create(true).open(&order.log).unwrap();
    // By a descriptor: a path would lead to the directory below once the dead mount is taken away.
    let Ok(held) = File::open(&order.root) else { return };
    // Taken away before this process began: what is there is the directory below.
    let device = |file: &File| file.metadata().map(|metadata| metadata.dev());
    let below =
        File::open(order.root.parent().expect("it lies in a directory")).and_then(|parent| device(&parent)).unwrap();
    if device(&held).ok().is_none_or(|device| device == below) {
        return;
    }
    let root = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let Ok(found) = scan(&root) else { return };
    let mut random = Seeded(order.seed);
    let mut model = Model::of(&found);
    let mut open = BTreeMap::new();
    let mut next_handle = 0;
    for _ in 0..order.ops {
        let op = choose(&mut random, &model, &mut next_handle);
        // One write each: a torn line cannot be taken for a whole one.
        log.write_all(format!("{}\n", serde_json::to_string(&op).unwrap()).as_bytes()).unwrap();
        if let Err(error) = perform(&root, &op, &mut open) {
            match error.raw_os_error() {
                // The mount died under us, or says that its disk did.
                Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO | libc::ENODEV) => {}
                _ => {
                    log.write_all(format!("unexpected: {op:?}: {error}\n").as_bytes()).unwrap();
                }
            }
            // Without closing the handles: they would wait for a daemon that does not answer.
            std::process::exit(0);
        }
        log.write_all(b"ok\n").unwrap();
        model.apply(&op);
        std::thread::sleep(Duration::from_micros(order.pause_micros));
    }
    // Files stay open until the mount dies.
    std::thread::sleep(Duration::from_secs(600));
}

/// True if a file that is made or emptied through this handle is opened as `cp` does: the kernel writes it by itself then (P1).
fn copies(handle: u32) -> bool {
    handle.is_multiple_of(2)
}

fn perform(root: &Path, op: &Op, open: &mut BTreeMap<u32, File>) -> std::io::Result<()> {
    let at = |path: &String| root.join(path);
    match op {
        Op::Create { path, handle } => {
            let file = OpenOptions::new().read(!copies(*handle)).write(true).create_new(true).open(at(path))?;
            open.insert(*handle, file);
        }
        Op::Open { path, handle, truncate } => {
            let reads = !(*truncate && copies(*handle));
            let file = OpenOptions::new().read(reads).write(true).truncate(*truncate).open(at(path))?;
            open.insert(*handle, file);
        }
        Op::Write { handle, offset, length, seed } => {
            open[handle].write_all_at(&noise(*seed, *length as usize), *offset)?;
        }
        Op::Truncate { handle, size } => open[handle].set_len(*size)?,
        Op::Punch { handle, offset, length } => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&open[handle], flags, *offset, *length)?;
        }
        Op::Fsync { handle } => open[handle].sync_all()?,
        Op::Close { handle } => {
            use std::os::fd::IntoRawFd;
            let file = open.remove(handle).expect("it is open").into_raw_fd();
            // SAFETY: the descriptor is ours and not used after; `File` would hide what close(2) says.
            if unsafe { libc::close(file) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Op::Rename { from, to } => std::fs::rename(at(from), at(to))?,
        Op::Link { from, to } => std::fs::hard_link(at(from), at(to))?,
        Op::Unlink { path } => std::fs::remove_file(at(path))?,
        Op::Mkdir { path } => std::fs::create_dir(at(path))?,
        Op::Rmdir { path } => std::fs::remove_dir(at(path))?,
    }
    Ok(())
}

/// Names are few, so that they meet each other.
fn choose(random: &mut Seeded, model: &Model, next_handle: &mut u32) -> Op {
    loop {
        let files: Vec<&String> =
            model.names.iter().filter(|(_, node)| **node != Node::Directory).map(|(path, _)| path).collect();
        let directories: Vec<&String> =
            model.names.iter().filter(|(_, node)| **node == Node::Directory).map(|(path, _)| path).collect();
        let handles: Vec<u32> = model.handles.keys().copied().collect();
        let new_path = |random: &mut Seeded| {
            let name = format!("n{}", random.below_u64(24));
            match random.below(directories.len() + 2) {
                index if index < directories.len() => format!("{}/{name}", directories[index]),
                _ => name,
            }
        };
        let pick = |random: &mut Seeded, list: &[&String]| list[random.below(list.len())].clone();
        match random.below_u64(100) {
            0..12 if handles.len() < 6 => {
                let path = new_path(random);
                if !model.names.contains_key(&path) {
                    *next_handle += 1;
                    return Op::Create { path, handle: *next_handle };
                }
            }
            12..20 if handles.len() < 6 && !files.is_empty() => {
                *next_handle += 1;
                // Often one that is open already: a close that is not the last one acknowledges, too.
                let opened = |path: &&&String| match model.names[**path] {
                    Node::File(file) => model.handles.values().any(|held| *held == file),
                    Node::Directory => false,
                };
                let again: Vec<&String> = files.iter().filter(opened).copied().collect();
                let from = if again.is_empty() || random.below_u64(2) == 0 { &files } else { &again };
                return Op::Open { path: pick(random, from), handle: *next_handle, truncate: random.below_u64(3) == 0 };
            }
            20..58 if !handles.is_empty() => {
                let handle = handles[random.below(handles.len())];
                let size = model.files[model.handles[&handle]].latest().len() as u64;
                let length = match random.below_u64(10) {
                    0 => 1 + random.below_u64(100_000),
                    1..4 => 1 + random.below_u64(5000),
                    _ => 1 + random.below_u64(300),
                };
                let offset = match random.below_u64(3) {
                    0 => size,
                    1 => random.below_u64(size + 1),
                    _ => random.below_u64(size / 4096 + 1) * 4096,
                };
                if offset + length <= 300_000 {
                    return Op::Write { handle, offset, length, seed: random.draw() >> 12 };
                }
            }
            58..62 if !handles.is_empty() => {
                let handle = handles[random.below(handles.len())];
                let size = model.files[model.handles[&handle]].latest().len() as u64;
                return match random.below_u64(3) {
                    0 => Op::Punch { handle, offset: random.below_u64(size + 1), length: 1 + random.below_u64(9000) },
                    _ => Op::Truncate { handle, size: random.below_u64(size + 200) },
                };
            }
            62..70 if !handles.is_empty() => {
                return Op::Fsync { handle: handles[random.below(handles.len())] };
            }
            70..83 if !handles.is_empty() => {
                return Op::Close { handle: handles[random.below(handles.len())] };
            }
            83..89 if !files.is_empty() => {
                let (from, to) = (pick(random, &files), new_path(random));
                if model.names.get(&to) != Some(&Node::Directory) && from != to {
                    return Op::Rename { from, to };
                }
            }
            89..91 if !directories.is_empty() => {
                let (from, to) = (pick(random, &directories), new_path(random));
                if !model.names.contains_key(&to) && !to.starts_with(&format!("{from}/")) {
                    return Op::Rename { from, to };
                }
            }
            91..94 if !files.is_empty() => {
                let (from, to) = (pick(random, &files), new_path(random));
                if !model.names.contains_key(&to) {
                    return Op::Link { from, to };
                }
            }
            94..97 if files.len() > 4 => return Op::Unlink { path: pick(random, &files) },
            97..99 if directories.len() < 5 => {
                let path = new_path(random);
                if !model.names.contains_key(&path) {
                    return Op::Mkdir { path };
                }
            }
            99 if !directories.is_empty() => {
                let path = pick(random, &directories);
                let below = format!("{path}/");
                if !model.names.keys().any(|other| other.starts_with(&below)) {
                    return Op::Rmdir { path };
                }
            }
            _ => {}
        }
    }
}
