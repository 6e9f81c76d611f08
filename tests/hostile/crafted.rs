//! Attacks that were thought of: each is sealed as an honest writer would seal it, and gains nothing.

use serde_json::{Value, json};
use tandemfs::format::key;
use tandemfs::restore::Error;

use crate::buckets::{Bucket, restore, restore_within};

/// The fixture, with one more record at the end of its last segment: the next one, unless it says another seq.
fn with_record(record: Value) -> Bucket {
    let mut bucket = Bucket::fixture("state-1/a");
    let last = bucket.0.keys().rfind(|key| key.starts_with(key::JOURNAL)).unwrap().clone();
    // The newest record may lie in an earlier segment: others were overtaken.
    let mut head = 0;
    bucket
        .clone()
        .rewrite(|_, lines| head = lines.iter().filter_map(|line| line["seq"].as_u64()).chain([head]).max().unwrap());
    bucket.rewrite(|key, lines| {
        if key == last {
            let mut record = record.clone();
            if record["seq"].is_null() {
                record["seq"] = json!(head + 1);
            }
            lines.push(record);
        }
    });
    bucket
}

#[test]
fn an_honest_record_is_taken() {
    let before = restore("fixture", &Bucket::fixture("state-1/a")).unwrap();
    let mkdir = json!({"t":"mkdir","parent":1,"name":"new","ino":500,"mode":16877,"uid":0,"gid":0,"time":[1,0]});
    let report = restore("honest", &with_record(mkdir)).unwrap();
    assert_eq!((report.seq.0, report.unproven.len()), (before.seq.0 + 1, 0));
}

#[test]
fn records_that_cannot_be_take_their_segment_with_them() {
    let whole = restore("fixture", &Bucket::fixture("state-1/a")).unwrap();
    let mkdir = |parent: u64, name: Value, ino: u64| json!({"t":"mkdir","parent":parent,"name":name,"ino":ino,"mode":16877,"uid":0,"gid":0,"time":[1,0]});
    let content = |size: u64, chunks: Value, extents: Value| json!({"t":"content","ino":4,"gen":99,"whole":true,"size":size,"mtime":[1,0],"ctime":[1,0],"chunks":chunks,"extents":extents});
    let hash = "3f".repeat(32);
    let mut cases = vec![
        ("nowhere", json!({"t":"link","parent":1,"name":"x","ino":999,"time":[1,0]})),
        ("a directory that is not there", mkdir(777, json!("x"), 500)),
        ("a name in a file", mkdir(4, json!("x"), 500)),
        ("an inode that there is", mkdir(1, json!("x"), 4)),
        ("the root again", mkdir(1, json!("x"), 1)),
        ("inode 0", mkdir(1, json!("x"), 0)),
        ("a name that there is", mkdir(1, json!("dir"), 500)),
        (
            "its own child",
            json!({"t":"rename","from":[1,"dir"],"to":[3,"x"],"ino":2,"replaced":null,"dir":true,"time":[1,0]}),
        ),
        ("a second name of a directory", json!({"t":"link","parent":1,"name":"x","ino":2,"time":[1,0]})),
        ("a root that is removed", json!({"t":"rmdir","parent":1,"name":"dir","ino":1,"time":[1,0]})),
        ("a directory that is not empty", json!({"t":"rmdir","parent":1,"name":"dir","ino":2,"time":[1,0]})),
        (
            "a directory without type",
            json!({"t":"mkdir","parent":1,"name":"x","ino":500,"mode":493,"uid":0,"gid":0,"time":[1,0]}),
        ),
        ("a chunk beyond the largest", content(1 << 40, json!([[hash, 1u64 << 40]]), json!([[0, 1u64 << 40, 0, 0]]))),
        ("a chunk of nothing", content(10, json!([[hash, 0]]), json!([]))),
        ("an extent outside its chunk", content(10, json!([[hash, 10]]), json!([[0, 10, 0, 5]]))),
        ("an extent outside its file", content(5, json!([[hash, 10]]), json!([[0, 10, 0, 0]]))),
        ("an extent of no chunk", content(10, json!([[hash, 10]]), json!([[0, 10, 7, 0]]))),
        ("extents that overlap", content(20, json!([[hash, 10]]), json!([[0, 10, 0, 0], [5, 10, 0, 0]]))),
        ("an extent whose end overflows", content(10, json!([[hash, 10]]), json!([[u64::MAX, 10, 0, 0]]))),
        (
            "a negative size",
            json!({"t":"content","ino":4,"gen":9,"whole":true,"size":-1,"mtime":[1,0],"ctime":[1,0],"chunks":[],"extents":[]}),
        ),
        (
            "content of a directory",
            json!({"t":"content","ino":2,"gen":9,"whole":true,"size":0,"mtime":[1,0],"ctime":[1,0],"chunks":[],"extents":[]}),
        ),
        ("a size that no record can carry", content(1 << 53, json!([]), json!([]))),
        (
            "a link to nothing",
            json!({"t":"symlink","parent":1,"name":"x","ino":500,"uid":0,"gid":0,"target":"","time":[1,0]}),
        ),
        (
            "a link with NUL",
            json!({"t":"symlink","parent":1,"name":"x","ino":500,"uid":0,"gid":0,"target":"a\0b","time":[1,0]}),
        ),
        (
            "an attribute beyond the largest",
            json!({"t":"setxattr","ino":4,"name":"user.x","value":"v".repeat(70_000),"ctime":[1,0]}),
        ),
        ("a change of a later format", json!({"t":"teleport","ino":4})),
        ("an empty hash", content(10, json!([["", 10]]), json!([]))),
    ];
    for name in ["", ".", "..", "/", "../x", "a/b", "a\0b", "/etc/passwd"] {
        cases.push(("a name that is a path", mkdir(1, json!(name), 500)));
    }
    for name in [256, 1_000_000] {
        cases.push(("a long name", mkdir(1, json!("n".repeat(name)), 500)));
    }
    for b64 in ["Li4=", "Lw==", "YQBi", "", "not base64"] {
        cases.push(("a path behind base64", mkdir(1, json!({"b64": b64}), 500)));
    }
    for (what, record) in cases {
        match restore(what, &with_record(record)) {
            Ok(report) => {
                assert!(report.records < whole.records, "{what}: the segment counts");
                assert!(!report.unproven.is_empty(), "{what}: and nothing is said");
            }
            Err(error) => assert!(!error.to_string().is_empty(), "{what}"),
        }
    }
}

