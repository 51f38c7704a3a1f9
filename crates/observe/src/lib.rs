//! The ports and accounts of this machine, as it shows them. [`usage`] has the sockets of a port with their processes;
//! [`facts`] has the settings and rules that concern it. This crate only reads.
//!
//! Everything concerns the calling thread's network namespace. Root sees all processes, and other users see only their
//! own. The kernel lists the sockets to everybody.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod accounts;
pub mod facts;
pub mod listing;
pub mod namespaces;
pub mod nat;
mod netlink;
pub mod process;
mod sock_diag;
pub mod sockets;
pub mod subordinate;
pub mod sysctl;
pub mod usage;

pub use facts::{Facts, PortFacts};
pub use usage::{PortUse, Usage};
