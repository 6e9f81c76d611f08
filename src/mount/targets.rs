//! The targets of a mount while it is in use: adding, removing, pausing, replacing, adopting, reloading.
//!
//! Owns: the live list with its configurations and stores, one change at a time, what each change says.
//! Does not own: rows (`meta`), transfers and shipping (`replication`), which targets a mount begins with (`live_set`).
//!
//! - What a command changes is remembered before it takes effect: a crash in between is finished by the next mount.
//! - The last target cannot go. What only a target that goes has, is said first, and goes only by force.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::bandwidth::Bandwidth;
use super::live::Live;
use super::newcomer::{self, Newcomer};
use super::replication::Replica;
use super::settings::Target;
use crate::clock;
use crate::config::{Config, Source, TargetConfig};
use crate::control::{Error, ErrorKind, Said, TargetOp};
use crate::id::{ChunkId, TargetBit};
use crate::meta::target::{FOR_EVER, Mode, TargetRow};
use crate::meta::target_set::{TargetChange, Without};
use crate::meta::{self, Meta};
use crate::read::{self, Fetcher};
use crate::replication::contact::Asked;
use crate::replication::gate::Gate;
use crate::replication::resync;

/// Rows that are counted in one read (D8).
const PAGE: usize = 20_000;

/// One target that takes part.
pub struct Entry {
    pub bit: TargetBit,
    pub target: Target,
}

/// Everything a change needs.
pub struct Parts {
    pub live: Arc<Live>,
    pub fetcher: Arc<Fetcher>,
    pub bandwidth: Arc<Bandwidth>,
    pub source: Source,
    /// As it was read last.
    pub config: Config,
    pub mountpoint: PathBuf,
    pub state_dir: PathBuf,
    pub read_only: bool,
}

/// The live set.
pub struct LiveTargets {
    parts: Parts,
    list: Mutex<Vec<Entry>>,
    config: Mutex<Config>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl LiveTargets {
    /// Starts with the targets that the mount began with.
    pub fn new(parts: Parts, list: Vec<Entry>) -> LiveTargets {
        let config = Mutex::new(parts.config.clone());
        LiveTargets { parts, list: Mutex::new(list), config, changing: tokio::sync::Mutex::default() }
    }

    /// Does what was asked.
    pub async fn change(&self, op: TargetOp) -> Result<Said, Error> {
        let _one = self.changing.lock().await;
        if self.parts.read_only {
            return Err(Error::new(ErrorKind::Usage, "a read-only mount changes nothing").hint("mount it for writing"));
        }
        let lines = match op {
            TargetOp::Add { name, uri, fresh } => self.add(&name, uri.as_deref(), fresh).await?,
            TargetOp::Remove { name, force } => self.remove(&name, force).await?,
            TargetOp::Pause { name, until } => self.pause(&name, until).await?,
            TargetOp::Resume { name } => self.resume(&name).await?,
            TargetOp::Replace { name, uri, force } => self.replace(&name, uri.as_deref(), force).await?,
            TargetOp::Adopt { name } => super::adopt::adopt(&self.parts.live, &self.row(&name)?).await?,
        };
        for line in &lines {
            tracing::info!(said = line, "targets changed");
        }
        Ok(Said { lines })
    }

    fn meta(&self) -> &Arc<Meta> {
        &self.parts.live.meta
    }

    fn rows(&self) -> Result<Vec<TargetRow>, Error> {
        self.meta().targets().map_err(internal)
    }

    fn row(&self, name: &str) -> Result<TargetRow, Error> {
        let rows = self.rows()?;
        let names: Vec<String> = rows.iter().map(|row| format!("{:?}", row.name)).collect();
        rows.into_iter().find(|row| row.name == name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no target {name:?}"))
                .hint(format!("targets are: {}", names.join(", ")))
        })
    }

