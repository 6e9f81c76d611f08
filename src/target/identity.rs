//! Whose place a target is (T1).
//!
//! Owns: gathering what a place says about itself, the verdict on it (pure), writing `tandemfs.json` once.
//! Does not own: when this happens and what follows (`replication::contact`, `mount`), who may write (T7).
//!
//! ```text
//! inspect (I/O) ─▶ Evidence ─▶ decide (pure) ─▶ Verdict ─▶ initialise (I/O), only after Fresh
//! ```
//!
//! - A place that was initialised once is never initialised again: what is missing is not mounted, or lost.
//! - A place that holds a journal but no `tandemfs.json` is somebody's: a new filesystem must not be mixed into it.

use bytes::Bytes;

use super::{Class, Error, Existing, Kind, Result, Target};
use crate::format::key;
use crate::format::superblock::{BYTES_MAX, Superblock};
use crate::id::{FilesystemId, TargetId};

/// What a place says about itself.
#[derive(Debug, Clone)]
pub enum Evidence {
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

/// What we know about the target from our own state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// Our filesystem.
    pub filesystem: FilesystemId,
    /// The id in the target's row, drawn before its first contact.
    pub target: TargetId,
    /// Its `tandemfs.json` was written or seen before.
    pub initialised: bool,
}

/// What the evidence means.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It is this target.
    Ours(Superblock),
    /// It is empty and may be initialised.
    Fresh,
    /// It is another target of this filesystem: its URI changed, or two URIs lead to the same place.
    OtherTarget(Superblock),
    /// It belongs to another filesystem.
    Foreign(Superblock),
    /// It holds a journal without saying whose.
    Leftovers(&'static str),
    /// It says something that we cannot read.
    Unreadable(String),
    /// It is empty or gone although it was initialised, or its bucket or parent directory does not exist.
    PlaceMissing(String),
    /// It cannot be asked now; later it may.
    Unreachable(Error),
    /// It refuses us until an operator acts.
    Refused(Error),
}

/// Reads what a place says about itself. Writes nothing.
pub async fn inspect(target: &dyn Target) -> Evidence {
    match target.get(key::SUPERBLOCK, BYTES_MAX).await {
        Ok(bytes) => match Superblock::decode(&bytes) {
            Ok(superblock) => Evidence::Identified(superblock),
            Err(error) => Evidence::Unreadable(error.to_string()),
        },
        Err(error) if error.kind == Kind::NotFound => leftovers(target).await.unwrap_or_else(Evidence::Failed),
        // Longer than any that we write.
        Err(error) if error.kind == Kind::Invalid => Evidence::Unreadable(error.message),
        Err(error) => Evidence::Failed(error),
    }
}

async fn leftovers(target: &dyn Target) -> Result<Evidence> {
    for prefix in [key::JOURNAL, key::WRITERS, key::CHECKPOINTS] {
        if !target.list(prefix, None).await?.objects.is_empty() {
            return Ok(Evidence::Leftovers(prefix));
        }
    }
    Ok(Evidence::Empty)
}

/// Judges the evidence.
pub fn decide(evidence: Evidence, expected: Expectation) -> Verdict {
    match evidence {
        Evidence::Identified(found) if found.filesystem != expected.filesystem => Verdict::Foreign(found),
        Evidence::Identified(found) if found.target != expected.target => Verdict::OtherTarget(found),
        Evidence::Identified(found) => Verdict::Ours(found),
        Evidence::Unreadable(why) => Verdict::Unreadable(why),
        Evidence::Empty if !expected.initialised => Verdict::Fresh,
        Evidence::Leftovers(prefix) if !expected.initialised => Verdict::Leftovers(prefix),
        Evidence::Empty | Evidence::Leftovers(_) => {
            Verdict::PlaceMissing("place is empty or not mounted: it has no tandemfs.json any more".to_owned())
        }
        Evidence::Failed(error) if error.kind == Kind::PlaceMissing => Verdict::PlaceMissing(error.message),
        Evidence::Failed(error) if error.class == Class::Rejected => Verdict::Refused(error),
        Evidence::Failed(error) => Verdict::Unreachable(error),
    }
}

