//! Copying by reference: a range of one file's committed content becomes a range of another's, or of its own. No byte is
//! moved: both name the same chunks.
//!
//! Owns: the transaction, which takes a slot and fills it at once (O1, O3).
//! Does not own: whether both files stand still and are committed (`write::share`).

use std::collections::HashMap;
use std::ops::Range;

use super::extent::{self, RefDeltas};
use super::inode::Inode;
use super::slot::SlotRequest;
use super::{Result, Tx};
use crate::format::record::{Change, Content, Extent};
use crate::id::{InodeId, Seq};

/// Rows that one transaction copies at most: it takes about as long as D8 allows.
const ROWS_MAX: usize = 256;

/// What becomes what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub from: InodeId,
    /// Where in `from`.
    pub at: u64,
    /// Where in the inode of the slot.
    pub to_at: u64,
    pub length: u64,
    /// For the file that changes; its size is that before the copy.
    pub slot: SlotRequest,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Bytes from the begin of the range that are shared now: fewer than asked for where the source ends or has many pieces.
    pub length: u64,
    /// Size of the file now.
    pub size: u64,
    pub seq: Seq,
}

impl Tx<'_> {
    /// Copies by reference. `None`: the file has no name, so no slot.
    pub fn share_content(&mut self, share: &Share) -> Result<Option<Shared>> {
        let source = Inode::get(self.conn(), share.from)?;
        let end = share.at.saturating_add(share.length).min(source.size);
        let mut rows = match source.manifest {
            Some(manifest) if share.at < end => extent::rows(self.conn(), manifest, share.at, end - share.at)?,
            _ => Vec::new(),
        };
        let end = rows.get(ROWS_MAX).map_or(end, |row| row.offset).max(share.at);
        rows.truncate(ROWS_MAX);
        let length = end - share.at;

        let size = share.slot.size.max(share.to_at + length);
        let Some(seq) = self.reserve_slot(&SlotRequest { size, ..share.slot })? else { return Ok(None) };
        let Some(slot) = self.slot_of(share.slot.session)? else { return Ok(None) };
        let mut inode = Inode::get(self.conn(), share.slot.ino)?;
        let manifest = inode.manifest.unwrap_or_else(|| self.next_manifest());
        inode.manifest = Some(manifest);

        let mut content = Content {
            ino: inode.ino,
            generation: slot.generation,
            whole: false,
            size,
            mtime: slot.mtime,
            ctime: slot.ctime,
            mode: None,
            chunks: Vec::new(),
            extents: Vec::with_capacity(rows.len()),
            zero: Vec::new(),
            part: None,
        };
        let mut deltas = RefDeltas::default();
        // Nothing of an earlier, longer content shows through behind the old end.
        extent::cut(self, manifest, share.slot.base_limit, &mut deltas)?;
        let moved = |range: Range<u64>| (range.start - share.at + share.to_at, range.end - range.start);
        let mut named = HashMap::new();
        let mut at = share.at;
        for row in &rows {
            let part = row.offset.max(share.at)..row.end().min(end);
            self.share_hole(manifest, moved(at..part.start), &mut content, &mut deltas)?;
            at = part.end;
            let chunk_offset = row.chunk_offset + (part.start - row.offset);
            let (offset, length) = moved(part);
            extent::replace(self, manifest, offset, length, Some((row.chunk, chunk_offset)), &mut deltas)?;
            let chunk = match named.get(&row.chunk) {
                Some(&chunk) => chunk,
                None => {
                    content.chunks.push(self.chunk_name(row.chunk)?);
                    let chunk = content.chunks.len() as u32 - 1;
                    named.insert(row.chunk, chunk);
                    chunk
                }
            };
            super::commit::push_merged(&mut content.extents, Extent { offset, length, chunk, chunk_offset });
        }
        self.share_hole(manifest, moved(at..end), &mut content, &mut deltas)?;
        inode.allocate(deltas.net())?;
        deltas.apply(self)?;
        self.end_slot(&slot, &Change::Content(content))?;
        self.delete_session(share.slot.session)?;
        inode.update(self)?;
        Ok(Some(Shared { length, size, seq }))
    }

    fn share_hole(
        &mut self,
        manifest: crate::id::ManifestId,
        (offset, length): (u64, u64),
        content: &mut Content,
        deltas: &mut RefDeltas,
    ) -> Result<()> {
        if length > 0 {
            extent::replace(self, manifest, offset, length, None, deltas)?;
            content.zero.push((offset, length));
        }
        Ok(())
    }
}
