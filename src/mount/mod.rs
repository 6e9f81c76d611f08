//! Assembling the daemon: from a configuration to a mounted filesystem, and back.
//!
//! Owns: the state directory as a place, the order in which parts start and stop, background tasks by name, the answers
//! to `control`.
//! Does not own: what the parts do.

pub mod acknowledge;
pub mod adopt;
pub mod answers;
pub mod attention;
pub mod background;
pub mod bandwidth;
pub mod collector;
mod compacting;
pub mod daemon;
pub mod drain;
pub mod ending;
pub mod fill;
pub mod fuse_options;
pub mod live;
pub mod live_set;
pub mod log;
pub mod mountpoint;
pub mod nesting;
pub mod newcomer;
pub mod parts;
pub mod remount;
pub mod replication;
pub mod scrubs;
pub mod served;
pub mod settings;
pub mod state_dir;
pub mod store;
pub mod systemd;
pub mod table;
pub mod targets;
pub mod tasks;
pub mod unmount;
pub mod upkeep;
pub mod verify;
