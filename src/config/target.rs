//! One configured target: its name, its place, the options of its store.
//!
//! Owns: URIs of targets, options merged from URI and table, building the store.
//! Does not own: what options exist (`target::service`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use url::Url;

use super::secret::{self, REDACTED};
use super::{Error, Result, suggest};
use crate::target::DynTarget;
use crate::target::directory::DirectoryTarget;
use crate::target::pace::{Pacer, Schedule};
use crate::target::service::{self, OptionError, Options, SCHEMES, Scheme, Service};

/// Longest name of a target.
const NAME_MAX: usize = 63;

/// A target as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// Short, for people and in `user.tandemfs.targets`.
    pub name: String,
    /// Its URI without secrets.
    pub uri: String,
    /// Where it is.
    pub location: Location,
    /// Of two targets equally well, the one with the lower number is read first.
    pub read_priority: u32,
    /// Transfers at the same time, at most; `None`: found out by trying.
    pub concurrency: Option<u32>,
    /// How fast uploads to it may be.
    pub bandwidth: Schedule,
}

/// Where a target is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A local directory, absolute.
    Directory(PathBuf),
    /// Objects in this process: tests only.
    Memory(String),
    /// A store behind OpenDAL, with all options, secrets too.
    Service {
        /// `s3`, `webdav` …
        scheme: String,
        /// Expanded and checked.
        options: Options,
    },
}

impl fmt::Debug for TargetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetConfig")
            .field("name", &self.name)
            .field("uri", &self.uri)
            .field("location", &self.location)
            .field("read_priority", &self.read_priority)
            .field("concurrency", &self.concurrency)
            .field("bandwidth", &self.bandwidth)
            .finish()
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => f.debug_tuple("Directory").field(path).finish(),
            Location::Memory(name) => f.debug_tuple("Memory").field(name).finish(),
            Location::Service { scheme, options } => {
                let shown = options.iter().map(|(key, value)| (key, shown(key, value)));
                write!(f, "Service({scheme}, ")?;
                f.debug_map().entries(shown).finish()?;
                f.write_str(")")
            }
        }
    }
}

fn shown<'a>(key: &str, value: &'a str) -> &'a str {
    if secret::is_secret(key) { REDACTED } else { value }
}

/// Where a URI was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// On a command line, which everybody can see in `ps`.
    CommandLine,
    /// In a file.
    File,
}

/// A URI taken apart.
struct Parsed {
    scheme: String,
    shown: String,
    /// Everything it says about options.
    options: Options,
    /// For `fs` and `memory`: what follows the scheme.
    rest: String,
}

impl TargetConfig {
    /// Reads `NAME=URI`, as `--target` takes it.
    pub fn from_argument(argument: &str) -> Result<TargetConfig> {
        let Some((name, uri)) = argument.split_once('=').filter(|(name, _)| !name.contains("://")) else {
            let message = format!("{:?} is not NAME=URI", without_secrets(argument));
            return Err(Error::new(message).hint("for example --target home=fs:///mnt/backup"));
        };
        TargetConfig::from_uri(name, uri)
    }

    /// Reads a URI from a command line under a given name.
    pub fn from_uri(name: &str, uri: &str) -> Result<TargetConfig> {
        TargetConfig::new(name, uri, Options::new(), Origin::CommandLine)
    }

    /// Puts a target together from its URI and the options of its table (expanded already).
    pub(super) fn new(name: &str, uri: &str, table: Options, origin: Origin) -> Result<TargetConfig> {
        check_name(name)?;
        let parsed = parse(uri, origin)?;
        let location = match parsed.scheme.as_str() {
            "fs" => directory(&parsed, &table)?,
            "memory" if cfg!(any(test, feature = "testing")) => Location::Memory(parsed.rest.clone()),
            scheme => {
                let service = find(scheme)?;
                let options = merge(parsed.options, table)?;
                check_options(&service, name, &options)?;
                Location::Service { scheme: scheme.to_owned(), options }
            }
        };
        Ok(TargetConfig {
            name: name.to_owned(),
            uri: parsed.shown,
            location,
            read_priority: 0,
            concurrency: None,
            bandwidth: Schedule::default(),
        })
    }
}

