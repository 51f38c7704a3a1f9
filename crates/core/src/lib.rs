//! The vocabulary and the rules of Portkeep, without any I/O.
//!
//! A **reservation** is a block of ports of one transport (or, with `both`, of
//! TCP and UDP) in one network namespace, for IPv4 and IPv6 and all local
//! addresses together, named by a [`Token`]. This crate holds what every other
//! part must agree on: the types with those names, the structures that travel
//! through `setsockopt` ([`wire`]), and the token cipher ([`cipher`]).
//!
//! Every port in this crate is in host byte order.
#![forbid(unsafe_code)]

mod align;
pub mod cipher;
pub mod defaults;
pub mod ephemeral;
mod errno;
mod list_mark;
pub mod persistent;
pub mod port_list;
mod port_set;
mod ports;
mod scope;
mod services;
pub mod time;
mod token;
mod transport;
pub mod wire;
mod words;

pub use align::{Align, AlignError};
pub use errno::Errno;
pub use list_mark::ListMark;
pub use port_list::{PortList, Ports, split_transports};
pub use port_set::{ParsePortSetError, PortSet};
pub use ports::{ParsePortsError, PortRange, PortRangeError};
pub use scope::Scope;
pub use services::Services;
pub use time::Time;
pub use token::Token;
pub use transport::{Transport, Transports};
pub use words::{nearest, shown};
