//! The command line: bad input touches nothing and says what to do, help and JSON stay as documented, the demo works.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod demo;
mod help;
mod hygiene;
mod status;
