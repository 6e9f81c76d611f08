//! A target that takes every put at once and keeps nothing but what it saw.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tandemfs::target::{Abilities, Body, Class, Error, Existing, Kind, Page, Result, Target};

/// What a target was sent. The first eight bytes of a chunk are its number, in the order of the commits.
#[derive(Debug, Clone)]
pub struct Seen {
    pub puts: u64,
    pub distinct: u64,
    /// Seconds from the first put to the last.
    pub last_s: f64,
    /// The most later chunks that came before one.
    pub overtaken: u64,
    began: Option<Instant>,
    /// A bit for each chunk.
    arrived: Vec<u64>,
}

/// The target.
#[derive(Debug)]
pub struct CountingTarget(Mutex<Seen>);

impl Default for CountingTarget {
    fn default() -> CountingTarget {
        let seen = Seen { puts: 0, distinct: 0, last_s: 0.0, overtaken: 0, began: None, arrived: Vec::new() };
        CountingTarget(Mutex::new(seen))
    }
}

impl CountingTarget {
    /// What it saw.
    pub fn seen(&self) -> Seen {
        self.0.lock().clone()
    }
}

impl Seen {
    fn put(&mut self, number: u64) {
        let began = *self.began.get_or_insert_with(Instant::now);
        self.last_s = began.elapsed().as_secs_f64();
        self.puts += 1;
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.arrived.len() <= word {
            self.arrived.resize(word + 1, 0);
        }
        if self.arrived[word] & bit == 0 {
            self.arrived[word] |= bit;
            // Of those that came before it, all but the earlier ones are later ones.
            self.overtaken = self.overtaken.max(self.distinct.saturating_sub(number));
            self.distinct += 1;
        }
    }
}

fn refused(operation: &'static str, key: &str) -> Error {
    let message = "it keeps nothing".to_owned();
    Error { kind: Kind::NotFound, class: Class::Rejected, operation, key: key.to_owned(), message, retry_after: None }
}

#[async_trait]
impl Target for CountingTarget {
    async fn put(&self, _key: &str, body: Body, _existing: Existing) -> Result<()> {
        let head: Vec<u8> = body.parts().iter().flat_map(|part| part.iter().take(8)).take(8).copied().collect();
        self.0.lock().put(u64::from_le_bytes(head.try_into().expect("chunks are longer than that")));
        Ok(())
    }

    async fn get(&self, key: &str, _length_max: u64) -> Result<Bytes> {
        Err(refused("get", key))
    }

    async fn get_range(&self, key: &str, _offset: u64, _length: u64) -> Result<Bytes> {
        Err(refused("get", key))
    }

    async fn stat(&self, _key: &str) -> Result<Option<u64>> {
        Ok(None)
    }

    async fn list(&self, _prefix: &str, _after: Option<&str>) -> Result<Page> {
        Ok(Page::default())
    }

    async fn delete(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    async fn check_place(&self) -> Result<()> {
        Ok(())
    }

    async fn abilities(&self) -> Result<Abilities> {
        Ok(Abilities { create_only: true, checksum: true })
    }
}
