//! What can be seen of writing into a backing file: its size and times (P6).
//!
//! Owns: comparing two looks at the file, what they mean for the attributes that programs see.
//! Does not own: when to look (`session`, `slots`).
//!
//! The kernel tells us of no write. Since Linux 6.13 a time that was looked at is never used for a later change again; on
//! older kernels two writes within a tick look alike, and a store into a page that is dirty already changes no time on any
//! kernel. So what may have changed unseen counts as changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::Duration;

use super::live::Attributes;
use crate::clock::Timestamp;

/// A time of a file is by so much behind our clock at most: a tick of the kernel, which a busy machine may deal with late.
const LATE_MAX: Duration = Duration::from_secs(1);

/// One look at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Bytes.
    pub size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Seen {
    /// Looks.
    pub fn of(file: &File) -> io::Result<Seen> {
        let metadata = file.metadata()?;
        let time = |secs, nanos: i64| Timestamp::new(secs, nanos as u32).map_err(io::Error::other);
        Ok(Seen {
            size: metadata.len(),
            mtime: time(metadata.mtime(), metadata.mtime_nsec())?,
            ctime: time(metadata.ctime(), metadata.ctime_nsec())?,
        })
    }

    /// What a file whose attributes were `known` at this look shows at the look `now`: a time that did not move stays as
    /// it is known, so that `utimens` needs no word to the backing file.
    pub fn moved_to(&self, now: &Seen, known: Attributes) -> Attributes {
        let mtime = match now.mtime == self.mtime {
            true => known.mtime,
            // Our clock is fine, that of files may be a tick late: what is written now is not older than what was known
            // before, unless `utimens` set a time that has yet to come.
            false if known.mtime <= known.ctime && known.mtime.since(now.mtime) < LATE_MAX => {
                now.mtime.max(known.mtime)
            }
            false => now.mtime,
        };
        Attributes {
            size: now.size,
            mtime,
            ctime: if now.ctime == self.ctime { known.ctime } else { known.ctime.max(now.ctime) },
        }
    }
}

/// A backing file under watch.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// The last look.
    pub seen: Seen,
    /// A descriptor that can be mapped for writing had it open.
    pub mappable: bool,
    /// A descriptor for reading had it open, so a mapping may be left that must see later changes.
    pub read: bool,
    fine_times: bool,
}

impl Watch {
    /// From now on.
    pub fn new(file: &File) -> io::Result<Watch> {
        let filesystem = rustix::fs::fstatfs(file)?.f_type as u64;
        let fine_times = kernel_is_fine() && FINE_FILESYSTEMS.contains(&filesystem);
        Ok(Watch { seen: Seen::of(file)?, mappable: false, read: false, fine_times })
    }

    /// True if it is not as at the last look.
    pub fn has_moved(&self, file: &File) -> bool {
        Seen::of(file).is_ok_and(|now| now != self.seen)
    }

    /// Takes a look after a rename as seen, unless more than that happened: a write moves the mtime too.
    pub fn renamed(&mut self, now: Seen) {
        if (now.size, now.mtime) == (self.seen.size, self.seen.mtime) {
            self.seen = now;
        }
    }

    /// True if it may have changed though a second look is as the first.
    pub fn may_lie(&self) -> bool {
        self.mappable || !self.fine_times
    }
}

/// ext4, xfs, btrfs, tmpfs: those that draw times which were looked at finely.
const FINE_FILESYSTEMS: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

fn kernel_is_fine() -> bool {
    static FINE: OnceLock<bool> = OnceLock::new();
    *FINE.get_or_init(|| is_fine(&rustix::system::uname().release().to_string_lossy()))
}

fn is_fine(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= (6, 13),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 0).unwrap()
    }

    #[test]
    fn p6_times_move_with_the_file_and_what_utimens_set_stays_until_they_do() {
        let first = Seen { size: 5, mtime: at(10), ctime: at(10) };
        let set = Attributes { size: 5, mtime: at(1), ctime: at(20) };
        assert_eq!(first.moved_to(&first, set), set);
        let written = Seen { size: 9, mtime: at(15), ctime: at(15) };
        assert_eq!(first.moved_to(&written, set), Attributes { size: 9, mtime: at(15), ctime: at(20) });
    }

    /// Failed in a mount: the file was made at a fine time, and written at a coarse one.
    #[test]
    fn p6_a_write_does_not_seem_to_come_before_the_file_was_made() {
        let time = |nanos| Timestamp::new(10, nanos).unwrap();
        let first = Seen { size: 0, mtime: time(0), ctime: time(0) };
        let written = Seen { size: 9, mtime: time(4_000_000), ctime: time(4_000_000) };
        let made = time(4_500_000);
        let known = |mtime| Attributes { size: 0, mtime, ctime: made };
        assert_eq!(first.moved_to(&written, known(made)), Attributes { size: 9, ..known(made) });
        assert_eq!(first.moved_to(&written, known(time(1))).mtime, written.mtime);
        // `utimens` set a time that has yet to come; the clock was set back.
        assert_eq!(first.moved_to(&written, known(at(11))).mtime, written.mtime);
        let later = Attributes { size: 0, mtime: at(20), ctime: at(20) };
        assert_eq!(first.moved_to(&written, later).mtime, written.mtime);
    }

    #[test]
    fn p6_below_6_13_two_writes_may_look_alike() {
        for (release, fine) in
            [("6.12.9-amd64", false), ("6.13", true), ("6.18.44", true), ("7.0-rc1", true), ("x", false)]
        {
            assert_eq!(is_fine(release), fine, "{release}");
        }
    }
}
