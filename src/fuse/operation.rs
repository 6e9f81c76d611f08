//! What the kernel asks for, and how often it did.
//!
//! Owns: names of operations, counting requests: what the kernel remembers or does by itself shows as requests that do not
//! come.
//! Does not own: telling it (`mount`, `control::status`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! operations {
    ($($operation:ident $name:literal,)*) => {
        /// A kind of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation {
            $(#[doc = $name] $operation,)*
        }

        impl Operation {
            const ALL: &[Operation] = &[$(Operation::$operation,)*];

            /// As in the log and in `status`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Operation::$operation => $name,)*
                }
            }
        }
    };
}

operations! {
    Lookup "lookup",
    Forget "forget",
    Getattr "getattr",
    Setattr "setattr",
    Readlink "readlink",
    Mknod "mknod",
    Mkdir "mkdir",
    Unlink "unlink",
    Rmdir "rmdir",
    Symlink "symlink",
    Rename "rename",
    Link "link",
    Create "create",
    Open "open",
    Read "read",
    Write "write",
    Flush "flush",
    Release "release",
    Fsync "fsync",
    Fallocate "fallocate",
    Lseek "lseek",
    CopyFileRange "copy_file_range",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Fsyncdir "fsyncdir",
    Statfs "statfs",
    Setxattr "setxattr",
    Getxattr "getxattr",
    Listxattr "listxattr",
    Removexattr "removexattr",
}

/// How often the kernel asked for each operation since the mount.
#[derive(Debug, Default)]
pub struct Requests {
    counts: [AtomicU64; Operation::ALL.len()],
}

impl Requests {
    /// One more.
    pub(super) fn count(&self, operation: Operation) {
        self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that came at all.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts = Operation::ALL
            .iter()
            .map(|&operation| (operation.name().to_owned(), self.counts[operation as usize].load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_counted_under_its_own_name() {
        let requests = Requests::default();
        for (times, &operation) in Operation::ALL.iter().enumerate() {
            (0..times).for_each(|_| requests.count(operation));
        }
        let counts = requests.by_name();
        assert_eq!(counts.len(), Operation::ALL.len() - 1, "what never came is left out");
        for (times, operation) in Operation::ALL.iter().enumerate().skip(1) {
            assert_eq!(counts[operation.name()], times as u64);
        }
    }
}
