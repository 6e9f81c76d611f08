//! One list of trials for every kind of target: what `target::Target` promises, each store must keep.
//!
//! A store that cannot do something by itself (T8) must still keep the promise; what it can is told by `abilities`.
//!
//! With `TANDEMFS_SERVICE` the trials run against that service and no other ([`given`]): `.ci/conformance` installs and
//! starts real ones, one after the other.

mod disk;
mod given;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::s3::S3Server;
use tandemfs::target::directory::DirectoryTarget;
use tandemfs::target::memory::MemoryTarget;
use tandemfs::target::pace::Pacer;
use tandemfs::target::service::{self, Options, Scheme};
use tandemfs::target::{Abilities, Body, Class, DynTarget, Existing, Kind, probe};

/// A store to try, with what must outlive it.
struct Store {
    name: String,
    target: DynTarget,
    abilities: Abilities,
    /// It has directories that are made and told apart from objects.
    collections: bool,
    _server: Option<S3Server>,
    _dir: tempfile::TempDir,
}

fn s3_target(server: &S3Server, bucket: &str, secret: &str) -> DynTarget {
    let options: Options = [
        ("bucket", bucket),
        ("root", "some/prefix"),
        ("endpoint", &server.endpoint),
        ("access_key_id", &server.access_key),
        ("secret_access_key", secret),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let Scheme::Known(service) = service::find("s3") else { panic!("s3 is always compiled in") };
    service.check(&options).unwrap();
    service.build(&options, Pacer::default()).unwrap()
}

fn directory() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(DirectoryTarget::new(dir.path().join("place")));
    Store {
        name: "directory".into(),
        target,
        abilities: Abilities { create_only: true, checksum: false },
        collections: false,
        _server: None,
        _dir: dir,
    }
}

fn memory() -> Store {
    Store {
        name: "memory".into(),
        target: Arc::new(MemoryTarget::new()),
        abilities: Abilities { create_only: true, checksum: true },
        collections: false,
        _server: None,
        _dir: tempfile::tempdir().unwrap(),
    }
}

fn opendal_memory() -> Store {
    Store {
        name: "OpenDAL memory".into(),
        target: service::opendal_memory(),
        abilities: Abilities { create_only: false, checksum: false },
        collections: false,
        _server: None,
        _dir: tempfile::tempdir().unwrap(),
    }
}

fn s3() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(dir.path());
    server.create_bucket("bucket");
    Store {
        name: "s3".into(),
        target: s3_target(&server, "bucket", &server.secret_key),
        // It refuses a second put, but checks before it writes: in a race it may or may not be caught (T8).
        abilities: Abilities { create_only: false, checksum: true },
        collections: false,
        _server: Some(server),
        _dir: dir,
    }
}

/// Runs a trial against every store.
fn each(trial: impl AsyncFn(&Store)) {
    let makers: Vec<Box<dyn Fn() -> Store>> = match given::Given::from_environment() {
        Some(given) => vec![Box::new(move || given.store())],
        None => vec![Box::new(directory), Box::new(memory), Box::new(opendal_memory), Box::new(s3)],
    };
    for make in makers {
        // Current thread: what blocks it would block all.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = make();
            println!("{}", store.name);
            put(&store, "tandemfs.json", b"{}").await;
            trial(&store).await;
        });
    }
}

async fn put(store: &Store, key: &str, bytes: &'static [u8]) {
    store.target.put(key, Bytes::from_static(bytes).into(), Existing::Refuse).await.unwrap();
}

#[test]
fn what_was_put_is_got() {
    each(async |store| {
        put(store, "chunks/3f/3f9a", b"content").await;
        assert_eq!(store.target.get("chunks/3f/3f9a", 7).await.unwrap(), "content");
        assert_eq!(store.target.get("chunks/3f/3f9a", 1 << 40).await.unwrap(), "content");
        assert_eq!(store.target.stat("chunks/3f/3f9a").await.unwrap(), Some(7));
    });
}

