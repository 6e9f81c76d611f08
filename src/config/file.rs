//! The TOML file.
//!
//! Owns: its keys, units and limits, and finding the line of what is wrong.
//! Does not own: URIs and options of targets (`target`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use toml::{Spanned, Value};

use super::target::Origin;
use super::{CHUNK_SIZE, Config, Error, OnFull, Place, Policy, Result, TargetConfig, secret, suggest};
use crate::target::pace::{Rate, Schedule, ScheduleError};
use crate::target::service::Options;

/// Our own keys in the table of a target; all others are options of its store.
pub(super) const TARGET_KEYS: [&str; 4] = ["uri", "read_priority", "concurrency", "bandwidth"];

/// More often, scrubs would never end.
const SCRUB_EVERY_MIN: Duration = Duration::from_secs(3600);

/// Transfers at the same time to one target, at most.
const CONCURRENCY_MAX: i64 = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<Spanned<String>>,
    mountpoint: Option<Spanned<PathBuf>>,
    state_dir: Option<Spanned<PathBuf>>,
    chunk_size: Option<Spanned<Value>>,
    rotate: Option<Spanned<Value>>,
    rotate_synced: Option<Spanned<Value>>,
    shutdown_timeout: Option<Spanned<Value>>,
    bandwidth: Option<Spanned<Value>>,
    passthrough: Option<bool>,
    #[serde(default)]
    cache: CacheTable,
    #[serde(default)]
    backlog: BacklogTable,
    #[serde(default)]
    gc: GcTable,
    #[serde(default)]
    compaction: CompactionTable,
    #[serde(default)]
    acknowledge: AcknowledgeTable,
    #[serde(default)]
    scrub: ScrubTable,
    #[serde(default)]
    target: BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, Spanned<Value>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct CacheTable {
    limit: Option<Spanned<Value>>,
    reserve: Option<Spanned<Value>>,
    wait: Option<Spanned<Value>>,
    on_full: Option<Spanned<Value>>,
    min_copies: Option<Spanned<Value>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct BacklogTable {
    records: Option<Spanned<Value>>,
    record_bytes: Option<Spanned<Value>>,
    superseded: Option<Spanned<Value>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct GcTable {
    grace: Option<Spanned<Value>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct CompactionTable {
    enabled: Option<bool>,
    rate: Option<Spanned<Value>>,
    min_garbage: Option<Spanned<Value>>,
    quiet: Option<Spanned<Value>>,
    lag_max: Option<Spanned<Value>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct AcknowledgeTable {
    close: Option<Spanned<Value>>,
    fsync: Option<Spanned<Value>>,
    deadline: Option<Spanned<Value>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ScrubTable {
    every: Option<Spanned<Value>>,
    level: Option<Spanned<Value>>,
}

/// Reads the text of a file.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config> {
    let reader = Reader { text, path };
    let file: File = toml::from_str(text).map_err(|error| reader.syntax(&error))?;
    let mut config = Config::default();
    let dir = path.parent().unwrap_or(Path::new(""));

    if let Some(name) = file.name {
        let fits = !name.get_ref().is_empty() && name.get_ref().len() <= 255;
        let plain = !name.get_ref().chars().any(char::is_control);
        reader.require(&name, fits && plain, "a name has 1 to 255 bytes and no control characters")?;
        config.name = Some(name.into_inner());
    }
    config.mountpoint = file.mountpoint.map(|path| reader.absolute(path)).transpose()?;
    config.state_dir = file.state_dir.map(|path| reader.absolute(path)).transpose()?;
    if let Some(value) = file.chunk_size {
        config.chunk_size = reader.bytes(&value)?;
        let fits = CHUNK_SIZE.contains(&config.chunk_size) && config.chunk_size.is_power_of_two();
        reader.require(&value, fits, "chunk_size is a power of two from 64 KiB to 64 MiB")?;
    }
    config.passthrough = file.passthrough.unwrap_or(config.passthrough);
    if let Some(value) = file.cache.limit {
        let limit = reader.bytes(&value)?;
        reader.require(&value, limit >= 64 << 20, "cache.limit is at least 64 MiB")?;
        config.cache.limit = Some(limit);
    }
    if let Some(value) = file.cache.reserve {
        config.cache.reserve = reader.bytes(&value)?;
    }
    if let Some(value) = &file.cache.on_full {
        config.cache.on_full = match reader.string(value)? {
            "wait" => OnFull::Wait,
            "degrade" => OnFull::Degrade,
            other => {
                let error = Error::new(format!("{other:?} is not what can happen when the cache is full"));
                return Err(reader.at(value.span(), error.hint("on_full is \"wait\" or \"degrade\"")));
            }
        };
    }
    if let Some(value) = &file.cache.min_copies {
        config.cache.min_copies = reader.integer(value, 1..=62)? as u32;
        let possible = file.target.is_empty() || config.cache.min_copies as usize <= file.target.len();
        reader.require(value, possible, "min_copies is at most the number of targets")?;
    }
    if let Some(value) = &file.backlog.records {
        config.backlog.records = reader.integer(value, 100..=100_000_000)? as u64;
    }
    for (setting, value, name) in [
        (&mut config.backlog.record_bytes, file.backlog.record_bytes, "record_bytes"),
        (&mut config.backlog.superseded, file.backlog.superseded, "superseded"),
    ] {
        let Some(value) = value else { continue };
        *setting = reader.bytes(&value)?;
        reader.require(&value, *setting >= 64 << 10, &format!("backlog.{name} is at least 64 KiB"))?;
    }
    config.compaction.enabled = file.compaction.enabled.unwrap_or(config.compaction.enabled);
    if let Some(value) = file.compaction.rate {
        config.compaction.rate = reader.bytes_per_second(&value)?;
        reader.require(&value, config.compaction.rate >= 1 << 10, "compaction.rate is at least 1 KiB/s")?;
    }
    for (setting, value, name) in [
        (&mut config.compaction.min_garbage, file.compaction.min_garbage, "min_garbage"),
        (&mut config.compaction.lag_max, file.compaction.lag_max, "lag_max"),
    ] {
        let Some(value) = value else { continue };
        *setting = reader.bytes(&value)?;
        reader.require(&value, *setting >= 64 << 10, &format!("compaction.{name} is at least 64 KiB"))?;
    }
    for (setting, value, at_least) in [
        (&mut config.rotate, file.rotate, Duration::from_secs(1)),
        (&mut config.rotate_synced, file.rotate_synced, Duration::from_millis(100)),
        (&mut config.cache.wait, file.cache.wait, Duration::ZERO),
        (&mut config.shutdown_timeout, file.shutdown_timeout, Duration::ZERO),
        (&mut config.acknowledge.deadline, file.acknowledge.deadline, Duration::from_secs(1)),
        (&mut config.gc.grace, file.gc.grace, Duration::from_secs(1)),
        (&mut config.compaction.quiet, file.compaction.quiet, Duration::from_secs(1)),
    ] {
        let Some(value) = value else { continue };
        *setting = reader.duration(&value)?;
        let least = humantime::format_duration(at_least);
        reader.require(&value, *setting >= at_least, &format!("it is at least {least}"))?;
    }
    for (setting, value) in [
        (&mut config.acknowledge.close, file.acknowledge.close),
        (&mut config.acknowledge.fsync, file.acknowledge.fsync),
    ] {
        let Some(value) = value else { continue };
        *setting = reader.policy(&value)?;
    }
    if let Some(value) = file.scrub.every {
        let every = reader.duration(&value)?;
        reader.require(&value, every >= SCRUB_EVERY_MIN, "scrub.every is at least 1h")?;
        config.scrub.every = Some(every);
    }
    if let Some(value) = file.scrub.level {
        let level = clap::ValueEnum::from_str(reader.string(&value)?, false);
        config.scrub.level = level
            .map_err(|_| reader.at(value.span(), Error::new("scrub.level is \"list\", \"sample\" or \"deep\"")))?;
    }
    if let Some(value) = file.bandwidth {
        config.bandwidth = reader.schedule(&value)?;
    }
    for (name, table) in file.target {
        config.targets.push(reader.target(&name, table, dir)?);
    }
    Ok(config)
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Reader<'_> {
    fn target(
        &self,
        name: &Spanned<String>,
        table: BTreeMap<Spanned<String>, Spanned<Value>>,
        dir: &Path,
    ) -> Result<TargetConfig> {
        let mut uri = None;
        let mut read_priority = 0;
        let mut concurrency = None;
        let mut bandwidth = Schedule::default();
        let mut options = Options::new();
        let mut spans = BTreeMap::new();
        for (key, value) in table {
            match key.get_ref().as_str() {
                "uri" => uri = Some((self.string(&value)?.to_owned(), value.span())),
                "read_priority" => read_priority = self.integer(&value, 0..=1_000_000)? as u32,
                "concurrency" => concurrency = Some(self.integer(&value, 1..=CONCURRENCY_MAX)? as u32),
                "bandwidth" => bandwidth = self.schedule(&value)?,
                "layout" => self.only(&key, &value, "chunks")?,
                "codec" => self.only(&key, &value, "none")?,
                _ => {
                    spans.insert(key.get_ref().to_lowercase(), key.span());
                    let text = self.option(&value, dir)?;
                    options.insert(key.into_inner().to_lowercase(), text);
                }
            }
        }
        let Some((uri, span)) = uri else {
            return Err(self
                .at(name.span(), Error::new(format!("target {:?} has no uri", name.get_ref())))
                .hint("add uri = \"s3://bucket/prefix\" or the like"));
        };
        let target = TargetConfig::new(name.get_ref(), &uri, options, Origin::File).map_err(|error| {
            // The option that the message names, else the URI.
            let named = spans.iter().find(|(key, _)| error.message.contains(&format!("{key:?}")));
            self.at(named.map_or(span, |(_, span)| span.clone()), error)
        })?;
        Ok(TargetConfig { read_priority, concurrency, bandwidth, ..target })
    }

    /// The value of an option as text: a string with `${ENV}`, a number, a boolean, or `{ file = "…" }`.
    fn option(&self, value: &Spanned<Value>, dir: &Path) -> Result<String> {
        let wrong = || {
            let error = Error::new("an option is a string, a number, a boolean or { file = \"…\" }");
            self.at(value.span(), error)
        };
        match value.get_ref() {
            Value::String(text) => secret::expand(text, secret::environment),
            Value::Integer(number) => Ok(number.to_string()),
            Value::Boolean(flag) => Ok(flag.to_string()),
            Value::Table(table) if table.len() == 1 => match table.get("file") {
                Some(Value::String(file)) => secret::read_file(file, dir),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        }
        .map_err(|error| self.at(value.span(), error))
    }

    /// A choice that later versions will widen.
    fn only(&self, key: &Spanned<String>, value: &Spanned<Value>, only: &str) -> Result<()> {
        if self.string(value)? == only {
            return Ok(());
        }
        let error = Error::new(format!("{} = {} is not built yet", key.get_ref(), value.get_ref()));
        Err(self.at(value.span(), error.hint(format!("this version has {:?} only", only))))
    }

    fn policy(&self, value: &Spanned<Value>) -> Result<Policy> {
        let text = match value.get_ref() {
            Value::Integer(number) => number.to_string(),
            _ => self.string(value)?.to_owned(),
        };
        match text.parse() {
            Ok(policy) => Ok(policy),
            Err(error) => {
                let known = ["cached", "local", "one", "quorum", "all"];
                let hint = suggest::nearest(&text, known).map(|near| format!("did you mean {near:?}?"));
                let hint = hint.unwrap_or_else(|| "policies are: cached, local, one, quorum, a number, all".to_owned());
                Err(self.at(value.span(), Error::new(error.to_string()).hint(hint)))
            }
        }
    }

    fn absolute(&self, path: Spanned<PathBuf>) -> Result<PathBuf> {
        self.require(&path, path.get_ref().is_absolute(), "a path here is absolute")?;
        Ok(path.into_inner())
    }

    fn string<'v>(&self, value: &'v Spanned<Value>) -> Result<&'v str> {
        let wrong = || self.at(value.span(), Error::new(format!("{} is not a string", value.get_ref())));
        value.get_ref().as_str().ok_or_else(wrong)
    }

    fn integer(&self, value: &Spanned<Value>, range: std::ops::RangeInclusive<i64>) -> Result<i64> {
        let number = value.get_ref().as_integer().filter(|number| range.contains(number));
        let wrong = || {
            let message = format!("{} is not a number from {} to {}", value.get_ref(), range.start(), range.end());
            self.at(value.span(), Error::new(message))
        };
        number.ok_or_else(wrong)
    }

    fn bytes(&self, value: &Spanned<Value>) -> Result<u64> {
        let size = match value.get_ref() {
            Value::Integer(bytes) => u64::try_from(*bytes).ok(),
            Value::String(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
            _ => None,
        };
        let wrong = || {
            let error = Error::new(format!("{} is not a size", value.get_ref()));
            self.at(value.span(), error.hint("write a size as \"64 GiB\", \"512 MiB\" or \"500 GB\""))
        };
        // Above: offsets are signed in the kernel.
        size.filter(|size| *size <= i64::MAX as u64).ok_or_else(wrong)
    }

    /// A rate without windows of the day.
    fn bytes_per_second(&self, value: &Spanned<Value>) -> Result<u64> {
        let text = value.get_ref().as_str().and_then(|text| text.trim().strip_suffix("/s"));
        let wrong = || {
            let error = Error::new(format!("{} is not a rate", value.get_ref()));
            self.at(value.span(), error.hint("write a rate as \"1 MiB/s\" or \"500 KB/s\""))
        };
        text.and_then(|text| text.trim().parse::<ByteSize>().ok()).map(|size| size.as_u64()).ok_or_else(wrong)
    }

    /// A rate, or a table of one for `always` and others for windows of the day.
    fn schedule(&self, value: &Spanned<Value>) -> Result<Schedule> {
        let wrong = |error: ScheduleError| self.at(value.span(), Error::new(error.to_string()));
        let rate = |value: &Value| match value {
            Value::Integer(bytes) => bytes.to_string().parse(),
            Value::String(text) => text.parse(),
            other => other.to_string().parse::<Rate>(),
        };
        let schedule = match value.get_ref() {
            Value::Table(table) => {
                let always = table.get("always").map(rate).transpose().map_err(wrong)?;
                let mut schedule = Schedule::always(always.unwrap_or_default());
                for (window, value) in table.iter().filter(|(key, _)| *key != "always") {
                    schedule.window(window, rate(value).map_err(wrong)?).map_err(wrong)?;
                }
                schedule
            }
            one => Schedule::always(rate(one).map_err(wrong)?),
        };
        schedule.checked().map_err(wrong)
    }

    fn duration(&self, value: &Spanned<Value>) -> Result<Duration> {
        let duration = value.get_ref().as_str().and_then(|text| humantime::parse_duration(text).ok());
        let wrong = || {
            let error = Error::new(format!("{} is not a duration", value.get_ref()));
            self.at(value.span(), error.hint("write a duration as \"30s\", \"500ms\" or \"10m\""))
        };
        // A year stands for ever and can be added to any time.
        duration.filter(|duration| *duration <= Duration::from_secs(365 * 24 * 3600)).ok_or_else(wrong)
    }

    fn require<T>(&self, value: &Spanned<T>, fits: bool, rule: &str) -> Result<()> {
        if fits { Ok(()) } else { Err(self.at(value.span(), Error::new(rule))) }
    }

    /// Names the place of an error.
    fn at(&self, span: Range<usize>, error: Error) -> Error {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let place = Place {
            file: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        };
        Error { place: Some(place), ..error }
    }

    /// An error of the parser: broken TOML, wrong types, unknown keys.
    fn syntax(&self, error: &toml::de::Error) -> Error {
        let message = error.message();
        let own = match message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
            Some((name, expected)) => {
                // "…, expected one of `a`, `b`": every second piece between backticks is a name.
                let known = expected.split('`').skip(1).step_by(2);
                Error::new(format!("unknown key {name:?}")).maybe_hint(suggest::hint(name, known))
            }
            // One line: the parser's own picture of the place is left to who prints the error.
            None => Error::new(message.lines().collect::<Vec<_>>().join(", ")),
        };
        match error.span() {
            Some(span) => self.at(span, own),
            None => own,
        }
    }
}
