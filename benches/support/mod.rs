//! What the benches share: TandemFS as a program, and the trees and files that they work on.

#![allow(dead_code, reason = "each bench is a program of its own and needs another part")]

pub mod tandem;
pub mod work;
