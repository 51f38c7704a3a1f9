//! Declarations of persistent reservations, and where they are kept.
//!
//! A **persistent reservation** exists until it is deleted, across reboots. It comes
//! from one of two places. A package or an administrator writes it in a drop-in file
//! ([`dropin`]), or a command puts it into the [`store`]. Both give [`Declaration`]s.
//! [`merge`](merge()) puts them together. If two have the same port, it decides which
//! of them is in force. [`config`] is the one configuration file.
//!
//! Nothing here uses the BPF programs or makes a socket. Any file, however damaged or
//! hostile, gives values or [`Diagnostic`]s with the line and column. It never causes
//! a panic.
//!
//! Every port in this crate is in host byte order.
//!
//! ```
//! use portkeep_persist::{Services, import};
//!
//! let text = "[[reservation]]\nname = \"db\"\ntcp = 5432\nunit = \"postgresql\"\n";
//! let wrong = import("db.toml".as_ref(), text, &Services::default()).unwrap_err();
//! assert_eq!(
//!     wrong[0].to_string(),
//!     "db.toml:4:8: \"postgresql\" is not the name of a service or scope: it ends in neither .service nor .scope\n\
//!      help: write \"postgresql.service\""
//! );
//! ```
#![forbid(unsafe_code)]

pub mod config;
mod diagnostic;
mod document;
pub mod dropin;
mod files;
mod merge;
pub mod portreserve;
mod services;
mod stanza;
pub mod store;

pub use config::Config;
pub use diagnostic::Diagnostic;
pub use merge::{Conflict, Declared, Merged, Reason, merge};
pub use portkeep_core::Services;
pub use portkeep_core::persistent::{Account, Audience, AudienceError, Declaration, Name, NameError, Origin};
pub use services::services;
pub use stanza::{export, import};
pub use store::{Store, StoreError, Stored};
