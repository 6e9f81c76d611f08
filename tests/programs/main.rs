//! Programs that people run, on a real mount: none notices that it is not ext4. Needs root and `/dev/fuse`.

#[path = "../support/mod.rs"]
mod support;

mod build;
mod databases;
mod editors;
mod git;
mod kernel;
mod postgres;
mod tools;