/// Builds the store, which sends as `pacer` lets it. Nothing is contacted or created.
pub fn build(target: &TargetConfig, pacer: Pacer) -> Result<DynTarget> {
    match &target.location {
        Location::Directory(path) => Ok(Arc::new(DirectoryTarget::new(path).paced(pacer))),
        Location::Memory(name) => Ok(Arc::new(crate::target::memory::MemoryTarget::named(name))),
        Location::Service { scheme, options } => find(scheme)?.build(options, pacer).map_err(|error| {
            let message = format!("target {:?} cannot be used as configured: {}", target.name, error.message);
            Error::new(message).hint(format!("options are those of OpenDAL's service {scheme:?}"))
        }),
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(fits) {
        let message = format!("{:?} is no name for a target", without_secrets(name));
        return Err(Error::new(message).hint(format!("use at most {NAME_MAX} of the characters a-z A-Z 0-9 - _ .")));
    }
    Ok(())
}

fn find(scheme: &str) -> Result<Service> {
    match service::find(scheme) {
        Scheme::Known(service) => Ok(service),
        Scheme::NeedsFeature(feature) => Err(Error::new(format!("{scheme}:// is not in this build"))
            .hint(format!("build it in: cargo install tandemfs --features {feature}"))),
        Scheme::Unknown => Err(Error::new(format!("{scheme}:// is no kind of target"))
            .maybe_hint(suggest::hint(scheme, SCHEMES.into_iter().chain(["fs"])))),
    }
}

fn directory(parsed: &Parsed, table: &Options) -> Result<Location> {
    if let Some(key) = table.keys().next() {
        return Err(Error::new(format!("a directory target has no option {key:?}"))
            .maybe_hint(suggest::hint(key, super::file::TARGET_KEYS)));
    }
    let path = Path::new(&parsed.rest);
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::new(format!("{:?} is no absolute path", parsed.shown))
            .hint("a directory is fs:// and its absolute path, with three slashes: fs:///mnt/backup"));
    }
    Ok(Location::Directory(path.to_owned()))
}

fn parse(uri: &str, origin: Origin) -> Result<Parsed> {
    let Some((scheme, rest)) = uri.split_once("://") else {
        let hint = match uri.starts_with('/') {
            true => format!("a directory is fs://{}", without_secrets(uri)),
            false => "a target is scheme://place, as fs:///mnt/backup or s3://bucket/prefix".to_owned(),
        };
        return Err(Error::new(format!("{:?} is no URI", without_secrets(uri))).hint(hint));
    };
    if matches!(scheme, "fs" | "memory") {
        // Literal: a path may hold any character, `?` and `%` too.
        let rest = rest.to_owned();
        return Ok(Parsed { scheme: scheme.to_owned(), shown: uri.to_owned(), options: Options::new(), rest });
    }
    let service = find(scheme)?;
    let url = Url::parse(uri).map_err(|error| Error::new(format!("{:?} is no URI: {error}", without_secrets(uri))))?;
    let mut options = Options::new();
    let mut shown = format!("{scheme}://{}{}", authority(&url), url.path());
    for (index, (key, value)) in url.query_pairs().enumerate() {
        let key = key.to_ascii_lowercase();
        refuse_visible_secret(&key, &value, origin)?;
        let value = secret::expand(&value, secret::environment)?;
        let separator = if index == 0 { '?' } else { '&' };
        shown.push_str(&format!("{separator}{key}={}", super::target::shown(&key, &value)));
        if options.insert(key.clone(), value).is_some() {
            return Err(Error::new(format!("option {key:?} is given twice in the URI")));
        }
    }
    userinfo(&url, &service, &mut options, origin)?;
    if !authority(&url).is_empty() {
        let value = match service.scheme {
            "webdav" => format!("https://{}", authority(&url)),
            "sftp" => format!("ssh://{}", authority(&url)),
            _ => authority(&url),
        };
        insert(&mut options, service.host, value)?;
    }
    let root = percent_decode_str(url.path())
        .decode_utf8()
        .map_err(|_| Error::new(format!("the path of {shown:?} is not UTF-8")))?;
    if root.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(Error::new(format!("the path of {shown:?} goes up")).hint("write the prefix as it is"));
    }
    if !root.trim_matches('/').is_empty() {
        insert(&mut options, "root", format!("/{}", root.trim_matches('/')))?;
    }
    Ok(Parsed { scheme: scheme.to_owned(), shown, options, rest: String::new() })
}

