//! The identities of the system, each a type of its own, so that an inode cannot be passed for a chunk.
//!
//! Owns: newtypes, their range checks and their text forms.
//! Does not own: where a number comes from (`meta` hands out inodes and seqs, `mount` epochs).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The largest number that a record may carry: JSON readers keep integers exactly only below 2^53 (RFC 8259 §6).
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// A text or number that cannot be the identity it was read as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {what}")]
pub struct InvalidId {
    /// The form that was expected, with its article.
    pub what: &'static str,
    /// What was found instead.
    pub value: String,
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl rusqlite::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                // SQLite integers are signed; every number of ours is below 2^53.
                i64::try_from(self.0)
                    .map(Into::into)
                    .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                let number = i64::column_result(value)?;
                u64::try_from(number).map($name).map_err(|_| rusqlite::types::FromSqlError::OutOfRange(number))
            }
        }
    };
}

number_id!(
    /// An inode of the filesystem. Never reused, stable across restore; the root is 1.
    InodeId
);
number_id!(
    /// The number of an inode's contents: +1 at each slot reservation (RULES, decisions).
    Generation
);
number_id!(
    /// The place of a record in the total order of the filesystem's history. The first record is 1.
    Seq
);
number_id!(
    /// The number of a mount's right to write; a higher one fences the lower (T7).
    Epoch
);
number_id!(
    /// A write session: everything written to one inode between its first dirtying and the seal.
    SessionId
);
number_id!(
    /// The local row of a chunk, ascending in order of first commit. Only inside one state directory or checkpoint.
    ChunkId
);
number_id!(
    /// The local row of one manifest, to which extents belong (D8).
    ManifestId
);
number_id!(
    /// The local row of a chunk file.
    ChunkFileId
);
number_id!(
    /// The number of a segment on one target: 1, 2, 3 …, continued over epochs (T2).
    SegmentNumber
);

impl InodeId {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(1);
}

impl Seq {
    /// Before all history: no record has it.
    pub const ZERO: Seq = Seq(0);

    /// The place after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// The place before this one; [`Seq::ZERO`] stays itself.
    pub fn previous(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }
}

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl SegmentNumber {
    /// The segment after this one.
    pub fn next(self) -> SegmentNumber {
        SegmentNumber(self.0 + 1)
    }
}

/// The BLAKE3 hash of some bytes: the name of a chunk, or the seal of a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

/// The name of a chunk is the hash of its bytes.
pub type ChunkHash = Hash;

impl Hash {
    /// Hashes `bytes` with BLAKE3.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

impl From<blake3::Hash> for Hash {
    fn from(hash: blake3::Hash) -> Hash {
        Hash(*hash.as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Hash {
    type Err = InvalidId;

    /// Accepts exactly 64 lower-case hex digits, so that one hash has one name.
    fn from_str(text: &str) -> Result<Hash, InvalidId> {
        let invalid =
            || InvalidId { what: "a hash of 64 lower-case hex digits", value: text.chars().take(80).collect() };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(invalid());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte =
                hex_digit(pair[0]).zip(hex_digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(invalid)?;
        }
        Ok(Hash(hash))
    }
}

impl rusqlite::ToSql for Hash {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(self.0.as_slice().into())
    }
}

impl rusqlite::types::FromSql for Hash {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        <[u8; 32]>::column_result(value).map(Hash)
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

macro_rules! hex32_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// Draws a new one from the operating system's random source.
            pub fn random() -> $name {
                $name(crate::chance::u32())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:08x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Accepts exactly 8 lower-case hex digits.
            fn from_str(text: &str) -> Result<$name, InvalidId> {
                let invalid = || InvalidId { what: $what, value: text.chars().take(80).collect() };
                if text.len() != 8 || !text.bytes().all(|digit| hex_digit(digit).is_some()) {
                    return Err(invalid());
                }
                u32::from_str_radix(text, 16).map($name).map_err(|_| invalid())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl rusqlite::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.to_string().into())
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                value.as_str()?.parse().map_err(|e: InvalidId| rusqlite::types::FromSqlError::Other(e.into()))
            }
        }
    };
}

hex32_id!(
    /// The random part of a writer's identity (epoch, id), drawn anew at each mount (T7).
    WriterId,
    "a writer id of 8 lower-case hex digits"
);
hex32_id!(
    /// The random part of a checkpoint's key, so that a retry never overwrites another export (T3).
    ExportId,
    "an export id of 8 lower-case hex digits"
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Draws a new random one.
            pub fn random() -> $name {
                $name(crate::chance::uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl rusqlite::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.0.to_string().into())
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                Uuid::parse_str(value.as_str()?)
                    .map($name)
                    .map_err(|e| rusqlite::types::FromSqlError::Other(e.into()))
            }
        }
    };
}

uuid_id!(
    /// A filesystem: the same on all its targets, for ever.
    FilesystemId
);
uuid_id!(
    /// A target's own identity, written once into its `tandemfs.json` (T1). Names and URIs may change, this does not.
    TargetId
);

/// The place of a target in the placement mask `chunk.placed`: 0 … 61 (T6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetBit(u8);

impl TargetBit {
    /// As many targets as a signed 64-bit mask can hold with room to spare.
    pub const COUNT: u8 = 62;

    /// Returns the bit with this index, or `None` when it is out of range.
    pub fn new(index: u8) -> Option<TargetBit> {
        (index < Self::COUNT).then_some(TargetBit(index))
    }

    /// The index, 0 … 61.
    pub fn index(self) -> u8 {
        self.0
    }

    /// The mask with only this bit set.
    pub fn mask(self) -> u64 {
        1 << self.0
    }
}

impl rusqlite::ToSql for TargetBit {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(self.0.into())
    }
}

impl rusqlite::types::FromSql for TargetBit {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        let index = u8::column_result(value)?;
        TargetBit::new(index).ok_or(rusqlite::types::FromSqlError::OutOfRange(index.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_has_one_text_form() {
        let hash = Hash::of(b"");
        let text = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.parse(), Ok(hash));
        for bad in ["", "af", &text.to_uppercase(), &text[1..], &format!("{text}0"), &text.replace('a', "é")] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
    }

    #[test]
    fn writer_ids_are_eight_lower_case_digits() {
        assert_eq!(WriterId(0x9c1f04aa).to_string(), "9c1f04aa");
        assert_eq!(WriterId(0xaa).to_string(), "000000aa");
        assert_eq!("000000aa".parse(), Ok(WriterId(0xaa)));
        for bad in ["", "aa", "000000AA", "+00000aa", "000000aa0"] {
            assert!(bad.parse::<WriterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_placement_mask_holds_62_targets() {
        assert_eq!(TargetBit::new(61).map(|bit| bit.mask()), Some(1 << 61));
        assert_eq!(TargetBit::new(62), None);
    }
}
