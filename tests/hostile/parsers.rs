//! Every parser of bytes that somebody else wrote, over a corpus and its mutations.

use std::path::{Path, PathBuf};

use tandemfs::config::{Config, TargetConfig};
use tandemfs::control::protocol::{Reply, Request};
use tandemfs::format::key::{self, CheckpointFile, Key};
use tandemfs::format::{checkpoint, json, segment, superblock, writer};
use tandemfs::id::{Epoch, FilesystemId, SegmentNumber, TargetId};

use crate::mutate::{self, Random};
use crate::{memory, runs};

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

/// Runs `parse` over the seeds as they are, which must be of interest to it, and over mutations of them.
fn attack<S: Clone>(
    what: &str,
    short: u64,
    seeds: &[S],
    data: impl Fn(&S) -> Vec<u8>,
    mutate: impl Fn(&mut Random, Vec<u8>) -> Vec<u8>,
    parse: impl Fn(&S, &[u8]) -> bool,
) {
    for seed in seeds {
        assert!(parse(seed, &data(seed)), "{what}: a seed is refused");
    }
    let mut taken = 0;
    for run in 0..runs(short) {
        let random = &mut Random::new(run);
        let seed = random.one_of(seeds).clone();
        let bytes = mutate(random, data(&seed));
        let parsed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            memory::within(what, HELD_MAX, || parse(&seed, &bytes))
        }));
        match parsed {
            Ok(good) => taken += u64::from(good),
            Err(_) => panic!("{what}: run {run} with {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)])),
        }
    }
    eprintln!("{what}: {} inputs, {taken} of them valid", runs(short));
}

fn plain(random: &mut Random, data: Vec<u8>) -> Vec<u8> {
    mutate::bytes(random, data)
}

#[test]
fn configurations() {
    let mut seeds: Vec<String> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    assert!(!seeds.is_empty());
    seeds.push(
        "name = \"x\"\n[acknowledge]\nclose = \"local\"\n[cache]\nlimit = \"1 GiB\"\n[target.a]\nuri = \"fs:///x\"\n"
            .into(),
    );
    let parse = |_: &String, bytes: &[u8]| match std::str::from_utf8(bytes) {
        // A seed may name secrets that this machine does not have: what matters is that it is read.
        Ok(text) => {
            let _ = Config::from_toml(text, Path::new("/etc/tandemfs.toml"));
            true
        }
        Err(_) => false,
    };
    attack("config", 300, &seeds, |seed| seed.clone().into_bytes(), plain, parse);
}

#[test]
fn uris() {
    let seeds = [
        "a=fs:///mnt/backup",
        "b=s3://bucket/prefix?region=eu-1&endpoint=http://127.0.0.1:3900",
        "c=webdav://?endpoint=http://127.0.0.1:8080&root=/backup",
        "e=oss://bucket/%20x",
    ];
    let parse = |_: &&str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => {
            let named = TargetConfig::from_argument(text);
            let _ = TargetConfig::from_uri("x", text);
            named.is_ok()
        }
        Err(_) => false,
    };
    attack("uri", 300, &seeds, |seed| seed.as_bytes().to_vec(), plain, parse);
}

#[test]
fn keys() {
    let mut seeds: Vec<String> = all().into_iter().map(|(key, _)| key).collect();
    seeds.push(key::temporary("x"));
    let parse = |_: &String, bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        // What is taken for one of ours is exactly the key that we would write.
        let again = match key::parse(text) {
            Key::Superblock => key::SUPERBLOCK.to_owned(),
            Key::Writer { epoch, writer } => key::writer(epoch, writer),
            Key::Segment { epoch, writer, n } => key::segment(epoch, writer, n),
            Key::Chunk(hash) => key::chunk(hash),
            Key::Checkpoint { seq, export, file } => key::checkpoint_part(seq, export, file),
            Key::Temporary => return true,
            Key::Foreign => return false,
        };
        assert_eq!(again, text);
        true
    };
    attack("key", 5000, &seeds, |seed| seed.clone().into_bytes(), plain, parse);
}

#[test]
fn superblocks_and_announcements() {
    let seeds: Vec<_> =
        all().into_iter().filter(|(key, _)| matches!(key::parse(key), Key::Superblock | Key::Writer { .. })).collect();
    let parse = |(key, _): &(String, Vec<u8>), bytes: &[u8]| match key::parse(key) {
        Key::Writer { epoch, writer } => match writer::Writer::decode(bytes, epoch, writer) {
            Ok(found) => {
                assert_eq!(writer::Writer::decode(&found.encode(), epoch, writer), Ok(found));
                true
            }
            Err(_) => false,
        },
        _ => match superblock::Superblock::decode(bytes) {
            Ok(found) => {
                assert_eq!(superblock::Superblock::decode(&found.encode()), Ok(found));
                true
            }
            Err(_) => false,
        },
    };
    attack("superblock", 2000, &seeds, |(_, bytes)| bytes.clone(), plain, parse);
    let structured = |random: &mut Random, data: Vec<u8>| {
        let mut document = serde_json::from_slice(&data).unwrap();
        mutate::document(random, &mut document);
        document.to_string().into_bytes()
    };
    attack("superblock, as JSON", 2000, &seeds, |(_, bytes)| bytes.clone(), structured, parse);
}

