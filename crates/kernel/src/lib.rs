//! Portkeep's BPF programs and all code that uses them: this is the only crate that knows BPF.
//!
//! * [`Loaded`]: the programs, loaded and attached for as long as the value
//!   lives. Tests and benchmarks use it below a cgroup of their own.
//! * [`Instance`]: the same, pinned in a BPF file system, so that it outlives
//!   every process. `portkeep up`, `down`, `upgrade` and `status` use it.
//! * [`Maps`]: the state, read from outside.
//! * [`Admin`]: the few changes that an administrator makes. A program in the
//!   kernel makes them, because only that can make them atomically.
//! * [`Events`]: what happens, as it happens.
//!
//! The C source is in `bpf/`, and its object beside it is checked in: building this crate requires neither clang nor
//! any system library.

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
pub use events::{Events, RingEvent, RingEventKind};
pub use fork::fork;
pub use instance::{DownReport, Instance, InstanceError, UpOptions};
pub use layout::{
    Admitted, AdmittedKey, Config, Counters, Entries, Expiring, Filter, NOBODY, Offender, PRIVILEGED_GROUPS, Place,
    PlaceKey, Quota, RangeKey, Reservation, SPACE_WORDS, Space, Word, WordKey, has_share, root_elsewhere,
};
pub use load::{Link, LoadError, Loaded};
pub use maps::{MapAccessError, Maps};
pub use object::BUILD;
pub use obstacle::{Obstacle, in_first_user_namespace};
pub use persistent::{Claim, Claimed, CreateError};
pub use quiet::ForgetError;
pub use settings::Settings;
