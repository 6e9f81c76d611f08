//! Progress of long requests: a bar per target on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::clock::{self, Instant};
use crate::control::protocol::Phase;
use crate::control::{Progress, TargetProgress};

/// Seconds between lines where there is no terminal.
const LINE_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// Shows reports as they come.
pub enum View {
    /// Bars.
    Terminal { bars: MultiProgress, targets: BTreeMap<String, Bar> },
    /// Lines, at most one every [`LINE_EVERY`], and only when something changed.
    Lines { shown: String, next: Instant },
}

/// One target's bar. The length is the most that ever waited, as more may come meanwhile.
pub struct Bar {
    bar: ProgressBar,
    waited_max: u64,
}

impl View {
    /// A view for stderr, as results go to stdout.
    pub fn stderr() -> View {
        if std::io::stderr().is_terminal() {
            View::Terminal { bars: MultiProgress::new(), targets: BTreeMap::new() }
        } else {
            View::Lines { shown: String::new(), next: Instant::START }
        }
    }

    /// Shows a report.
    pub fn show(&mut self, progress: &Progress) {
        match self {
            View::Terminal { bars, targets } => {
                for target in &progress.targets {
                    let bar = targets.entry(target.name.clone()).or_insert_with(|| Bar::new(bars, &target.name));
                    bar.show(target);
                }
            }
            View::Lines { shown, next } => {
                let now = clock::instant();
                let line = line(progress);
                if now >= *next && line != *shown {
                    eprintln!("{line}");
                    *shown = line;
                    *next = now + LINE_EVERY;
                }
            }
        }
    }

    /// Leaves the terminal as a log of what was reached.
    pub fn finish(&mut self) {
        if let View::Terminal { targets, .. } = self {
            for bar in targets.values() {
                bar.bar.abandon();
            }
        }
    }
}

impl Bar {
    fn new(bars: &MultiProgress, name: &str) -> Bar {
        let style = ProgressStyle::with_template("{prefix:>12} [{bar:30}] {msg}")
            .expect("the template is valid")
            .progress_chars("=> ");
        let bar = bars.add(ProgressBar::new(0).with_style(style).with_prefix(name.to_owned()));
        Bar { bar, waited_max: 0 }
    }

    fn show(&mut self, target: &TargetProgress) {
        // Records and objects count a little, so that the bar also moves when there are few bytes.
        let waits = target.pending_bytes + 4096 * (target.pending_objects + target.pending_records);
        self.waited_max = self.waited_max.max(waits).max(1);
        self.bar.set_length(self.waited_max);
        self.bar.set_position(if target.done { self.waited_max } else { self.waited_max - waits });
        self.bar.set_message(target.lacks());
    }
}

fn line(progress: &Progress) -> String {
    let phase = match progress.phase {
        Phase::Sealing => "sealing",
        Phase::Draining => "draining",
        Phase::Unmounting => return "unmounting".into(),
        Phase::Scrubbing => "scrubbing",
    };
    let targets: Vec<String> = progress.targets.iter().map(ToString::to_string).collect();
    format!("{phase}: {}", targets.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_each_target_lacks() {
        let target = TargetProgress {
            name: "aws".into(),
            pending_bytes: 3 << 20,
            pending_objects: 1,
            pending_records: 12,
            done: false,
            reason: Some("down".into()),
        };
        let whole = TargetProgress { name: "oss".into(), done: true, ..target.clone() };
        let progress = Progress { phase: Phase::Draining, targets: vec![target, whole] };
        assert_eq!(line(&progress), "draining: aws lacks 3.0 MiB in 1 object, 12 records (down); oss whole");
    }
}
