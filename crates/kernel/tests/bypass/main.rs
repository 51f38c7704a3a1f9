//! The bypass catalogue: an outsider tries to get a reserved port in every way that we know, for TCP and UDP, IPv4 and
//! IPv6, as root and as an ordinary user. Each module has one kind of way. `docs/internals/bypass-catalogue.md` lists
//! all of them with their outcome, and a test here compares that page with the tests.
//!
//! Every test shows both sides: the outsider gets nothing, and the owner binds afterwards. Otherwise a test would also
//! pass if everything were refused. If the kernel makes it impossible to stop something, the test fixes what really
//! happens.

mod addresses;
mod automatic;
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
