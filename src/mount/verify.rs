//! What the stores of a mount really do, tried once per mount (T8): a store that cannot be relied on is named.
//!
//! Owns: trying each target after its first contact, keeping what came of it for `status`.
//! Does not own: the trials (`target::probe`).
//!
//! Nothing waits for it: objects of trials lie under `tmp/`, and uploads go on meanwhile. A trial that fails because the
//! target went away is made again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::live::Live;
use crate::replication::gate::Gate;
use crate::target::probe::{self, Finding, Outcome};

/// Between two looks at which targets are in contact by now.
const LOOK: Duration = Duration::from_secs(5);
/// Trials of one target in a mount, at most: one that fails again and again is what it is.
const TRIES: u32 = 3;

/// What was found, by name of the target.
#[derive(Debug, Default)]
pub struct Verified(Mutex<BTreeMap<String, (u32, Vec<Finding>)>>);

impl Verified {
    /// Sentences about stores that cannot be relied on.
    pub fn complaints(&self) -> Vec<String> {
        let verified = self.0.lock();
        let mut all = Vec::new();
        for (name, (_, findings)) in verified.iter() {
            for finding in findings {
                if let Outcome::Fails(why) = &finding.outcome {
                    all.push(format!(
                        "the store of target {name:?} cannot be relied on: {}: {why}; tandemfs check FILE shows all trials",
                        finding.what
                    ));
                }
            }
        }
        all
    }

    fn is_due(&self, name: &str) -> bool {
        let failed = |findings: &[Finding]| findings.iter().any(|finding| matches!(finding.outcome, Outcome::Fails(_)));
        self.0.lock().get(name).is_none_or(|(tries, findings)| failed(findings) && *tries < TRIES)
    }

    fn note(&self, name: &str, findings: Vec<Finding>) {
        let mut verified = self.0.lock();
        let (tries, kept) = verified.entry(name.to_owned()).or_default();
        *tries += 1;
        *kept = findings;
    }
}

/// Tries the targets of a mount as they come into contact; never ends.
pub async fn run(live: Arc<Live>) {
    loop {
        tokio::time::sleep(LOOK).await;
        for (asked, gate) in live.replication.targets() {
            if gate.state() != Gate::Open || !live.verified.is_due(&asked.name) {
                continue;
            }
            let findings = probe::table(asked.target.as_ref()).await;
            // It went away: that says nothing about what it does.
            if gate.state() != Gate::Open {
                continue;
            }
            for finding in &findings {
                match &finding.outcome {
                    Outcome::Works => tracing::debug!(target_name = asked.name, what = finding.what, "works"),
                    Outcome::Weak(instead) => {
                        tracing::info!(
                            target_name = asked.name,
                            what = finding.what,
                            instead,
                            "the store cannot do this"
                        );
                    }
                    Outcome::Fails(why) => {
                        tracing::warn!(target_name = asked.name, what = finding.what, why, "the store does this wrong");
                    }
                }
            }
            live.verified.note(&asked.name, findings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t8_a_store_that_does_something_wrong_is_named_and_one_that_is_weak_is_not() {
        let verified = Verified::default();
        assert!(verified.is_due("a"));
        let finding = |what, outcome| Finding { what, outcome };
        verified
            .note("a", vec![finding("write", Outcome::Works), finding("checksum", Outcome::Weak("by length".into()))]);
        assert!(!verified.is_due("a") && verified.complaints().is_empty());
        for _ in 0..TRIES {
            assert!(verified.is_due("b"));
            verified.note("b", vec![finding("list after write", Outcome::Fails("it is not listed".into()))]);
        }
        assert!(!verified.is_due("b"));
        let said = verified.complaints();
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("target \"b\"") && said[0].contains("list after write: it is not listed"), "{said:?}");
    }
}
