//! Real mounts, driven through the built program. Needs root and `/dev/fuse`.

#[path = "../support/mod.rs"]
mod support;

mod ack;
mod adopted;
mod bandwidth;
mod cache;
mod clocks;
mod compaction;
mod damage;
mod disk_full;
mod everyday;
mod examples;
mod fencing;
mod fixtures;
mod fstab;
mod half_created;
mod interruption;
mod lent;
mod outage;
mod passthrough;
mod programs;
mod requests;
mod scrub;
mod sparse;
mod targets;
mod upload;
mod users;
mod whole_targets;
