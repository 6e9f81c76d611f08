//! A directory target on a disk of its own, which fills up and comes off. Needs root to mount a small tmpfs.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use tandemfs::target::directory::DirectoryTarget;
use tandemfs::target::{Class, Existing, Kind, Target};

/// A mounted disk of 4 MiB; unmounted when dropped.
struct Disk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// `None`, said aloud, where mounting is not allowed.
    fn mount() -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("place");
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&path).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: mounting a tmpfs needs root");
            return None;
        }
        Some(Disk { path, _dir: dir })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("-l").arg(path).output();
}

async fn put(target: &DirectoryTarget, key: &str, length: usize) -> tandemfs::target::Result<()> {
    target.put(key, Bytes::from(vec![7; length]).into(), Existing::Replace).await
}

#[tokio::test]
async fn a_full_disk_is_full_and_keeps_no_half_object() {
    let Some(disk) = Disk::mount() else { return };
    let target = DirectoryTarget::new(&disk.path);
    put(&target, "tandemfs.json", 2).await.unwrap();
    put(&target, "chunks/aa/1", 3 << 20).await.unwrap();
    let error = put(&target, "chunks/aa/2", 3 << 20).await.unwrap_err();
    assert_eq!((error.kind, error.class), (Kind::Full, Class::Temporary), "{error}");
    assert_eq!(target.stat("chunks/aa/2").await.unwrap(), None);
    assert_eq!(target.list("tmp/", None).await.unwrap().objects, []);
    target.delete("chunks/aa/1").await.unwrap();
    put(&target, "chunks/aa/2", 3 << 20).await.unwrap();
}

#[tokio::test]
async fn t1_t10_an_unmounted_disk_is_missing_and_not_filled() {
    let Some(disk) = Disk::mount() else { return };
    let target = DirectoryTarget::new(&disk.path);
    put(&target, "tandemfs.json", 2).await.unwrap();
    put(&target, "chunks/aa/1", 10).await.unwrap();
    target.check_place().await.unwrap();
    unmount(&disk.path);
    // The descriptor still leads to the disk; the batch that was written there is not confirmed.
    put(&target, "chunks/aa/2", 10).await.unwrap();
    let error = target.check_place().await.unwrap_err();
    assert_eq!((error.kind, error.class), (Kind::PlaceMissing, Class::Rejected), "{error}");
    // Contact finds the directory below it, which stays empty.
    assert_eq!(target.get("tandemfs.json", 10).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(put(&target, "chunks/aa/3", 10).await.unwrap_err().kind, Kind::PlaceMissing);
    assert_eq!(std::fs::read_dir(&disk.path).unwrap().count(), 0);
}
