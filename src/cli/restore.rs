//! `tandemfs restore`.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::Outcome;
use super::output::{self, bytes, count, thousands};
use crate::config::{self, Config, TargetConfig};
use crate::control::{Error, ErrorKind};
use crate::format::key;
use crate::format::superblock::{BYTES_MAX, Superblock};
use crate::mount::{fill, log};
use crate::restore::{self, Report, Source, Step};
use crate::target::DynTarget;
use crate::target::pace::Pacer;
use crate::testing::failpoint;

/// Rebuild a filesystem from targets alone
///
/// Makes a new state directory from one target, or from several whose histories are put together. Nothing is written to any
/// target. Mount with that state directory afterwards; bytes of files come when they are read, or all at once with --full.
#[derive(Debug, Args)]
pub struct Restore {
    /// A target: its URI, or with --config its name; may be given several times
    #[arg(long, required = true, value_name = "URI")]
    from: Vec<String>,
    /// Where the restored state shall lie: a new or empty directory
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Fetch the bytes of all files now
    #[arg(long)]
    full: bool,
    /// TOML file that describes the targets named with --from
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Restore {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        failpoint::arm().map_err(|problem| Error::new(ErrorKind::Usage, problem))?;
        let config = self.config.as_deref().map(Config::load).transpose()?;
        let targets = self.from.iter().map(|from| find(from, config.as_ref())).collect::<Result<Vec<_>, Error>>()?;
        let state_dir = std::path::absolute(&self.state_dir)
            .map_err(|e| Error::new(ErrorKind::Usage, format!("{}: {e}", self.state_dir.display())))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::failed(format!("start threads: {e}")))?;
        let sources = runtime.block_on(futures::future::try_join_all(targets.iter().map(source)))?;
        let named = sources.iter().map(|source| (source.name.clone(), source.target.clone())).collect::<Vec<_>>();
        let options = restore::Options { progress: Some(Box::new(|step| eprintln!("{}", describe(step)))) };
        let report = runtime.block_on(restore::restore(sources, &state_dir, options)).map_err(refusal)?;
        drop(runtime);
        output::print(&text(&report))?;
        if self.full {
            fetch_all(&state_dir, &named, report.bytes)?;
        }
        output::print(&format!(
            "now mount it: tandemfs mount MOUNTPOINT --state-dir {} {}\n",
            state_dir.display(),
            arguments(&self.config, &named, &self.from)
        ))
    }
}

/// A target by its name in the configuration, or by its URI.
fn find(from: &str, config: Option<&Config>) -> Result<TargetConfig, Error> {
    let named = config.and_then(|config| config.targets.iter().find(|target| target.name == from));
    match (named, config) {
        (Some(target), _) => Ok(target.clone()),
        (None, Some(config)) if !from.contains("://") => {
            let names: Vec<&str> = config.targets.iter().map(|target| target.name.as_str()).collect();
            Err(Error::new(ErrorKind::Usage, format!("the configuration has no target {from:?}"))
                .hint(format!("it has: {}", names.join(", "))))
        }
        _ => Ok(TargetConfig::from_uri("restored", from)?),
    }
}

/// The target as a source, under the name that it was given when the filesystem was mounted.
async fn source(target: &TargetConfig) -> Result<Source, Error> {
    let store = config::build(target, Pacer::default())?;
    let name = match store.get(key::SUPERBLOCK, BYTES_MAX).await.ok().and_then(|bytes| Superblock::decode(&bytes).ok())
    {
        Some(superblock) => superblock.target_name,
        // The restore itself says what is wrong.
        None => target.uri.clone(),
    };
    Ok(Source { target: store, name, uri: target.uri.clone() })
}

fn refusal(error: restore::Error) -> Error {
    let hint = error.hint();
    let kind = match error {
        restore::Error::NotEmpty(_) | restore::Error::SameTarget { .. } => ErrorKind::Usage,
        _ => ErrorKind::Failed,
    };
    Error { kind, message: error.to_string(), hint }
}

fn describe(step: &Step) -> String {
    match step {
        Step::Checkpoint { source, seq, bytes } => {
            format!("{source}: checkpoint {seq}, {}", output::bytes(*bytes))
        }
        Step::Segments { source, count } => format!("{source}: {}", output::count(*count, "segment")),
        Step::Chunks { source } => format!("{source}: listing chunks"),
    }
}

/// What was restored, and what was not.
fn text(report: &Report) -> String {
    let mut text = format!(
        "restored {:?}: {} with {}, as of change {}\n",
        report.name,
        count(report.inodes, "inode"),
        bytes(report.bytes),
        thousands(report.seq.0)
    );
    for source in &report.sources {
        let whole =
            if source.whole { "holds all of it" } else { "lacks the newest changes, will be brought up to date" };
        text += &format!("  {:<12} {whole}", source.name);
        if source.missing_chunks > 0 {
            text += &format!(", lacks {}", count(source.missing_chunks, "chunk"));
        }
        if source.foreign_objects > 0 {
            text += &format!(", ignored {}", count(source.foreign_objects, "foreign object"));
        }
        text.push('\n');
    }
    for unproven in &report.unproven {
        text += &format!("  not proven: {unproven}\n");
    }
    if report.lost_chunks > 0 {
        text += &format!(
            "  LOST: {} ({}) that files refer to, for example {}\n",
            count(report.lost_chunks, "chunk"),
            bytes(report.lost_bytes),
            report.lost_examples.join(", ")
        );
    }
    text
}

fn fetch_all(state_dir: &std::path::Path, targets: &[(String, DynTarget)], total: u64) -> Result<(), Error> {
    log::start(state_dir, false).map_err(|e| Error::failed(format!("write a log in {}: {e}", state_dir.display())))?;
    let style = ProgressStyle::with_template("fetching [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} to go")
        .expect("the template is valid");
    let bar = ProgressBar::new(total).with_style(style);
    let missing = fill::fill(state_dir, targets, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    if missing == 0 {
        return output::print("all bytes are here\n");
    }
    Err(Error::failed(format!("{} could not be fetched from any target", count(missing, "chunk")))
        .hint("mount all the same: files are complete but for these; the log in the state directory names them"))
}

/// How the same targets are named at the mount: as they were written, so that variables stand where secrets were.
fn arguments(config: &Option<PathBuf>, named: &[(String, DynTarget)], from: &[String]) -> String {
    if let Some(path) = config {
        return format!("--config {}", path.display());
    }
    let argument = |((name, _), uri): (&(String, DynTarget), &String)| format!("--target {name}='{uri}'");
    named.iter().zip(from).map(argument).collect::<Vec<_>>().join(" ")
}