#[test]
fn completes() {
    let seeds: Vec<_> = all().into_iter().filter(|(key, _)| key.ends_with(key::COMPLETE_NAME)).collect();
    let parse = |(key, _): &(String, Vec<u8>), bytes: &[u8]| {
        let Key::Checkpoint { seq, export, file: CheckpointFile::Complete } = key::parse(key) else { panic!("{key}") };
        match checkpoint::Complete::decode(bytes, seq, export) {
            Ok(found) => {
                assert_eq!(checkpoint::Complete::decode(&found.encode(), seq, export), Ok(found));
                true
            }
            Err(_) => false,
        }
    };
    attack("complete.json", 2000, &seeds, |(_, bytes)| bytes.clone(), plain, parse);
    let structured = |random: &mut Random, data: Vec<u8>| {
        let mut document = serde_json::from_slice(&data).unwrap();
        mutate::document(random, &mut document);
        document.to_string().into_bytes()
    };
    attack("complete.json, as JSON", 2000, &seeds, |(_, bytes)| bytes.clone(), structured, parse);
}

#[test]
fn segments() {
    let seeds: Vec<_> = all().into_iter().filter(|(key, _)| key.starts_with(key::JOURNAL)).collect();
    let parse = |(key, body): &(String, Vec<u8>), bytes: &[u8]| {
        let Key::Segment { epoch, writer, n } = key::parse(key) else { panic!("{key}") };
        let text = zstd::stream::decode_all(&body[..]).unwrap();
        let trailer = mutate::lines(&text).pop().unwrap();
        let id = |member: &str| trailer[member].as_str().unwrap().parse().unwrap();
        let place = segment::Place {
            filesystem: FilesystemId(id("filesystem")),
            target: TargetId(id("target")),
            epoch,
            writer,
            n,
        };
        match segment::decode(bytes, &place) {
            Ok(decoded) => {
                // Whatever is taken can be written and read again.
                for record in &decoded.records {
                    let lines = json::lines(record);
                    assert!(lines.iter().all(|line| json::decode_line(line).is_ok()), "{record:?}");
                }
                true
            }
            Err(_) => false,
        }
    };
    attack("segment", 1000, &seeds, |(_, bytes)| bytes.clone(), plain, parse);
    let text = |random: &mut Random, data: Vec<u8>| {
        let text = mutate::bytes(random, zstd::stream::decode_all(&data[..]).unwrap());
        zstd::bulk::compress(&text, 1).unwrap()
    };
    attack("segment, unpacked", 1000, &seeds, |(_, bytes)| bytes.clone(), text, parse);
    let resealed = |random: &mut Random, data: Vec<u8>| {
        let mut lines = mutate::lines(&zstd::stream::decode_all(&data[..]).unwrap());
        let serde_json::Value::Object(trailer) = lines.pop().unwrap() else { panic!("a trailer is an object") };
        if !lines.is_empty() {
            let index = random.below(lines.len());
            mutate::document(random, &mut lines[index]);
        }
        let prev = trailer["prev"].as_str().unwrap().to_owned();
        zstd::bulk::compress(&mutate::sealed(&lines, trailer, &prev).0, 1).unwrap()
    };
    attack("segment, with a hash that is right", 2000, &seeds, |(_, bytes)| bytes.clone(), resealed, parse);
}

#[test]
fn slots() {
    let seeds: Vec<_> = all().into_iter().filter(|(key, _)| key.ends_with(key::SLOTS_NAME)).collect();
    let parse = |(_, body): &(String, Vec<u8>), bytes: &[u8]| {
        let count = mutate::lines(&zstd::stream::decode_all(&body[..]).unwrap()).len() as u64;
        match checkpoint::decode_slots(bytes, count) {
            Ok(slots) => slots.into_iter().all(|record| record.is_ok()),
            Err(_) => false,
        }
    };
    attack("slots", 1000, &seeds, |(_, bytes)| bytes.clone(), plain, parse);
    let text = |random: &mut Random, data: Vec<u8>| {
        zstd::bulk::compress(&mutate::bytes(random, zstd::stream::decode_all(&data[..]).unwrap()), 1).unwrap()
    };
    attack("slots, unpacked", 1000, &seeds, |(_, bytes)| bytes.clone(), text, parse);
}

#[test]
fn control_messages() {
    let requests: Vec<&str> = vec![
        r#"{"v":1,"id":1,"op":"status","args":{}}"#,
        r#"{"v":1,"id":1,"op":"flush","args":{"paths":["a","b/c"],"wait":"all","timeout_seconds":null}}"#,
        r#"{"v":1,"id":2,"op":"whereis","args":{"paths":["a",{"b64":"/2Zvbw=="}]}}"#,
        r#"{"v":1,"id":3,"op":"hand_over","args":{}}"#,
    ];
    let parse = |_: &&str, bytes: &[u8]| {
        let _ = serde_json::from_slice::<Reply>(bytes);
        match serde_json::from_slice::<Request>(bytes) {
            Ok(request) => {
                let text = serde_json::to_vec(&request).unwrap();
                assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), request);
                true
            }
            Err(_) => false,
        }
    };
    attack("control message", 2000, &requests, |seed| seed.as_bytes().to_vec(), plain, parse);
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
