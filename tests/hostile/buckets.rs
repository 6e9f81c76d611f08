//! Restores from buckets that somebody tampered with: an error, or a state that is sound. Never a panic, a byte outside the
//! state directory, a byte on the target, or more memory than a bound.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tandemfs::format::key;
use tandemfs::restore::{self, Report, Source};
use tandemfs::target::directory::DirectoryTarget;

use crate::mutate::{self, Random};
use crate::{memory, parsers, runs};

/// Bytes that a restore of these small buckets may hold.
const HELD_MAX: usize = 256 << 20;

/// The objects of a target, as they lie there.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket(pub BTreeMap<String, Vec<u8>>);

impl Bucket {
    /// Those of a fixture.
    pub fn fixture(name: &str) -> Bucket {
        Bucket(parsers::objects(name).into_iter().collect())
    }

    /// Changes the lines of segments and gives every segment from there on, and what names one, the hash that fits: what is
    /// left to find is in what the lines say.
    pub fn rewrite(&mut self, mut change: impl FnMut(&str, &mut Vec<Value>)) {
        let mut renamed: BTreeMap<String, String> = BTreeMap::new();
        let keys: Vec<String> = self.0.keys().filter(|key| key.starts_with(key::JOURNAL)).cloned().collect();
        for key in keys {
            let mut lines = mutate::lines(&zstd::stream::decode_all(&self.0[&key][..]).unwrap());
            let Some(Value::Object(trailer)) = lines.pop() else { panic!("{key} has no trailer") };
            change(&key, &mut lines);
            let before = trailer["prev"].as_str().unwrap();
            let prev = renamed.get(before).map_or(before, String::as_str).to_owned();
            let old = trailer["hash"].as_str().unwrap().to_owned();
            let (text, hash) = mutate::sealed(&lines, trailer, &prev);
            renamed.insert(old, hash);
            self.0.insert(key, zstd::bulk::compress(&text, 1).unwrap());
        }
        for (_, announcement) in self.0.iter_mut().filter(|(key, _)| key.starts_with(key::WRITERS)) {
            let mut document: Value = serde_json::from_slice(announcement).unwrap();
            if let Some(hash) = document["parent"]["hash"].as_str().and_then(|hash| renamed.get(hash)) {
                document["parent"]["hash"] = Value::String(hash.clone());
                *announcement = document.to_string().into_bytes();
            }
        }
    }

    /// Changes the database of its checkpoint, and makes `complete.json` fit.
    pub fn rewrite_checkpoint(&mut self, change: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.sqlite");
        let complete_key = self.0.keys().find(|key| key.ends_with(key::COMPLETE_NAME)).unwrap().clone();
        let folder = complete_key.strip_suffix(key::COMPLETE_NAME).unwrap().to_owned();
        let parts: Vec<String> =
            self.0.keys().filter(|key| key.starts_with(&format!("{folder}meta.sqlite.zst."))).cloned().collect();
        let whole: Vec<u8> = parts.iter().flat_map(|key| self.0[key].clone()).collect();
        std::fs::write(&path, zstd::stream::decode_all(&whole[..]).unwrap()).unwrap();
        change(&path);
        let database = std::fs::read(&path).unwrap();
        let packed = zstd::bulk::compress(&database, 1).unwrap();
        for part in &parts {
            self.0.remove(part);
        }
        let mut complete: Value = serde_json::from_slice(&self.0[&complete_key]).unwrap();
        complete["sqlite_bytes"] = database.len().into();
        complete["parts"] = serde_json::json!([{
            "name": "meta.sqlite.zst.0000", "bytes": packed.len(), "blake3": blake3::hash(&packed).to_hex().to_string(),
        }]);
        self.0.insert(format!("{folder}meta.sqlite.zst.0000"), packed);
        self.0.insert(complete_key, complete.to_string().into_bytes());
    }
}

/// Restores from the bucket, and checks what must hold whatever lies there.
pub fn restore(what: &str, bucket: &Bucket) -> Result<Report, restore::Error> {
    restore_within(what, HELD_MAX, bucket)
}

