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

/// What a directory says in `user.tandemfs.policy` about files below it; what it does not say holds from above.
///
/// ```text
/// close=local,fsync=all      either or both, in any order
/// quorum                     a word alone: both
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stated {
    /// When `close` may return.
    pub close: Option<Policy>,
    /// When `fsync` may return.
    pub fsync: Option<Policy>,
}

/// Targets that a filesystem can have (T6).
const TARGETS_MAX: u32 = 62;

impl Stated {
    /// The policies that are stated.
    pub fn policies(&self) -> impl Iterator<Item = Policy> {
        self.close.into_iter().chain(self.fsync)
    }
}

impl FromStr for Stated {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Stated, UnknownPolicy> {
        let unknown = || UnknownPolicy(text.to_owned());
        let word = |text: &str| match text.parse()? {
            Policy::Targets(count) if count > TARGETS_MAX => Err(unknown()),
            policy => Ok(policy),
        };
        if !text.contains('=') {
            let both = Some(word(text)?);
            return Ok(Stated { close: both, fsync: both });
        }
        let mut stated = Stated::default();
        for part in text.split(',') {
            let (call, policy) = part.split_once('=').ok_or_else(unknown)?;
            let place = match call {
                "close" => &mut stated.close,
                "fsync" => &mut stated.fsync,
                _ => return Err(unknown()),
            };
            if place.replace(word(policy)?).is_some() {
                return Err(unknown());
            }
        }
        Ok(stated)
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [("close", self.close), ("fsync", self.fsync)];
        let said: Vec<String> = said.iter().filter_map(|(call, p)| p.map(|p| format!("{call}={p}"))).collect();
        f.write_str(&said.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_directory_states_reads_back() {
        for text in ["close=local", "fsync=all", "close=one,fsync=quorum", "close=cached,fsync=7"] {
            assert_eq!(text.parse::<Stated>().unwrap().to_string(), text);
        }
        let both = "2".parse::<Stated>().unwrap();
        assert_eq!(both, Stated { close: Some(Policy::Targets(2)), fsync: Some(Policy::Targets(2)) });
        assert_eq!("fsync=all,close=local".parse::<Stated>().unwrap().to_string(), "close=local,fsync=all");
        for bad in [
            "",
            "close",
            "close=",
            "close=two",
            "close=0",
            "open=local",
            "close=local,",
            "close=local,close=all",
            "close=local, fsync=all",
            "63",
            "fsync=99",
            "close=local;fsync=all",
            "CLOSE=local",
            "close=local,all",
        ] {
            assert!(bad.parse::<Stated>().is_err(), "{bad:?}");
        }
    }

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
