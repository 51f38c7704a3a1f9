//! Processes that follow commands: each is a real process with real
//! descriptors, driven over a socket of its own, so that a test can write down
//! a history of many processes as one sequence of calls.
//!
//! The first one, the *nursery*, is the test binary itself, started again with
//! the hidden entry [`entry`]; all others are forked from it or from each
//! other. A process that loses its driver ends by itself.

mod channel;
mod process;
mod worker;

pub use process::Process;
pub use worker::{Answer, Command, entry};