/// The same, with at most `held_max` bytes of memory.
pub fn restore_within(what: &str, held_max: usize, bucket: &Bucket) -> Result<Report, restore::Error> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    for (key, bytes) in &bucket.0 {
        let path = target.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::create_dir(dir.path().join("place")).unwrap();
    let state = dir.path().join("place/state");
    let source = Source { target: Arc::new(DirectoryTarget::new(&target)), name: "a".into(), uri: "fs:///a".into() };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().on_thread_start(memory::count_this_thread).build().unwrap();
    let result = memory::within(what, held_max, || {
        runtime.block_on(restore::restore(vec![source], &state, restore::Options::default()))
    });
    drop(runtime);
    let names = |path: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir.path()), ["place", "target"], "{what}: written outside");
    match &result {
        Ok(_) => {
            assert_eq!(names(&dir.path().join("place")), ["state"], "{what}");
            check_sound(what, &state.join("meta.sqlite"));
        }
        Err(_) => assert!(names(&dir.path().join("place")).is_empty(), "{what}: half a state is left"),
    }
    for (key, bytes) in &bucket.0 {
        assert!(std::fs::read(target.join(key)).is_ok_and(|found| found == *bytes), "{what}: {key} was changed");
    }
    result
}

/// What everybody who works with a store relies on.
fn check_sound(what: &str, store: &Path) {
    let conn = rusqlite::Connection::open(store).unwrap();
    for (rule, sql) in [
        ("every name leads to an inode", "SELECT count(*) FROM dirent WHERE ino NOT IN (SELECT ino FROM inode)"),
        (
            "names are in directories",
            "SELECT count(*) FROM dirent WHERE parent NOT IN (SELECT ino FROM inode WHERE mode & 61440 = 16384)",
        ),
        (
            "names can be names",
            "SELECT count(*) FROM dirent WHERE length(name) NOT BETWEEN 1 AND 255 OR instr(name, x'2f') OR instr(name, x'00') \
             OR name IN (x'2e', x'2e2e')",
        ),
        ("every inode has a name", "SELECT count(*) FROM inode WHERE ino <> 1 AND ino NOT IN (SELECT ino FROM dirent)"),
        (
            "directories form one tree",
            "WITH RECURSIVE tree (ino) AS (VALUES (1) UNION SELECT d.ino FROM tree JOIN dirent d ON d.parent = tree.ino \
             JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 16384) \
             SELECT count(*) FROM inode WHERE mode & 61440 = 16384 AND ino NOT IN tree",
        ),
        (
            "a directory has one name",
            "SELECT count(*) FROM (SELECT d.ino FROM dirent d JOIN inode i ON i.ino = d.ino WHERE i.mode & 61440 = 16384 \
             GROUP BY d.ino HAVING count(*) > 1)",
        ),
        (
            "links are counted",
            "SELECT count(*) FROM inode WHERE nlink <> CASE WHEN mode & 61440 = 16384 THEN 2 + (SELECT count(*) FROM dirent d \
             JOIN inode c ON c.ino = d.ino WHERE d.parent = inode.ino AND c.mode & 61440 = 16384) \
             ELSE (SELECT count(*) FROM dirent WHERE ino = inode.ino) END",
        ),
        (
            "extents lie in their chunks",
            "SELECT count(*) FROM extent e LEFT JOIN chunk c ON c.id = e.chunk WHERE c.id IS NULL OR e.length < 1 OR \
             e.chunk_offset < 0 OR e.chunk_offset + e.length > c.length",
        ),
        (
            "extents lie in their files",
            "SELECT count(*) FROM extent e LEFT JOIN inode i ON i.manifest = e.manifest WHERE \
             e.manifest NOT IN (SELECT manifest FROM orphan) AND (i.ino IS NULL OR e.offset < 0 OR e.offset + e.length > i.size)",
        ),
        (
            "extents are disjoint",
            "SELECT count(*) FROM (SELECT offset < lag(offset + length) OVER (PARTITION BY manifest ORDER BY offset) AS bad \
             FROM extent) WHERE bad",
        ),
        (
            "references are counted",
            "SELECT count(*) FROM chunk WHERE bytes_referenced <> \
             (SELECT coalesce(sum(length), 0) FROM extent WHERE extent.chunk = chunk.id)",
        ),
        (
            "chunks can be chunks",
            "SELECT count(*) FROM chunk WHERE length NOT BETWEEN 1 AND 67108864 OR length(hash) <> 32",
        ),
        (
            "links have targets",
            "SELECT count(*) FROM inode WHERE mode & 61440 = 40960 AND ino NOT IN (SELECT ino FROM symlink)",
        ),
        (
            "inode numbers are not given twice",
            "SELECT count(*) FROM inode WHERE ino >= (SELECT next_inode FROM counter)",
        ),
        (
            "there is room to go on",
            "SELECT count(*) FROM counter WHERE seq > 1 << 52 OR next_inode > 1 << 52 OR epoch > 5000000000 OR \
             (SELECT max(generation) FROM inode) > 1 << 52",
        ),
        ("sizes can be sizes", "SELECT count(*) FROM inode WHERE size < 0 OR size >= 1 << 53"),
    ] {
        let count: i64 = conn.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|e| panic!("{rule}: {e}"));
        assert_eq!(count, 0, "{what}: not so: {rule}");
    }
}

