//! The description of a persistent reservation: its [`Declaration`], its audience
//! ([`Who`]), and where it comes from ([`Origin`]).
//!
//! Files, the store, the agent's socket and the library say it in the same words;
//! so they are here, where all of them can see them.

mod declaration;
mod name;
mod origin;
mod who;

pub use declaration::{Declaration, check_description};
pub use name::{Name, NameError};
pub use origin::Origin;
pub use who::{Account, Who, WhoError};
