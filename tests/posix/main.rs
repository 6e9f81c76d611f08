//! POSIX on a real mount: the standard suites, and the same calls on the mount and on a plain directory. Needs root and
//! `/dev/fuse`.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod busy;
mod fsx;
mod listing;
mod pjdfstest;
#[path = "../../src/testing/posix/mod.rs"]
mod posix;
mod twins;

use posix::syscall as calls;
