//! Segments: runs of journal lines on a target, each sealed by a trailer and chained to the one before (T2).
//!
//! Owns: packing lines, the trailer, its hash, the chain.
//! Does not own: which records go into a segment (`replication::shipper`), lineage of writers (`restore`).
//!
//! ```text
//! zstd ┌ {"t":"mkdir","seq":2,…}\n                                  ┐
//!      │ {"t":"create","seq":3,…}\n                                 │ at most LINES_BYTES_MAX
//!      │ …                                                          ┘
//!      └ {"t":"trailer",…,"end":true,"prev":"…","hash":"<64 hex>"}\n
//!        └────────── BLAKE3 covers everything up to here ┘
//! ```
//! The hash covers `prev`, so one hash names a whole history. It is taken before compression: "the same segment" is the
//! same hash, whatever zstd made of it.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::json::{self, LINE_BYTES_MAX, Line};
use super::record::Record;
use super::{Error, FORMAT, Hex, Result, check_format, check_number, expect_same, hex_or_empty, key};
use crate::id::{Epoch, FilesystemId, Hash, SegmentNumber, Seq, TargetId, WriterId};

/// Bytes of lines, without the trailer, that a segment may hold.
pub const LINES_BYTES_MAX: usize = 4 << 20;
/// Bytes of the longest segment that is read, as it is stored.
pub const BODY_BYTES_MAX: u64 = 8 << 20;
/// Bytes of the longest segment that is read, decompressed.
const PLAIN_BYTES_MAX: u64 = 16 << 20;
const ZSTD_LEVEL: i32 = 3;
/// The longest window that decompression may ask for: 2^24 bytes, more than a segment has.
const WINDOW_LOG_MAX: u32 = 24;

const HASH_KEY: &[u8] = b",\"hash\":\"";
const HASH_DIGITS: usize = 64;
const LINE_END: &[u8] = b"\"}\n";

/// Where a segment belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of whose history it is.
    pub filesystem: FilesystemId,
    /// On which target it lies.
    pub target: TargetId,
    /// Its writer's right to write.
    pub epoch: Epoch,
    /// Its writer.
    pub writer: WriterId,
    /// Its number on the target.
    pub n: SegmentNumber,
}

impl Place {
    /// The key it is stored under.
    pub fn key(&self) -> String {
        key::segment(self.epoch, self.writer, self.n)
    }
}

/// Collects lines for one segment.
#[derive(Debug)]
pub struct Builder {
    place: Place,
    prev: Option<Hash>,
    plain: Vec<u8>,
    count: u64,
    seqs: Option<(Seq, Seq)>,
}

/// A segment, ready to be stored under `place.key()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Where it belongs.
    pub place: Place,
    /// Its hash: `prev` of the next one.
    pub hash: Hash,
    /// The object's bytes.
    pub body: Vec<u8>,
    /// Lines without the trailer.
    pub count: u64,
    /// The lowest seq in it; zero if it is empty.
    pub seq_min: Seq,
    /// The highest seq in it; zero if it is empty.
    pub seq_max: Seq,
    /// Every record up to this one is in this segment, an earlier one, or a complete checkpoint.
    pub low_water: Seq,
    /// True if a unit ends here (O6).
    pub end: bool,
}

impl Builder {
    /// Starts the segment at `place`; `prev` is the hash of the one before, `None` only for n = 1.
    pub fn new(place: Place, prev: Option<Hash>) -> Builder {
        Builder { place, prev, plain: Vec::new(), count: 0, seqs: None }
    }

    /// Where it will stand.
    pub fn place(&self) -> Place {
        self.place
    }

    /// True if the line still fits. Every line fits into an empty segment.
    pub fn fits(&self, line: &[u8]) -> bool {
        self.plain.len() + line.len() <= LINES_BYTES_MAX
    }

    /// True if it holds no line.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the lines it holds.
    pub fn bytes(&self) -> usize {
        self.plain.len()
    }

    /// Appends one line of [`json::lines`], with its newline.
    pub fn push(&mut self, seq: Seq, line: &[u8]) {
        assert!(self.fits(line), "the line of record {seq} is pushed only where it fits");
        assert!(line.ends_with(b"\n"), "the line of record {seq} has its newline");
        self.plain.extend_from_slice(line);
        self.count += 1;
        self.seqs = Some(self.seqs.map_or((seq, seq), |(min, max)| (min.min(seq), max.max(seq))));
    }