/// Restores from mutations of the fixtures; a panic names the run.
fn attack(what: &str, short: u64, mutate: impl Fn(&mut Random, &mut Bucket)) {
    let fixtures = [Bucket::fixture("format-1/target"), Bucket::fixture("state-1/a")];
    for fixture in &fixtures {
        let report = restore("a fixture as it is", fixture).unwrap();
        // The last unit of one of them was never finished.
        assert!(report.unproven.len() <= 1 && report.seq.0 > 0, "{report:?}");
    }
    let (mut whole, mut partly) = (0, 0);
    for run in 0..runs(short) {
        let random = &mut Random::new(run);
        let mut bucket = random.one_of(&fixtures).clone();
        mutate(random, &mut bucket);
        let what = format!("{what}, run {run}");
        match std::panic::catch_unwind(|| restore(&what, &bucket)) {
            Ok(Ok(report)) if report.unproven.is_empty() => whole += 1,
            Ok(Ok(_)) => partly += 1,
            Ok(Err(_)) => {}
            Err(_) => panic!("{what}"),
        }
    }
    eprintln!("{what}: {} restores, {whole} without a finding, {partly} with", runs(short));
}

#[test]
fn any_bytes_in_any_object() {
    attack("bytes", 30, |random, bucket| {
        let keys: Vec<String> = bucket.0.keys().cloned().collect();
        let key = random.one_of(&keys);
        match random.below(6) {
            0 => drop(bucket.0.remove(key)),
            1 => {
                // Another one's bytes.
                let other = bucket.0[random.one_of(&keys)].clone();
                bucket.0.insert(key.clone(), other);
            }
            2 => {
                // The same object under a key that it does not belong to.
                let at = random.below(key.len());
                let digit = char::from(b'0' + random.below(10) as u8);
                let moved: String =
                    key.char_indices().map(|(i, c)| if i == at && c.is_ascii_digit() { digit } else { c }).collect();
                let bytes = bucket.0.remove(key).unwrap();
                bucket.0.insert(moved, bytes);
            }
            _ => {
                let bytes = mutate::bytes(random, bucket.0[key].clone());
                bucket.0.insert(key.clone(), bytes);
            }
        }
    });
}

#[test]
fn records_that_are_sealed_as_they_should_be() {
    attack("records", 50, |random, bucket| {
        let keys: Vec<String> = bucket.0.keys().filter(|key| key.starts_with(key::JOURNAL)).cloned().collect();
        let (key, times) = (random.one_of(&keys).clone(), 1 + random.below(3));
        bucket.rewrite(|at, lines| {
            if at != key || lines.is_empty() {
                return;
            }
            for _ in 0..times {
                let (one, two) = (random.below(lines.len()), random.below(lines.len()));
                match random.below(8) {
                    0 => lines.swap(one, two),
                    1 => lines.insert(two, lines[one].clone()),
                    2 if lines.len() > 1 => drop(lines.remove(one)),
                    _ => mutate::document(random, &mut lines[one]),
                }
            }
        });
    });
}

