//! A request that a real agent has to confirm.

use std::os::unix::net::UnixStream;

use portkeep::{Require, Reservation};
use portkeep_agent::{Agent, Options, Programs};
use portkeep_testkit::{
    process::Child,
    table::{Row, Table},
};

use crate::{Bench, paired::median_ns};

const REQUESTS: usize = 501;

pub(crate) fn specific(bench: &mut Bench, table: &mut Table) {
    // In memory, as /run is.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let Bench { cgroup, loaded } = bench;
    let mut agent = Child::fork(|talk| {
        cgroup.enter(std::process::id()).expect("moving in");
        let mut programs = Programs::of_loaded(loaded).expect("the maps");
        let agent = Agent::start(&mut programs, &Options::below(folder.path())).expect("the agent starts");
        talk.say(1);
        let (never, _kept) = UnixStream::pair().expect("a pair of sockets");
        agent.run(&never, &never).expect("the agent runs");
    });
    assert_eq!(agent.talk.hear(), 1);
    let request = Reservation::tcp().at(5000).require(Require::Kernel);
    let ns = bench.inside(|| median_ns(REQUESTS, 1, || drop(request.acquire().expect("the agent confirms"))));
    agent.kill();
    table.push(
        Row::at_most("acquire of a port outside the pool until the agent has confirmed it, us", ns / 1000.0, 1000.0)
            .missed_because(
                "the agent writes ip_local_reserved_ports and asks the kernel for sockets on the port first",
            ),
    );
}