/// What comes after the largest numbers could not be written any more: nobody may go on from there.
#[test]
fn numbers_that_leave_no_room_are_refused() {
    let max = (1u64 << 53) - 1;
    let mkdir =
        |ino: u64| json!({"t":"mkdir","parent":1,"name":"x","ino":ino,"mode":16877,"uid":0,"gid":0,"time":[1,0]});
    let content = json!({"t":"content","ino":4,"gen":max,"whole":true,"size":0,"mtime":[1,0],"ctime":[1,0],"chunks":[],"extents":[]});
    for (what, record) in [("an inode", mkdir(max)), ("a generation", content)] {
        assert!(matches!(restore(what, &with_record(record)), Err(Error::NoRoom(_))), "{what}");
    }
    let mut far = mkdir(500);
    far["seq"] = json!(max);
    let report = restore("a seq", &with_record(far)).unwrap();
    assert!(!report.unproven.is_empty(), "records up to it are missing");
    let mut bucket = Bucket::fixture("state-1/a");
    let (last, announcement) = bucket.0.iter().rfind(|(key, _)| key.starts_with(key::WRITERS)).unwrap();
    let mut document: Value = serde_json::from_slice(announcement).unwrap();
    document["epoch"] = json!(9_999_999_999u64);
    let moved = last.replace("0000000002", "9999999999");
    bucket.0.insert(moved, document.to_string().into_bytes());
    assert!(matches!(restore("an epoch", &bucket), Err(Error::NoRoom(_))));
}

/// As many objects as somebody likes to put there cost a bounded amount of memory: what is kept of each is little.
#[test]
fn many_objects_are_passed_over() {
    let mut bucket = Bucket::fixture("format-1/target");
    let complete = bucket.0.keys().find(|key| key.ends_with(key::COMPLETE_NAME)).unwrap().clone();
    let mut large: Value = serde_json::from_slice(&bucket.0[&complete]).unwrap();
    let part =
        |index: u32| json!({"name": format!("meta.sqlite.zst.{index:04}"), "bytes": 1000, "blake3": "00".repeat(32)});
    large["parts"] = (0..4000).map(part).collect();
    large["seq"] = json!(7);
    for export in 0..300u32 {
        bucket.0.insert(format!("checkpoints/{:016}-{export:08x}/complete.json", 7), large.to_string().into_bytes());
    }
    for index in 0..400 {
        bucket.0.insert(format!("writers/{index}-{}", "x".repeat(200)), vec![b'w'; 100]);
        bucket.0.insert(format!("writers/{:010}-{index:08x}.json", 1), vec![b'{'; 1000]);
    }
    // All of the checkpoints would be 70 MiB.
    let report = restore_within("many objects", 48 << 20, &bucket).unwrap();
    assert!(report.seq.0 > 0);
    assert!(report.unproven.len() <= 1100, "{}", report.unproven.len());
}

/// A database that is nearly nothing packed, and says that it is huge.
#[test]
fn a_checkpoint_that_unpacks_to_too_much_is_passed_over() {
    for bytes in [1u64 << 26, 1 << 50, (1 << 53) - 1] {
        let mut bucket = Bucket::fixture("format-1/target");
        let bomb = zstd::stream::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 26), 3).unwrap();
        let key = bucket.0.keys().find(|key| key.ends_with(key::COMPLETE_NAME)).unwrap().clone();
        let mut complete: Value = serde_json::from_slice(&bucket.0[&key]).unwrap();
        complete["sqlite_bytes"] = json!(bytes);
        complete["parts"] = json!([{"name":"meta.sqlite.zst.0000","bytes":bomb.len(),"blake3":blake3::hash(&bomb).to_hex().to_string()}]);
        bucket.0.insert(key.replace(key::COMPLETE_NAME, "meta.sqlite.zst.0000"), bomb);
        bucket.0.insert(key, complete.to_string().into_bytes());
        match restore("a bomb", &bucket) {
            Ok(report) => assert!(!report.unproven.is_empty()),
            Err(error) => assert!(matches!(error, Error::Nothing(_)), "{error}"),
        }
    }
}
