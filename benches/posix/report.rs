//! Times, ratios, and the table.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cost::Cost;
use crate::works::Work;

/// What a goal is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Ext4,
    Null,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Beside::Ext4 => "ext4",
            Beside::Null => "null",
        }
    }
}

/// How much a kind of work shall cost at most.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    pub beside: Beside,
    pub ratio: f64,
}

/// The times of all rounds.
pub struct Report {
    systems: Vec<String>,
    /// Kinds of work in the order in which they were done, with their times by system and round.
    rows: Vec<(Work, Costs)>,
}

/// What one kind of work cost, by system and round.
type Costs = BTreeMap<(String, usize), Cost>;

/// The times of one kind of work, by system and round.
type Times = BTreeMap<(String, usize), Duration>;

/// Median, lowest and highest of some ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Report {
    pub fn new(systems: &[String]) -> Report {
        Report { systems: systems.to_vec(), rows: Vec::new() }
    }

    pub fn add(&mut self, work: Work, system: &str, round: usize, cost: Cost) {
        let place = self.rows.iter().position(|(known, _)| *known == work).unwrap_or_else(|| {
            self.rows.push((work, Costs::new()));
            self.rows.len() - 1
        });
        self.rows[place].1.insert((system.to_owned(), round), cost);
    }

    /// Prints the tables, in Markdown.
    pub fn print(&self) {
        println!("## Time\n");
        self.print_table(true, |cost| cost.wall);
        println!("\n## Processor time, of the program and of the daemon\n");
        self.print_table(false, |cost| cost.processor);
    }

    fn print_table(&self, with_goals: bool, value: impl Fn(&Cost) -> Duration) {
        let measured: Vec<&String> = self.systems.iter().filter(|name| *name != "ext4" && *name != "null").collect();
        let base: Vec<Beside> =
            [Beside::Ext4, Beside::Null].into_iter().filter(|b| self.systems.iter().any(|s| s == b.name())).collect();
        let mut head: Vec<String> = vec!["work".into()];
        head.extend(self.systems.iter().map(|name| format!("{name}, ms")));
        for name in &measured {
            head.extend(base.iter().map(|beside| format!("{name} × {}", beside.name())));
        }
        if let [first, second] = measured[..] {
            head.push(format!("{first} × {second}"));
        }
        if with_goals {
            head.push("goal".into());
        }
        println!("| {} |", head.join(" | "));
        println!("|{}", "---|".repeat(head.len()));
        for (work, costs) in &self.rows {
            let times: Times = costs.iter().map(|(place, cost)| (place.clone(), value(cost))).collect();
            let times = &times;
            let mut cells: Vec<String> = vec![work.name().into()];
            cells.extend(self.systems.iter().map(|name| milliseconds(times, name)));
            for name in &measured {
                cells.extend(base.iter().map(|beside| show(ratios(times, name, beside.name()))));
            }
            if let [first, second] = measured[..] {
                cells.push(show(ratios(times, first, second)));
            }
            if with_goals {
                cells.push(judge(*work, times));
            }
            println!("| {} |", cells.join(" | "));
        }
    }
}

fn judge(work: Work, times: &Times) -> String {
    let Goal { beside, ratio } = work.goal();
    let goal = format!("≤ {ratio} × {}", beside.name());
    match ratios(times, "tandem", beside.name()) {
        Some(spread) if spread.median <= ratio => format!("{goal}: held"),
        Some(spread) => format!("{goal}: missed by {:.0} %", (spread.median / ratio - 1.0) * 100.0),
        None => goal,
    }
}

fn milliseconds(times: &Times, system: &str) -> String {
    let all: Vec<f64> =
        times.iter().filter(|((name, _), _)| name == system).map(|(_, took)| took.as_secs_f64() * 1e3).collect();
    match spread(all) {
        Some(Spread { median, .. }) if median < 100.0 => format!("{median:.1}"),
        Some(Spread { median, .. }) => format!("{median:.0}"),
        None => "–".into(),
    }
}

/// The ratios of the two times of each round.
fn ratios(times: &Times, ours: &str, theirs: &str) -> Option<Spread> {
    let of_round = times.iter().filter(|((name, _), _)| name == ours).filter_map(|((_, round), took)| {
        let other = times.get(&(theirs.to_owned(), *round))?;
        Some(took.as_secs_f64() / other.as_secs_f64())
    });
    spread(of_round.collect())
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    Some(Spread { median, low, high })
}

fn show(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |Spread { median, low, high }| format!("{median:.2} ({low:.2}–{high:.2})"))
}