    /// Seals the segment. `end` says that a unit ends with it.
    pub fn finish(mut self, low_water: Seq, end: bool) -> Encoded {
        let Place { filesystem, target, epoch, writer, n } = self.place;
        let (seq_min, seq_max) = self.seqs.unwrap_or_default();
        let prev = self.prev;
        let count = self.count;
        let trailer = Document {
            format: FORMAT,
            filesystem,
            target,
            epoch,
            writer,
            n,
            count,
            seq_min,
            seq_max,
            low_water,
            end,
            prev,
        };
        serde_json::to_writer(&mut self.plain, &trailer).expect("strings and numbers always encode");
        assert_eq!(self.plain.pop(), Some(b'}'), "a trailer is a JSON object");
        let hash = Hash::of(&self.plain);
        self.plain.extend_from_slice(HASH_KEY);
        self.plain.extend_from_slice(hash.to_string().as_bytes());
        self.plain.extend_from_slice(LINE_END);
        let body = zstd::bulk::compress(&self.plain, ZSTD_LEVEL).expect("zstd compresses any bytes into memory");
        Encoded { place: self.place, hash, body, count, seq_min, seq_max, low_water, end }
    }
}

/// The last line of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Where it says that it belongs.
    pub place: Place,
    /// Lines without this one.
    pub count: u64,
    /// The lowest seq; zero if there is no line.
    pub seq_min: Seq,
    /// The highest seq; zero if there is no line.
    pub seq_max: Seq,
    /// As in [`Encoded::low_water`].
    pub low_water: Seq,
    /// As in [`Encoded::end`].
    pub end: bool,
    /// The hash of the segment before.
    pub prev: Option<Hash>,
    /// The segment's own.
    pub hash: Hash,
}

/// The trailer's keys before `hash`, which is appended as text: what it covers ends where it begins.
#[derive(Serialize, Deserialize)]
#[serde(tag = "t", rename = "trailer")]
struct Document {
    format: u32,
    filesystem: FilesystemId,
    target: TargetId,
    epoch: Epoch,
    writer: WriterId,
    n: SegmentNumber,
    count: u64,
    seq_min: Seq,
    seq_max: Seq,
    low_water: Seq,
    end: bool,
    #[serde(with = "hex_or_empty")]
    prev: Option<Hash>,
}

impl Trailer {
    /// Reads the line of a trailer, by itself.
    pub(super) fn decode(line: &[u8]) -> Result<Trailer> {
        const PLACE: &str = "trailer";
        #[derive(Deserialize)]
        struct Version {
            format: u64,
            hash: Hex,
        }
        let malformed = |e| Error::malformed(PLACE, e);
        let Version { format, hash } = serde_json::from_slice(line).map_err(malformed)?;
        check_format(PLACE, format)?;
        let document: Document = serde_json::from_slice(line).map_err(malformed)?;
        for (key, number) in [
            ("epoch", document.epoch.0),
            ("n", document.n.0),
            ("seq_max", document.seq_max.0),
            ("low_water", document.low_water.0),
        ] {
            check_number(PLACE, key, number)?;
        }
        let place = Place {
            filesystem: document.filesystem,
            target: document.target,
            epoch: document.epoch,
            writer: document.writer,
            n: document.n,
        };
        if (document.n.0 == 1) != document.prev.is_none() {
            return Err(Error::malformed(PLACE, format_args!("segment {} and its prev do not agree", document.n)));
        }
        Ok(Trailer {
            place,
            count: document.count,
            seq_min: document.seq_min,
            seq_max: document.seq_max,
            low_water: document.low_water,
            end: document.end,
            prev: document.prev,
            hash: hash.0,
        })
    }
}

/// A segment that was read and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Its last line.
    pub trailer: Trailer,
    /// All others, in order of application.
    pub records: Vec<Record>,
}

