//! Whose place it is: the part of the verdict that what it says of itself decides (T1). Pure.
//!
//! - A place that was initialised once is never initialised again: what is missing is not mounted, or lost.
//! - A filesystem that was restored makes no directory by itself. It may well have had a target there, on a disk that is not
//!   mounted now; a directory that somebody made, or an empty bucket, is his word that the target starts anew.

use super::{Own, Refused, Verdict};
use crate::format::superblock::Superblock;
use crate::target::identity::Says;
use crate::target::{Class, Kind};

/// What follows from what a place says.
#[derive(Debug)]
pub(super) enum Place {
    /// It is this target.
    Ours,
    /// It is a target of this filesystem that this restored state never spoke to (D6).
    ToMeet(Superblock),
    /// Anything else.
    Ends(Verdict),
}

/// Judges what the place of target `name` says. `vacant`: it does not even exist, though it could be made.
pub(super) fn judge(name: &str, own: &Own, says: &Says, vacant: bool) -> Place {
    let blocked = |reason: String, hint: &str| Place::Ends(Verdict::Blocked { reason, hint: hint.to_owned() });
    let found = match says {
        Says::Identified(found) => found,
        Says::Empty | Says::Leftovers(_) if own.cursor.initialised => {
            return blocked(
                format!("target {name:?}: place is empty or not mounted: it has no tandemfs.json any more"),
                MISSING,
            );
        }
        Says::Empty if vacant && !own.restored.is_empty() => {
            return blocked(
                format!("target {name:?}: place is not mounted, or was never made: it does not exist"),
                "a restored filesystem makes no place by itself: mount its disk, or make the directory if this target shall \
                 start anew; it is tried again by itself",
            );
        }
        Says::Empty => return Place::Ends(Verdict::Fresh),
        Says::Leftovers(prefix) => {
            return blocked(
                format!("target {name:?} has objects under {prefix} but no tandemfs.json"),
                "use an empty prefix; what lies there may be the only copy of another filesystem",
            );
        }
        Says::Unreadable(why) => {
            return blocked(
                format!("the tandemfs.json of target {name:?} cannot be read: {why}"),
                "a newer tandemfs may have written it; otherwise restore the object from a backup",
            );
        }
        Says::Failed(error) if error.kind == Kind::PlaceMissing => {
            return blocked(format!("target {name:?}: {}", error.message), MISSING);
        }
        Says::Failed(error) if error.kind == Kind::Denied => {
            return blocked(
                format!("target {name:?} rejects our credentials: {}", error.message),
                "check its keys and what they may do: get, put, list and delete below the prefix",
            );
        }
        Says::Failed(error) if error.class == Class::Rejected => {
            return blocked(
                format!("target {name:?} cannot be used: {}", error.message),
                "check its options with `tandemfs check`",
            );
        }
        Says::Failed(error) => {
            return blocked(
                format!("target {name:?} cannot be reached: {}", error.message),
                "its work waits and goes on by itself when it is back",
            );
        }
    };
    if found.filesystem != own.filesystem {
        return conflict(
            format!(
                "target {name:?} belongs to another filesystem: {:?} ({}); this state directory is of {}",
                found.name, found.filesystem, own.filesystem
            ),
            "use another prefix for this one, or mount that filesystem with its own state directory (or what tandemfs restore \
             --from its URI makes)"
                .to_owned(),
        );
    }
    if own.may_meet(found.target) {
        return Place::ToMeet(found.clone());
    }
    if found.target == own.cursor.id {
        return Place::Ours;
    }
    if let Some((_, other, uri)) = own.others.iter().find(|(id, ..)| *id == found.target) {
        return conflict(
            format!("target {name:?} has the place of target {other:?}, which is configured as {uri}"),
            format!(
                "give each target a place of its own; if those of {name:?} and {other:?} were swapped, on the disk or by \
                 what is mounted where, swap them back"
            ),
        );
    }
    if found.target_name == name {
        // Somebody put another one in its place.
        return conflict(
            format!("target {name:?} holds this filesystem, but not as the target that this state directory knows"),
            "restore anew, with a --from for it beside the others, or use an empty prefix in its place".to_owned(),
        );
    }
    conflict(
        format!("target {name:?} is the place of target {:?} ({})", found.target_name, found.target),
        "two URIs lead to the same place, or URIs were swapped: give each target a prefix of its own".to_owned(),
    )
}

const MISSING: &str = "mount it or make its bucket, it is tried again by itself; if its data is lost for good: `tandemfs restore` \
                       from the others, then mount with this place empty";

fn conflict(reason: String, hint: String) -> Place {
    Place::Ends(Verdict::Conflict { whom: Refused::Everybody, reason, hint })
}
