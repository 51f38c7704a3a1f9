//! The fleet on real kernels and a real etcd: machines in network namespaces, each with its own enforcement and agent, and members of
//! etcd in namespaces of their own.

mod etcd;
mod faults;
mod jobs;
mod world;

use portkeep_testkit::machine::help;

/// Not a test: an outsider, see `Machine::outsider_binds`.
#[test]
#[ignore]
fn helper_binds() {
    help();
}

/// Not a test: a server of user nobody, see `Fleet::serve`.
#[test]
#[ignore]
fn helper_serves() {
    world::serve_in_helper();
}
