//! The agent does what the BPF programs cannot do alone.
//!
//! Wildcard requests require no agent. A request for particular ports outside the pool is entered as pending. It waits
//! until the agent has checked whether its ports are vacant (`examine`). Meanwhile it keeps nobody from a port: if a
//! bind comes first, the request is refused. The agent also keeps `ip_local_reserved_ports` in step
//! (`reserved_ports`), marks pool ports that were in use before `up` (`set_aside`), and writes the log.
//!
//! The kernel is the database: the agent may be killed at any moment. Granted reservations stay granted. Requests that
//! require it fail with ENETDOWN from the moment its sockets close. The next agent starts by putting everything right.
//! Events only show where something changed; a round through the maps finds the same.
//!
//! Users decide how much work there is. So every round of the loop does a bounded amount of each kind of work, and
//! `pending` requests are handled in turn by account.

#![forbid(unsafe_code)]

mod after_up;
mod agent;
mod answer;
mod audience_check;
mod budget;
mod connection;
mod event_lists;
mod event_log;
mod examine;
mod foreground;
mod namespaces;
mod offenders;
mod options;
mod overlap;
mod peer;
mod pending;
mod policy;
mod programs;
mod refused;
mod registry;
mod reload;
mod requests;
mod reserved_ports;
mod server;
mod service;
mod set_aside;
mod settle;
mod state;
mod sweep;
mod sysctl;
mod sysctl_plan;
mod vacancy;

pub use after_up::after_up;
pub use agent::Agent;
pub use foreground::run_in_foreground;
pub use options::Options;
pub use overlap::{Overlap, leave_overlap};
pub use policy::{quota, settings};
pub use programs::Programs;
pub use registry::obstacle_to;
pub use reserved_ports::{Restored, restore_all};
pub use set_aside::{SetAside, set_aside_used_pool_ports};
pub use state::{RUNTIME_DIR, RuntimeDir};
pub use sysctl::ephemeral as ephemeral_ports;
