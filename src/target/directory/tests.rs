use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

async fn fresh(path: &Path) -> DirectoryTarget {
    let target = DirectoryTarget::new(path);
    put(&target, IDENTITY, "{}").await.unwrap();
    target
}

async fn put(target: &DirectoryTarget, key: &str, body: &str) -> Result<()> {
    target.put(key, body.as_bytes().to_vec().into(), Existing::Refuse).await
}

async fn keys(target: &DirectoryTarget, prefix: &str, after: Option<&str>) -> Vec<String> {
    target.list(prefix, after).await.unwrap().objects.into_iter().map(|object| object.key).collect()
}

#[tokio::test]
async fn t10_only_the_identity_object_creates_the_directory_and_only_its_last_component() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let target = DirectoryTarget::new(&path);
    assert_eq!(target.get(IDENTITY, 100).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(target.list("", None).await.unwrap().objects, []);
    assert_eq!(put(&target, "chunks/aa/aa", "1").await.unwrap_err().kind, Kind::PlaceMissing);
    assert!(!path.exists());
    put(&target, IDENTITY, "{}").await.unwrap();
    put(&target, "chunks/aa/aa", "1").await.unwrap();

    let deep = DirectoryTarget::new(dir.path().join("no/x"));
    assert_eq!(deep.get(IDENTITY, 100).await.unwrap_err().kind, Kind::PlaceMissing);
    assert_eq!(put(&deep, IDENTITY, "{}").await.unwrap_err().kind, Kind::PlaceMissing);
    assert!(!dir.path().join("no").exists());
}

#[tokio::test]
async fn t1_no_place_is_made_in_a_mountpoint_that_stands_empty() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("disk")).unwrap();
    let fstab = root.join("fstab");
    std::fs::write(&fstab, format!("/dev/sdz9 {} ext4\n", root.join("disk").display())).unwrap();
    for path in [root.join("disk"), root.join("disk/x")] {
        let mut target = DirectoryTarget::new(&path);
        Arc::get_mut(&mut target.shared).unwrap().fstab = fstab.clone();
        let refused = target.get(IDENTITY, 100).await.unwrap_err();
        assert_eq!(refused.kind, Kind::PlaceMissing);
        assert!(refused.message.contains("nothing is mounted there"), "{}", refused.message);
        assert_eq!(put(&target, IDENTITY, "{}").await.unwrap_err().kind, Kind::PlaceMissing);
        assert!(!path.join(IDENTITY).exists());
        // A place that was made there while it was no mountpoint still counts.
        std::fs::write(&fstab, "").unwrap();
        put(&target, IDENTITY, "{}").await.unwrap();
        std::fs::write(&fstab, format!("/dev/sdz9 {} ext4\n", root.join("disk").display())).unwrap();
        assert_eq!(target.get(IDENTITY, 100).await.unwrap(), "{}");
        std::fs::remove_file(path.join(IDENTITY)).unwrap();
        if path != root.join("disk") {
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[tokio::test]
async fn t10_an_initialised_place_that_vanished_is_never_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let target = fresh(&path).await;
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    assert_eq!(target.check_place().await.unwrap_err().kind, Kind::PlaceMissing);
    for key in [IDENTITY, "chunks/aa/aa"] {
        assert_eq!(put(&target, key, "{}").await.unwrap_err().kind, Kind::PlaceMissing);
    }
    assert!(!path.exists());
    std::fs::rename(dir.path().join("away"), &path).unwrap();
    // Only a contact takes it up again.
    assert_eq!(put(&target, "chunks/aa/aa", "1").await.unwrap_err().kind, Kind::PlaceMissing);
    assert_eq!(target.get(IDENTITY, 100).await.unwrap(), "{}");
    put(&target, "chunks/aa/aa", "1").await.unwrap();
    target.check_place().await.unwrap();
}

#[tokio::test]
async fn t1_an_unmounted_disk_does_not_confirm_onto_the_disk_below() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let target = fresh(&path).await;
    put(&target, "chunks/aa/1", "1").await.unwrap();
    std::fs::rename(&path, dir.path().join("disk")).unwrap();
    std::fs::create_dir(&path).unwrap();
    // Bytes still go to the disk that was contacted, but nothing is confirmed.
    put(&target, "chunks/aa/2", "2").await.unwrap();
    assert!(target.check_place().await.unwrap_err().message.contains("empty or not mounted"));
    // Contact finds the empty place, and it takes no chunk.
    assert_eq!(target.get(IDENTITY, 100).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(put(&target, "chunks/aa/3", "3").await.unwrap_err().kind, Kind::PlaceMissing);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    // Nor does a place that carries something else.
    std::fs::write(path.join(IDENTITY), "{\"other\":1}").unwrap();
    assert_eq!(target.get(IDENTITY, 100).await.unwrap(), "{\"other\":1}");
    assert_eq!(put(&target, "chunks/aa/4", "4").await.unwrap_err().kind, Kind::PlaceMissing);
}

#[tokio::test]
async fn a_missing_object_of_a_missing_place_is_not_called_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let target = fresh(&path).await;
    assert_eq!(target.stat("chunks/aa/aa").await.unwrap(), None);
    std::fs::remove_dir_all(&path).unwrap();
    assert_eq!(target.stat("chunks/aa/aa").await.unwrap_err().kind, Kind::PlaceMissing);
    assert_eq!(target.get("chunks/aa/aa", 1).await.unwrap_err().kind, Kind::PlaceMissing);
    assert_eq!(target.list("", None).await.unwrap_err().kind, Kind::PlaceMissing);
}