impl Verdict {
    /// What is wrong, and what to do about it; `None` if nothing is.
    pub fn problem(&self, name: &str) -> Option<(String, String)> {
        let problem = match self {
            Verdict::Ours(_) | Verdict::Fresh => return None,
            // Somebody put another one in its place: a restored state directory that never met it takes it over.
            Verdict::OtherTarget(found) if found.target_name == name => (
                format!("target {name:?} holds this filesystem, but not as the target that this state directory knows"),
                "restore anew, with a --from for it beside the others, or use an empty prefix in its place".to_owned(),
            ),
            Verdict::OtherTarget(found) => (
                format!("target {name:?} is the place of target {:?} ({})", found.target_name, found.target),
                "two URIs lead to the same place, or URIs were swapped: give each target a prefix of its own"
                    .to_owned(),
            ),
            Verdict::Foreign(found) => (
                format!("target {name:?} belongs to another filesystem: {:?} ({})", found.name, found.filesystem),
                "use another prefix, or restore that filesystem with `tandemfs restore --from` its URI".to_owned(),
            ),
            Verdict::Leftovers(prefix) => (
                format!("target {name:?} has objects under {prefix} but no tandemfs.json"),
                "use an empty prefix; what lies there may be the only copy of another filesystem".to_owned(),
            ),
            Verdict::Unreadable(why) => (
                format!("the tandemfs.json of target {name:?} cannot be read: {why}"),
                "a newer tandemfs may have written it; otherwise restore the object from a backup".to_owned(),
            ),
            Verdict::PlaceMissing(why) => (
                format!("target {name:?}: {why}"),
                "mount it or make its bucket, it is tried again by itself; if its data is lost for good: `tandemfs restore` \
                 from the others, then mount with this place empty"
                    .to_owned(),
            ),
            Verdict::Unreachable(error) => (
                format!("target {name:?} cannot be reached: {}", error.message),
                "its work waits and goes on by itself when it is back".to_owned(),
            ),
            Verdict::Refused(error) if error.kind == Kind::Denied => (
                format!("target {name:?} rejects our credentials: {}", error.message),
                "check its keys and what they may do: get, put, list and delete below the prefix".to_owned(),
            ),
            Verdict::Refused(error) => (
                format!("target {name:?} cannot be used: {}", error.message),
                "check its options with `tandemfs check`".to_owned(),
            ),
        };
        Some(problem)
    }
}

