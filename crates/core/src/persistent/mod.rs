//! The description of a persistent reservation: its [`Declaration`], its audience
//! ([`Audience`]), and where it comes from ([`Origin`]).
//!
//! Files, the store, the agent's socket and the library describe it in the same words. So these types are in this
//! crate, which all of them use.

mod account;
mod audience;
mod declaration;
mod name;
mod origin;

pub use account::{Account, AudienceError, Correction};
pub use audience::{Audience, Others};
pub use declaration::{Declaration, check_description};
pub use name::{Name, NameError};
pub use origin::Origin;
