//! The filesystem without a kernel: names, open files and content together, rule by rule. Against a model: `model_tests`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::attr::{SetAttributes, SetTime};
use super::io::{Creating, NewFile};
use super::rename::RenameMode;
use super::xattr::Targets;
use super::{Attributes, Caller, Result, Vfs};
use crate::chunk::evict::Evictor;
use crate::chunk::file::ChunkFiles;
use crate::chunk::open::OpenFiles;
use crate::chunk::space::{Limits, Space};
use crate::clock::{self, Timestamp};
use crate::format::record::Change;
use crate::id::{Epoch, FilesystemId, InodeId, Seq};
use crate::meta::xattr::SetMode;
use crate::meta::{self, Created, Meta, journal};
use crate::read::{Fetcher, Outcome, Reader};
use crate::write::opening::NoKernel;
use crate::write::pipeline::Pipeline;
use crate::write::{self, Files, Stale};

const CHUNK: u64 = 64 << 10;
const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };

impl Creating for NoKernel {
    fn created(&mut self, _: &Attributes) {}
}

/// A filesystem without kernel and targets.
pub(crate) struct Rig {
    pub(crate) vfs: Arc<Vfs>,
    pipeline: Option<Pipeline>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let time = clock::now();
        let created = Created { filesystem: FilesystemId::random(), name: "t".into(), chunk_size: CHUNK, time };
        let meta = Arc::new(Meta::create(&dir.path().join("meta.sqlite"), &created).unwrap());
        meta.write(|tx| tx.make_root(0o755, 0, 0, time)).unwrap();
        meta.begin_mount(Epoch(0), "boot").unwrap();
        let (vfs, pipeline, runtime) = Rig::assemble(dir.path(), meta);
        Rig { vfs: Arc::new(vfs), pipeline: Some(pipeline), runtime, _dir: dir }
    }

    fn assemble(dir: &Path, meta: Arc<Meta>) -> (Vfs, Pipeline, tokio::runtime::Runtime) {
        let open_files = Arc::new(OpenFiles::new(ChunkFiles::new(dir).unwrap()));
        let space = Arc::new(Space::new(dir, Limits { used_max: 1 << 40, free_min: 0 }, 0));
        let evictor = Arc::new(Evictor::new(meta.clone(), open_files.clone(), space.clone()));
        let (files, queue) = Files::new(write::Options {
            meta: meta.clone(),
            open_files: open_files.clone(),
            space: space.clone(),
            evictor: evictor.clone(),
        })
        .unwrap();
        let pipeline = Pipeline::start(&files, queue, 1, CHUNK).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let fetcher =
            Fetcher::new(meta.clone(), open_files.clone(), space.clone(), evictor.clone(), runtime.handle().clone());
        let reader = Reader::new(meta, files, open_files, evictor, fetcher, CHUNK);
        (Vfs::new(reader, space).unwrap(), pipeline, runtime)
    }

    fn create(&self, name: &str) -> Result<InodeId> {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let new = NewFile { parent: InodeId::ROOT, name: name.as_bytes(), mode: 0o644, umask: 0o022, flags };
        self.vfs.create(&ROOT, &new, &mut NoKernel::default())?;
        Ok(self.vfs.lookup(InodeId::ROOT, name.as_bytes())?.inode.ino)
    }

    fn close(&self, ino: InodeId) {
        self.vfs.flush(ino).unwrap();
        self.vfs.release(ino, 0).unwrap();
    }

    fn write(&self, ino: InodeId, offset: u64, data: &[u8]) {
        self.vfs.write_now(ino, 1, offset, data).unwrap();
    }

    fn read(&self, ino: InodeId) -> Vec<u8> {
        let mut buffer = Vec::new();
        match self.vfs.read(ino, 0, 1 << 20, &mut buffer).unwrap() {
            Outcome::Ready => buffer,
            Outcome::Pending(_) => panic!("everything is local"),
        }
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> Result<()> {
        self.vfs.rename((InodeId::ROOT, from.as_bytes()), (InodeId::ROOT, to.as_bytes()), mode)
    }

    pub(crate) fn settle(&self) {
        assert!(self.vfs.files().wait_settled(clock::instant() + Duration::from_secs(300)), "sessions are committed");
    }

    pub(crate) fn rotate(&self) {
        self.vfs.files().rotate().unwrap();
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// What the journal holds after `after`, by kind; an open slot is "slot".
    fn journal(&self, after: Seq) -> Vec<&'static str> {
        let rows: Vec<(Seq, Option<Vec<u8>>)> = self
            .vfs
            .meta()
            .read(|conn| {
                let mut select = conn.prepare("SELECT seq, body FROM journal WHERE seq > ?1 ORDER BY seq")?;
                let rows = select.query_map([after], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        let kind = |(seq, body): (Seq, Option<Vec<u8>>)| match body.map(|body| journal::decode(seq, &body).unwrap()) {
            None => "slot",
            Some(record) => match record.change {
                Change::Content(_) => "slot",
                Change::Rename { .. } => "rename",
                Change::Exchange { .. } => "exchange",
                Change::Link { .. } => "link",
                _ => "other",
            },
        };
        rows.into_iter().map(kind).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            pipeline.stop();
        }
    }
}

#[test]
fn o1_a_dirty_file_takes_its_slot_before_the_record_that_names_it() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    rig.write(ino, 0, b"new");
    let head = rig.vfs.meta().head();
    rig.rename("a", "b", RenameMode::Replace).unwrap();
    assert_eq!(rig.journal(head), ["slot", "rename"]);
    rig.rename("b", "c", RenameMode::Replace).unwrap();
    assert_eq!(rig.journal(head), ["slot", "rename", "rename"], "clean since the slot");
    rig.write(ino, 3, b"er");
    let head = rig.vfs.meta().head();
    rig.vfs.link(ino, InodeId::ROOT, b"d").unwrap();
    assert_eq!(rig.journal(head), ["slot", "link"]);
    let other = rig.create("e").unwrap();
    rig.write(ino, 0, b"x");
    rig.write(other, 0, b"y");
    let head = rig.vfs.meta().head();
    rig.rename("d", "e", RenameMode::Exchange).unwrap();
    assert_eq!(rig.journal(head), ["slot", "slot", "exchange"]);
    rig.close(ino);
    rig.close(other);
    rig.settle();
    assert_eq!((rig.read(ino), rig.read(other)), (b"xewer".to_vec(), b"y".to_vec()));
}

#[test]
fn regression_o1_a_rename_that_does_nothing_loses_no_content() {
    for mode in [RenameMode::Replace, RenameMode::Exchange] {
        let rig = Rig::new();
        let ino = rig.create("a").unwrap();
        rig.write(ino, 0, b"bytes");
        rig.vfs.link(ino, InodeId::ROOT, b"b").unwrap();
        rig.write(ino, 5, b" more");
        rig.rename("a", "b", mode).unwrap();
        rig.close(ino);
        rig.settle();
        assert_eq!(rig.vfs.getattr(ino).unwrap().inode.size, 10);
        assert_eq!(rig.read(ino), b"bytes more");
    }
}

#[test]
fn a_file_without_a_name_keeps_its_bytes_until_its_last_close_and_its_rows_until_it_is_forgotten() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    rig.write(ino, 0, b"still here");
    rig.vfs.unlink(InodeId::ROOT, b"a").unwrap();
    rig.vfs.forget(InodeId(77));
    assert_eq!(rig.read(ino), b"still here");
    rig.write(ino, 0, b"S");
    rig.vfs.fsync(ino).unwrap();
    assert_eq!(rig.read(ino), b"Still here");
    assert_eq!(rig.vfs.getattr(ino).unwrap().inode.nlink, 0);
    rig.vfs.forget(ino);
    assert_eq!(rig.read(ino), b"Still here", "it is open");
    rig.close(ino);
    let deadline = clock::instant() + Duration::from_secs(300);
    while rig.vfs.meta().inode(ino).is_ok() {
        assert!(clock::instant() < deadline, "the rows of a forgotten orphan go");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_next_mount_removes_inodes_that_were_left_without_a_name() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    rig.write(ino, 0, b"x");
    rig.vfs.flush(ino).unwrap();
    rig.vfs.unlink(InodeId::ROOT, b"a").unwrap();
    let report = crate::recovery::recover(rig.vfs.meta(), rig.vfs.files(), false).unwrap();
    assert_eq!((report.orphans, report.resumed), (1, 0));
    assert_eq!(rig.vfs.getattr(ino), Err(Errno::NOENT));
}

#[test]
fn set_id_bits_go_with_a_change_of_owner_or_an_unprivileged_change_of_content() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    let set = |caller: &Caller, set: SetAttributes| {
        rig.vfs.setattr(&ROOT, ino, &SetAttributes { mode: Some(0o6775), ..Default::default() }).unwrap();
        rig.vfs.setattr(caller, ino, &set).unwrap().inode.mode & 0o7777
    };
    let size = SetAttributes { size: Some(0), ..Default::default() };
    assert_eq!(set(&USER, size), 0o775);
    assert_eq!(set(&ROOT, size), 0o6775);
    assert_eq!(set(&ROOT, SetAttributes { uid: Some(5), ..Default::default() }), 0o775);
    assert_eq!(set(&USER, SetAttributes::default()), 0o775, "the kernel asks so before a write");
    let touch = SetAttributes { mtime: Some(SetTime::Now), ..Default::default() };
    assert_eq!(set(&USER, touch), 0o6775, "nothing changed but a time");
    rig.close(ino);
}

