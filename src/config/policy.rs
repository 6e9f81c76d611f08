//! Acknowledgement policies: when `close` or `fsync` may return (D3).

use std::fmt;
use std::str::FromStr;

/// What must have happened before a call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The bytes are in chunk files: a crash of the daemon loses nothing.
    Cached,
    /// They are synced: a power cut loses nothing.
    Local,
    /// So many targets hold them.
    Targets(u32),
    /// More than half of the targets hold them.
    Quorum,
    /// Every target holds them.
    All,
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no acknowledgement policy")]
pub struct UnknownPolicy(pub String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Policy, UnknownPolicy> {
        match text {
            "cached" => Ok(Policy::Cached),
            "local" => Ok(Policy::Local),
            "one" => Ok(Policy::Targets(1)),
            "quorum" => Ok(Policy::Quorum),
            "all" => Ok(Policy::All),
            number => match number.parse() {
                Ok(count) if count > 0 => Ok(Policy::Targets(count)),
                _ => Err(UnknownPolicy(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Cached => f.write_str("cached"),
            Policy::Local => f.write_str("local"),
            Policy::Targets(1) => f.write_str("one"),
            Policy::Targets(count) => write!(f, "{count}"),
            Policy::Quorum => f.write_str("quorum"),
            Policy::All => f.write_str("all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_back() {
        for text in ["cached", "local", "one", "quorum", "all", "2", "61"] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        for bad in ["", "0", "-1", "two", "ALL", "1.5"] {
            assert!(bad.parse::<Policy>().is_err(), "{bad}");
        }
    }
}
