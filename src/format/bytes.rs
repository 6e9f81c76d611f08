//! Byte strings in JSON, and names.
//!
//! Owns: how bytes that may not be UTF-8 stand in JSON, and what a name in a directory may be.
//! Does not own: which keys are byte strings (`format::json`).
//!
//! ```text
//! valid UTF-8     "caf\u00e9"  written as  "café"            (JSON escapes for control characters, `"` and `\`)
//! anything else   ff 66 6f 6f  written as  {"b64":"/2Zvbw=="} (RFC 4648, padded)
//! ```
//! A reader takes both forms for any bytes.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Bytes of the longest name.
pub const NAME_BYTES_MAX: usize = 255;

/// A name in a directory, checked: 1–255 bytes, no `/`, no NUL, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

/// Why bytes are no name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// No byte.
    #[error("a name is empty")]
    Empty,
    /// More than [`NAME_BYTES_MAX`].
    #[error("a name has {0} bytes, more than 255")]
    TooLong(usize),
    /// `/` or NUL in it.
    #[error("a name contains '/' or NUL")]
    Separator,
    /// `.` or `..`.
    #[error("a name is \".\" or \"..\"")]
    Dots,
}

impl Name {
    /// Checks `bytes` and keeps them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Name, InvalidName> {
        let bytes = bytes.into();
        check_name(&bytes)?;
        Ok(Name(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, owned.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Checks that `bytes` may be a name in a directory.
pub fn check_name(bytes: &[u8]) -> Result<(), InvalidName> {
    match bytes {
        [] => Err(InvalidName::Empty),
        b"." | b".." => Err(InvalidName::Dots),
        _ if bytes.len() > NAME_BYTES_MAX => Err(InvalidName::TooLong(bytes.len())),
        _ if bytes.iter().any(|byte| matches!(byte, 0 | b'/')) => Err(InvalidName::Separator),
        _ => Ok(()),
    }
}

/// Bytes as they stand in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ByteString<'a>(pub Cow<'a, [u8]>);

impl<'a> From<&'a [u8]> for ByteString<'a> {
    fn from(bytes: &'a [u8]) -> ByteString<'a> {
        ByteString(Cow::Borrowed(bytes))
    }
}

impl From<ByteString<'_>> for Vec<u8> {
    fn from(bytes: ByteString<'_>) -> Vec<u8> {
        bytes.0.into_owned()
    }
}

impl Serialize for ByteString<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("b64", &STANDARD.encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for ByteString<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or {\"b64\": string}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
                Ok(text.as_bytes().to_vec())
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Vec<u8>, E> {
                Ok(text.into_bytes())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<u8>, A::Error> {
                let Some((key, text)) = map.next_entry::<Cow<'_, str>, Cow<'_, str>>()? else {
                    return Err(de::Error::missing_field("b64"));
                };
                if key != "b64" {
                    return Err(de::Error::unknown_field(&key, &["b64"]));
                }
                if map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom("b64 is not the only key"));
                }
                STANDARD.decode(text.as_bytes()).map_err(|e| de::Error::custom(format_args!("b64: {e}")))
            }
        }

        deserializer.deserialize_any(Bytes).map(|bytes| ByteString(Cow::Owned(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(bytes: &[u8]) -> String {
        serde_json::to_string(&ByteString::from(bytes)).unwrap()
    }

    fn read(text: &str) -> Option<Vec<u8>> {
        serde_json::from_str::<ByteString>(text).ok().map(Vec::from)
    }

    #[test]
    fn bytes_are_a_string_exactly_if_they_are_utf8() {
        assert_eq!(write("café".as_bytes()), "\"café\"");
        assert_eq!(write(b"a\n\"\\\x01"), r#""a\n\"\\\u0001""#);
        assert_eq!(write(b"\xfffoo"), r#"{"b64":"/2Zvbw=="}"#);
    }

    #[test]
    fn a_reader_takes_both_forms_for_any_bytes() {
        assert_eq!(read(r#"{"b64":"Zm9v"}"#), Some(b"foo".to_vec()));
        assert_eq!(read(r#""foo""#), Some(b"foo".to_vec()));
        assert_eq!(read(r#""\u0000""#), Some(vec![0]));
        for bad in ["1", "null", "{}", r#"{"b64":"Zm9"}"#, r#"{"b64":"Z m9"}"#, r#"{"b65":""}"#, r#"{"b64":"","x":1}"#]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_name_is_never_a_path() {
        assert_eq!(Name::new("a").map(Name::into_bytes), Ok(b"a".to_vec()));
        assert_eq!(Name::new(vec![0xff; 255]).map(|name| name.as_bytes().len()), Ok(255));
        assert!(Name::new("...").is_ok());
        assert_eq!(Name::new(""), Err(InvalidName::Empty));
        assert_eq!(Name::new("."), Err(InvalidName::Dots));
        assert_eq!(Name::new(".."), Err(InvalidName::Dots));
        assert_eq!(Name::new("a/b"), Err(InvalidName::Separator));
        assert_eq!(Name::new("a\0"), Err(InvalidName::Separator));
        assert_eq!(Name::new("a".repeat(256)), Err(InvalidName::TooLong(256)));
    }
}