#[test]
fn a_time_set_while_a_file_is_dirty_survives_its_close() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    rig.write(ino, 0, b"x");
    let mtime = Timestamp::new(1_000_000_000, 5).unwrap();
    rig.vfs.setattr(&ROOT, ino, &SetAttributes { mtime: Some(SetTime::At(mtime)), ..Default::default() }).unwrap();
    rig.close(ino);
    assert_eq!(rig.vfs.getattr(ino).unwrap().inode.mtime, mtime);
    rig.settle();
    assert_eq!(rig.vfs.getattr(ino).unwrap().inode.mtime, mtime);
}

#[test]
fn a_sealed_file_has_the_blocks_of_its_data_and_none_of_its_holes() {
    let rig = Rig::new();
    let blocks = |ino| rig.vfs.getattr(ino).unwrap().blocks * 512;
    let resize = |ino, size| {
        rig.vfs.setattr(&ROOT, ino, &SetAttributes { size: Some(size), ..SetAttributes::default() }).unwrap();
    };
    let told = || rig.vfs.files().stale().try_iter().collect::<Vec<Stale>>();
    let asks_again = |ino| told().contains(&Stale::Attributes(ino));
    let seal = |ino| {
        rig.close(ino);
        rig.settle();
    };
    let reopen = |ino| rig.vfs.open(&ROOT, ino, libc::O_RDWR, &mut NoKernel::default()).unwrap();

    let ino = rig.create("sparse").unwrap();
    resize(ino, 1 << 30);
    assert_eq!(blocks(ino), 0);
    rig.write(ino, 512 << 20, &[7; CHUNK as usize]);
    let before = blocks(ino);
    // Some disks take more at first than they keep.
    let about = |bytes| bytes..bytes + (32 << 20);
    assert!(about(CHUNK).contains(&before), "{before} bytes while it is open");
    seal(ino);
    assert_eq!(blocks(ino), CHUNK);
    let listed = || {
        let mut listed = None;
        let mut add = |entry: super::readdir::DirEntry<'_>| {
            listed = (entry.attributes.inode.ino == ino).then_some(entry.attributes.blocks * 512).or(listed);
            false
        };
        rig.vfs.read_dir(InodeId::ROOT, 0, true, &mut add).unwrap();
        listed
    };
    assert_eq!(listed(), Some(CHUNK), "in a listing, too");
    told();

    // Edited: never too low, and right when it is committed, of which the kernel is told.
    reopen(ino);
    rig.write(ino, 512 << 20, &[8; CHUNK as usize / 2]);
    rig.write(ino, 0, &[9; 4096]);
    assert!(about(CHUNK + 4096).contains(&blocks(ino)), "{} bytes while it is edited", blocks(ino));
    seal(ino);
    assert_eq!(blocks(ino), CHUNK + 4096);
    assert!(asks_again(ino), "it was shown too many");
    reopen(ino);
    rig.vfs.fallocate(ino, 0..4096, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).unwrap();
    seal(ino);
    assert_eq!(blocks(ino), CHUNK);

    // Shared, not copied: blocks all the same, as with reflinks elsewhere.
    let copy = rig.create("copy").unwrap();
    assert_eq!(rig.vfs.copy_range((ino, 0), (copy, 0), 1 << 30).unwrap(), Some(1 << 30));
    assert_eq!(blocks(copy), CHUNK);
    seal(copy);
    assert_eq!(blocks(copy), CHUNK);

    resize(ino, 100);
    rig.settle();
    assert_eq!(blocks(ino), 0);
    resize(ino, 0);
    rig.settle();
    assert_eq!(blocks(ino), 0);

    // Without holes: shown as before, and nobody is made to ask again for nothing, where disks take what they are given.
    let takes = |bytes: &[u8]| {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
    };
    told();
    for size in [1, 100, CHUNK, CHUNK + 1, 1 << 20] {
        let ino = rig.create(&format!("dense {size}")).unwrap();
        let bytes = vec![5; size as usize];
        rig.write(ino, 0, &bytes);
        let before = blocks(ino);
        seal(ino);
        let expected = size.next_multiple_of(4096);
        assert_eq!(blocks(ino), expected, "{size}");
        let asks_again = asks_again(ino);
        assert!(!asks_again || before != expected || takes(&bytes) != expected, "{size}: {before} bytes before");
    }
    // Zeros are dropped, and what is only reserved is a hole then.
    let ino = rig.create("reserved").unwrap();
    rig.vfs.fallocate(ino, 0..1 << 20, 0).unwrap();
    assert!(about(1 << 20).contains(&blocks(ino)));
    seal(ino);
    assert_eq!(blocks(ino), 0);
    assert!(asks_again(ino));
}

