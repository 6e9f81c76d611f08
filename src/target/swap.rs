//! A target whose store can be exchanged while it is in use: renewed credentials, another way to the same place.
//!
//! Owns: passing every call on to the store of the moment.
//! Does not own: whether the new store leads to the same place: its identity is checked again afterwards (T1).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use super::{Abilities, Body, DynTarget, Existing, Page, Result, Target};

/// A target in front of a store. Calls under way end on the store that they began on.
#[derive(Debug)]
pub struct SwapTarget {
    store: RwLock<DynTarget>,
}

impl SwapTarget {
    /// A target on this store.
    pub fn new(store: DynTarget) -> Arc<SwapTarget> {
        Arc::new(SwapTarget { store: RwLock::new(store) })
    }

    /// From here on calls go to this store.
    pub fn swap(&self, store: DynTarget) {
        *self.store.write() = store;
    }

    fn store(&self) -> DynTarget {
        self.store.read().clone()
    }
}

#[async_trait]
impl Target for SwapTarget {
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()> {
        self.store().put(key, body, existing).await
    }

    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes> {
        self.store().get(key, length_max).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.store().get_range(key, offset, length).await
    }

    async fn stat(&self, key: &str) -> Result<Option<u64>> {
        self.store().stat(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.store().list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.store().delete(key).await
    }

    async fn check_place(&self) -> Result<()> {
        self.store().check_place().await
    }

    fn is_local(&self) -> bool {
        self.store().is_local()
    }

    fn ahead_secs(&self) -> Option<i64> {
        self.store().ahead_secs()
    }

    async fn abilities(&self) -> Result<Abilities> {
        self.store().abilities().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::MemoryTarget;

    #[tokio::test]
    async fn calls_go_to_the_store_of_the_moment() {
        let (old, new) = (MemoryTarget::new(), MemoryTarget::new());
        let target = SwapTarget::new(Arc::new(old.clone()));
        target.put("a", b"1".to_vec().into(), Existing::Refuse).await.unwrap();
        target.swap(Arc::new(new.clone()));
        assert_eq!(target.stat("a").await.unwrap(), None);
        target.put("b", b"2".to_vec().into(), Existing::Refuse).await.unwrap();
        assert_eq!((old.objects().len(), new.objects().len()), (1, 1));
    }
}
