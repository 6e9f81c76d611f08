//! What tests break the system with. Compiled for tests and with the feature `testing` only.
//!
//! Owns: stores that fail on purpose. Does not own: what must still hold then (each test says that itself).

pub mod faulty;