#[test]
fn a_row_that_was_read_before_its_session_was_committed_is_not_shown() {
    let rig = Rig::new();
    let ino = rig.create("f").unwrap();
    rig.write(ino, 0, b"old");
    rig.close(ino);
    rig.settle();
    let row = rig.vfs.meta().inode(ino).unwrap();
    rig.vfs.setattr(&ROOT, ino, &SetAttributes { size: Some(0), ..SetAttributes::default() }).unwrap();
    rig.settle();
    assert_eq!(rig.vfs.attributes(row).inode.size, 0);
}

#[test]
fn a_listing_goes_on_after_any_of_its_entries() {
    let rig = Rig::new();
    for name in ["a", "b", "c"] {
        let ino = rig.create(name).unwrap();
        rig.close(ino);
    }
    let list = |mut offset: u64, at_once: usize| {
        let mut names = Vec::new();
        loop {
            let mut page = 0;
            rig.vfs
                .read_dir(InodeId::ROOT, offset, true, |entry| {
                    if page == at_once {
                        return true;
                    }
                    page += 1;
                    names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                    offset = entry.offset;
                    false
                })
                .unwrap();
            if page == 0 {
                return names;
            }
        }
    };
    for at_once in 1..6 {
        assert_eq!(list(0, at_once), [".", "..", "a", "b", "c"]);
    }
    assert_eq!(list(u64::MAX, 5), [""; 0]);
}

