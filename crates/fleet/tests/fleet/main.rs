//! The fleet on real kernels and a real etcd: machines in network namespaces, each with its own enforcement and agent,
//! and members of etcd in namespaces of their own.

mod disks;
mod etcd;
mod faults;
mod guide;
mod jobs;
mod measure;
mod random;
mod secure;
mod world;

use portkeep_testkit::machine::help;

/// Not a test: an outsider, see `Machine::outsider_binds`.
#[test]
#[ignore = "started by other tests"]
fn helper_binds() {
    help();
}

/// Not a test: a server of user nobody, see `Fleet::serve`.
#[test]
#[ignore = "started by other tests"]
fn helper_serves() {
    world::serve_in_helper();
}

/// Not a test: a hostile outsider, see `random::Hostile`.
#[test]
#[ignore = "started by other tests"]
fn helper_takes_ports() {
    random::take_ports_in_helper();
}
