//! Every target but directories: one OpenDAL operator behind the waist.
//!
//! Owns: how each call is made so that its answer can be believed, and its deadline.
//! Does not own: retries (`replication`: an attempt hidden here would be hidden from the breaker), options (`service`).
//!
//! - One object, one `PUT`: OpenDAL sends a body written at once in a single request, its parts as they lie in memory.
//! - *Confirmed* = the store answered with the checksum that we sent, or a `stat` has the length.
//! - Where a body that breaks off would stay under its name, it is written aside and moved (`aside`).
//! - `Existing::Refuse` asks the store to refuse only if it was seen to do so (T8); otherwise it looks first, which two
//!   writers at the same moment can pass. `abilities` says so.

use std::collections::{BTreeSet, BinaryHeap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use opendal::{Buffer, EntryMode, Operator};
use tokio::sync::{OnceCell, Semaphore};

use super::classify::{Call, classify};
use super::pace::Pacer;
use super::transport::{DOCUMENT_MAX, Notes, noting};
use super::{Abilities, Body, Class, Existing, Kind, Listed, PATIENCE, Page, Result, Target, pace, probe};

/// Objects of one page.
const PAGE: usize = 1000;
/// Bytes of one answer of a listing: a thousand keys where the store pages, all of a directory where it does not. Ours have at
/// most a few thousand entries of about 1 KiB.
const LISTING_MAX: u64 = 64 << 20;

/// A target behind an OpenDAL operator.
pub struct OperatorTarget {
    operator: Operator,
    abilities: OnceCell<Abilities>,
    patience: Duration,
    /// By the last answer that had a date; [`NO_DATE`] before.
    ahead_secs: AtomicI64,
    /// Where objects lie in collections: those that were made or found, at most [`COLLECTIONS_MAX`].
    collections: Option<tokio::sync::Mutex<BTreeSet<String>>>,
    /// Of bodies that do not go over HTTP, where the transport paces them.
    pacer: Option<Pacer>,
    /// Calls at a time where each needs a connection of its own that takes a program to make: `ssh`.
    sessions: Option<Semaphore>,
    /// Drawn anew by each process: names aside are its own.
    process: u64,
    /// Something was put.
    wrote: AtomicBool,
}

/// Sessions with one server: the library gives up after 10 s, and so many made at once take a slow machine a few of them.
const SESSIONS: usize = 4;

/// Collections that are remembered.
const COLLECTIONS_MAX: usize = 4096;

/// No answer had a date yet.
const NO_DATE: i64 = i64::MIN;

impl std::fmt::Debug for OperatorTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let info = self.operator.info();
        write!(f, "OperatorTarget({}://{}{})", info.scheme(), info.name(), info.root())
    }
}

impl OperatorTarget {
    /// Takes an operator without layers that retry.
    pub(super) fn new(operator: Operator) -> OperatorTarget {
        let is_sftp = operator.info().scheme() == "sftp";
        let has_collections = is_sftp || operator.info().scheme() == "webdav";
        OperatorTarget {
            operator,
            abilities: OnceCell::new(),
            patience: PATIENCE,
            ahead_secs: AtomicI64::new(NO_DATE),
            collections: has_collections.then(tokio::sync::Mutex::default),
            pacer: None,
            sessions: is_sftp.then(|| Semaphore::new(SESSIONS)),
            process: crate::chance::u64(),
            wrote: AtomicBool::new(false),
        }
    }

    /// The same, which sends bodies as `pacer` lets it where no HTTP transport does.
    pub(super) fn paced(self, pacer: Pacer) -> OperatorTarget {
        let pacer = (self.operator.info().scheme() == "sftp").then_some(pacer);
        OperatorTarget { pacer, ..self }
    }

    /// Whether a body that breaks off might stay under its name.
    fn is_torn_easily(&self) -> bool {
        self.collections.is_some() && self.operator.info().capability().rename
    }

    /// Makes a call that moves `bytes`, in time.
    async fn call<T>(
        &self,
        call: Call<'_>,
        bytes: u64,
        future: impl Future<Output = opendal::Result<T>>,
    ) -> Result<(T, Notes)> {
        // Waiting for one another is no fault of the store.
        let _session = match &self.sessions {
            Some(sessions) => sessions.acquire().await.ok(),
            None => None,
        };
        let deadline = super::deadline(self.patience, bytes);
        let answer_max = match call.operation {
            "get" => bytes.saturating_add(DOCUMENT_MAX),
            "list" => LISTING_MAX,
            _ => DOCUMENT_MAX,
        };
        // Some services unwrap what a server says: that is an error of this call, not the end of its task.
        let unwound =
            |_| Err(opendal::Error::new(opendal::ErrorKind::Unexpected, "the answer could not be understood"));
        let future = AssertUnwindSafe(future).catch_unwind().map(|answer| answer.unwrap_or_else(unwound));
        let (result, notes) = noting(answer_max, pace::within(deadline, future)).await;
        if let Some(ahead) = notes.ahead_secs {
            self.ahead_secs.store(ahead, Ordering::Relaxed);
        }
        match (result, notes) {
            (Ok(Ok(value)), notes) => Ok((value, notes)),
            (Ok(Err(error)), notes) => Err(classify(call, &error, &notes)),
            (Err(pace::Elapsed), _) => {
                let message = format!("no answer within {} s", deadline.as_secs());
                Err(call.error(Kind::Unreachable, call.unknown_fate(), message))
            }
        }
    }

