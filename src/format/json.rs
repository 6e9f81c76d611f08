//! A record as lines of JSON.
//!
//! Owns: encoding and strict reading of one line, splitting of long contents.
//! Does not own: the keys (`format::line`), how lines are packed (`format::segment`, `format::checkpoint`), the rules of a
//! record (`format::check`).
//!
//! - Equal records give equal bytes on every target.
//! - Unknown keys of a known `t` are ignored; an unknown `t` is an error, since skipping it would give another history.
//!
//! # Parts
//! A content whose line would be longer than [`CONTENT_LINE_BYTES`] becomes several records of the same seq with
//! `part: [k, of]`. Each part is a content of its own, to be applied as it stands and in order of k: the first says
//! `whole` and `mode` as the change does, the others say `whole: false` and no `mode`; all carry the same generation,
//! size and times, and `chunks` names only what the part's own extents use. So a reader that applies every record by
//! itself needs to know nothing of parts. (A cut between two parts never ends a unit: the run that holds the first also
//! holds the last.)

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use super::check::check;
use super::record::{Change, Content, Extent, Record};
use super::segment::Trailer;
use super::{Error, Result, line};

/// Bytes that the line of a content may have before it is split: a quarter of a segment, so that segments fill well.
pub const CONTENT_LINE_BYTES: usize = 1 << 20;
/// Bytes of the longest line that is read.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// A line of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A change.
    Record(Record),
    /// The end of the segment.
    Trailer(Trailer),
}

/// Returns the lines of a record, each with its newline: one, or several for a long content.
pub fn lines(record: &Record) -> Vec<Vec<u8>> {
    let line = |record: &Record| {
        let mut line = Vec::with_capacity(256);
        encode_line(record, &mut line);
        line
    };
    let Change::Content(content) = &record.change else { return vec![line(record)] };
    match split(content) {
        None => vec![line(record)],
        Some(parts) => {
            parts.into_iter().map(|part| line(&Record { seq: record.seq, change: Change::Content(part) })).collect()
        }
    }
}

/// Appends the line of a record, with its newline, unsplit.
///
/// Times further than 2^53 seconds from 1970 are moved to that bound, since `utimensat(2)` lets users set them.
pub fn encode_line(record: &Record, out: &mut Vec<u8>) {
    // A record that readers would refuse makes a target unreadable: better no segment than that one.
    let start = out.len();
    line::write(record, out).expect("a record of strings and numbers always encodes");
    out.push(b'\n');
    debug_assert!(decode_line(&out[start..]).is_ok(), "{:?}", decode_line(&out[start..]));
}

/// Splits a content whose line would be longer than [`CONTENT_LINE_BYTES`]; `None` if it would not.
pub fn split(content: &Content) -> Option<Vec<Content>> {
    split_at(content, CONTENT_LINE_BYTES)
}

/// Upper bounds of what one element adds to a line, with its brackets and commas.
const HEADER_BYTES: usize = 512;
const CHUNK_BYTES: usize = 64 + 2 + 8 + 4;
const EXTENT_BYTES: usize = 16 + 8 + 8 + 8 + 6;
const ZERO_BYTES: usize = 16 + 16 + 4;

fn split_at(content: &Content, limit: usize) -> Option<Vec<Content>> {
    let bytes = HEADER_BYTES
        + content.chunks.len() * CHUNK_BYTES
        + content.extents.len() * EXTENT_BYTES
        + content.zero.len() * ZERO_BYTES;
    if bytes <= limit {
        return None;
    }
    // The first part forgets what was there before and clears the mode; the others only add.
    let empty = |first: bool| Content {
        whole: content.whole && first,
        mode: content.mode.filter(|_| first),
        chunks: Vec::new(),
        extents: Vec::new(),
        zero: Vec::new(),
        ..*content
    };
    let mut parts = Vec::new();
    let mut part = empty(true);
    let mut bytes = HEADER_BYTES;
    let mut places = HashMap::new();
    for extent in &content.extents {
        // At most: the chunk may be in the part already.
        if bytes + EXTENT_BYTES + CHUNK_BYTES > limit {
            parts.push(std::mem::replace(&mut part, empty(false)));
            bytes = HEADER_BYTES;
            places.clear();
        }
        let chunk = *places.entry(extent.chunk).or_insert_with(|| {
            part.chunks.push(content.chunks[extent.chunk as usize]);
            bytes += CHUNK_BYTES;
            part.chunks.len() as u32 - 1
        });
        part.extents.push(Extent { chunk, ..*extent });
        bytes += EXTENT_BYTES;
    }
    for &zero in &content.zero {
        if bytes + ZERO_BYTES > limit {
            parts.push(std::mem::replace(&mut part, empty(false)));
            bytes = HEADER_BYTES;
        }
        part.zero.push(zero);
        bytes += ZERO_BYTES;
    }
    parts.push(part);
    let of = parts.len() as u32;
    for (k, part) in (1..).zip(&mut parts) {
        part.part = Some((k, of));
    }
    Some(parts)
}