/// Reads the segment that was stored at `expected`: its hash, its identity, its counts, every line.
pub fn decode(body: &[u8], expected: &Place) -> Result<Decoded> {
    let key = expected.key();
    let decoded = decode_any(body).map_err(|e| e.within(&key))?;
    let found = &decoded.trailer.place;
    expect_same(&key, "filesystem", &expected.filesystem, &found.filesystem)?;
    expect_same(&key, "target", &expected.target, &found.target)?;
    expect_same(&key, "epoch", &expected.epoch, &found.epoch)?;
    expect_same(&key, "writer", &expected.writer, &found.writer)?;
    expect_same(&key, "segment", &expected.n, &found.n)?;
    Ok(decoded)
}

fn decode_any(body: &[u8]) -> Result<Decoded> {
    let plain = decompress(body)?;
    let lines = plain.strip_suffix(b"\n").ok_or_else(|| Error::malformed("end", "the last line is not complete"))?;
    let trailer_start = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let trailer = match json::decode_line(&lines[trailer_start..]).map_err(|e| e.within("last line"))? {
        Line::Trailer(trailer) => trailer,
        Line::Record(record) => {
            return Err(Error::malformed("last line", format_args!("record {} instead of a trailer", record.seq)));
        }
    };
    let found = Hash::of(hashed(&plain).ok_or_else(|| Error::malformed("trailer", "hash is not its last key"))?);
    if found != trailer.hash {
        return Err(Error::WrongHash {
            place: "trailer".into(),
            expected: trailer.hash.to_string(),
            found: found.to_string(),
        });
    }
    let mut records = Vec::new();
    for (number, line) in (1..).zip(plain[..trailer_start].split_inclusive(|byte| *byte == b'\n')) {
        match json::decode_line(line).map_err(|e| e.within(format_args!("line {number}")))? {
            Line::Record(record) => records.push(record),
            Line::Trailer(_) => return Err(Error::malformed(format!("line {number}"), "a trailer before the end")),
        }
    }
    let min = records.iter().map(|record| record.seq).min().unwrap_or_default();
    let max = records.iter().map(|record| record.seq).max().unwrap_or_default();
    if (trailer.count, trailer.seq_min, trailer.seq_max) != (records.len() as u64, min, max) {
        return Err(Error::malformed(
            "trailer",
            format_args!(
                "says {} lines, seq {} to {}; there are {}, {min} to {max}",
                trailer.count,
                trailer.seq_min,
                trailer.seq_max,
                records.len()
            ),
        ));
    }
    Ok(Decoded { trailer, records })
}

/// The bytes that the trailer's hash covers, if it is the last key of the last line.
fn hashed(plain: &[u8]) -> Option<&[u8]> {
    let rest = plain.strip_suffix(LINE_END)?;
    let (rest, _) = rest.split_at_checked(rest.len().checked_sub(HASH_DIGITS)?)?;
    rest.strip_suffix(HASH_KEY)
}

fn decompress(body: &[u8]) -> Result<Vec<u8>> {
    const PLACE: &str = "zstd";
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(Error::TooLong { place: PLACE.into(), limit: BODY_BYTES_MAX });
    }
    let malformed = |e: std::io::Error| Error::malformed(PLACE, e);
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(malformed)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(malformed)?;
    let mut plain = Vec::new();
    decoder.take(PLAIN_BYTES_MAX + 1).read_to_end(&mut plain).map_err(malformed)?;
    if plain.len() as u64 > PLAIN_BYTES_MAX {
        return Err(Error::TooLong { place: PLACE.into(), limit: PLAIN_BYTES_MAX });
    }
    Ok(plain)
}

/// Checks that segments follow one another: numbers without a gap, each naming the hash of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    last: Option<(SegmentNumber, Hash)>,
}

impl Chain {
    /// A chain of which nothing is known: it takes any segment first. So begins a replay after a checkpoint whose
    /// earlier segments are gone.
    pub fn anywhere() -> Chain {
        Chain { last: None }
    }

    /// A chain that goes on after segment `n` with `hash`.
    pub fn after(n: SegmentNumber, hash: Hash) -> Chain {
        Chain { last: Some((n, hash)) }
    }

    /// The newest segment of the chain.
    pub fn last(&self) -> Option<(SegmentNumber, Hash)> {
        self.last
    }

