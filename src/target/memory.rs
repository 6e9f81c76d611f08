//! A target in memory: for tests, and as the plainest reading of the trait.
//!
//! Owns: objects that live as long as the process. Does not own: faults (`testing::faulty` wraps any target).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Abilities, Body, Class, Error, Existing, Kind, Listed, Page, Result, Target};

/// Objects of one page.
const PAGE: usize = 1000;

/// Objects in a map. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryTarget {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl MemoryTarget {
    /// An empty place.
    pub fn new() -> MemoryTarget {
        MemoryTarget::default()
    }

    /// The place with this name, the same for all who ask in this process (`memory://name`).
    pub fn named(name: &str) -> MemoryTarget {
        static PLACES: Mutex<BTreeMap<String, MemoryTarget>> = Mutex::new(BTreeMap::new());
        PLACES.lock().entry(name.to_owned()).or_default().clone()
    }

    /// All objects, to look at and to spoil. Not to be held across an `await`.
    pub fn objects(&self) -> parking_lot::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock()
    }

    fn object(&self, key: &str) -> Result<Bytes> {
        let not_found = || error("get", key, Kind::NotFound, "no such object".to_owned());
        self.objects.lock().get(key).cloned().ok_or_else(not_found)
    }
}

fn error(operation: &'static str, key: &str, kind: Kind, message: String) -> Error {
    Error { kind, class: Class::Rejected, operation, key: key.to_owned(), message, retry_after: None }
}

#[async_trait]
impl Target for MemoryTarget {
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()> {
        let mut objects = self.objects.lock();
        if existing == Existing::Refuse && objects.contains_key(key) {
            return Err(error("put", key, Kind::Exists, "the object exists".to_owned()));
        }
        objects.insert(key.to_owned(), body.parts().concat().into());
        Ok(())
    }

    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes> {
        let object = self.object(key)?;
        if object.len() as u64 > length_max {
            let message = format!("it has {} bytes, at most {length_max} were expected", object.len());
            return Err(error("get", key, Kind::Invalid, message));
        }
        Ok(object)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let object = self.object(key)?;
        let Some(end) = offset.checked_add(length).filter(|end| *end <= object.len() as u64) else {
            let message = format!("it has {} bytes, not {length} from {offset}", object.len());
            return Err(error("get", key, Kind::Invalid, message));
        };
        Ok(object.slice(offset as usize..end as usize))
    }

    async fn stat(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.objects.lock().get(key).map(|object| object.len() as u64))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let objects = self.objects.lock();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut wanted =
            objects.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        let found: Vec<Listed> = wanted
            .by_ref()
            .take(PAGE)
            .map(|(key, object)| Listed { key: key.clone(), length: object.len() as u64 })
            .collect();
        let next = wanted.next().and(found.last()).map(|last| last.key.clone());
        Ok(Page { objects: found, next })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.objects.lock().remove(key);
        Ok(())
    }

    async fn check_place(&self) -> Result<()> {
        Ok(())
    }

    async fn abilities(&self) -> Result<Abilities> {
        Ok(Abilities { create_only: true, checksum: true })
    }
}