    /// One `PUT`; returns whether the store verified a checksum.
    pub(super) async fn put_once(&self, key: &str, body: &Body, create_only: bool) -> Result<bool> {
        let call = Call { operation: "put", key };
        let buffer: Buffer = body.parts().to_vec().into();
        let write = async move {
            self.make_collection_of(key).await?;
            self.operator.write_with(key, buffer).if_not_exists(create_only).await
        };
        let (_, notes) = self.call(call, body.len(), write).await?;
        Ok(notes.checksum_agreed)
    }

    /// Makes the collection that an object comes into, one at a time. OpenDAL would make it, too, but several puts at once
    /// into a new one race: Apache then answers some with 403, as if the credentials were wrong.
    async fn make_collection_of(&self, key: &str) -> opendal::Result<()> {
        let Some(collections) = &self.collections else { return Ok(()) };
        let collection = key.rfind('/').map_or("/", |end| &key[..=end]);
        let mut made = collections.lock().await;
        if !made.contains(collection) {
            if self.operator.create_dir(collection).await.is_err() {
                // Another client may have made it at the same moment: then it is there now.
                self.operator.create_dir(collection).await?;
            }
            if made.len() >= COLLECTIONS_MAX {
                made.clear();
            }
            made.insert(collection.to_owned());
        }
        Ok(())
    }

    async fn forget_collections(&self) {
        if let Some(collections) = &self.collections {
            collections.lock().await.clear();
        }
    }

    /// True if this kind of store can be asked for a create-only put.
    pub(super) fn can_ask_create_only(&self) -> bool {
        !self.is_torn_easily() && self.operator.info().capability().write_with_if_not_exists
    }

    /// Reads from `offset` to `end`, or to the end of the object; more than `length_max` bytes are an error.
    async fn read(&self, call: Call<'_>, offset: u64, end: Option<u64>, length_max: u64) -> Result<Vec<u8>> {
        let read = async {
            let reader = self.operator.reader(call.key).await?;
            let mut stream = match end {
                // Without a range the answer tells the length of the object, and no other request needs to.
                None => reader.into_stream(..).await?,
                Some(end) => reader.into_stream(offset..end).await?,
            };
            // Grown as bytes come: a length that a store claims allocates nothing.
            let mut bytes = Vec::with_capacity(end.map_or(0, |end| end - offset).min(64 << 20) as usize);
            while let Some(buffer) = stream.try_next().await? {
                for part in buffer {
                    bytes.extend_from_slice(&part);
                }
                if bytes.len() as u64 > length_max {
                    break;
                }
            }
            Ok(bytes)
        };
        let (bytes, _) = self.call(call, length_max, read).await?;
        Ok(bytes)
    }
}

#[async_trait]
impl Target for OperatorTarget {
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()> {
        let call = Call { operation: "put", key };
        if self.is_torn_easily() {
            return self.put_aside(key, &body, existing).await;
        }
        let create_only = existing == Existing::Refuse;
        let asked = create_only && self.abilities().await?.create_only;
        if create_only && !asked && self.stat(key).await?.is_some() {
            return Err(call.error(Kind::Exists, Class::Rejected, "the object exists"));
        }
        if self.put_once(key, &body, asked).await? {
            return Ok(());
        }
        match self.stat(key).await {
            Ok(found) => all_there(call, body.len(), found),
            // The put was answered, only its proof is missing.
            Err(error) => Err(super::Error { operation: "put", class: Class::Ambiguous, ..error }),
        }
    }

    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes> {
        let call = Call { operation: "get", key };
        let bytes = self.read(call, 0, None, length_max).await?;
        if bytes.len() as u64 > length_max {
            let message = format!("it is longer than the {length_max} bytes that were expected at most");
            return Err(call.error(Kind::Invalid, Class::Rejected, message));
        }
        Ok(bytes.into())
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let call = Call { operation: "get", key };
        let wrong = |has: String| {
            call.error(Kind::Invalid, Class::Rejected, format!("it has {has}, not {length} bytes from {offset}"))
        };
        let Some(end) = offset.checked_add(length) else { return Err(wrong("less".to_owned())) };
        if length == 0 {
            // HTTP has no empty range.
            return match self.stat(key).await? {
                Some(has) if offset <= has => Ok(Bytes::new()),
                Some(has) => Err(wrong(format!("{has} bytes"))),
                None => Err(call.error(Kind::NotFound, Class::Rejected, "no such object")),
            };
        }
        let bytes = self.read(call, offset, Some(end), length).await?;
        // A store that ignores ranges sends all of it.
        if bytes.len() as u64 != length {
            return Err(wrong(format!("answered with {} bytes", bytes.len())));
        }
        Ok(bytes.into())
    }

