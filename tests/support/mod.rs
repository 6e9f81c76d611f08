//! What the tests that drive the built program share.
//!
//! Each test binary uses a part of it.
#![allow(dead_code)]

pub mod helper;
pub mod mounted;
pub mod proxy;
pub mod run;
pub mod s3;
pub mod tree;