#[test]
fn the_attribute_that_tells_targets_is_answered_and_never_listed() {
    struct Safe;
    impl Targets for Safe {
        fn targets(&self, ino: InodeId) -> meta::Result<String> {
            Ok(format!("aws=safe of={ino}"))
        }
    }
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    assert_eq!(rig.vfs.getxattr(ino, b"user.tandemfs.targets"), Err(Errno::NODATA));
    rig.vfs.answer_targets(Box::new(Safe));
    assert_eq!(rig.vfs.getxattr(ino, b"user.tandemfs.targets").unwrap(), format!("aws=safe of={ino}").into_bytes());
    assert_eq!(rig.vfs.listxattr(ino).unwrap(), b"");
    assert_eq!(rig.vfs.getxattr(ino, b"system.other"), Err(Errno::OPNOTSUPP));
    rig.close(ino);
}

#[test]
fn labels_are_supported_from_the_first_one_on() {
    let rig = Rig::new();
    let (ino, other) = (rig.create("a").unwrap(), rig.create("b").unwrap());
    let label = b"security.selinux".as_slice();
    assert_eq!(rig.vfs.getxattr(ino, label), Err(Errno::OPNOTSUPP));
    assert_eq!(rig.vfs.getxattr(ino, b"security.capability"), Err(Errno::NODATA));
    rig.vfs.setxattr(&ROOT, ino, label, b"system_u:object_r:etc_t:s0", SetMode::Any).unwrap();
    assert_eq!(rig.vfs.getxattr(ino, label).unwrap(), b"system_u:object_r:etc_t:s0");
    assert_eq!(rig.vfs.getxattr(other, label), Err(Errno::NODATA));
    assert!(rig.vfs.meta().has_labels().unwrap(), "the next mount knows");
    rig.close(ino);
    rig.close(other);
}

