//! What a place says about itself (T1).
//!
//! Owns: reading it, writing `tandemfs.json` once.
//! Does not own: what follows from it (`replication::contact`), who may write (T7).
//!
//! - A place that holds a journal but no `tandemfs.json` is somebody's: a new filesystem must not be mixed into it.

use bytes::Bytes;

use super::{Class, Error, Existing, Kind, Result, Target};
use crate::format::key;
use crate::format::superblock::{BYTES_MAX, Superblock};

/// What a place says about itself.
#[derive(Debug, Clone)]
pub enum Says {
    /// It has a `tandemfs.json` that we can read.
    Identified(Superblock),
    /// It has one that we cannot read: damaged, or of a later version.
    Unreadable(String),
    /// It has none, nor anything else of ours.
    Empty,
    /// It has none, but objects under this prefix.
    Leftovers(&'static str),
    /// It could not be asked.
    Failed(Error),
}

/// Reads what a place says about itself. Writes nothing.
pub async fn inspect(target: &dyn Target) -> Says {
    match target.get(key::SUPERBLOCK, BYTES_MAX).await {
        Ok(bytes) => match Superblock::decode(&bytes) {
            Ok(superblock) => Says::Identified(superblock),
            Err(error) => Says::Unreadable(error.to_string()),
        },
        Err(error) if error.kind == Kind::NotFound => leftovers(target).await.unwrap_or_else(Says::Failed),
        // Longer than any that we write.
        Err(error) if error.kind == Kind::Invalid => Says::Unreadable(error.message),
        Err(error) => Says::Failed(error),
    }
}

async fn leftovers(target: &dyn Target) -> Result<Says> {
    for prefix in [key::JOURNAL, key::WRITERS, key::CHECKPOINTS] {
        if !target.list(prefix, None).await?.objects.is_empty() {
            return Ok(Says::Leftovers(prefix));
        }
    }
    Ok(Says::Empty)
}

/// Makes a fresh place ours. That it already says exactly this is success: an earlier attempt may have lost its reply.
pub async fn initialise(target: &dyn Target, superblock: &Superblock) -> Result<()> {
    let bytes = Bytes::from(superblock.encode());
    let error = match target.put(key::SUPERBLOCK, bytes.clone().into(), Existing::Refuse).await {
        Ok(()) => return Ok(()),
        Err(error) if error.kind == Kind::Exists || error.class == Class::Ambiguous => error,
        Err(error) => return Err(error),
    };
    match target.get(key::SUPERBLOCK, BYTES_MAX).await {
        Ok(found) if found == bytes => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Timestamp;
    use crate::id::{FilesystemId, TargetId};
    use crate::target::directory::DirectoryTarget;
    use crate::target::memory::MemoryTarget;
    use crate::testing::faulty::{Fault, FaultyTarget};

    fn superblock(filesystem: u128, target: u128) -> Superblock {
        Superblock {
            filesystem: FilesystemId(uuid::Uuid::from_u128(filesystem)),
            target: TargetId(uuid::Uuid::from_u128(target)),
            name: "photos".to_owned(),
            target_name: "aws".to_owned(),
            created: Timestamp::EPOCH,
        }
    }

    #[tokio::test]
    async fn t1_a_place_is_initialised_once() {
        let target = MemoryTarget::new();
        assert!(matches!(inspect(&target).await, Says::Empty));
        initialise(&target, &superblock(1, 2)).await.unwrap();
        initialise(&target, &superblock(1, 2)).await.unwrap();
        assert_eq!(initialise(&target, &superblock(1, 3)).await.unwrap_err().kind, Kind::Exists);
        let Says::Identified(found) = inspect(&target).await else { panic!("it says who it is") };
        assert_eq!(found, superblock(1, 2));
    }

    #[tokio::test]
    async fn a_journal_without_an_owner_is_not_an_empty_place() {
        let place = MemoryTarget::new();
        place.objects().insert("chunks/aa/aa".to_owned(), Bytes::new());
        assert!(matches!(inspect(&place).await, Says::Empty), "foreign objects are ignored");
        place.objects().insert("journal/0000000001-00000001/000000000001.jsonl.zst".to_owned(), Bytes::new());
        assert!(matches!(inspect(&place).await, Says::Leftovers("journal/")));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_an_empty_place() {
        let newer = String::from_utf8(superblock(1, 2).encode()).unwrap().replacen("\"format\": 1", "\"format\": 2", 1);
        for bad in [Bytes::from_static(b"{"), newer.into(), Bytes::from(vec![b' '; 100 << 10])] {
            let place = MemoryTarget::new();
            place.objects().insert(key::SUPERBLOCK.to_owned(), bad);
            assert!(matches!(inspect(&place).await, Says::Unreadable(_)));
        }
        let place = FaultyTarget::outage(Arc::new(MemoryTarget::new()));
        place.set_down(true);
        assert!(matches!(inspect(&place).await, Says::Failed(_)));
    }

    #[tokio::test]
    async fn an_initialisation_whose_reply_was_lost_is_one() {
        let place = MemoryTarget::new();
        let target = FaultyTarget::new(Arc::new(place.clone()), |call| match call.operation {
            "put" => Fault::LostReply,
            _ => Fault::None,
        });
        initialise(&target, &superblock(1, 2)).await.unwrap();
        assert!(matches!(inspect(&place).await, Says::Identified(_)));
    }

    #[tokio::test]
    async fn t10_a_directory_is_empty_if_its_last_component_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let target = DirectoryTarget::new(&path);
        assert!(matches!(inspect(&target).await, Says::Empty));
        assert!(!path.exists(), "nothing is touched by looking");
        let deep = DirectoryTarget::new(dir.path().join("no/x"));
        assert!(matches!(inspect(&deep).await, Says::Failed(error) if error.kind == Kind::PlaceMissing));
        initialise(&target, &superblock(1, 2)).await.unwrap();
        assert!(matches!(inspect(&target).await, Says::Identified(_)));
    }
}
