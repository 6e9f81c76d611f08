//! A model of an object store that fails: what a target is in a world.
//!
//! Owns: the faults, what lies there, what is still on its way to it, what must hold at each call that changes it.
//! Does not own: when it is well or ill (`world`).
//!
//! A call takes time before and after it takes effect, so that everything else may happen in between. One that is never
//! answered may take effect later, even after the mount that made it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::named::Named;
use super::trace::Trace;
use crate::chance::Seeded;
use crate::clock;
use crate::format::checkpoint::Complete;
use crate::format::key::{self, CheckpointFile, Key};
use crate::format::record::Change;
use crate::format::segment;
use crate::id::{ChunkHash, FilesystemId, TargetId};
use crate::target::memory::MemoryTarget;
use crate::target::{Abilities, Body, Class, Error, Existing, Kind, Listed, Page, Result, Target};

/// After this long nobody waits for an answer any more.
const GIVEN_UP: Duration = Duration::from_secs(30);
/// So late a call that was never answered may take effect.
const LATE_MAX: u64 = 50_000;

/// How a store fails: out of 100 calls so many.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Character {
    pub refuses: u64,
    pub throttles: u64,
    /// Takes effect; the answer is lost.
    pub loses_replies: u64,
    /// No answer, ever; perhaps an effect, later.
    pub hangs: u64,
    /// A put stores a part, and fails.
    pub tears: u64,
    pub reads_wrong: u64,
    pub reads_short: u64,
    /// Lists what was there a while ago.
    pub stale: bool,
    pub slow: bool,
    pub full: bool,
    pub down: bool,
    /// No chunk arrives before it is another one.
    pub keeps_chunks_out: bool,
}

/// One object store. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub name: String,
    pub memory: MemoryTarget,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    filesystem: FilesystemId,
    random: Seeded,
    character: Character,
    /// What a stale listing shows.
    before: BTreeMap<String, u64>,
    /// Effects that come later: the moment, what it is.
    late: Vec<(Duration, Late)>,
    /// Objects that it lost, or spoiled, after it had confirmed them.
    damaged: BTreeSet<String>,
    /// It was ever one that is read wrong.
    misread: bool,
    /// It did so once: what it restores to is nobody's promise before it was scrubbed.
    lied: bool,
    /// Chunks that it was asked to delete, and when.
    deleted: Vec<(ChunkHash, Duration)>,
    named: Named,
    /// What a call did that none may do. It ended in a panic of its task, which nobody may notice.
    broken: Option<String>,
    trace: Trace,
    calls: u64,
}

#[derive(Debug)]
enum Late {
    Put(String, Bytes, Existing),
    Delete(String),
}

enum Fate {
    Fine,
    Refused(Kind),
    ReplyLost,
    Torn,
    Wrong,
    Short,
    Hangs,
}