#[test]
fn o3_a_copy_by_reference_takes_a_slot_and_shares_chunks_until_either_file_changes() {
    let rig = Rig::new();
    let bytes: Vec<u8> =
        (0..5 * CHUNK as u32).flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
    let source = rig.create("source").unwrap();
    rig.write(source, 0, &bytes[..2 * CHUNK as usize]);
    // A hole of one chunk.
    rig.write(source, 3 * CHUNK, &bytes[3 * CHUNK as usize..]);
    let mut bytes = bytes;
    bytes[2 * CHUNK as usize..3 * CHUNK as usize].fill(0);
    let copy = rig.create("copy").unwrap();
    let length = 4 * CHUNK;
    assert_eq!(rig.vfs.copy_range((source, 0), (copy, 0), length), Ok(None), "its bytes have no names yet");
    rig.close(source);
    rig.settle();

    let count = "SELECT count(*) FROM chunk";
    let chunks = || rig.vfs.meta().read(|conn| Ok(conn.query_row(count, [], |row| row.get::<_, i64>(0))?)).unwrap();
    let (head, before) = (rig.vfs.meta().head(), chunks());
    assert_eq!(rig.vfs.copy_range((source, 10), (copy, 5), length), Ok(Some(length)));
    assert_eq!(rig.journal(head), ["slot"]);
    assert_eq!(chunks(), before, "no chunk more");
    let mut expected = [vec![0; 5], bytes[10..][..length as usize].to_vec()].concat();
    assert_eq!(rig.vfs.getattr(copy).unwrap().inode.size, expected.len() as u64);
    assert!(rig.read(copy) == expected, "copied into a new file");
    assert_eq!(rig.vfs.copy_range((source, 5 * CHUNK - 100), (copy, 0), length), Ok(None), "too short to share");
    assert_eq!(rig.vfs.copy_range((source, 0), (copy, u64::MAX - 5), length), Err(Errno::FBIG));

    // Over bytes that are there, beyond the end of the source: only what the source has.
    assert_eq!(rig.vfs.copy_range((source, CHUNK), (copy, 100), u64::MAX / 4), Ok(Some(4 * CHUNK)));
    expected.resize(100 + 4 * CHUNK as usize, 0);
    expected[100..].copy_from_slice(&bytes[CHUNK as usize..]);
    assert!(rig.read(copy) == expected, "copied over bytes");

    // Within one file.
    assert_eq!(rig.vfs.copy_range((copy, 0), (copy, 8 * CHUNK), 2 * CHUNK), Ok(Some(2 * CHUNK)));
    expected.resize(8 * CHUNK as usize, 0);
    expected.extend_from_within(..2 * CHUNK as usize);
    assert!(rig.read(copy) == expected, "copied within the file");

    // From here on they are two files.
    rig.write(copy, 50, b"only here");
    expected[50..59].copy_from_slice(b"only here");
    assert_eq!(rig.vfs.copy_range((source, 0), (copy, 0), length), Ok(None), "a session takes writes");
    rig.vfs.unlink(InodeId::ROOT, b"source").unwrap();
    rig.vfs.forget(source);
    rig.close(copy);
    rig.settle();
    assert!(rig.read(copy) == expected, "without the source");
}

