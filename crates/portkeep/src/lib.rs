//! Kernel-enforced port reservations for Linux.
#![deny(missing_docs)]

mod bind;
pub mod control;
mod enforcement;
mod error;
mod held;
mod info;
mod pending;
mod query;
mod request;
mod reservation;
mod socket;
mod sys;

pub use enforcement::{Enforcement, Require};
pub use error::{AcquireError, AssociateError, BindError, ConnectError, MalformedRequest, QueryError, ReleaseError};
pub use info::{Info, State, Version};
pub use pending::Pending;
pub use portkeep_core::{Errno, PortRange, PortRangeError, Scope, Token, Transport, Transports};
pub use query::{enforcement, list, lookup, version, who};
pub use request::Request;
pub use reservation::{Parts, Reservation, release};
pub use socket::PortkeepSocket;
