//! POSIX on a real mount: the standard suites, and the same calls on the mount and on a plain directory. Needs root and
//! `/dev/fuse`.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod busy;
mod calls;
mod fsx;
mod listing;
mod pjdfstest;
mod twins;
