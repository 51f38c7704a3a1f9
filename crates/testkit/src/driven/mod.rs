//! Processes that follow commands: each is a real process with real descriptors. A socket of its own connects it to the
//! driver, so a test can write a history of many processes as one sequence of calls.
//! The first one, the *nursery*, is the test binary itself, started again with
//! The first process, the *nursery*, is the test binary itself, started again with the hidden entry [`entry`]. All
//! others are forked from it or from each other. If a process loses its driver, it ends by itself.

mod channel;
mod process;
mod worker;

pub use process::Process;
pub use worker::{Answer, Command, entry};