#[tokio::test]
async fn objects_and_directories_are_ours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let target = fresh(&path).await;
    put(&target, "chunks/aa/aa", "1").await.unwrap();
    let mode = |key: &str| path.join(key).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode(""), mode("chunks"), mode("chunks/aa"), mode("tmp")], [0o700; 4]);
    assert_eq!([mode(IDENTITY), mode("chunks/aa/aa")], [0o600; 2]);
}

#[tokio::test]
async fn symlinks_below_the_place_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let target = fresh(&path).await;
    std::fs::write(dir.path().join("secret"), "s").unwrap();
    symlink(dir.path(), path.join("chunks")).unwrap();
    symlink(dir.path().join("secret"), path.join("link")).unwrap();
    assert_eq!(target.get("chunks/secret", 10).await.unwrap_err().kind, Kind::Invalid);
    assert_eq!(target.get("link", 10).await.unwrap_err().kind, Kind::Invalid);
    assert_eq!(put(&target, "chunks/y", "1").await.unwrap_err().kind, Kind::Invalid);
    assert!(!dir.path().join("y").exists());
    assert_eq!(keys(&target, "", None).await, [IDENTITY]);
    assert_eq!(target.skipped(), 2);
}

#[tokio::test]
async fn hostile_names_are_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let target = fresh(dir.path()).await;
    let chunks = dir.path().join("chunks");
    std::fs::create_dir(&chunks).unwrap();
    std::fs::write(chunks.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        chunks.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    put(&target, "chunks/ok", "1").await.unwrap();
    assert_eq!(keys(&target, "chunks/", None).await, ["chunks/ok"]);
    assert_eq!(target.skipped(), 2);
    // A fifo must not hold the thread that opens it.
    assert_eq!(target.get("chunks/fifo", 1).await.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test]
async fn unfinished_writes_leave_after_24_hours() {
    let dir = tempfile::tempdir().unwrap();
    let target = fresh(dir.path()).await;
    let old = dir.path().join("tmp/old");
    std::fs::write(&old, "x").unwrap();
    std::fs::write(dir.path().join("tmp/new"), "x").unwrap();
    let time = std::time::SystemTime::from(crate::clock::now()) - std::time::Duration::from_secs(25 * 3600);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(time).unwrap();
    assert_eq!(target.remove_unfinished().await.unwrap(), 1);
    assert_eq!(keys(&target, "tmp/", None).await, ["tmp/new"]);
}

#[tokio::test]
async fn a_failed_put_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let target = fresh(dir.path()).await;
    put(&target, "writers/1", "1").await.unwrap();
    assert_eq!(put(&target, "writers/1", "2").await.unwrap_err().kind, Kind::Exists);
    assert_eq!(target.get("writers/1", 1).await.unwrap(), "1");
    assert_eq!(keys(&target, "tmp/", None).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_full_disk_is_full_and_not_failed() {
    let at = At { operation: "put", key: "k".to_owned() };
    for (errno, kind, class) in [
        (Errno::NOSPC, Kind::Full, Class::Temporary),
        (Errno::DQUOT, Kind::Full, Class::Temporary),
        (Errno::IO, Kind::Failed, Class::Temporary),
        (Errno::ROFS, Kind::Denied, Class::Rejected),
        (Errno::STALE, Kind::PlaceMissing, Class::Rejected),
    ] {
        let error = at.errno(errno);
        assert_eq!((error.kind, error.class), (kind, class), "{errno}");
    }
}

#[tokio::test]
async fn directories_of_old_epochs_go_with_their_last_object() {
    let dir = tempfile::tempdir().unwrap();
    let target = fresh(dir.path()).await;
    for round in 0..2 {
        put(&target, "journal/1-a/1", "1").await.unwrap();
        target.delete("journal/1-a/1").await.unwrap();
        target.delete("journal/1-a/1").await.unwrap();
        assert!(!dir.path().join("journal/1-a").exists(), "round {round}");
    }
}

#[tokio::test]
async fn a_disk_that_hangs_is_unreachable_and_costs_a_bounded_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    put(&DirectoryTarget::new(dir.path().join("x")), IDENTITY, "{}").await.unwrap();
    let target = DirectoryTarget::with_patience(dir.path().join("x"), Duration::from_secs(2));
    // Every call needs the state for a moment: who holds it is a disk that hangs.
    let hang = target.shared.state.lock();
    for (count, class) in [(THREADS, Class::Ambiguous), (1, Class::Temporary)] {
        let calls = (0..count).map(|n| {
            let target = target.clone();
            // On a runtime of their own: this one's thread holds the lock.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let result = runtime.block_on(put(&target, &format!("chunks/aa/{n}"), "1"));
                runtime.shutdown_background();
                result.unwrap_err()
            })
        });
        let calls: Vec<_> = calls.collect();
        for call in calls {
            let error = call.join().unwrap();
            assert_eq!((error.kind, error.class), (Kind::Unreachable, class), "{error}");
        }
    }
    drop(hang);
    // A disk that is slow answers in the end, though not within this patience each time.
    let deadline = crate::clock::instant() + Duration::from_secs(300);
    while let Err(error) = put(&target, "chunks/bb/bb", "1").await {
        assert!(crate::clock::instant() < deadline, "{error}");
    }
}