/// Reads a line, with or without its newline.
pub fn decode_line(line: &[u8]) -> Result<Line> {
    if line.len() > LINE_BYTES_MAX {
        return Err(Error::TooLong { place: "line".into(), limit: LINE_BYTES_MAX as u64 });
    }
    #[derive(Deserialize)]
    struct Tag<'a> {
        #[serde(borrow)]
        t: Cow<'a, str>,
    }
    let malformed = |e: serde_json::Error| Error::malformed("line", e);
    let Tag { t } = serde_json::from_slice(line).map_err(malformed)?;
    let Some(record) = line::read(&t, line) else {
        if t == "trailer" {
            return Trailer::decode(line).map(Line::Trailer);
        }
        let what = format!("record type {:?}", t.chars().take(40).collect::<String>());
        return Err(Error::Unsupported { place: "line".into(), what });
    };
    let record = record.map_err(malformed)?;
    check(&record).map_err(|why| Error::malformed(format!("record {}", record.seq), why))?;
    Ok(Line::Record(record))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::arbitrary;
    use super::*;
    use crate::id::Seq;

    fn decode(text: &str) -> Result<Record> {
        match decode_line(text.as_bytes())? {
            Line::Record(record) => Ok(record),
            Line::Trailer(trailer) => panic!("{trailer:?} is no record"),
        }
    }

    fn encode(record: &Record) -> String {
        let mut line = Vec::new();
        encode_line(record, &mut line);
        String::from_utf8(line).unwrap()
    }

    /// The lines of FORMATS.md, with whole hashes.
    const EXAMPLES: &str = include_str!("../../tests/fixtures/format-1/records.jsonl");

    #[test]
    fn todays_encoder_writes_the_golden_lines() {
        for line in EXAMPLES.split_inclusive('\n') {
            assert_eq!(encode(&decode(line).unwrap()), line);
        }
        assert_eq!(EXAMPLES.lines().count(), 25);
    }

    #[test]
    fn unknown_keys_are_ignored_and_unknown_types_are_not() {
        let known = r#"{"t":"removexattr","seq":15,"ino":12,"name":"user.k","ctime":[1,2]}"#;
        let more = r#"{"later":{"x":[1]},"name":{"b64":"dXNlci5r"},"seq":15,"t":"removexattr","ctime":[1,2],"ino":12}"#;
        assert_eq!(decode(known).unwrap(), decode(more).unwrap());
        let unknown = known.replace("removexattr", "clone");
        assert!(matches!(decode(&unknown), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn a_record_that_breaks_a_rule_is_malformed() {
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"t":"link"}"#,
            r#"{"t":"link","seq":8,"parent":1,"name":"..","ino":12,"time":[1,2]}"#,
            r#"{"t":"link","seq":8,"parent":1,"name":"a/b","ino":12,"time":[1,2]}"#,
            r#"{"t":"link","seq":8,"parent":1,"name":"a","ino":12,"time":[1,1000000000]}"#,
            r#"{"t":"link","seq":8,"parent":1,"name":"a","ino":12.0,"time":[1,2]}"#,
            r#"{"t":"link","seq":8,"parent":1,"name":"a","ino":-12,"time":[1,2]}"#,
            r#"{"t":"link","seq":9007199254740992,"parent":1,"name":"a","ino":12,"time":[1,2]}"#,
            r#"{"t":"link","seq":8,"seq":8,"parent":1,"name":"a","ino":12,"time":[1,2]}"#,
            r#"{"t":"link","seq":8,"parent":1,"name":"a","ino":12,"time":[1,2]} x"#,
            r#"{"t":"mkdir","seq":2,"parent":1,"name":"src","ino":11,"mode":33188,"uid":0,"gid":0,"time":[1,0]}"#,
            r#"{"t":"create","seq":2,"parent":1,"name":"a","ino":11,"mode":16877,"uid":0,"gid":0,"rdev":0,"time":[1,0]}"#,
            r#"{"t":"create","seq":2,"parent":1,"name":"a","ino":11,"mode":33188,"uid":0,"gid":0,"rdev":1,"time":[1,0]}"#,
            r#"{"t":"void","seq":6,"ino":13,"gen":1,"why":"lost"}"#,
            r#"{"t":"void","seq":6,"ino":13,"gen":1,"why":"tired"}"#,
            r#"{"t":"symlink","seq":7,"parent":11,"name":"l","ino":14,"uid":0,"gid":0,"target":"","time":[1,1]}"#,
        ] {
            assert!(matches!(decode(bad), Err(Error::Malformed { .. })), "{bad}");
        }
        assert!(matches!(decode_line(&vec![b' '; LINE_BYTES_MAX + 1]), Err(Error::TooLong { .. })));
    }

    #[test]
    fn absurd_times_of_users_stay_encodable() {
        let mut record = decode(r#"{"t":"setattr","seq":1,"ino":1,"ctime":[0,0]}"#).unwrap();
        let Change::Setattr { mtime, .. } = &mut record.change else { panic!("{record:?}") };
        *mtime = crate::clock::Timestamp::new(i64::MIN, 5).ok();
        assert!(encode(&record).contains(r#""mtime":[-9007199254740991,5]"#));
    }

    #[test]
    fn short_contents_are_not_split() {
        let record = decode(EXAMPLES.lines().find(|line| line.contains("content")).unwrap()).unwrap();
        let Change::Content(content) = &record.change else { panic!("{record:?}") };
        assert_eq!(split(content), None);
        assert_eq!(lines(&record).len(), 1);
    }

    /// The slow, obviously right meaning of contents applied one after the other: what each byte of the file refers to.
    fn apply(bytes: &mut Vec<Option<(crate::id::ChunkHash, u64)>>, content: &Content) {
        if content.whole {
            bytes.clear();
        }
        bytes.resize(content.size as usize, None);
        for &(offset, length) in &content.zero {
            for byte in offset..(offset + length).min(content.size) {
                bytes[byte as usize] = None;
            }
        }
        for extent in &content.extents {
            for i in 0..extent.length {
                let (hash, _) = content.chunks[extent.chunk as usize];
                bytes[(extent.offset + i) as usize] = Some((hash, extent.chunk_offset + i));
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was(record in arbitrary::record()) {
            let text = encode(&record);
            prop_assert!(text.ends_with("\n") && text.matches('\n').count() == 1);
            prop_assert_eq!(decode(&text).unwrap(), record);
        }

        #[test]
        fn truncated_lines_are_refused(record in arbitrary::record(), at in any::<prop::sample::Index>()) {
            let text = encode(&record);
            let line = text.trim_end().as_bytes();
            prop_assert!(decode_line(&line[..at.index(line.len())]).is_err());
        }

        #[test]
        fn flipped_bytes_never_panic(record in arbitrary::record(), at in any::<prop::sample::Index>(), bits in 1u8..) {
            let mut line = encode(&record).into_bytes();
            let at = at.index(line.len());
            line[at] ^= bits;
            let _ = decode_line(&line);
        }

        #[test]
        fn parts_applied_one_by_one_are_the_whole(
            before in arbitrary::content(),
            content in arbitrary::content(),
            limit in HEADER_BYTES + EXTENT_BYTES + CHUNK_BYTES..2000,
        ) {
            let Some(parts) = split_at(&content, limit) else { return Ok(()) };
            let (mut whole, mut by_parts) = (Vec::new(), Vec::new());
            apply(&mut whole, &before);
            apply(&mut by_parts, &before);
            apply(&mut whole, &content);
            for (k, part) in (1..).zip(&parts) {
                prop_assert_eq!(part.part, Some((k, parts.len() as u32)));
                let text = encode(&Record { seq: Seq(1), change: Change::Content(part.clone()) });
                prop_assert!(text.len() <= limit, "{} > {limit}", text.len());
                prop_assert_eq!(decode(&text).unwrap().change, Change::Content(part.clone()));
                apply(&mut by_parts, part);
            }
            prop_assert_eq!(whole, by_parts);
        }
    }
}