#[test]
fn an_object_longer_than_expected_is_invalid() {
    each(async |store| {
        put(store, "writers/1", b"content").await;
        let error = store.target.get("writers/1", 6).await.unwrap_err();
        assert_eq!((error.kind, error.class), (Kind::Invalid, Class::Rejected), "{error}");
    });
}

#[test]
fn an_empty_object_is_an_object() {
    each(async |store| {
        put(store, "journal/1/1", b"").await;
        assert_eq!(store.target.get("journal/1/1", 0).await.unwrap(), "");
        assert_eq!(store.target.get_range("journal/1/1", 0, 0).await.unwrap(), "");
        assert_eq!(store.target.stat("journal/1/1").await.unwrap(), Some(0));
    });
}

#[test]
fn a_range_is_exact_or_an_error() {
    each(async |store| {
        put(store, "chunks/aa/aa", b"0123456789").await;
        let range = async |offset, length| store.target.get_range("chunks/aa/aa", offset, length).await;
        assert_eq!(range(0, 10).await.unwrap(), "0123456789");
        assert_eq!(range(3, 4).await.unwrap(), "3456");
        assert_eq!(range(9, 1).await.unwrap(), "9");
        assert_eq!(range(10, 0).await.unwrap(), "");
        for (offset, length) in [(0, 11), (9, 2), (10, 1), (11, 0), (100, 1), (u64::MAX, 1)] {
            let error = range(offset, length).await.unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{offset} {length}: {error}");
        }
    });
}

#[test]
fn what_is_not_there_is_not_found() {
    each(async |store| {
        // Below an object nothing of ours lies; where directories are collections (WebDAV) a server may call it a conflict.
        let below = (!store.collections).then_some("tandemfs.json/below");
        for key in ["chunks/bb/bb", "nothing"].into_iter().chain(below) {
            let kind = async |result: tandemfs::target::Result<Bytes>| result.unwrap_err().kind;
            assert_eq!(kind(store.target.get(key, 10).await).await, Kind::NotFound, "{key}");
            assert_eq!(kind(store.target.get_range(key, 0, 1).await).await, Kind::NotFound, "{key}");
            assert_eq!(kind(store.target.get_range(key, 0, 0).await).await, Kind::NotFound, "{key}");
            assert_eq!(store.target.stat(key).await.unwrap(), None, "{key}");
            store.target.delete(key).await.unwrap();
        }
        assert_eq!(store.target.list("nothing/", None).await.unwrap().objects, []);
    });
}

#[test]
fn replace_replaces_and_refuse_refuses() {
    each(async |store| {
        put(store, "writers/1", b"one").await;
        let again = store.target.put("writers/1", Bytes::from_static(b"two").into(), Existing::Refuse).await;
        let error = again.unwrap_err();
        assert_eq!((error.kind, error.class), (Kind::Exists, Class::Rejected), "{error}");
        assert_eq!(store.target.get("writers/1", 3).await.unwrap(), "one");
        store.target.put("writers/1", Bytes::from_static(b"longer").into(), Existing::Replace).await.unwrap();
        assert_eq!(store.target.get("writers/1", 6).await.unwrap(), "longer");
    });
}

#[test]
fn what_was_deleted_is_gone_and_may_come_again() {
    each(async |store| {
        for _ in 0..2 {
            put(store, "journal/1-a/1", b"segment").await;
            store.target.delete("journal/1-a/1").await.unwrap();
            store.target.delete("journal/1-a/1").await.unwrap();
            assert_eq!(store.target.stat("journal/1-a/1").await.unwrap(), None);
        }
    });
}

#[test]
fn a_large_body_of_many_parts_arrives_whole() {
    each(async |store| {
        // More parts than one `pwritev` takes, of odd lengths, some of them empty.
        let block: Bytes = (0..=255u8).cycle().take(1 << 20).collect::<Vec<u8>>().into();
        let mut parts: Vec<Bytes> = (0..1500).map(|n| block.slice(n..n + n % 700)).collect();
        parts.extend((0..8).map(|n| block.slice(n..)));
        let body = Body::new(parts);
        let expected: Bytes = body.parts().concat().into();
        assert_eq!(expected.len() as u64, body.len());
        store.target.put("chunks/cc/cc", body, Existing::Replace).await.unwrap();
        let read = store.target.get("chunks/cc/cc", expected.len() as u64).await.unwrap();
        assert!(read == expected, "other bytes came back");
        let range = store.target.get_range("chunks/cc/cc", 5_000_001, 1_000_003).await.unwrap();
        assert!(range == expected[5_000_001..6_000_004], "other bytes came back");
    });
}