    /// What the configuration says now for a name that a command gives no URI for.
    fn read_config(&self, name: &str) -> Result<TargetConfig, Error> {
        let config = self.parts.source.read()?;
        self.parts.bandwidth.change(&config, clock::minute_of_day());
        let found = config.targets.iter().find(|target| target.name == name).cloned();
        *self.config.lock() = config;
        found.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("target {name:?} is not in the configuration"))
                .hint(format!("say where it is: {name}=URI, or add a table [target.{name}] there"))
        })
    }

    /// What the configuration that was read last says for a name.
    fn configured(&self, name: &str) -> Option<String> {
        self.config.lock().targets.iter().find(|target| target.name == name).map(|target| target.uri.clone())
    }

    /// A new target in its place, checked against everything that is known without asking it.
    fn prepare(&self, name: &str, uri: Option<&str>, instead: Option<&str>) -> Result<Target, Error> {
        let config = match uri {
            Some(uri) => TargetConfig::from_uri(name, uri)?,
            None => self.read_config(name)?,
        };
        let new = Target::new(&config, &self.parts.bandwidth)?;
        let list = self.list.lock();
        let others: Vec<&Target> = list
            .iter()
            .map(|entry| &entry.target)
            .filter(|target| Some(target.config.name.as_str()) != instead)
            .collect();
        let mut configs: Vec<TargetConfig> = others.iter().map(|target| target.config.clone()).collect();
        configs.push(config);
        crate::config::check_places(&configs)?;
        newcomer::check_nesting(&self.parts.mountpoint, &self.parts.state_dir, &others, &new)?;
        Ok(new)
    }

    async fn add(&self, name: &str, uri: Option<&str>, fresh: bool) -> Result<Vec<String>, Error> {
        let known = self.rows()?.into_iter().find(|row| row.name == name);
        if let (Some(row), false) = (&known, fresh) {
            return Err(Error::new(ErrorKind::Usage, format!("there is a target {name:?} already, at {}", row.uri)).hint(
                format!(
                    "another name for a new one; tandemfs target replace for another place; --fresh if the place of {name} \
                     was lost for good and is empty now"
                ),
            ));
        }
        let uri = match (&known, uri) {
            // Begin anew where it is.
            (Some(row), None) if self.configured(name).is_none() => Some(row.uri.clone()),
            (_, uri) => uri.map(str::to_owned),
        };
        let new = self.prepare(name, uri.as_deref(), known.as_ref().map(|_| name))?;
        match newcomer::meet(&new, self.meta().filesystem().map_err(internal)?).await? {
            Newcomer::Empty => {}
            Newcomer::OfThis(found) => {
                let restored = !self.meta().restored_lineage().map_err(internal)?.is_empty();
                let rows = self.rows()?;
                // A restored state may meet what it never spoke to (D6).
                if !restored || rows.iter().any(|row| row.id == found.target) {
                    return Err(newcomer::known_already(name, &found, &rows));
                }
            }
        }
        let mut lines = Vec::new();
        if let Some(row) = &known {
            let others = self.rows()?.len() - 1;
            lines.extend(self.without(row, others > 0, true).await?);
        }
        self.remember(&new, uri.as_deref())?;
        if let Some(row) = &known {
            self.take_out(row).await?;
        }
        let row = self.take_in(new)?;
        lines.push(match row.mode {
            Mode::Resync => format!(
                "target {name:?} was added; it is being filled from this machine and the other targets: tandemfs status \
                 says how far it is"
            ),
            _ => format!("target {name:?} was added; it follows from the beginning of history"),
        });
        Ok(lines)
    }

    async fn remove(&self, name: &str, force: bool) -> Result<Vec<String>, Error> {
        let row = self.row(name)?;
        if self.rows()?.len() == 1 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("target {name:?} is the last one: nothing would be kept anywhere else"),
            )
            .hint("add another one first: tandemfs target add; or replace its place: tandemfs target replace"));
        }
        let in_reach = self.parts.live.replication.gate(row.bit) == Gate::Open;
        let mut lines = self.without(&row, true, force).await?;
        if !in_reach && !force && row.paused_until.is_none() {
            return Err(Error::failed(format!("target {name:?} is out of reach: {}", lines.join("; ")))
                .hint("wait until it is back, or remove it all the same: --force"));
        }
        let change = TargetChange { name: name.to_owned(), uri: None, configured: self.configured(name) };
        match change.configured {
            Some(_) => self.meta().remember_change(&change),
            None => self.meta().forget_change(name),
        }
        .map_err(internal)?;
        self.take_out(&row).await?;
        lines.push(format!("target {name:?} was removed; what lies at {} stays there", row.uri));
        Ok(lines)
    }

    async fn pause(&self, name: &str, until: Option<i64>) -> Result<Vec<String>, Error> {
        let row = self.row(name)?;
        if until.is_some_and(|until| until <= clock::now().secs()) {
            return Err(Error::new(ErrorKind::Usage, "the time until which to pause is over already")
                .hint("give a time that comes, or a span as 2h"));
        }
        self.meta().set_paused(row.bit, Some(until.unwrap_or(FOR_EVER))).map_err(internal)?;
        self.parts.live.replication.pause(row.bit).await;
        let end = match until {
            Some(until) => format!("until {}", utc(until)),
            None => "until tandemfs target resume".to_owned(),
        };
        Ok(vec![format!("target {name:?} is paused {end}; what it lacks waits for it, within the bounds of an outage")])
    }

    async fn resume(&self, name: &str) -> Result<Vec<String>, Error> {
        let row = self.row(name)?;
        if row.paused_until.is_some() {
            self.meta().set_paused(row.bit, None).map_err(internal)?;
            self.parts.live.replication.resume(row.bit);
            return Ok(vec![format!("target {name:?} goes on")]);
        }
        let ill = self.parts.live.replication.complaint(row.bit).is_some();
        if !ill {
            return Err(Error::new(ErrorKind::Usage, format!("target {name:?} is not paused"))
                .hint("tandemfs status says how it is"));
        }
        // A configuration that is invalid by now must not keep it from being asked.
        let renewed = self.renew(&row).unwrap_or_else(|error| {
            tracing::warn!(target_name = name, %error, "asked again with the credentials of before");
            false
        });
        self.parts.live.replication.recheck(row.bit);
        let with = if renewed { ", with what the configuration says now" } else { "" };
        Ok(vec![format!("target {name:?} is asked again{with}")])
    }

    /// Builds the store of a target anew from the configuration, if that is about the same place.
    fn renew(&self, row: &TargetRow) -> Result<bool, Error> {
        let config = self.parts.source.read()?;
        let Some(target) = config.targets.iter().find(|target| target.name == row.name && target.uri == row.uri) else {
            return Ok(false);
        };
        let store = Target::build(target, &self.parts.bandwidth)?;
        let mut list = self.list.lock();
        let Some(entry) = list.iter_mut().find(|entry| entry.bit == row.bit) else { return Ok(false) };
        entry.target.swap.swap(store);
        entry.target.config = target.clone();
        Ok(true)
    }

    async fn replace(&self, name: &str, uri: Option<&str>, force: bool) -> Result<Vec<String>, Error> {
        let row = self.row(name)?;
        let new = self.prepare(name, uri, Some(name))?;
        let new_uri = new.config.uri.clone();
        if new_uri == row.uri {
            return Err(Error::new(ErrorKind::Usage, format!("target {name:?} is at {new_uri} already"))
                .hint("give it another place; or begin anew in the same, empty one: tandemfs target add --fresh"));
        }
        match newcomer::meet(&new, self.meta().filesystem().map_err(internal)?).await? {
            Newcomer::OfThis(found) if found.target == row.id => {
                self.remember(&new, uri)?;
                self.meta().rename_target(row.bit, name, &new_uri).map_err(internal)?;
                self.exchange(row.bit, new);
                self.parts.live.replication.recheck(row.bit);
                Ok(vec![format!("target {name:?} is at {new_uri} from now on: the same objects lie there")])
            }
            Newcomer::OfThis(found) => Err(newcomer::known_already(name, &found, &self.rows()?)),
            Newcomer::Empty => {
                let mut lines = self.without(&row, true, force).await?;
                self.remember(&new, uri)?;
                self.take_out(&row).await?;
                self.take_in(new)?;
                lines.push(format!(
                    "target {name:?} is at {new_uri} from now on, and being filled; what lies at {} stays there",
                    row.uri
                ));
                Ok(lines)
            }
        }
    }

    /// Reads the configuration again. An invalid one changes nothing.
    pub async fn reload(&self) -> Result<Said, Error> {
        let config = self.parts.source.read().map_err(|error| {
            let error = Error::from(error);
            Error { message: format!("the old configuration stays: {}", error.message), ..error }
        })?;
        let mut lines = Vec::new();
        self.parts.bandwidth.change(&config, clock::minute_of_day());
        let changes = self.meta().target_changes().map_err(internal)?;
        let mut new = Vec::new();
        for target in &config.targets {
            match self.row(&target.name) {
                Ok(row) if row.uri == target.uri => {
                    if self.renew(&row)? {
                        self.parts.live.replication.recheck_if_ill(row.bit);
                    }
                }
                Ok(row) => lines.push(format!(
                    "target {:?} is at {}, the configuration says {}: tandemfs target replace MOUNTPOINT {}",
                    target.name, row.uri, target.uri, target.name
                )),
                Err(_) => {
                    let removed = changes.iter().any(|change| {
                        change.name == target.name
                            && change.uri.is_none()
                            && change.configured.as_ref() == Some(&target.uri)
                    });
                    match removed {
                        true => lines.push(format!(
                            "target {:?} was removed by command: take it out of the configuration, or tandemfs target add",
                            target.name
                        )),
                        false => new.push(target.name.clone()),
                    }
                }
            }
        }
        for row in self.rows()? {
            if config.targets.iter().all(|target| target.name != row.name) {
                lines.push(format!(
                    "target {:?} is not in the configuration; it stays until: tandemfs target remove MOUNTPOINT {}",
                    row.name, row.name
                ));
            }
        }
        *self.config.lock() = config;
        self.tell_fetcher();
        for name in new {
            let op = TargetOp::Add { name: name.clone(), uri: None, fresh: false };
            match self.change(op).await {
                Ok(said) => lines.extend(said.lines),
                Err(error) => lines.push(format!("target {name:?} was not added: {error}")),
            }
        }
        lines.push(
            "configuration read: credentials, bandwidth and new targets are in effect, all else from the next mount on"
                .into(),
        );
        for line in &lines {
            tracing::info!(said = line, "reloaded");
        }
        Ok(Said { lines })
    }

    /// Lets paused targets go on whose time has come.
    pub fn resume_due(&self) {
        let Ok(rows) = self.meta().targets() else { return };
        let now = clock::now().secs();
        for row in rows.iter().filter(|row| row.paused_until.is_some_and(|until| until <= now)) {
            if self.meta().set_paused(row.bit, None).is_ok() {
                tracing::info!(target_name = row.name, "the pause is over");
                self.parts.live.replication.resume(row.bit);
            }
        }
    }

    /// Remembers where a target is from now on, unless the configuration says just that.
    fn remember(&self, new: &Target, uri: Option<&str>) -> Result<(), Error> {
        let name = &new.config.name;
        let configured = self.configured(name);
        match uri {
            Some(uri) if configured.as_ref() != Some(&new.config.uri) => {
                let change = TargetChange { name: name.clone(), uri: Some(uri.to_owned()), configured };
                self.meta().remember_change(&change)
            }
            _ => self.meta().forget_change(name),
        }
        .map_err(internal)
    }

    /// Says what would be where without a target. Refuses when something would be lost, unless by force.
    async fn without(&self, row: &TargetRow, others: bool, force: bool) -> Result<Vec<String>, Error> {
        let (meta, bit) = (self.meta().clone(), row.bit);
        let counted = crate::aside::blocking(move || {
            let (mut without, mut after) = (Without::default(), ChunkId(0));
            while let Some(last) = meta.count_without(bit, after, PAGE, &mut without)? {
                after = last;
            }
            Ok::<_, meta::Error>(without)
        });
        let without = counted.await.map_err(|panic| Error::failed(panic.to_string()))?.map_err(internal)?;
        let rows = self.rows()?;
        let bytes = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
        let mut lines = Vec::new();
        if without.lost_chunks > 0 {
            let line = format!(
                "{} in {} objects are on target {:?} only, and nowhere else",
                bytes(without.lost_bytes),
                without.lost_chunks,
                row.name
            );
            if !force {
                return Err(Error::failed(line).hint(
                    "wait until another target has them (tandemfs status); with --force the files that they belong to can \
                     no longer be read",
                ));
            }
            lines.push(line);
        }
        if without.local_bytes > 0 {
            lines.push(format!(
                "{} will exist on this machine only, until another target has them",
                bytes(without.local_bytes)
            ));
        }
        for (bit, only) in without.single.iter().filter(|_| others) {
            if let Some(other) = rows.iter().find(|row| row.bit == *bit) {
                lines.push(format!("{} will exist on target {:?} only", bytes(*only), other.name));
            }
        }
        Ok(lines)
    }

    async fn take_out(&self, row: &TargetRow) -> Result<(), Error> {
        self.parts.live.replication.remove(row.bit).await;
        self.list.lock().retain(|entry| entry.bit != row.bit);
        self.tell_fetcher();
        self.meta().remove_target(row.bit).map_err(internal)?;
        let meta = self.meta().clone();
        let swept = crate::aside::blocking(move || {
            resync::settle(&meta)?;
            resync::sweep_retired(&meta)
        });
        swept.await.map_err(|panic| Error::failed(panic.to_string()))?.map_err(internal)
    }

    fn take_in(&self, new: Target) -> Result<TargetRow, Error> {
        let bit = self.meta().new_target(&new.config.name, &new.config.uri).map_err(internal)?;
        let asked = Asked { bit, name: new.config.name.clone(), target: new.store.clone() };
        let concurrency = new.config.concurrency;
        self.list.lock().push(Entry { bit, target: new });
        self.tell_fetcher();
        self.parts.live.replication.add(Replica { asked, concurrency, paused: false });
        let rows = self.rows()?;
        rows.into_iter().find(|row| row.bit == bit).ok_or_else(|| Error::failed("the new target has no row"))
    }

    /// The same target in another place.
    fn exchange(&self, bit: TargetBit, new: Target) {
        let mut list = self.list.lock();
        if let Some(entry) = list.iter_mut().find(|entry| entry.bit == bit) {
            // Whoever holds the target goes on with the one that it knows.
            entry.target.swap.swap(new.store.clone());
            entry.target.config = new.config;
        }
    }

    fn tell_fetcher(&self) {
        let list = self.list.lock();
        let source = |entry: &Entry| read::Source {
            bit: entry.bit,
            name: entry.target.config.name.clone(),
            target: entry.target.store.clone(),
            priority: entry.target.config.read_priority,
        };
        self.parts.fetcher.set_sources(list.iter().map(source).collect());
    }
}

fn utc(secs: i64) -> String {
    crate::clock::Timestamp::new(secs, 0).map(crate::format::utc).unwrap_or_default()
}

fn internal(error: meta::Error) -> Error {
    Error::failed(error.to_string())
}
