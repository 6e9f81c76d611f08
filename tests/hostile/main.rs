//! Hostile data: whatever a target, a configuration or a client of the control socket says, nothing panics, nothing is written
//! where it should not be, memory stays bounded, and what is restored is sound (D5).
//!
//! Each run mutates what lies in `tests/fixtures`, a seed for each; a failure names its seed. `TANDEMFS_HOSTILE=N` makes N
//! times as many runs as the short form.

mod buckets;
mod crafted;
#[path = "../fuzz/entries.rs"]
mod entries;
mod memory;
mod mutate;
mod parsers;

/// How many runs a test makes that makes `short` in the short form.
fn runs(short: u64) -> u64 {
    let times =
        std::env::var("TANDEMFS_HOSTILE").ok().map_or(1, |text| text.parse().expect("TANDEMFS_HOSTILE is a number"));
    short * times
}
