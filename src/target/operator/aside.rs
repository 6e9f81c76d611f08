//! Puts into stores where a body that breaks off would stay under its name: written aside, then moved to its key.
//!
//! Owns: the name aside, the order of the steps, pacing of bodies that do not go over HTTP, removing what ended processes left.
//! Does not own: which stores need it, what a call may take (`operator`).
//!
//! SFTP opens a file and writes into it, and so do some WebDAV servers: a connection that breaks leaves a short object. A
//! chunk would be put again, but what is written once (segments, `writers/`) would be taken for somebody else's, for ever.
//! A move is one step. It replaces, so `Existing::Refuse` looks first, and fencing is weak (T8): a broken object is certain
//! some day, two writers in the same second are not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::TryStreamExt;
use opendal::Operator;

use super::{OperatorTarget, all_there};
use crate::clock;
use crate::format::key;
use crate::id::ChunkHash;
use crate::target::classify::Call;
use crate::target::pace::{FRAME, Held, Pacer};
use crate::target::{Body, Class, Error, Existing, Kind, Result, Target};

/// What nobody moved for so long belongs to nobody. Longer than clocks are apart.
const LEFT: Duration = Duration::from_secs(24 * 3600);

impl OperatorTarget {
    /// Stores a whole object or nothing.
    pub(super) async fn put_aside(&self, key: &str, body: &Body, existing: Existing) -> Result<()> {
        let call = Call { operation: "put", key };
        if existing == Existing::Refuse && self.stat(key).await?.is_some() {
            return Err(call.error(Kind::Exists, Class::Rejected, "the object exists"));
        }
        if !self.wrote.swap(true, Ordering::Relaxed) {
            // A hint, not a duty: what cannot be removed now is removed another day.
            let _ = self.call(Call { operation: "list", key: key::TEMPORARY }, 0, self.remove_left()).await;
        }
        // One name for each key: a later try writes over what an earlier one left.
        let aside =
            key::temporary(&format!("put-{:016x}-{:.16}", self.process, ChunkHash::of(key.as_bytes()).to_string()));
        if let Err(error) = self.write_aside(&aside, body).await {
            self.forget_collections().await;
            if error.kind != Kind::Unreachable {
                let _ = self.delete(&aside).await;
            }
            // Whatever lies aside, nothing does under the key.
            let class = if error.class == Class::Ambiguous { Class::Temporary } else { error.class };
            return Err(Error { class, key: key.to_owned(), ..error });
        }
        let moved = async {
            self.make_collection_of(key).await?;
            self.operator.rename(&aside, key).await
        };
        match self.call(call, 0, moved).await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.forget_collections().await;
                // What lay aside a moment ago is gone: moved, with the answer lost, or removed by somebody.
                let lost = error.kind == Kind::PlaceMissing;
                Err(if lost { Error { kind: Kind::Failed, class: Class::Ambiguous, ..error } } else { error })
            }
        }
    }

    /// Writes an object nobody knows of, and makes sure that it is all there.
    async fn write_aside(&self, aside: &str, body: &Body) -> Result<()> {
        let call = Call { operation: "put", key: aside };
        match &self.pacer {
            None => drop(self.put_once(aside, body, false).await?),
            Some(pacer) => {
                let write = async {
                    self.make_collection_of(aside).await?;
                    write_frames(&self.operator, aside, body, pacer).await
                };
                self.call(call, body.len(), write).await?;
            }
        }
        all_there(call, body.len(), self.stat(aside).await?)
    }

    /// Removes what processes that ended in the middle of a put left a day ago.
    async fn remove_left(&self) -> opendal::Result<()> {
        let before = clock::now().secs() - LEFT.as_secs() as i64;
        let mut entries = self.operator.lister(key::TEMPORARY).await?;
        let mut left = Vec::new();
        while let Some(entry) = entries.try_next().await? {
            let modified = entry.metadata().last_modified().map(|time| time.into_inner().as_second());
            if entry.name().starts_with("put-") && modified.is_some_and(|modified| modified < before) {
                left.push(entry.path().to_owned());
            }
        }
        for path in left {
            self.operator.delete(&path).await?;
        }
        Ok(())
    }
}

/// A body that does not go over HTTP, each frame when its turn has come.
async fn write_frames(operator: &Operator, key: &str, body: &Body, pacer: &Pacer) -> opendal::Result<()> {
    let held = Held::of_this_call();
    let mut writer = operator.writer(key).await?;
    for part in body.parts() {
        let mut rest = part.clone();
        while !rest.is_empty() {
            let frame = rest.split_to(rest.len().min(FRAME));
            pacer.turn(frame.len(), &held).await;
            writer.write(frame).await?;
        }
    }
    writer.close().await.map(drop)
}
