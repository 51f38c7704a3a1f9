//! The bypass catalogue: an outsider tries to get a reserved port through every
//! door we know of, for TCP and UDP, IPv4 and IPv6, as root and as an ordinary
//! user. One module per kind of door; `docs/internals/bypass-catalogue.md` lists them all with
//! their outcome, and a test here holds that page against the tests.
//!
//! Every test shows both sides: the outsider gets nothing, and the rightful
//! owner binds afterwards, so that none passes because everything is refused.
//! Where the kernel makes something impossible to stop, the test pins down what
//! really happens.

mod addresses;
mod automatic;
mod bpf;
mod cgroups;
mod compat;
mod descriptors;
mod exhaustion;
mod options;
mod page;
mod processes;
mod programs;
mod protocols;
mod races;
mod remains;
mod siege;
mod tokens;
mod uring;
