//! Crashes of the real daemon under a real mount: kills, power cuts, disk errors. Needs root and `/dev/fuse`; power cuts
//! need loop devices, too.
//!
//! Owns: the comparison of what is there after a crash with the record of what was acknowledged before.
//! Does not own: rules one by one (beside the code).
//!
//! The forms in `cargo test` are short. The long ones take their length from the environment (`docs/testing.md`):
//! `TANDEMFS_KILLS`, `TANDEMFS_CUTS`, `TANDEMFS_PGBENCH_SECS`, `TANDEMFS_STARTUP`; `TANDEMFS_SEED` repeats the choices of one.

#[path = "../support/mod.rs"]
mod support;

mod disk_errors;
mod kill;
mod model;
mod past;
mod policies;
mod postgres;
mod power;
mod rig;
mod startup;
mod workload;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// The seed of a run: printed, so that it can be repeated. The short form makes the same choices each time.
fn seed(of: &str) -> u64 {
    let seed = setting("TANDEMFS_SEED", 1);
    eprintln!("{of}: TANDEMFS_SEED={seed}");
    seed
}
