//! `tandemfs check`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use super::output;
use crate::clock;
use crate::config::Config;
use crate::control::{Error, ErrorKind};
use crate::format::key;
use crate::format::superblock::{BYTES_MAX, Superblock};
use crate::mount::bandwidth::Bandwidth;
use crate::mount::settings::Target;
use crate::target::probe::{self, Finding};
use crate::target::{self, Kind};

/// How long one target is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is said of a directory that is not made yet.
const NOT_THERE: &str = "does not exist yet; the first mount makes it";

/// Validate a configuration and try its targets
///
/// Reads the file, then asks every target who it is and what its store can do. Writes nothing but objects under tmp/ that
/// it removes again, and these only where a place exists.
#[derive(Debug, Args)]
pub struct Check {
    /// TOML file, as for mount
    file: PathBuf,
}

/// What one target answered.
struct Answer {
    name: String,
    uri: String,
    says: Result<String, target::Error>,
    /// What its store does, where it could be tried.
    table: Vec<Finding>,
}

impl Check {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let config = Config::load(&self.file)?;
        if config.targets.is_empty() {
            return Err(Error::new(ErrorKind::Usage, format!("{} names no target", self.file.display()))
                .hint("add a table [target.NAME] with its uri"));
        }
        let targets = Target::all(&config, &Bandwidth::new(&config, clock::minute_of_day()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::failed(format!("start: {e}")))?;
        let answers = runtime.block_on(futures::future::join_all(targets.iter().map(ask)));
        output::print(&format!("{}: valid, {}\n", self.file.display(), output::count(answers.len() as u64, "target")))?;
        let (mut failed, mut unreliable) = (Vec::new(), Vec::new());
        for answer in answers {
            let says = match &answer.says {
                Ok(says) => says.clone(),
                Err(error) => {
                    failed.push(answer.name.clone());
                    format!("FAILED: {}", error.message)
                }
            };
            output::print(&format!("  {:<12} {}\n  {:<12} {says}\n", answer.name, answer.uri, ""))?;
            if answer.table.iter().any(|finding| matches!(finding.outcome, probe::Outcome::Fails(_))) {
                unreliable.push(answer.name.clone());
            }
            for finding in &answer.table {
                output::print(&line(finding))?;
            }
        }
        if !unreliable.is_empty() {
            return Err(Error::failed(format!("the store of {} cannot be relied on", unreliable.join(", ")))
                .hint("what it does wrong is in the table above: use another store, or have this one mended"));
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::failed(format!("cannot use {}", failed.join(", ")))
            .hint("a mount works without them and brings them up to date once they answer"))
    }
}

async fn ask(target: &Target) -> Answer {
    let says = match tokio::time::timeout(PATIENCE, identify(target)).await {
        Ok(says) => says,
        Err(_) => Err(target::Error {
            kind: Kind::Unreachable,
            class: target::Class::Temporary,
            operation: "get",
            key: key::SUPERBLOCK.into(),
            message: format!("no answer within {} s", PATIENCE.as_secs()),
            retry_after: None,
        }),
    };
    // Only where something is there to be tried.
    let table = match &says {
        Ok(says) if says != NOT_THERE => tokio::time::timeout(PATIENCE, probe::table(target.store.as_ref())).await,
        _ => Ok(Vec::new()),
    };
    let table = table.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", PATIENCE.as_secs());
        vec![Finding { what: "write, read, list and remove", outcome: probe::Outcome::Fails(why) }]
    });
    Answer { name: target.config.name.clone(), uri: target.config.uri.clone(), says, table }
}

/// A line of the table.
fn line(finding: &Finding) -> String {
    let outcome = match &finding.outcome {
        probe::Outcome::Works => "works",
        probe::Outcome::Weak(instead) => instead,
        probe::Outcome::Fails(why) => &format!("FAILS: {why}"),
    };
    format!("  {:<14} {:<28} {outcome}\n", "", finding.what)
}

async fn identify(target: &Target) -> target::Result<String> {
    let holds = match target.store.get(key::SUPERBLOCK, BYTES_MAX).await {
        Ok(bytes) => match Superblock::decode(&bytes) {
            Ok(superblock) => format!(
                "holds filesystem {:?} ({}) as target {:?}",
                superblock.name, superblock.filesystem, superblock.target_name
            ),
            Err(error) => format!("holds a tandemfs.json that cannot be read: {error}"),
        },
        // A directory that is not there yet is made by the first mount, if its parent is.
        Err(_) if target.directory().is_some_and(can_be_made) => {
            return Ok(NOT_THERE.into());
        }
        Err(error) if error.kind == Kind::NotFound => "empty".into(),
        Err(error) => return Err(error),
    };
    let abilities = target.store.abilities().await?;
    let creates = if abilities.create_only { "refuses to create twice" } else { "creates twice: fencing is weak" };
    let checks = if abilities.checksum { "verifies checksums" } else { "is checked by length" };
    Ok(format!("{holds}; {creates}, {checks}"))
}

fn can_be_made(directory: &std::path::Path) -> bool {
    !directory.exists() && directory.parent().is_some_and(std::path::Path::is_dir)
}
