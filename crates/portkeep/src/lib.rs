//! Kernel-enforced port reservations for Linux.

pub mod control;

pub use portkeep_core::{Errno, PortRange, Scope, Token, Transport, Transports};
