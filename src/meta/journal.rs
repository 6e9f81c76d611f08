//! Journal rows: the ordered record of every metadata change (DESIGN §5).
//!
//! Owns: the row's encoding and appending. A row without a body is an open slot (O1).
//! Does not own: which rows a target gets when (`replication::shipper`).

use rusqlite::params;

use super::{Error, Result, Tx};
use crate::format::record::{Change, Record};
use crate::id::Seq;

/// Version of the body's encoding: one byte before the postcard of [`Change`].
const BODY_VERSION: u8 = 1;

/// The column `journal.kind`: what a record does, readable without decoding its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Kind {
    /// Brings a regular file into being: may have to wait for its first content (O2).
    Birth = 1,
    /// A content slot, filled or open.
    Content = 2,
    /// Everything else.
    Other = 3,
    /// What an `fsync` covered, mostly a filled slot that it had reserved: until it is shipped nothing overtakes it (O6).
    /// While a slot is open, its row says so.
    Synced = 4,
}

impl Kind {
    /// The kind of a change.
    pub fn of(change: &Change) -> Kind {
        match change {
            Change::Create { mode, .. } if mode & libc::S_IFMT == libc::S_IFREG => Kind::Birth,
            Change::Content(_) | Change::Void { .. } => Kind::Content,
            _ => Kind::Other,
        }
    }

    /// Reads the column.
    pub fn from_column(value: i64) -> Result<Kind> {
        match value {
            1 => Ok(Kind::Birth),
            2 => Ok(Kind::Content),
            3 => Ok(Kind::Other),
            4 => Ok(Kind::Synced),
            other => Err(Error::Damaged(format!("journal kind {other} is unknown"))),
        }
    }
}

/// Encodes the body of a journal row.
pub fn encode(change: &Change) -> Vec<u8> {
    postcard::to_extend(change, vec![BODY_VERSION]).expect("a change holds only types that postcard can encode")
}

/// Decodes the body of a journal row.
pub fn decode(seq: Seq, body: &[u8]) -> Result<Record> {
    let damaged = |why: String| Error::Damaged(format!("journal record {seq}: {why}"));
    match body.split_first() {
        Some((&BODY_VERSION, body)) => {
            postcard::from_bytes(body).map(|change| Record { seq, change }).map_err(|e| damaged(e.to_string()))
        }
        Some((version, _)) => Err(damaged(format!("body version {version} is unknown"))),
        None => Err(damaged("empty body".into())),
    }
}

impl Tx<'_> {
    /// Appends a change to the journal and returns its place. The caller changes the tables in the same transaction.
    pub fn append(&mut self, change: &Change) -> Result<Seq> {
        let seq = self.next_seq();
        let ino = change.inode().unwrap_or_default();
        self.conn()
            .prepare_cached("INSERT INTO journal (seq, kind, ino, body) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![seq, Kind::of(change) as i64, ino, encode(change)])?;
        Ok(seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::id::InodeId;

    #[test]
    fn a_body_of_another_version_is_refused() {
        let change = Change::Removexattr { ino: InodeId(7), name: b"user.k".to_vec(), ctime: Timestamp::EPOCH };
        let mut body = encode(&change);
        assert_eq!(decode(Seq(3), &body).unwrap(), Record { seq: Seq(3), change });
        body[0] = 2;
        assert!(matches!(decode(Seq(3), &body), Err(Error::Damaged(_))));
        assert!(matches!(decode(Seq(3), &[]), Err(Error::Damaged(_))));
    }
}