impl Place {
    pub(super) fn new(name: &str, filesystem: FilesystemId, seed: u64, trace: Trace) -> Place {
        let state = State {
            filesystem,
            random: Seeded(seed),
            character: Character::default(),
            before: BTreeMap::new(),
            late: vec![],
            damaged: BTreeSet::new(),
            misread: false,
            lied: false,
            deleted: vec![],
            named: Named::default(),
            broken: None,
            trace,
            calls: 0,
        };
        Place { name: name.into(), memory: MemoryTarget::new(), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn is_now(&self, character: Character) {
        let mut state = self.state.lock();
        if character.stale && !state.character.stale {
            state.before = self.memory.objects().iter().map(|(key, bytes)| (key.clone(), bytes.len() as u64)).collect();
        }
        state.misread |= character.stale || character.reads_wrong + character.reads_short > 0;
        state.character = character;
    }

    pub(super) fn character(&self) -> Character {
        self.state.lock().character
    }

    /// True if what was read from it may ever have been wrong: then it may have been taken for somebody else's.
    pub(super) fn was_misread(&self) -> bool {
        self.state.lock().misread
    }

    /// It loses an object, or spoils its bytes, and does not know. True: there was one.
    pub(super) fn damage(&self, random: &mut Seeded) -> bool {
        let mut objects = self.memory.objects();
        let chunks: Vec<String> = objects.keys().filter(|key| key.starts_with(key::CHUNKS)).cloned().collect();
        if chunks.is_empty() {
            return false;
        }
        let lost = chunks[random.below(chunks.len())].clone();
        let mut state = self.state.lock();
        match random.below(3) {
            0 => {
                if let Some(object) = objects.get_mut(&lost) {
                    let mut bytes = object.to_vec();
                    bytes[0] ^= 1;
                    *object = bytes.into();
                }
            }
            _ => drop(objects.remove(&lost)),
        }
        state.trace.note(format_args!("{} damages {lost}", self.name));
        state.damaged.insert(lost);
        state.lied = true;
        true
    }

    /// True if it ever lost or spoiled an object that it had confirmed.
    pub(super) fn has_lied(&self) -> bool {
        self.state.lock().lied
    }

    /// Chunks that were deleted since the last look, and when.
    pub(super) fn take_deleted(&self) -> Vec<(ChunkHash, Duration)> {
        std::mem::take(&mut self.state.lock().deleted)
    }

    /// See [`State::broken`].
    pub(super) fn broken(&self) -> Option<String> {
        self.state.lock().broken.clone()
    }

    fn insist(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = format!("{}: {}", self.name, what());
            self.state.lock().broken.get_or_insert(what.clone());
            panic!("{what}");
        }
    }

    pub(super) fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// What was on its way and was never answered, takes effect.
    pub(super) fn catch_up(&self, now: Duration) {
        let due: Vec<Late> = {
            let mut state = self.state.lock();
            let (due, later) = std::mem::take(&mut state.late).into_iter().partition(|(at, _)| *at <= now);
            state.late = later;
            due.into_iter().map(|(_, late): (Duration, Late)| late).collect()
        };
        for late in due {
            match late {
                Late::Put(key, body, existing) => drop(self.apply_put(&key, &body, existing)),
                Late::Delete(key) => self.apply_delete(&key),
            }
        }
    }

    fn draw(&self, put: bool, get: bool) -> Fate {
        let mut state = self.state.lock();
        state.calls += 1;
        let character = state.character;
        if character.down {
            return if state.random.below(8) == 0 { Fate::Hangs } else { Fate::Refused(Kind::Unreachable) };
        }
        if put && character.full {
            return Fate::Refused(Kind::Full);
        }
        let mut draw = state.random.below(100) as u64;
        let mut falls = |share: u64| {
            let falls = draw < share;
            draw = draw.wrapping_sub(share);
            falls
        };
        if falls(character.refuses) {
            Fate::Refused(Kind::Failed)
        } else if falls(character.throttles) {
            Fate::Refused(Kind::Throttled)
        } else if falls(character.loses_replies) {
            Fate::ReplyLost
        } else if falls(character.hangs) {
            Fate::Hangs
        } else if put && falls(character.tears) {
            Fate::Torn
        } else if get && falls(character.reads_wrong) {
            Fate::Wrong
        } else if get && falls(character.reads_short) {
            Fate::Short
        } else {
            Fate::Fine
        }
    }

    /// Time that a call takes until it has its effect, or from there to its answer.
    async fn pause(&self) {
        let pause = {
            let mut state = self.state.lock();
            match (state.character.slow, state.random.below(4)) {
                (true, 0) => Duration::from_millis(state.random.below(70_000) as u64),
                (_, 0) => Duration::from_millis(state.random.below(60) as u64),
                _ => Duration::ZERO,
            }
        };
        if !pause.is_zero() {
            clock::sleep(pause).await;
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.state.lock().trace.note(what);
    }

    /// One call: `late` is what may still happen if it is never answered.
    async fn call<T>(
        &self,
        operation: &'static str,
        key: &str,
        late: Option<Late>,
        effect: impl FnOnce(&Fate) -> Result<T>,
    ) -> Result<T> {
        let fate = self.draw(operation == "put", operation == "get");
        let failed = |kind, class, message: &str| {
            let (key, message) = (key.to_owned(), message.to_owned());
            Err(Error { kind, class, operation, key, message, retry_after: None })
        };
        self.pause().await;
        let result = match fate {
            Fate::Refused(kind) => failed(kind, Class::Temporary, "refused by the world"),
            Fate::Hangs => {
                self.note(format_args!("{} {operation} {key} hangs", self.name));
                if let Some(late) = late {
                    let mut state = self.state.lock();
                    if state.random.below(2) == 0 {
                        let delay = Duration::from_millis(state.random.draw() % LATE_MAX);
                        state.late.push((clock::simulated::now().unwrap_or_default() + delay, late));
                    }
                }
                // Whoever asks a real store gives up as well (`target::deadline`).
                clock::sleep(GIVEN_UP).await;
                failed(Kind::Unreachable, Class::Ambiguous, "no answer in time")
            }
            _ => effect(&fate),
        };
        let result = match fate {
            Fate::ReplyLost => failed(Kind::Unreachable, Class::Ambiguous, "the answer was lost by the world"),
            Fate::Torn => failed(Kind::Failed, Class::Ambiguous, "broke off"),
            _ => result,
        };
        let kind = result.as_ref().err().map(|error| error.kind);
        self.note(format_args!("{} {operation} {key}: {kind:?}", self.name));
        self.pause().await;
        result
    }

    fn apply_put(&self, key: &str, body: &Bytes, existing: Existing) -> Result<()> {
        let before = self.memory.objects().get(key).cloned();
        if let (Some(before), false) = (&before, key.starts_with(key::CHUNKS) || key.starts_with("tmp/")) {
            if existing == Existing::Refuse {
                let (key, message) = (key.to_owned(), "the object exists".to_owned());
                let (kind, class) = (Kind::Exists, Class::Rejected);
                return Err(Error { kind, class, operation: "put", key, message, retry_after: None });
            }
            self.insist(before == body, || format!("{key} is written a second time"));
        }
        self.check_arrival(key, body);
        self.memory.objects().insert(key.to_owned(), body.clone());
        self.state.lock().damaged.remove(key);
        Ok(())
    }

    fn apply_delete(&self, key: &str) {
        self.memory.objects().remove(key);
        let mut state = self.state.lock();
        state.damaged.remove(key);
        state.named.forget(key);
        if let Key::Chunk(hash) = key::parse(key) {
            let now = clock::simulated::now().unwrap_or_default();
            state.deleted.push((hash, now));
            let named = state.named.who_names(hash).filter(|_| !state.lied).map(str::to_owned);
            drop(state);
            self.insist(named.is_none(), || format!("chunk {hash} is deleted and named by {named:?}"));
        }
    }

    /// What an object names must be there before it (promise 3).
    fn check_arrival(&self, key: &str, body: &Bytes) {
        match key::parse(key) {
            Key::Chunk(hash) => {
                self.insist(ChunkHash::of(body) == hash, || "wrong bytes under the name of a chunk (S5)".into());
            }
            Key::Segment { epoch, writer, n } => {
                let (filesystem, damaged) = {
                    let state = self.state.lock();
                    (state.filesystem, state.lied)
                };
                let place = segment::Place { filesystem, target: self.id(), epoch, writer, n };
                let decoded = segment::decode(body, &place).unwrap_or_else(|e| panic!("{}: {key}: {e}", self.name));
                let chunks = decoded.records.iter().filter_map(|record| match &record.change {
                    Change::Content(content) => Some(&content.chunks),
                    Change::Repack { chunks, .. } => Some(chunks),
                    _ => None,
                });
                for (hash, _) in chunks.flatten() {
                    let there = self.memory.objects().contains_key(&key::chunk(*hash));
                    self.insist(there || damaged, || format!("{key} names chunk {hash}, which is not there"));
                }
            }
            Key::Checkpoint { seq, export, file: CheckpointFile::Complete } => {
                let complete = Complete::decode(body, seq, export).unwrap_or_else(|e| panic!("{}: {e}", self.name));
                let missing = {
                    let objects = self.memory.objects();
                    let mut state = self.state.lock();
                    let damaged = state.lied;
                    let named = state.named.completed(key, &complete, export, &objects);
                    let there = |hash: &ChunkHash| damaged || objects.contains_key(&key::chunk(*hash));
                    named.and_then(|named| named.iter().copied().find(|hash| !there(hash)))
                };
                self.insist(missing.is_none(), || format!("{key} names chunk {missing:?}, which is not there"));
            }
            _ => {}
        }
    }

    /// The id that its `tandemfs.json` gives.
    pub(super) fn id(&self) -> TargetId {
        let superblock = self.memory.objects()[key::SUPERBLOCK].clone();
        crate::format::superblock::Superblock::decode(&superblock).expect("it was written by us").target
    }
}

#[async_trait]
impl Target for Place {
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()> {
        let body: Bytes = body.parts().concat().into();
        let late = Late::Put(key.to_owned(), body.clone(), existing);
        while key.starts_with(key::CHUNKS) && self.character().keeps_chunks_out {
            clock::sleep(Duration::from_secs(1)).await;
        }
        self.call("put", key, Some(late), |fate| match fate {
            // Only chunks are replaced; what else breaks off has left nothing.
            Fate::Torn if key.starts_with(key::CHUNKS) => {
                let mut objects = self.memory.objects();
                // A store that has it whole does not replace it by a part.
                objects.entry(key.to_owned()).or_insert_with(|| body.slice(..body.len() / 2));
                Ok(())
            }
            Fate::Torn => Ok(()),
            _ => self.apply_put(key, &body, existing),
        })
        .await
    }

    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes> {
        let bytes = self
            .call("get", key, None, |fate| {
                let object = self.memory.objects().get(key).cloned();
                let invalid = |kind, message: String| Error {
                    kind,
                    class: Class::Rejected,
                    operation: "get",
                    key: key.to_owned(),
                    message,
                    retry_after: None,
                };
                let object = object.ok_or_else(|| invalid(Kind::NotFound, "no such object".into()))?;
                if object.len() as u64 > length_max {
                    return Err(invalid(Kind::Invalid, format!("it has {} bytes", object.len())));
                }
                Ok(match fate {
                    Fate::Wrong if !object.is_empty() => {
                        let mut bytes = object.to_vec();
                        let middle = bytes.len() / 2;
                        bytes[middle] ^= 1;
                        bytes.into()
                    }
                    Fate::Short => object.slice(..object.len() / 2),
                    _ => object,
                })
            })
            .await?;
        Ok(bytes)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let object = self.get(key, u64::MAX).await?;
        let invalid = || Error {
            kind: Kind::Invalid,
            class: Class::Temporary,
            operation: "get",
            key: key.to_owned(),
            message: format!("it has {} bytes, not {length} from {offset}", object.len()),
            retry_after: None,
        };
        let end = offset.checked_add(length).filter(|end| *end <= object.len() as u64).ok_or_else(invalid)?;
        Ok(object.slice(offset as usize..end as usize))
    }

    async fn stat(&self, key: &str) -> Result<Option<u64>> {
        self.call("stat", key, None, |_| Ok(self.memory.objects().get(key).map(|object| object.len() as u64))).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let (stale, before) = {
            let state = self.state.lock();
            (state.character.stale, state.before.clone())
        };
        self.call("list", prefix, None, |_| Ok(stale && prefix != key::WRITERS)).await.map(|stale| {
            let fresh = |(key, object): (&String, &Bytes)| (key.clone(), object.len() as u64);
            let all = if stale { before } else { self.memory.objects().iter().map(fresh).collect() };
            let wanted = |key: &String| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after);
            let objects = all.into_iter().filter(|(key, _)| wanted(key));
            Page { objects: objects.map(|(key, length)| Listed { key, length }).collect(), next: None }
        })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let late = Late::Delete(key.to_owned());
        self.call("delete", key, Some(late), |_| {
            self.apply_delete(key);
            Ok(())
        })
        .await
    }

    async fn check_place(&self) -> Result<()> {
        Ok(())
    }

    async fn abilities(&self) -> Result<Abilities> {
        Ok(Abilities { create_only: true, checksum: true })
    }
}