/// Host and port, without user and password.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn userinfo(url: &Url, service: &Service, options: &mut Options, origin: Origin) -> Result<()> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    if let Some(password) = url.password() {
        refuse_visible_secret("password", &decode(password), origin)?;
    }
    let named = [("username", Some(url.username()).filter(|user| !user.is_empty())), ("password", url.password())];
    for (key, value) in named {
        let Some(value) = value else { continue };
        let key = if service.scheme == "sftp" && key == "username" { "user" } else { key };
        if !service.keys().iter().any(|known| known == key) {
            return Err(Error::new(format!("a {} URI has no {key}", service.scheme))
                .hint("give credentials as options of the target's table"));
        }
        insert(options, key, secret::expand(&decode(value), secret::environment)?)?;
    }
    Ok(())
}

/// What is on a command line can be read by everybody on the machine.
fn refuse_visible_secret(key: &str, value: &str, origin: Origin) -> Result<()> {
    if origin == Origin::File || !secret::is_secret(key) || (value.starts_with("${") && value.ends_with('}')) {
        return Ok(());
    }
    let variable = key.to_ascii_uppercase();
    Err(Error::new(format!("option {key:?} on the command line would be visible to all users (ps)")).hint(format!(
        "put it into the environment and write '{key}=${{{variable}}}' (in single quotes), or use --config with \
         {key} = {{ file = \"…\" }}"
    )))
}

fn insert(options: &mut Options, key: &str, value: String) -> Result<()> {
    match options.insert(key.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(Error::new(format!("option {key:?} is given twice: in the URI's place and in its query"))),
    }
}

fn merge(mut options: Options, table: Options) -> Result<Options> {
    for (key, value) in table {
        if options.insert(key.clone(), value).is_some() {
            return Err(Error::new(format!("option {key:?} is given twice: in the URI and in the table")));
        }
    }
    Ok(options)
}

fn check_options(service: &Service, name: &str, options: &Options) -> Result<()> {
    service.check(options).map_err(|error| match error {
        OptionError::Unknown { key } => unknown_option(service, name, &key),
        OptionError::Invalid { message } => match options.iter().find(|(key, _)| message.contains(&format!("'{key}'")))
        {
            // The message quotes the value, so it is put in our own words.
            Some((key, value)) => {
                Error::new(format!("target {name:?}: option {key:?} cannot be {:?}", shown(key, value)))
            }
            None => Error::new(format!("target {name:?}: an option has the wrong form")),
        },
    })
}

fn unknown_option(service: &Service, name: &str, key: &str) -> Error {
    let keys = service.keys();
    let hint = suggest::hint(key, keys.iter().map(String::as_str).chain(super::file::TARGET_KEYS));
    Error::new(format!("target {name:?}: {} has no option {key:?}", service.scheme)).maybe_hint(hint)
}

/// A text that may hold secrets, cut before they begin.
fn without_secrets(text: &str) -> String {
    let end = text.find(['?', '@']).unwrap_or(text.len());
    let start = match text[end..].starts_with('@') {
        // User and password stand before the `@`.
        true => text.find("://").map_or(0, |at| at + 3),
        false => end,
    };
    if end == text.len() { text.to_owned() } else { format!("{}…", &text[..start.min(end)]) }
}
