//! Random changes of bytes and of JSON, the same for a seed.

use serde_json::{Map, Value, json};
use tandemfs::chance::Seeded;

/// The same choices for a seed, wherever it runs.
pub struct Random(Seeded);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678))
    }

    pub fn next(&mut self) -> u64 {
        self.0.draw()
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound)
    }

    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// Pieces of text that parsers stumble over.
const TOKENS: [&str; 34] = [
    "0",
    "-1",
    "1e999",
    "1.5",
    "9007199254740991",
    "9007199254740992",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    "\"..\"",
    "\"/\"",
    "\"a/b\"",
    "\"\\u0000\"",
    "{\"b64\":\"\"}",
    "{\"b64\":\"!\"}",
    "\"t\":\"trailer\"",
    "\u{feff}",
    "[[[[[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "\"format\":2",
    "\n",
    "\0",
    "%00",
    "://",
    "${HOME}",
    "?a=b&a=c",
    "[target.a]",
    "= ",
    "\u{10ffff}",
];

/// Changes bytes in one to four places.
pub fn bytes(random: &mut Random, mut data: Vec<u8>) -> Vec<u8> {
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        let end = (at + 1 + random.below(16)).min(data.len());
        match random.below(8) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 if at < data.len() => data[at] = random.next() as u8,
            2 => data.truncate(at),
            3 if at < end => drop(data.drain(at..end)),
            4 if at < end => {
                let copy = data[at..end].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, copy);
            }
            5 => {
                let byte = random.next() as u8;
                let count = 1 << random.below(17);
                data.splice(at..at, std::iter::repeat_n(byte, count));
            }
            _ => {
                let token = random.one_of(&TOKENS).as_bytes().to_vec();
                data.splice(at..at.max(end.min(at + random.below(8))), token);
            }
        }
    }
    data
}

/// A value that no honest writer writes, or one that looks honest.
pub fn value(random: &mut Random) -> Value {
    const NUMBERS: [i64; 16] =
        [0, 1, 2, 3, 5, -1, 255, 4096, 16877, 33188, 1 << 26, (1 << 26) + 1, 1 << 32, (1 << 53) - 1, 1 << 53, i64::MIN];
    match random.below(12) {
        0..=5 => json!(random.one_of(&NUMBERS)),
        6 => json!(random.next()),
        7 => json!(random.one_of(&["", ".", "..", "/", "a/b", "../../x", "a\0b", "bin", "hello", "user.k"])),
        8 => json!("x".repeat(1 << random.below(18))),
        9 => json!({"b64": random.one_of(&["", "AA==", "Li4=", "Lw==", "AGE=", "!"])}),
        10 => Value::Null,
        _ => json!([0, 0]),
    }
}

/// Changes one place in a document: another value, a missing or doubled member.
pub fn document(random: &mut Random, document: &mut Value) {
    let deeper = !random.chance(3);
    match document {
        Value::Object(members) if !members.is_empty() => {
            let name = random.one_of(&members.keys().cloned().collect::<Vec<_>>()).clone();
            if deeper {
                self::document(random, &mut members[&name]);
            } else if random.chance(4) {
                members.remove(&name);
            } else {
                members.insert(name, value(random));
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = random.below(items.len());
            match random.below(if deeper { 2 } else { 5 }) {
                0 | 1 => self::document(random, &mut items[index]),
                2 => drop(items.remove(index)),
                3 => items.push(items[index].clone()),
                _ => items[index] = value(random),
            }
        }
        Value::Number(number) if number.as_u64().is_some() && random.chance(2) => {
            let number = number.as_u64().unwrap_or_default();
            *document = json!(if random.chance(2) { number.wrapping_add(1) } else { number.wrapping_sub(1) });
        }
        other => *other = value(random),
    }
}

/// A segment's or slot file's text as documents.
pub fn lines(text: &[u8]) -> Vec<Value> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("fixtures are JSON"))
        .collect()
}

/// The text of a segment with a trailer that fits its lines: counts, the hash of the segment before, its own hash last.
/// Returns it with its hash.
pub fn sealed(records: &[Value], mut trailer: Map<String, Value>, prev: &str) -> (Vec<u8>, String) {
    let mut text = Vec::new();
    for record in records {
        text.extend_from_slice(record.to_string().as_bytes());
        text.push(b'\n');
    }
    let seqs = || records.iter().filter_map(|record| record["seq"].as_u64());
    trailer.insert("count".into(), json!(records.len()));
    trailer.insert("seq_min".into(), json!(seqs().min().unwrap_or_default()));
    trailer.insert("seq_max".into(), json!(seqs().max().unwrap_or_default()));
    trailer.insert("prev".into(), json!(prev));
    trailer.remove("hash");
    let members = Value::Object(trailer).to_string();
    text.extend_from_slice(&members.as_bytes()[..members.len() - 1]);
    let hash = blake3::hash(&text).to_hex().to_string();
    text.extend_from_slice(format!(",\"hash\":\"{hash}\"}}\n").as_bytes());
    (text, hash)
}
