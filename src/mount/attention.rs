//! What an operator should look at, as far as this mount knows it.
//!
//! Owns: what was noticed at the start of the mount, the words for what others notice.
//! Does not own: noticing it (`recovery`, `replication`, `read`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{self, Instant};
use crate::control::status::{Attention, AttentionKind};
use crate::id::InodeId;
use crate::meta::Meta;
use crate::read::Fetcher;
use crate::recovery::strays::Quarantined;
use crate::replication::source::Finding;
use crate::write::export::Waiting;
use crate::write::trouble::{Trouble, Troubles};

/// A mapping that is left after its descriptor was closed is worth a word after this.
const MAPPED_LATE: Duration = Duration::from_secs(1);
/// A file that is open and has a place in history, after this: then a copy of it should have been made.
const OPEN_LATE: Duration = Duration::from_secs(90);

/// Of each kind at most so many are named.
pub(super) const NAMED_MAX: usize = 100;

/// What was noticed.
pub struct Noticed {
    mounted: Instant,
    /// Files whose newest content a power cut took before this mount (S6).
    lost: Vec<InodeId>,
    fetcher: Arc<Fetcher>,
    quarantine: Mutex<Quarantined>,
    /// Handlers that panicked; each call got an input/output error.
    panics: Arc<AtomicU64>,
    /// Where the configuration and the live targets differ.
    differences: Vec<String>,
}

impl Noticed {
    /// What is known at the start.
    pub fn new(lost: Vec<InodeId>, fetcher: Arc<Fetcher>, panics: Arc<AtomicU64>, differences: Vec<String>) -> Noticed {
        Noticed { mounted: clock::instant(), lost, fetcher, quarantine: Mutex::default(), panics, differences }
    }

    /// What lies in quarantine now.
    pub fn set_quarantine(&self, quarantined: Quarantined) {
        *self.quarantine.lock() = quarantined;
    }

    /// Everything; `findings` are those of the uploads, `findings_count` counts also those that were not kept.
    pub fn attention(&self, meta: &Meta, findings: &[Finding], findings_count: u64) -> Vec<Attention> {
        let mut all: Vec<Attention> = self.latched(meta).into_iter().collect();
        all.extend(self.void(meta));
        all.extend(self.damaged(findings, findings_count));
        all.extend(self.quarantined());
        all.extend(panicked(self.panics.load(Ordering::Relaxed)));
        all.extend(self.differences.iter().map(|note| attention(AttentionKind::Configuration, note.clone())));
        all
    }

    fn latched(&self, meta: &Meta) -> Option<Attention> {
        let why = meta.latched()?;
        let hint = format!(
            "{why}: what is on the state disk is unknown, so fsync and close fail from now on. Look at that disk, then end \
             this mount (umount, or tandemfs umount --force) and mount again: what was synced before goes on"
        );
        Some(attention(AttentionKind::Latched, hint))
    }

