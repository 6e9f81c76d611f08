//! `tandemfs scrub`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;

use super::progress::View;
use super::{Outcome, output, reach};
use crate::control::{self, Error, ErrorKind, Op};
use crate::scrub::{Cost, Level, Report};

/// Check the copies on the targets of a mount
///
/// Compares what every target lists with what it should hold; deeper levels read the bytes. Nothing is deleted. A pass that
/// is interrupted goes on at the next call with the same level.
#[derive(Debug, Args)]
pub struct Scrub {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// How thorough: names and lengths; one chunk in 64 read too; everything read, and the history restored on trial
    #[arg(long, value_enum, default_value = "list")]
    level: Level,
    /// Only this target; may be given several times
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// Replace bad copies, from this machine or from another target
    #[arg(long)]
    repair: bool,
    /// Read at most so much a second ("20MiB")
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<ByteSize>,
    /// Say what it would cost, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the reports as JSON
    #[arg(long)]
    json: bool,
}

impl Scrub {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let request = control::Scrub {
            level: self.level,
            targets: self.targets,
            repair: self.repair,
            bytes_per_second: self.bandwidth.map(|rate| rate.as_u64()),
        };
        let entry = reach::mounted_at(&self.mountpoint)?;
        let costs: Vec<Cost> = reach::connect(&entry)?.call(Op::ScrubCost(request.clone()), |_| ())?;
        for Cost { target, requests, bytes } in &costs {
            let (requests, bytes) = (output::count(*requests, "request"), output::bytes(*bytes));
            eprintln!("{target}: at most {requests}, {bytes} to read");
        }
        if self.dry_run {
            return Ok(());
        }
        let mut view = View::stderr();
        let reports = reach::connect(&entry)?.call::<Vec<Report>>(Op::Scrub(request), |progress| view.show(&progress));
        view.finish();
        let reports = reports?;
        if self.json {
            let text = serde_json::to_string(&reports).map_err(|e| Error::failed(e.to_string()))?;
            output::print(&format!("{text}\n"))?;
        } else {
            for report in &reports {
                output::print(&describe(report))?;
            }
        }
        verdict(&reports, self.repair)
    }
}

fn verdict(reports: &[Report], repair: bool) -> Outcome {
    let names = |test: fn(&Report) -> bool| {
        let names: Vec<_> = reports.iter().filter(|report| test(report)).map(|report| report.target.as_str()).collect();
        names.join(", ")
    };
    if !reports.iter().all(Report::is_clean) {
        let hint = match repair {
            true => "what could not be repaired is named in: tandemfs status",
            false => "replace bad copies from this machine or another target: tandemfs scrub --repair",
        };
        let bad = names(|report| !report.is_clean());
        return Err(Error::new(ErrorKind::Findings, format!("not every copy is good on {bad}")).hint(hint));
    }
    if reports.iter().any(|report| report.unverifiable > 0) {
        let silent = names(|report| report.unverifiable > 0);
        return Err(Error::failed(format!("not every copy could be checked on {silent}"))
            .hint("call it again when the target answers: it goes on where it stopped"));
    }
    Ok(())
}

fn describe(report: &Report) -> String {
    let count = output::count;
    let mut text = format!("{}: {} there", report.target, count(report.listed, "chunk"));
    if report.verified > 0 {
        text += &format!(", {} of them read and right ({})", report.verified, output::bytes(report.verified_bytes));
    }
    if report.bad > 0 {
        text +=
            &format!(", {} ({} repaired)", count(report.bad, "bad copy").replace("copys", "copies"), report.repaired);
    }
    if report.unverifiable > 0 {
        let why = report.unverifiable_reason.as_deref().unwrap_or("no answer");
        text += &format!(", {} unverifiable: {why}", report.unverifiable);
    }
    text.push('\n');
    for finding in &report.findings {
        text += &format!("  {:?}: {}\n", finding.problem, finding.key).to_lowercase();
    }
    if let Some(history) = &report.history {
        text += &format!("  its history cannot be restored: {history}\n");
    }
    if report.unneeded > 0 {
        let bytes = output::bytes(report.unneeded_bytes);
        text += &format!("  {} that nothing refers to ({bytes})\n", count(report.unneeded, "chunk"));
    }
    if report.foreign > 0 {
        text += &format!("  {} not of ours below chunks/, left alone\n", count(report.foreign, "object"));
    }
    text
}