#[test]
fn a_put_that_breaks_off_leaves_nothing_of_its_body_under_its_key() {
    each(async |store| {
        let body = Bytes::from(vec![7; 8 << 20]);
        for millis in [0, 1, 3, 10, 30, 100] {
            let key = format!("journal/1-a/{millis}");
            let put = store.target.put(&key, body.clone().into(), Existing::Refuse);
            let _ = tokio::time::timeout(Duration::from_millis(millis), put).await;
            // Nobody says when a server has noticed: whenever it is looked at, there is all or nothing.
            for _ in 0..10 {
                let found = store.target.stat(&key).await.unwrap();
                assert!(found.is_none_or(|length| length == body.len() as u64), "{key}: {found:?} bytes");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        put(store, "journal/1-a/after", b"whole").await;
    });
}

#[test]
fn keys_may_hold_what_file_names_may() {
    each(async |store| {
        let keys = ["odd/a b", "odd/a+b", "odd/a%20b", "odd/ä€𝄞", "odd/~!$&'()*,=:@", "odd/\"<>^`{|}", "odd/;#?x=1"];
        // WsgiDAV moves to what stands before such a mark; no key of ours has one.
        let keys = keys.into_iter().filter(|key| !store.collections || !key.contains([';', '#', '?']));
        let keys: Vec<&str> = keys.collect();
        for key in &keys {
            store.target.put(key, Bytes::copy_from_slice(key.as_bytes()).into(), Existing::Refuse).await.unwrap();
        }
        for key in &keys {
            assert_eq!(store.target.get(key, 100).await.unwrap(), *key);
        }
        let listed = store.target.list("odd/", None).await.unwrap().objects;
        let listed: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(listed, keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    });
}

#[test]
fn a_listing_is_ascending_recursive_and_resumes_after_any_key() {
    each(async |store| {
        for key in ["a-b", "a/b/c", "a/b", "a/x", "a0", "b"] {
            // "a/b" cannot be an object and a directory at once everywhere.
            if key != "a/b" {
                put(store, key, b"12345").await;
            }
        }
        let all = ["a-b", "a/b/c", "a/x", "a0", "b", "tandemfs.json"];
        let list = async |prefix: &str, after: Option<&str>| {
            let page = store.target.list(prefix, after).await.unwrap();
            assert_eq!(page.next, None);
            page.objects.into_iter().map(|object| object.key).collect::<Vec<_>>()
        };
        assert_eq!(list("", None).await, all);
        for after in ["", "a", "a-b", "a-c", "a/", "a/b/c", "a/zzz", "a0", "b", "zzz"] {
            let expected: Vec<&str> = all.into_iter().filter(|key| *key > after).collect();
            assert_eq!(list("", Some(after)).await, expected, "after {after:?}");
            let expected: Vec<&str> = expected.into_iter().filter(|key| key.starts_with("a/")).collect();
            assert_eq!(list("a/", Some(after)).await, expected, "a/ after {after:?}");
        }
        let listed = store.target.list("a/", None).await.unwrap().objects;
        assert!(listed.iter().all(|object| object.length == 5), "{listed:?}");
    });
}

#[test]
fn a_long_listing_comes_in_pages() {
    each(async |store| {
        let expected: Vec<String> = (0..1003).map(|n| format!("many/{n:04}")).collect();
        for key in &expected {
            store.target.put(key, Bytes::from_static(b"x").into(), Existing::Replace).await.unwrap();
        }
        let first = store.target.list("many/", None).await.unwrap();
        assert_eq!(first.objects.len(), 1000);
        let second = store.target.list("many/", first.next.as_deref()).await.unwrap();
        assert_eq!(second.next, None);
        let listed: Vec<String> = first.objects.into_iter().chain(second.objects).map(|object| object.key).collect();
        assert_eq!(listed, expected);
    });
}

#[test]
fn the_store_is_believed_only_what_it_was_seen_to_do() {
    each(async |store| {
        let abilities = store.target.abilities().await.unwrap();
        assert_eq!(abilities.checksum, store.abilities.checksum);
        if store.abilities.create_only {
            assert!(abilities.create_only);
        }
        assert_eq!(store.target.list("tmp/", None).await.unwrap().objects, [], "probes are removed");
    });
}

#[test]
fn the_probe_finds_everything_that_replication_needs() {
    each(async |store| {
        let table = probe::table(&*store.target).await;
        assert!(table.len() > 8, "{table:?}");
        for finding in table {
            assert!(!matches!(finding.outcome, probe::Outcome::Fails(_)), "{finding:?}");
        }
    });
}

#[test]
fn many_calls_at_once_do_not_disturb_each_other() {
    each(async |store| {
        let puts = (0..40).map(|n| async move {
            let key = format!("chunks/{:02x}/{n}", n % 3);
            let bytes = Bytes::from(vec![n as u8; 10_000 + n]);
            store.target.put(&key, bytes.clone().into(), Existing::Replace).await.unwrap();
            assert!(store.target.get(&key, 20_000).await.unwrap() == bytes);
        });
        futures::future::join_all(puts).await;
    });
}

mod refusals {
    use super::*;

    fn with_server(trial: impl AsyncFn(&mut Option<S3Server>)) {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Some(S3Server::start(dir.path()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(trial(&mut server));
    }

    #[test]
    fn wrong_credentials_are_denied() {
        with_server(async |server| {
            let server = server.as_ref().unwrap();
            server.create_bucket("bucket");
            let target = s3_target(server, "bucket", "wrong");
            let error = target.get("tandemfs.json", 10).await.unwrap_err();
            assert_eq!((error.kind, error.class), (Kind::Denied, Class::Rejected), "{error}");
            let error = target.put("chunks/aa/aa", Body::default(), Existing::Replace).await.unwrap_err();
            assert_eq!((error.kind, error.class), (Kind::Denied, Class::Rejected), "{error}");
        });
    }

    #[test]
    fn a_missing_bucket_is_a_missing_place() {
        with_server(async |server| {
            let server = server.as_ref().unwrap();
            let target = s3_target(server, "nothing", &server.secret_key);
            let error = target.list("", None).await.unwrap_err();
            assert_eq!((error.kind, error.class), (Kind::PlaceMissing, Class::Rejected), "{error}");
        });
    }

    #[test]
    fn an_outage_is_unreachable_and_ends_by_itself() {
        with_server(async |server| {
            let running = server.take().unwrap();
            let bucket = running.create_bucket("bucket");
            let target = s3_target(&running, "bucket", &running.secret_key);
            target.put("chunks/aa/aa", Bytes::from_static(b"1").into(), Existing::Replace).await.unwrap();
            let port = running.port();
            drop(running);
            let put = target.put("chunks/aa/bb", Bytes::from_static(b"1").into(), Existing::Replace).await;
            assert_eq!(put.unwrap_err().kind, Kind::Unreachable);
            let error = target.stat("chunks/aa/aa").await.unwrap_err();
            assert_eq!((error.kind, error.class), (Kind::Unreachable, Class::Temporary), "{error}");
            *server = Some(S3Server::start_at(bucket.parent().unwrap(), port));
            assert_eq!(target.stat("chunks/aa/aa").await.unwrap(), Some(1));
        });
    }

    #[test]
    fn no_error_tells_a_secret() {
        with_server(async |server| {
            let running = server.take().unwrap();
            let target = s3_target(&running, "bucket", "hunter2");
            let shown = format!("{target:?} {}", target.get("x", 1).await.unwrap_err());
            drop(running);
            let shown = format!("{shown} {}", target.get("x", 1).await.unwrap_err());
            assert!(!shown.contains("hunter2"), "{shown}");
        });
    }
}