#[test]
fn holes_of_live_files_are_told_as_precisely_as_their_layers_know_them() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    let seek = |offset, whence| rig.vfs.seek(ino, offset, whence);
    let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
    rig.write(ino, 2 * CHUNK, &[1; 4096]);
    rig.vfs.setattr(&ROOT, ino, &SetAttributes { size: Some(8 * CHUNK), ..Default::default() }).unwrap();
    let check = |when: &str| {
        assert_eq!((seek(0, data), seek(0, hole)), (Ok(2 * CHUNK), Ok(0)), "{when}");
        assert_eq!(
            (seek(2 * CHUNK + 5, data), seek(2 * CHUNK, hole)),
            (Ok(2 * CHUNK + 5), Ok(2 * CHUNK + 4096)),
            "{when}"
        );
        assert_eq!((seek(3 * CHUNK, data), seek(8 * CHUNK, hole)), (Err(Errno::NXIO), Err(Errno::NXIO)), "{when}");
    };
    check("while it is written");
    rig.vfs.files().rotate().unwrap();
    check("while it is sealed");
    rig.settle();
    check("committed");
    // An edit: the manifest shows through beside it.
    rig.write(ino, 6 * CHUNK, &[2; 4096]);
    assert_eq!((seek(0, data), seek(3 * CHUNK, data)), (Ok(2 * CHUNK), Ok(6 * CHUNK)));
    assert_eq!((seek(6 * CHUNK, hole), seek(2 * CHUNK, hole)), (Ok(6 * CHUNK + 4096), Ok(2 * CHUNK + 4096)));
    assert_eq!(seek(0, libc::SEEK_CUR), Err(Errno::INVAL));
    rig.close(ino);
}

#[test]
fn set_gid_without_the_groups_execute_bit_stays_for_members_of_the_group_only() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    let written_by = |caller: &Caller| {
        let set = SetAttributes { mode: Some(0o2644), ..Default::default() };
        rig.vfs.setattr(&ROOT, ino, &set).unwrap();
        rig.vfs.setattr(caller, ino, &SetAttributes::default()).unwrap().inode.mode & 0o7777
    };
    assert_eq!(written_by(&USER), 0o644);
    assert_eq!(written_by(&Caller { gid: 0, ..USER }), 0o2644);
    rig.close(ino);
}