mod listing {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against the obvious: all keys in a sorted set.
        #[test]
        fn a_listing_is_the_sorted_set_after_a_key(
            wanted in proptest::collection::btree_set("[-/0a]{1,6}", 0..30),
            prefix in "([-0a]{1,2}/){0,2}",
            after in proptest::option::of("[-/0a]{0,6}"),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut made = BTreeSet::new();
            for key in &wanted {
                let path = dir.path().join(key);
                if place::split(key).is_err() || std::fs::create_dir_all(path.parent().unwrap()).is_err() {
                    continue;
                }
                if std::fs::write(&path, key).is_ok() {
                    made.insert(key.clone());
                }
            }
            let place = Place::open(dir.path()).unwrap();
            let after = after.unwrap_or_default();
            for limit in [1, 3, 1000] {
                let mut walk = Walk { place: &place, after: &after, limit, found: Vec::new(), skipped: 0 };
                if prefix.is_empty() || after.as_str() < prefix.as_str() || after.starts_with(&prefix) {
                    walk.run(&prefix).unwrap();
                }
                let found: Vec<String> = walk.found.into_iter().map(|object| object.key).collect();
                let expected: Vec<String> = made
                    .iter()
                    .filter(|key| key.starts_with(&prefix) && **key > after)
                    .take(limit)
                    .cloned()
                    .collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[tokio::test]
    async fn a_directory_larger_than_a_run_is_listed_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let target = fresh(dir.path()).await;
        std::fs::create_dir(dir.path().join("chunks")).unwrap();
        for n in 0..9000 {
            std::fs::write(dir.path().join(format!("chunks/{n:05}")), "").unwrap();
        }
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = target.list("chunks/", after.as_deref()).await.unwrap();
            all.extend(page.objects.into_iter().map(|object| object.key));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(all, (0..9000).map(|n| format!("chunks/{n:05}")).collect::<Vec<_>>());
        let place = Place::open(dir.path()).unwrap();
        let mut walk = Walk { place: &place, after: "", limit: 10_000, found: Vec::new(), skipped: 0 };
        walk.run("chunks/").unwrap();
        assert_eq!(walk.found.len(), 9000);
    }
}
