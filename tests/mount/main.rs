//! Real mounts, driven through the built program. Needs root and `/dev/fuse`.

#[path = "../support/mod.rs"]
mod support;

mod examples;
mod interruption;
mod programs;
mod whole_targets;