    /// Takes the next segment, or says why it does not follow.
    pub fn follow(&mut self, trailer: &Trailer) -> Result<()> {
        let n = trailer.place.n;
        if let Some((last, hash)) = self.last {
            let key = trailer.place.key();
            expect_same(&key, "segment", &last.next(), &n)?;
            let prev = trailer.prev.map(|prev| prev.to_string()).unwrap_or_default();
            expect_same(&key, "hash of the segment before", &hash.to_string(), &prev)?;
        }
        self.last = Some((n, trailer.hash));
        Ok(())
    }
}

/// Whatever fits into a segment can be read back.
const _: () = assert!(LINE_BYTES_MAX >= LINES_BYTES_MAX);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::arbitrary;
    use super::*;

    fn place(n: u64) -> Place {
        Place {
            filesystem: FilesystemId(uuid::Uuid::from_u128(1)),
            target: TargetId(uuid::Uuid::from_u128(2)),
            epoch: Epoch(7),
            writer: WriterId(0x9c1f_04aa),
            n: SegmentNumber(n),
        }
    }

    fn encode(n: u64, prev: Option<Hash>, records: &[Record]) -> Encoded {
        let mut builder = Builder::new(place(n), prev);
        for record in records {
            for line in json::lines(record) {
                assert!(builder.fits(&line));
                builder.push(record.seq, &line);
            }
        }
        builder.finish(Seq(3), true)
    }

    /// A segment with these bytes in it, whatever they are.
    fn body(plain: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(plain, ZSTD_LEVEL).unwrap()
    }

    fn plain(body: &[u8]) -> String {
        String::from_utf8(decompress(body).unwrap()).unwrap()
    }

    /// The text with a hash that is right.
    fn resealed(plain: &str) -> Vec<u8> {
        let (covered, _) = plain.rsplit_once(",\"hash\":\"").unwrap();
        body(format!("{covered},\"hash\":\"{}\"}}\n", Hash::of(covered.as_bytes())).as_bytes())
    }

    #[test]
    fn an_empty_segment_carries_its_trailer() {
        let encoded = encode(1, None, &[]);
        let decoded = decode(&encoded.body, &place(1)).unwrap();
        assert_eq!(decoded.records, []);
        assert_eq!((decoded.trailer.seq_min, decoded.trailer.seq_max), (Seq::ZERO, Seq::ZERO));
        assert_eq!(decoded.trailer.hash, encoded.hash);
    }

    #[test]
    fn a_segment_of_another_place_is_foreign() {
        let encoded = encode(2, Some(Hash::of(b"1")), &[]);
        assert!(decode(&encoded.body, &place(2)).is_ok());
        let elsewhere = [
            Place { filesystem: FilesystemId(uuid::Uuid::from_u128(3)), ..place(2) },
            Place { target: TargetId(uuid::Uuid::from_u128(3)), ..place(2) },
            Place { epoch: Epoch(8), ..place(2) },
            Place { writer: WriterId(1), ..place(2) },
            Place { n: SegmentNumber(3), ..place(2) },
        ];
        for expected in elsewhere {
            assert!(matches!(decode(&encoded.body, &expected), Err(Error::Foreign { .. })), "{expected:?}");
        }
    }

    #[test]
    fn a_trailer_that_lies_is_refused_even_if_its_hash_is_right() {
        let line = "{\"t\":\"link\",\"seq\":8,\"parent\":1,\"name\":\"b\",\"ino\":12,\"time\":[1,2]}\n";
        let Line::Record(record) = json::decode_line(line.as_bytes()).unwrap() else { panic!("{line}") };
        let text = plain(&encode(1, None, &[record]).body);
        assert!(decode(&resealed(&text), &place(1)).is_ok());
        for (from, to) in [
            ("\"count\":1", "\"count\":2"),
            ("\"seq_min\":8", "\"seq_min\":7"),
            ("\"seq_max\":8", "\"seq_max\":9"),
            ("\"prev\":\"\"", "\"prev\":\"x\""),
            ("\"n\":1,", "\"n\":0,"),
            (line, ""),
            (line, "\n"),
            ("\"parent\":1", "\"parent\":0"),
        ] {
            let lie = text.replacen(from, to, 1);
            assert_ne!(lie, text, "{from}");
            assert!(matches!(decode(&resealed(&lie), &place(1)), Err(Error::Malformed { .. })), "{to}");
        }
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        assert!(matches!(decode(&resealed(&newer), &place(1)), Err(Error::Unsupported { .. })));
        let twice = format!("{text}{text}");
        assert!(decode(&resealed(&twice), &place(1)).is_err());
        let after = text.replacen("\"}\n", "\",\"later\":1}\n", 1);
        assert!(decode(&body(after.as_bytes()), &place(1)).is_err());
    }

    #[test]
    fn decompression_is_bounded() {
        let bomb = body(&vec![b' '; PLAIN_BYTES_MAX as usize + 1]);
        assert!(bomb.len() < 4096);
        assert!(matches!(decode(&bomb, &place(1)), Err(Error::TooLong { .. })));
        assert!(matches!(decode(&vec![0; BODY_BYTES_MAX as usize + 1], &place(1)), Err(Error::TooLong { .. })));
    }

    #[test]
    fn a_chain_has_no_gap_and_no_stranger() {
        let one = encode(1, None, &[]);
        let two = encode(2, Some(one.hash), &[]);
        let stranger = encode(2, Some(Hash::of(b"other")), &[]);
        let trailer = |encoded: &Encoded| decode(&encoded.body, &encoded.place).unwrap().trailer;
        let mut chain = Chain::anywhere();
        chain.follow(&trailer(&one)).unwrap();
        assert!(chain.follow(&trailer(&one)).is_err());
        assert!(chain.follow(&trailer(&stranger)).is_err());
        assert_eq!(chain.last(), Some((SegmentNumber(1), one.hash)));
        chain.follow(&trailer(&two)).unwrap();
        assert_eq!(chain.last(), Some((SegmentNumber(2), two.hash)));
        assert!(Chain::anywhere().follow(&trailer(&two)).is_ok());
        assert!(Chain::after(SegmentNumber(1), one.hash).follow(&trailer(&two)).is_ok());
        assert!(Chain::after(SegmentNumber(1), two.hash).follow(&trailer(&two)).is_err());
    }

    proptest! {
        #[test]
        fn a_segment_reads_back_as_it_was(records in vec(arbitrary::record(), 0..10)) {
            let encoded = encode(813, Some(Hash::of(b"812")), &records);
            let decoded = decode(&encoded.body, &place(813)).unwrap();
            prop_assert_eq!(&decoded.records, &records);
            let Trailer { place, count, seq_min, seq_max, low_water, end, prev, hash } = decoded.trailer;
            prop_assert_eq!((place, count, seq_min, seq_max), (encoded.place, encoded.count, encoded.seq_min, encoded.seq_max));
            prop_assert_eq!((low_water, end, prev, hash), (Seq(3), true, Some(Hash::of(b"812")), encoded.hash));
        }

        #[test]
        fn flipped_bytes_are_refused(
            records in vec(arbitrary::record(), 0..4),
            at in any::<prop::sample::Index>(),
            bits in 1u8..,
        ) {
            let encoded = encode(1, None, &records);
            let text = decompress(&encoded.body).unwrap();
            let mut flipped = text.clone();
            flipped[at.index(text.len())] ^= bits;
            prop_assert!(decode(&body(&flipped), &place(1)).is_err());
            // In the compressed bytes a few bits mean nothing; then the content is the same.
            let mut flipped = encoded.body.clone();
            flipped[at.index(encoded.body.len())] ^= bits;
            if let Ok(decoded) = decode(&flipped, &place(1)) {
                prop_assert_eq!(decoded.records, records);
            }
        }

        #[test]
        fn truncated_segments_are_refused(records in vec(arbitrary::record(), 0..4), at in any::<prop::sample::Index>()) {
            let encoded = encode(1, None, &records);
            prop_assert!(decode(&encoded.body[..at.index(encoded.body.len())], &place(1)).is_err());
            let text = decompress(&encoded.body).unwrap();
            prop_assert!(decode(&body(&text[..at.index(text.len())]), &place(1)).is_err());
        }

        #[test]
        fn noise_never_panics(noise in vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&noise, &place(1)).is_err());
            prop_assert!(decode(&body(&noise), &place(1)).is_err());
        }
    }
}