    fn void(&self, meta: &Meta) -> Vec<Attention> {
        let since = clock::instant().since(self.mounted).as_secs();
        let hint = "what was written last had not been synced when the power or the disk went: the content before it is back; \
                    write it again. fsync, or acknowledge.close = \"local\", keeps it";
        let mut all: Vec<Attention> = self
            .lost
            .iter()
            .take(NAMED_MAX)
            .map(|ino| Attention {
                // A file that went since is of no interest, but that costs a look at each: it is named without a path.
                path: meta.path_of(*ino).ok().flatten().map(|path| String::from_utf8_lossy(&path).into_owned()),
                inode: Some(ino.0),
                since_seconds: Some(since),
                ..attention(AttentionKind::Void, hint.into())
            })
            .collect();
        if let Some(more) = self.lost.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
            all.push(attention(AttentionKind::Void, format!("and {more} files more")));
        }
        all
    }

    fn damaged(&self, findings: &[Finding], count: u64) -> Vec<Attention> {
        let mut all: Vec<Attention> = findings
            .iter()
            .take(NAMED_MAX)
            .map(|finding| {
                let Finding { chunk, place, problem } = finding;
                let hint = format!(
                    "chunk {chunk} in {place}: {problem}; another copy is used where there is one: look at that disk"
                );
                attention(AttentionKind::Damaged, hint)
            })
            .collect();
        let named = all.len() as u64;
        if count > named {
            all.push(attention(AttentionKind::Damaged, format!("and {} copies more: see the log", count - named)));
        }
        let counters = self.fetcher.counters();
        for (counter, what) in [(&counters.wrong, "had wrong bytes"), (&counters.absent, "were missing")] {
            let met = counter.load(Ordering::Relaxed);
            if met > 0 {
                let hint = format!(
                    "{met} copies {what} on targets when they were read; other copies are used, and they are sent there \
                     again: see the log for which"
                );
                all.push(attention(AttentionKind::Damaged, hint));
            }
        }
        all
    }

    fn quarantined(&self) -> Option<Attention> {
        let quarantined = *self.quarantine.lock();
        (quarantined.files > 0).then(|| Attention {
            bytes: Some(quarantined.bytes),
            since_seconds: quarantined
                .since
                .map(|since| clock::now().secs().saturating_sub(since.secs()).max(0) as u64),
            ..attention(
                AttentionKind::Quarantine,
                format!(
                    "files in quarantine/ of the state directory that no metadata refers to: {}; nothing acknowledged is in \
                     them: look, then delete them",
                    quarantined.files
                ),
            )
        })
    }
}

/// Calls whose handlers panicked.
fn panicked(count: u64) -> Option<Attention> {
    let hint =
        format!("{count} calls since the mount got an input/output error: please report what the log says of them");
    (count > 0).then(|| attention(AttentionKind::Panicked, hint))
}

/// Closed files whose bytes the local disk does not give (D3).
pub fn troubles(meta: &Meta, troubles: &Troubles) -> Vec<Attention> {
    let now = clock::instant();
    let said = |(ino, trouble): (InodeId, Trouble)| Attention {
        path: path_of(meta, ino),
        inode: Some(ino.0),
        since_seconds: Some(now.since(trouble.since).as_secs()),
        ..attention(
            AttentionKind::Unsealed,
            format!(
                "its newest content cannot be read from the local disk: {}; it is tried again; look at the disk, and write \
                 the file again",
                trouble.message
            ),
        )
    };
    troubles.all().into_iter().take(NAMED_MAX).map(said).collect()
}

/// The path of an inode that has one.
pub(super) fn path_of(meta: &Meta, ino: InodeId) -> Option<String> {
    meta.path_of(ino).ok().flatten().map(|path| String::from_utf8_lossy(&path).into_owned())
}

/// Files whose content waits for the end of a mapping or of a descriptor for longer than that usually takes.
pub fn waiting(meta: &Meta, waiting: Vec<Waiting>) -> Vec<Attention> {
    let now = clock::instant();
    let late = |file: &Waiting| now.since(file.since) >= if file.mapped { MAPPED_LATE } else { OPEN_LATE };
    let late: Vec<Waiting> = waiting.into_iter().filter(late).collect();
    let more = late.len().saturating_sub(NAMED_MAX);
    let named = late.into_iter().take(NAMED_MAX).map(|file| {
        let (kind, hint) = if file.mapped {
            let hint = "closed, but a program has it mapped and may still write to it: it goes to the targets as a copy \
                        until the program lets go";
            (AttentionKind::StillMapped, hint)
        } else {
            let hint = "open for long, and too large to be copied often: what was written since its last copy goes to the \
                        targets when the program closes it";
            (AttentionKind::OpenPassthrough, hint)
        };
        Attention {
            path: path_of(meta, file.ino),
            inode: Some(file.ino.0),
            bytes: Some(file.bytes),
            since_seconds: Some(now.since(file.since).as_secs()),
            ..attention(kind, hint.into())
        }
    });
    let mut all: Vec<Attention> = named.collect();
    if more > 0 {
        all.push(attention(AttentionKind::OpenPassthrough, format!("and {more} files more")));
    }
    all
}

pub(super) fn attention(kind: AttentionKind, hint: String) -> Attention {
    Attention { kind, path: None, inode: None, bytes: None, since_seconds: None, hint }
}
