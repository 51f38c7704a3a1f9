//! The commands, one module for each.

pub(crate) mod acquire;
pub(crate) mod adopt;
pub(crate) mod agent;
pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod excludedportrange;
pub(crate) mod list;
pub(crate) mod persist;
pub(crate) mod portserver;
pub(crate) mod release;
pub(crate) mod reload;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod upgrade;
pub(crate) mod watch;
pub(crate) mod who;
