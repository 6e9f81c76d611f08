//! A filesystem with a stock of small chunks that no target has: made by the commits that a mount makes.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tandemfs::chunk::file::ChunkFiles;
use tandemfs::clock::Timestamp;
use tandemfs::id::{ChunkHash, Epoch, FilesystemId, Generation, InodeId, SessionId};
use tandemfs::meta::commit::{Batch, SealedChunk, SealedExtent, SealedPiece, SealedSession};
use tandemfs::meta::create::NewNode;
use tandemfs::meta::namespace::{Name, Place};
use tandemfs::meta::slot::SlotRequest;
use tandemfs::meta::target::Configured;
use tandemfs::meta::{Created, Meta, Tx};

/// Bytes of a chunk.
pub const LENGTH: u64 = 1 << 10;
/// Chunks of one file, committed together.
const PER_FILE: u64 = 250;

/// The store, with the thread that moves its log into the database as in a mount.
pub struct Stock {
    pub meta: Arc<Meta>,
    pub files: ChunkFiles,
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

/// Makes `chunks` chunks in `dir` that each of `targets` targets lacks.
pub fn make(dir: &Path, targets: u8, chunks: u64) -> Stock {
    std::fs::create_dir_all(dir).expect("the folder is writable");
    let files = ChunkFiles::new(dir).expect("the folder is writable");
    let created = Created {
        filesystem: FilesystemId::random(),
        name: "bench".to_owned(),
        chunk_size: 1 << 22,
        time: Timestamp::EPOCH,
    };
    let meta = Arc::new(Meta::create(&dir.join("meta.sqlite"), &created).expect("a new store"));
    let configured: Vec<_> = (0..targets)
        .map(|index| Configured { name: format!("t{index}"), uri: format!("memory://{index}"), id: None })
        .collect();
    meta.register_targets(&configured).expect("targets");
    meta.begin_mount(Epoch(0), "boot").expect("a mount");
    meta.write(|tx| tx.make_root(0o755, 0, 0, Timestamp::EPOCH)).expect("a root");
    let stop = Arc::new(AtomicBool::new(false));
    let keeper = std::thread::spawn({
        let (meta, stop) = (meta.clone(), stop.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                meta.checkpoint_wal().expect("the log is moved");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    for file in 0..chunks.div_ceil(PER_FILE) {
        let numbers = file * PER_FILE..chunks.min((file + 1) * PER_FILE);
        commit_file(&meta, &files, file, numbers);
    }
    Stock { meta, files, stop, keeper: Some(keeper) }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn commit_file(meta: &Meta, files: &ChunkFiles, file: u64, numbers: std::ops::Range<u64>) {
    let session = SessionId(file + 1);
    let name = format!("chunks/{:02x}/{file:016x}", (file >> 8) & 0xff);
    let size = (numbers.end - numbers.start) * LENGTH;
    let bytes: Vec<u8> = numbers.clone().flat_map(chunk).collect();
    files.create(&name).and_then(|file| file.write_all_at(&bytes, 0)).expect("the folder is writable");
    let pieces = bytes.chunks_exact(LENGTH as usize);
    let chunks: Vec<SealedChunk> = (0..).zip(pieces).map(|(index, bytes)| sealed(index, bytes)).collect();
    let extents = (0..chunks.len())
        .map(|chunk| SealedExtent { offset: chunk as u64 * LENGTH, length: LENGTH, chunk, chunk_offset: 0 })
        .collect();
    let ino = meta.write(|tx| begin_file(tx, file, session, size)).expect("a file");
    let session = SealedSession { session, ino, whole: true, base_limit: 0, extents, zero: vec![] };
    let batch = Batch { files: vec![(name, size)], chunks, sessions: vec![session] };
    meta.write(|tx| tx.commit_content(&batch)).expect("a commit");
}

fn begin_file(tx: &mut Tx<'_>, file: u64, session: SessionId, size: u64) -> tandemfs::meta::Result<InodeId> {
    let name = format!("file {file}");
    let place = Place { parent: InodeId::ROOT, name: Name::new(name.as_bytes())? };
    let time = Timestamp::EPOCH;
    let mode = libc::S_IFREG | 0o644;
    let ino = tx.make_node(&NewNode { place, mode, rdev: 0, uid: 0, gid: 0, umask: 0o22, time })?.ino;
    tx.reserve_slot(&SlotRequest {
        ino,
        session,
        base: Generation(0),
        whole: true,
        base_limit: 0,
        synced_size: None,
        size,
        mtime: time,
        ctime: time,
        fsynced: false,
    })?;
    Ok(ino)
}

fn sealed(index: u64, bytes: &[u8]) -> SealedChunk {
    let crc32c = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    let piece = SealedPiece { chunk_offset: 0, length: LENGTH, file: 0, file_offset: index * LENGTH, crc32c };
    SealedChunk { hash: ChunkHash::of(bytes), length: LENGTH, pieces: vec![piece] }
}

/// The bytes of a chunk: its number, and what follows from it.
fn chunk(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((8..LENGTH).map(|at| (number.wrapping_mul(31).wrapping_add(at * at) >> 3) as u8));
    bytes
}
