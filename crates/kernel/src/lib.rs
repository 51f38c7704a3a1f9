//! Portkeep's BPF programs and everything that touches them: the one crate that
//! knows BPF.
//!
//! * [`Loaded`]: the programs, loaded and attached for as long as the value
//!   lives. Tests and benchmarks use it below a cgroup of their own.
//! * [`Instance`]: the same, pinned in a BPF file system, so that it outlives
//!   every process; what `portkeep up`, `down`, `upgrade` and `status` handle.
//! * [`Maps`]: the state, read from outside.
//! * [`Admin`]: the few changes an administrator makes, done by a program in
//!   the kernel because only that can do them atomically.
//! * [`Events`]: what happens, as it happens.
//!
//! The C source is in `bpf/`, its object beside it, checked in: building this
//! crate takes neither clang nor any system library.

mod accounts;
mod admin;
mod audience;
pub mod bpffs;
pub mod cgroup;
mod events;
mod fork;
pub mod hooks;
mod instance;
mod layout;
mod load;
mod maps;
pub mod netns;
mod object;
mod obstacle;
mod persistent;
mod quiet;
mod settings;
mod sys;

pub use admin::{Admin, AdminError, Wanted};
pub use audience::PLACE_DEPTH;
pub use events::{Event, EventKind, Events};
pub use fork::fork;
pub use instance::{DownReport, Instance, InstanceError, UpOptions};
pub use layout::{
    Admitted, AdmittedKey, Config, Counters, Entries, Expiring, Filter, NOBODY, PRIVILEGED_GROUPS, Place, PlaceKey,
    Quota, RangeKey, Reservation, SPACE_WORDS, Space, Word, WordKey, has_share, root_elsewhere,
};
pub use load::{Link, LoadError, Loaded};
pub use maps::{MapAccessError, Maps};
pub use object::BUILD;
pub use obstacle::Obstacle;
pub use persistent::{Claim, Claimed, CreateError};
pub use quiet::ForgetError;
pub use settings::Settings;