/// Finds two places that are one: the same id behind two URIs. Indices into `evidence`.
pub fn same_place<'a>(evidence: impl IntoIterator<Item = &'a Evidence>) -> Option<(usize, usize)> {
    let mut seen: Vec<(usize, TargetId)> = Vec::new();
    for (index, evidence) in evidence.into_iter().enumerate() {
        let Evidence::Identified(found) = evidence else { continue };
        if let Some((earlier, _)) = seen.iter().find(|(_, id)| *id == found.target) {
            return Some((*earlier, index));
        }
        seen.push((index, found.target));
    }
    None
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

    fn expected(initialised: bool) -> Expectation {
        let Superblock { filesystem, target, .. } = superblock(1, 2);
        Expectation { filesystem, target, initialised }
    }

    async fn verdict(target: &dyn Target, initialised: bool) -> Verdict {
        decide(inspect(target).await, expected(initialised))
    }

    #[tokio::test]
    async fn t1_an_empty_place_is_initialised_once_and_never_again() {
        let target = MemoryTarget::new();
        assert!(matches!(verdict(&target, false).await, Verdict::Fresh));
        initialise(&target, &superblock(1, 2)).await.unwrap();
        initialise(&target, &superblock(1, 2)).await.unwrap();
        assert_eq!(initialise(&target, &superblock(1, 3)).await.unwrap_err().kind, Kind::Exists);
        for initialised in [false, true] {
            assert!(matches!(verdict(&target, initialised).await, Verdict::Ours(_)));
        }
        target.objects().clear();
        let missing = verdict(&target, true).await;
        assert!(matches!(missing, Verdict::PlaceMissing(_)));
        assert!(missing.problem("aws").unwrap().0.contains("place is empty or not mounted"));
    }

    #[tokio::test]
    async fn t1_a_place_of_somebody_else_is_refused() {
        for (filesystem, target) in [(9, 2), (9, 9)] {
            let place = MemoryTarget::new();
            initialise(&place, &superblock(filesystem, target)).await.unwrap();
            assert!(matches!(verdict(&place, false).await, Verdict::Foreign(_)));
        }
        let place = MemoryTarget::new();
        initialise(&place, &superblock(1, 9)).await.unwrap();
        assert!(matches!(verdict(&place, true).await, Verdict::OtherTarget(_)));
    }

    #[tokio::test]
    async fn a_journal_without_an_owner_is_not_built_upon() {
        let place = MemoryTarget::new();
        place.objects().insert("chunks/aa/aa".to_owned(), Bytes::new());
        assert!(matches!(verdict(&place, false).await, Verdict::Fresh), "foreign objects are ignored");
        place.objects().insert("journal/0000000001-00000001/000000000001.jsonl.zst".to_owned(), Bytes::new());
        assert!(matches!(verdict(&place, false).await, Verdict::Leftovers("journal/")));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_overwritten() {
        let newer = String::from_utf8(superblock(1, 2).encode()).unwrap().replacen("\"format\": 1", "\"format\": 2", 1);
        for bad in [Bytes::from_static(b"{"), newer.into(), Bytes::from(vec![b' '; 100 << 10])] {
            let place = MemoryTarget::new();
            place.objects().insert(key::SUPERBLOCK.to_owned(), bad);
            assert!(matches!(verdict(&place, false).await, Verdict::Unreadable(_)));
        }
    }

    #[tokio::test]
    async fn an_outage_is_not_an_empty_place() {
        let place = FaultyTarget::outage(Arc::new(MemoryTarget::new()));
        place.set_down(true);
        for initialised in [false, true] {
            assert!(matches!(verdict(&place, initialised).await, Verdict::Unreachable(_)));
        }
        let denied = FaultyTarget::new(Arc::new(MemoryTarget::new()), |_| Fault::Refuse(Kind::Denied, Class::Rejected));
        assert!(matches!(verdict(&denied, false).await, Verdict::Refused(_)));
    }

    #[tokio::test]
    async fn an_initialisation_whose_reply_was_lost_is_one() {
        let place = MemoryTarget::new();
        let target = FaultyTarget::new(Arc::new(place.clone()), |call| match call.operation {
            "put" => Fault::LostReply,
            _ => Fault::None,
        });
        initialise(&target, &superblock(1, 2)).await.unwrap();
        assert!(matches!(verdict(&place, false).await, Verdict::Ours(_)));
    }

    #[tokio::test]
    async fn t10_a_directory_is_fresh_if_its_last_component_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let target = DirectoryTarget::new(&path);
        assert!(matches!(verdict(&target, true).await, Verdict::PlaceMissing(_)));
        assert!(matches!(verdict(&target, false).await, Verdict::Fresh));
        assert!(!path.exists(), "nothing is touched by looking");
        let deep = DirectoryTarget::new(dir.path().join("no/x"));
        assert!(matches!(verdict(&deep, false).await, Verdict::PlaceMissing(_)));
        initialise(&target, &superblock(1, 2)).await.unwrap();
        assert!(matches!(verdict(&target, true).await, Verdict::Ours(_)));
    }

    #[test]
    fn t1_the_same_id_behind_two_uris_is_found() {
        let at = |target| Evidence::Identified(superblock(1, target));
        assert_eq!(same_place(&[at(1), Evidence::Empty, at(2)]), None);
        assert_eq!(same_place(&[at(1), Evidence::Empty, at(2), at(1)]), Some((0, 3)));
    }
}