    async fn stat(&self, key: &str) -> Result<Option<u64>> {
        match self.call(Call { operation: "stat", key }, 0, self.operator.stat(key)).await {
            Ok((metadata, _)) => Ok(Some(metadata.content_length())),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let call = Call { operation: "list", key: prefix };
        let after = after.unwrap_or_default();
        if after >= prefix && !after.starts_with(prefix) {
            return Ok(Page::default());
        }
        let resumes = self.operator.info().capability().list_with_start_after;
        let found = if resumes {
            // One more than a page tells whether it was the last.
            let list = self.list_from(prefix, after);
            self.call(call, 0, list).await?.0
        } else {
            // Everything is listed for each page: such a listing may take long.
            self.call(call, u64::MAX, self.list_smallest(prefix, after)).await?.0
        };
        Ok(page(found))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.call(Call { operation: "delete", key }, 0, self.operator.delete(key)).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn check_place(&self) -> Result<()> {
        // A bucket has no mount that could come off; T1 asks this of directories only.
        Ok(())
    }

    fn ahead_secs(&self) -> Option<i64> {
        Some(self.ahead_secs.load(Ordering::Relaxed)).filter(|ahead| *ahead != NO_DATE)
    }

    async fn abilities(&self) -> Result<Abilities> {
        self.abilities.get_or_try_init(|| probe::abilities(self)).await.copied()
    }
}

impl OperatorTarget {
    /// Lists at most one object more than a page from a store that resumes after a key, in its ascending order.
    async fn list_from(&self, prefix: &str, after: &str) -> opendal::Result<Vec<Listed>> {
        let mut list = self.operator.lister_with(prefix).recursive(true).limit(PAGE);
        if !after.is_empty() {
            list = list.start_after(after);
        }
        let mut entries = list.await?;
        let mut found: Vec<Listed> = Vec::new();
        while let Some(entry) = entries.try_next().await? {
            let Some(object) = object(&entry, prefix, after) else { continue };
            if found.last().is_some_and(|last| last.key >= object.key) {
                let message = format!("listed {:?} out of order", object.key);
                return Err(opendal::Error::new(opendal::ErrorKind::Unexpected, message));
            }
            found.push(object);
            if found.len() > PAGE {
                break;
            }
        }
        Ok(found)
    }

    /// Lists everything and keeps the smallest keys after `after`.
    async fn list_smallest(&self, prefix: &str, after: &str) -> opendal::Result<Vec<Listed>> {
        let mut entries = match self.operator.lister_with(prefix).recursive(true).await {
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut smallest = BinaryHeap::new();
        loop {
            let entry = match entries.try_next().await {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                // The directory does not exist, or a part of it went away.
                Err(error) if error.kind() == opendal::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            if let Some(Listed { key, length }) = object(&entry, prefix, after) {
                smallest.push((key, length));
                if smallest.len() > PAGE + 1 {
                    smallest.pop();
                }
            }
        }
        Ok(smallest.into_sorted_vec().into_iter().map(|(key, length)| Listed { key, length }).collect())
    }
}

fn object(entry: &opendal::Entry, prefix: &str, after: &str) -> Option<Listed> {
    let key = entry.path();
    let wanted = key.starts_with(prefix) && key > after && !key.ends_with('/');
    (wanted && entry.metadata().mode() != EntryMode::DIR)
        .then(|| Listed { key: key.to_owned(), length: entry.metadata().content_length() })
}

/// An object that was put is as long as what was sent.
fn all_there(call: Call<'_>, sent: u64, found: Option<u64>) -> Result<()> {
    if found == Some(sent) {
        return Ok(());
    }
    let found = found.map_or("no object".to_owned(), |length| format!("{length} bytes"));
    let message = format!("the store took {sent} bytes and has {found} now");
    Err(call.error(Kind::Invalid, Class::Temporary, message))
}

fn page(mut found: Vec<Listed>) -> Page {
    let more = found.len() > PAGE;
    found.truncate(PAGE);
    let next = found.last().filter(|_| more).map(|last| last.key.clone());
    Page { objects: found, next }
}

mod aside;
#[cfg(test)]
mod aside_tests;
#[cfg(test)]
mod tests;
