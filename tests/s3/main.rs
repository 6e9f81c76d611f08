//! Real mounts with buckets on a real S3 protocol server. Needs root and `/dev/fuse`.

#[path = "../support/mod.rs"]
mod support;

mod clouds;
mod faults;
mod foreign;
mod outage;
mod parts;
mod secrets;
mod stage;
mod table;
