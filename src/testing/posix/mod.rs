//! Random calls of programs to a filesystem, and who carries them out.
//!
//! Owns: the calls ([`call`]), system calls on a directory ([`plain`]), what they need ([`syscall`]).
//! Does not own: `Vfs` without a kernel (`vfs::model_tests`).
//!
//! The crate's own tests know it as `testing::posix`, those of the mount include it by its path.

pub mod call;
pub mod plain;
pub mod syscall;

/// Handles that may be open at once.
pub const HANDLES: usize = 10;
/// Mappings that may live at once.
pub const MAPS: usize = 3;
/// Names are few, so that calls meet.
pub const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Those that there are in the beginning.
pub const DIRECTORIES: [&str; 4] = ["", "d1", "d2", "d1/sub"];
/// The first is root.
pub const USERS: [u32; 3] = [0, 1234, 1235];
/// Times that calls set lie before this, those of now do not.
pub const SET_BEFORE: i64 = 1_600_000_000;
/// The largest offset of a write: many chunks of 64 KiB.
pub const SIZE: u64 = 600_000;
/// What a mapping covers: more than any file has.
pub const MAP_LENGTH: usize = 1 << 20;
/// What direct I/O is aligned to: enough for every disk.
pub const BLOCK: u64 = 4096;

/// Bytes that do not compress, always the same for a seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
