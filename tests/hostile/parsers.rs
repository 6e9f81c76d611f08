//! Every parser of bytes that somebody else wrote, over a corpus and its mutations.

use std::path::{Path, PathBuf};

use tandemfs::config::Config;
use tandemfs::control::protocol::Request;
use tandemfs::format::key::{self, Key};
use tandemfs::format::{checkpoint, json, segment};
use tandemfs::id::{Epoch, FilesystemId, SegmentNumber, TargetId};

use crate::mutate::{self, Random};
use crate::{entries, memory, runs};

/// Bytes that a parser may hold for one input: the longest segment, its text, its records.
const HELD_MAX: usize = 192 << 20;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Every file below a directory of a fixture: its key and its bytes.
pub fn objects(target: &str) -> Vec<(String, Vec<u8>)> {
    let root = fixtures().join(target);
    let mut found = Vec::new();
    let mut pending = vec![root.clone()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let key = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((key, std::fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn all() -> Vec<(String, Vec<u8>)> {
    let mut all = objects("format-1/target");
    all.extend(objects("state-1/a"));
    all
}

/// Runs an entry over the seeds as they are, which must be of interest to it, and over mutations of them.
fn attack(
    what: &str,
    short: u64,
    seeds: &[Vec<u8>],
    mutate: impl Fn(&mut Random, Vec<u8>) -> Vec<u8>,
    entry: entries::Entry,
) {
    for seed in seeds {
        assert!(entry(seed), "{what}: a seed is refused");
    }
    let mut taken = 0;
    for run in 0..runs(short) {
        let random = &mut Random::new(run);
        let seed = random.one_of(seeds).clone();
        let bytes = mutate(random, seed);
        let parsed =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| memory::within(what, HELD_MAX, || entry(&bytes))));
        match parsed {
            Ok(good) => taken += u64::from(good),
            Err(_) => panic!("{what}: run {run} with {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)])),
        }
    }
    eprintln!("{what}: {} inputs, {taken} of them valid", runs(short));
}

/// The objects of the fixtures whose key is wanted.
fn kept(wanted: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    all().into_iter().filter(|(key, _)| wanted(key)).map(|(_, bytes)| bytes).collect()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::decode_all(bytes).unwrap()
}

/// Changes one place of a JSON document.
fn structured(random: &mut Random, data: Vec<u8>) -> Vec<u8> {
    let mut document = serde_json::from_slice(&data).unwrap();
    mutate::document(random, &mut document);
    document.to_string().into_bytes()
}

/// The kept corpus of the fuzzers, and what they found: each input costs little, and panics nowhere.
#[test]
fn the_corpus_of_the_fuzzers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (name, entry) in entries::ALL {
        let mut count = 0;
        for file in std::fs::read_dir(root.join(name)).unwrap_or_else(|e| panic!("corpus of {name}: {e}")) {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let run = || memory::within(&path.display().to_string(), HELD_MAX, || entry(&bytes));
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            assert!(ended.is_ok(), "{name}: {}", path.display());
            count += 1;
        }
        assert!(count > 0, "{name} has a corpus");
        eprintln!("{name}: {count} inputs");
    }
}

#[test]
fn configurations() {
    let mut seeds: Vec<Vec<u8>> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| std::fs::read(path).unwrap())
        // One that names secrets that this machine does not have is refused.
        .filter(|text| entries::config(text))
        .collect();
    seeds.push(
        b"name = \"x\"\n[acknowledge]\nclose = \"local\"\n[cache]\nlimit = \"1 GiB\"\n[target.a]\nuri = \"fs:///x\"\n"
            .to_vec(),
    );
    attack("config", 300, &seeds, mutate::bytes, entries::config);
}

#[test]
fn uris() {
    let seeds = [
        "a=fs:///mnt/backup",
        "b=s3://bucket/prefix?region=eu-1&endpoint=http://127.0.0.1:3900",
        "c=webdav://?endpoint=http://127.0.0.1:8080&root=/backup",
        "e=oss://bucket/%20x",
    ];
    attack("uri", 300, &seeds.map(|seed| seed.as_bytes().to_vec()), mutate::bytes, entries::uri);
}

#[test]
fn keys() {
    let mut seeds: Vec<Vec<u8>> = all().into_iter().map(|(key, _)| key.into_bytes()).collect();
    seeds.push(key::temporary("x").into_bytes());
    attack("key", 5000, &seeds, mutate::bytes, entries::key);
}

#[test]
fn superblocks_and_announcements() {
    let superblocks = kept(|key| matches!(key::parse(key), Key::Superblock));
    let writers = kept(|key| matches!(key::parse(key), Key::Writer { .. }));
    for (what, seeds, entry) in
        [("superblock", superblocks, entries::superblock as entries::Entry), ("writer", writers, entries::writer)]
    {
        attack(what, 1000, &seeds, mutate::bytes, entry);
        attack(&format!("{what}, as JSON"), 1000, &seeds, structured, entry);
    }
}

#[test]
fn completes() {
    let seeds = kept(|key| key.ends_with(key::COMPLETE_NAME));
    attack("complete.json", 2000, &seeds, mutate::bytes, entries::complete);
    attack("complete.json, as JSON", 2000, &seeds, structured, entries::complete);
}

#[test]
fn segments() {
    let seeds = kept(|key| key.starts_with(key::JOURNAL));
    attack("segment", 1000, &seeds, mutate::bytes, entries::segment);
    let texts: Vec<Vec<u8>> = seeds.iter().map(|body| unpacked(body)).collect();
    let torn = |random: &mut Random, text: Vec<u8>| zstd::bulk::compress(&mutate::bytes(random, text), 1).unwrap();
    let packed = |text: &[u8]| entries::segment(text) || entries::segment_text(text);
    attack("segment, unpacked", 1000, &texts, torn, packed);
    attack("segment, with a hash that is right", 1000, &texts, mutate::bytes, entries::segment_text);
    let resealed = |random: &mut Random, text: Vec<u8>| {
        let mut lines = mutate::lines(&text);
        let serde_json::Value::Object(trailer) = lines.pop().unwrap() else { panic!("a trailer is an object") };
        if !lines.is_empty() {
            let index = random.below(lines.len());
            mutate::document(random, &mut lines[index]);
        }
        let prev = trailer["prev"].as_str().unwrap().to_owned();
        mutate::sealed(&lines, trailer, &prev).0
    };
    attack("segment, as JSON", 2000, &texts, resealed, entries::segment_text);
}

#[test]
fn slots() {
    let texts: Vec<Vec<u8>> = kept(|key| key.ends_with(key::SLOTS_NAME)).iter().map(|body| unpacked(body)).collect();
    attack("slots, unpacked", 1000, &texts, mutate::bytes, entries::slots_text);
    let packed = |text: &Vec<u8>| {
        let count = mutate::lines(text).len() as u8;
        [vec![count], zstd::bulk::compress(text, 1).unwrap()].concat()
    };
    attack("slots", 1000, &texts.iter().map(packed).collect::<Vec<_>>(), mutate::bytes, entries::slots);
}

#[test]
fn control_messages() {
    let requests = [
        r#"{"v":1,"id":1,"op":"status","args":{}}"#,
        r#"{"v":1,"id":1,"op":"flush","args":{"paths":["a","b/c"],"wait":"all","timeout_seconds":null}}"#,
        r#"{"v":1,"id":2,"op":"whereis","args":{"paths":["a",{"b64":"/2Zvbw=="}]}}"#,
        r#"{"v":1,"id":3,"op":"hand_over","args":{}}"#,
    ];
    let seeds = requests.map(|request| request.as_bytes().to_vec());
    attack("control message", 2000, &seeds, mutate::bytes, entries::control);
}

/// Little that unpacks to much: it costs what is allowed, and not what it says.
#[test]
fn bombs() {
    let place = segment::Place {
        filesystem: FilesystemId(uuid::Uuid::nil()),
        target: TargetId(uuid::Uuid::nil()),
        epoch: Epoch(1),
        writer: "00000001".parse().unwrap(),
        n: SegmentNumber(1),
    };
    let zeros = zstd::stream::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 28), 3).unwrap();
    let spaces = zstd::stream::encode_all(std::io::Read::take(std::io::repeat(b' '), 1 << 28), 3).unwrap();
    for bomb in [zeros, spaces] {
        assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
        memory::within("segment bomb", 64 << 20, || assert!(segment::decode(&bomb, &place).is_err()));
        memory::within("slots bomb", 64 << 20, || {
            let slots = checkpoint::decode_slots(&bomb, 1).unwrap();
            assert!(slots.into_iter().any(|record| record.is_err()));
        });
    }
    let deep = "[".repeat(1 << 20);
    memory::within("deep JSON", 64 << 20, || assert!(json::decode_line(deep.as_bytes()).is_err()));
    assert!(serde_json::from_str::<Request>(&deep).is_err());
    assert!(Config::from_toml(&format!("x = {deep}"), Path::new("/x")).is_err());
}
