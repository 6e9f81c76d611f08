//! The bandwidth limits of a mount, as the day goes on.
//!
//! Owns: one limit for each target and one for all, which schedule each follows, changing them while the mount runs.
//! Does not own: what a schedule says and how a limit is kept (`target::pace`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Config;
use crate::target::pace::{Limit, Pacer, Rate, Schedule};

/// The limits of a mount.
#[derive(Debug)]
pub struct Bandwidth {
    shared: Arc<Limit>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    shared: Schedule,
    /// By name of the target.
    targets: BTreeMap<String, (Schedule, Arc<Limit>)>,
}

impl Bandwidth {
    /// The limits of a configuration at this minute of the day.
    pub fn new(config: &Config, minute: u16) -> Bandwidth {
        let bandwidth = Bandwidth { shared: Limit::new(Rate::Unlimited), state: Mutex::default() };
        bandwidth.change(config, minute);
        bandwidth
    }

    /// Takes the schedules of another configuration; bodies that are on their way follow at their next frame.
    pub fn change(&self, config: &Config, minute: u16) {
        {
            let mut state = self.state.lock();
            state.shared = config.bandwidth.clone();
            for target in &config.targets {
                let limit = || (Schedule::default(), Limit::new(Rate::Unlimited));
                state.targets.entry(target.name.clone()).or_insert_with(limit).0 = target.bandwidth.clone();
            }
        }
        self.apply(minute);
    }

    /// What keeps one target to its limit and to that of all.
    pub fn pacer(&self, target: &str) -> Pacer {
        let own = self.state.lock().targets.get(target).map(|(_, limit)| limit.clone());
        Pacer::new(own.unwrap_or_else(|| Limit::new(Rate::Unlimited)), self.shared.clone())
    }

    /// The rate of one target now, without that of all.
    pub fn rate(&self, target: &str) -> Rate {
        self.state.lock().targets.get(target).map(|(_, limit)| limit.rate()).unwrap_or_default()
    }

    /// Sets every limit to what its schedule says for this minute of the day.
    pub fn apply(&self, minute: u16) {
        let state = self.state.lock();
        self.shared.set(state.shared.rate_at(minute));
        for (schedule, limit) in state.targets.values() {
            limit.set(schedule.rate_at(minute));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml(text, Path::new("t.toml")).unwrap()
    }

    #[test]
    fn limits_follow_the_day_and_a_changed_configuration() {
        let text = "[target.a]\nuri = \"fs:///a\"\n\
                    bandwidth = { \"08:00-18:00\" = \"5 MiB/s\", \"12:00-13:00\" = \"off\" }\n";
        let overlapping = Config::from_toml(text, Path::new("t.toml")).unwrap_err();
        assert!(overlapping.to_string().contains("overlaps"), "{overlapping}");
        let bandwidth = Bandwidth::new(&config(&text.replace("12:00", "18:00").replace("13:00", "19:00")), 8 * 60);
        assert_eq!(bandwidth.rate("a").to_string(), "5.0 MiB/s");
        bandwidth.apply(18 * 60);
        assert_eq!(bandwidth.rate("a"), Rate::Closed);
        bandwidth.apply(19 * 60);
        assert_eq!(bandwidth.rate("a"), Rate::Unlimited);
        bandwidth.change(&config("[target.a]\nuri = \"fs:///a\"\nbandwidth = \"1 MiB/s\"\n"), 19 * 60);
        assert_eq!(bandwidth.rate("a").to_string(), "1.0 MiB/s");
    }
}