#[test]
fn each_operation_is_one_commit() {
    let rig = Rig::new();
    let vfs = &rig.vfs;
    // With what comes after it: a file's bytes are committed when they are sealed.
    let commits = |operation: &str, expected: u64, call: &mut dyn FnMut()| {
        rig.settle();
        let before = vfs.meta().commits();
        call();
        rig.settle();
        assert_eq!(vfs.meta().commits() - before, expected, "{operation}");
    };
    let open = |caller: &Caller, ino, flags| {
        let mut kernel = NoKernel::default();
        vfs.open(caller, ino, flags, &mut kernel).unwrap();
        kernel.opened.unwrap().handle.number()
    };
    let set = |caller: &Caller, ino, set: SetAttributes| {
        vfs.setattr(caller, ino, &set).unwrap();
    };
    let (root, nothing) = (InodeId::ROOT, SetAttributes::default());
    let mode = |mode| SetAttributes { mode: Some(mode), ..nothing };
    let size = |size| SetAttributes { size: Some(size), ..nothing };
    let (mut file, mut other) = (root, root);

    commits("create", 1, &mut || file = rig.create("file").unwrap());
    commits("close of what was never written", 0, &mut || rig.close(file));
    commits("mkdir", 1, &mut || {
        vfs.make_node(&ROOT, root, b"dir", libc::S_IFDIR | 0o755, 0, 0).unwrap();
    });
    commits("mknod", 1, &mut || {
        vfs.make_node(&ROOT, root, b"fifo", libc::S_IFIFO | 0o644, 0, 0).unwrap();
    });
    commits("symlink", 1, &mut || {
        vfs.make_symlink(&ROOT, root, b"pointer", b"file").unwrap();
    });
    commits("link", 1, &mut || {
        vfs.link(file, root, b"second").unwrap();
    });
    commits("rename", 1, &mut || rig.rename("second", "third", RenameMode::Replace).unwrap());
    commits("exchange", 1, &mut || rig.rename("third", "fifo", RenameMode::Exchange).unwrap());
    commits("rename over another", 1, &mut || rig.rename("pointer", "third", RenameMode::Replace).unwrap());
    commits("chmod", 1, &mut || set(&ROOT, file, mode(0o6777)));
    commits("chown", 1, &mut || set(&ROOT, file, SetAttributes { uid: Some(1000), gid: Some(1000), ..nothing }));
    let times = SetAttributes { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..nothing };
    commits("utimens", 1, &mut || set(&ROOT, file, times));
    commits("setxattr", 1, &mut || vfs.setxattr(&ROOT, file, b"user.x", b"v", SetMode::Any).unwrap());
    commits("removexattr", 1, &mut || vfs.removexattr(file, b"user.x").unwrap());
    commits("rmdir", 1, &mut || vfs.rmdir(root, b"dir").unwrap());
    commits("unlink", 1, &mut || vfs.unlink(root, b"third").unwrap());

    // Content takes its place (O1), then its bytes: for both it is one.
    commits("create, write and close", 3, &mut || {
        other = rig.create("other").unwrap();
        rig.write(other, 0, b"content");
        rig.close(other);
    });
    commits("truncate of a closed file", 2, &mut || set(&ROOT, other, size(3)));
    commits("the same by a user", 2, &mut || set(&USER, other, size(2)));
    set(&ROOT, other, mode(0o6777));
    commits("the same, and set-id bits go: a change of the mode has a record", 3, &mut || set(&USER, other, size(1)));
    commits("open that truncates, and close", 2, &mut || {
        let handle = open(&USER, other, libc::O_WRONLY | libc::O_TRUNC);
        vfs.flush(other).unwrap();
        vfs.release(other, handle).unwrap();
    });
    let handle = open(&ROOT, other, libc::O_RDWR);
    commits("truncate of an open file", 0, &mut || set(&USER, other, size(9)));
    commits("fallocate", 0, &mut || vfs.fallocate(other, 0..99, 0).unwrap());
    commits("rename of a dirty file", 1, &mut || rig.rename("other", "renamed", RenameMode::Replace).unwrap());
    rig.write(other, 0, b"more");
    commits("link of a dirty file", 1, &mut || {
        vfs.link(other, root, b"linked").unwrap();
    });
    vfs.flush(other).unwrap();
    vfs.release(other, handle).unwrap();
}

#[test]
fn a_panic_while_somebody_waits_for_room_goes_on_to_who_counts_it() {
    use futures::FutureExt;
    let rig = Rig::new();
    let work = rig.vfs.clone().with_room(0, |_| -> Result<()> { panic!("on purpose") });
    let ended = rig.runtime.block_on(std::panic::AssertUnwindSafe(work).catch_unwind());
    assert_eq!(ended.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
}

#[test]
fn o1_a_truncate_by_an_open_for_reading_has_its_place_when_that_is_closed() {
    let rig = Rig::new();
    let ino = rig.create("a").unwrap();
    rig.write(ino, 0, b"content");
    rig.close(ino);
    rig.settle();
    let head = rig.vfs.meta().head();
    let mut kernel = NoKernel::default();
    rig.vfs.open(&ROOT, ino, libc::O_RDONLY | libc::O_TRUNC, &mut kernel).unwrap();
    rig.vfs.flush_now(ino, kernel.opened.unwrap().handle.number()).unwrap();
    assert_eq!(rig.journal(head), ["slot"]);
}