#[test]
fn announcements_and_completes() {
    attack("documents", 25, |random, bucket| {
        let documents = |key: &&String| key.starts_with(key::WRITERS) || key.ends_with(key::COMPLETE_NAME);
        let keys: Vec<String> = bucket.0.keys().filter(documents).cloned().collect();
        let key = random.one_of(&keys).clone();
        let mut document = serde_json::from_slice(&bucket.0[&key]).unwrap();
        mutate::document(random, &mut document);
        bucket.0.insert(key, document.to_string().into_bytes());
    });
}

#[test]
fn checkpoints_with_any_bytes() {
    let fixture = Bucket::fixture("format-1/target");
    for run in 0..runs(20) {
        let random = &mut Random::new(run);
        let mut bucket = fixture.clone();
        bucket.rewrite_checkpoint(|path| {
            let mut bytes = std::fs::read(path).unwrap();
            for _ in 0..=random.below(8) {
                let at = random.below(bytes.len());
                // Headers and cells, where lengths and offsets are.
                let at = if random.chance(2) { at / 4096 * 4096 + random.below(200) } else { at };
                let at = at.min(bytes.len() - 1);
                bytes[at] =
                    if random.chance(2) { random.next() as u8 } else { *random.one_of(&[0, 1, 0x7f, 0x80, 0xff]) };
            }
            std::fs::write(path, bytes).unwrap();
        });
        let what = format!("checkpoint, run {run}");
        assert!(std::panic::catch_unwind(|| restore(&what, &bucket)).is_ok(), "{what}");
    }
}

#[test]
fn checkpoints_with_any_rows() {
    let fixture = Bucket::fixture("format-1/target");
    let columns = [
        "inode.ino",
        "inode.mode",
        "inode.uid",
        "inode.rdev",
        "inode.nlink",
        "inode.size",
        "inode.generation",
        "inode.mtime",
        "inode.mtime_ns",
        "inode.times_seq",
        "dirent.parent",
        "dirent.ino",
        "chunk.id",
        "chunk.length",
        "chunk.dead_seq",
        "extent.ino",
        "extent.offset",
        "extent.length",
        "extent.chunk",
        "extent.chunk_offset",
        "slot.seq",
        "slot.ino",
        "slot.generation",
        "symlink.ino",
        "xattr.ino",
    ];
    let numbers = [
        "-1",
        "0",
        "1",
        "2",
        "3",
        "4",
        "255",
        "4096",
        "16877",
        "33188",
        "41471",
        "1 << 26",
        "1 << 32",
        "(1 << 53) - 1",
        "1 << 53",
        "9223372036854775807",
        "NULL",
    ];
    let mut changed = 0;
    for run in 0..runs(30) {
        let random = &mut Random::new(run);
        let mut bucket = fixture.clone();
        bucket.rewrite_checkpoint(|path| {
            let conn = rusqlite::Connection::open(path).unwrap();
            for _ in 0..=random.below(3) {
                let (table, column) = random.one_of(&columns).split_once('.').unwrap();
                let number = random.one_of(&numbers);
                let row = random.below(6);
                let pick = format!("(SELECT {column} FROM {table} ORDER BY 1 LIMIT 1 OFFSET {row})");
                let sql = match random.below(6) {
                    0 => format!("DELETE FROM {table} WHERE {column} = {pick}"),
                    1 => format!("UPDATE {table} SET {column} = {column} + 1 WHERE {column} = {pick}"),
                    2 => "INSERT INTO dirent SELECT parent, x'2e2e', ino FROM dirent LIMIT 1".into(),
                    3 => format!("UPDATE filesystem SET value = {number} WHERE key IN ('seq', 'next_inode', 'epoch', 'chunk_high', 'chunk_size')"),
                    _ => format!("UPDATE OR REPLACE {table} SET {column} = {number} WHERE {column} = {pick}"),
                };
                // Constraints of the file itself may refuse it.
                changed += conn.execute(&sql, []).unwrap_or(0);
            }
        });
        let what = format!("rows, run {run}");
        assert!(std::panic::catch_unwind(|| restore(&what, &bucket)).is_ok(), "{what}");
    }
    assert!(changed > 0);
}
