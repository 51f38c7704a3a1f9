//! Private ephemeral ranges: binds to port 0 that draw from one, and those of outsiders.

use std::{fs, path::Path};

use portkeep::control;
use portkeep_core::{
    Align, Token, Transports,
    persistent::Audience,
    wire::{self, AcquireRequest},
};
use portkeep_kernel::Wanted;
use portkeep_testkit::table::{Row, Table};
use socket2::Socket;

use crate::{
    Bench, ROUNDS, paired,
    sockets::{self, any, tcp},
};

const MANY: usize = 1000;

fn bind_to_0() {
    tcp().bind(&any(0)).expect("a port");
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("moving in");
}

/// A private ephemeral range of a cgroup, on a socket of its own.
fn range(cgroup: &Path, count: u16) -> Socket {
    enter(cgroup);
    let owner = tcp();
    let request =
        AcquireRequest { count, flags: wire::EPHEMERAL, scope: wire::SCOPE_CGROUP, ..AcquireRequest::default() };
    control::acquire(&owner, &request).expect("a range");
    owner
}

pub(crate) fn measure(bench: &mut Bench, table: &mut Table) {
    let scope = bench.cgroup.child("scope").expect("a cgroup");
    let outsider = bench.cgroup.child("outsider").expect("a cgroup");

    let (inside, outside) =
        paired::alternate(ROUNDS, 1000, || enter(&outsider), bind_to_0, sockets::leave_cgroup, bind_to_0);
    table.push(
        Row::at_most(
            "socket + bind to 0 + close where no private ephemeral range exists, inside / outside",
            inside / outside,
            1.03,
        )
        .missed_because(
            "three programs run, at bind, after it and at close; none counts or stores anything for a port outside the pool",
        ),
    );

    let owner = range(&scope, 1000);
    let (within, outside) =
        paired::alternate(ROUNDS, 1000, || enter(&scope), bind_to_0, sockets::leave_cgroup, bind_to_0);
    table.push(
        Row::at_most("socket + bind to 0 + close, out of a private ephemeral range / outside", within / outside, 1.10)
            .missed_because(
                "the bind is counted at bind and at close, as in the row of the unreserved pool port; the draw adds the \
                 rest",
            ),
    );
    table.note(format!("socket + bind to 0 + close: {within:.0} ns out of a range, {outside:.0} ns outside"));

    crowded(&scope, table);
    drop(owner);

    // With a range of another process, and without, in turns.
    let mut others: Option<Socket> = None;
    let cell = std::cell::RefCell::new(&mut others);
    let (with, without) = paired::alternate(
        ROUNDS,
        1000,
        || {
            **cell.borrow_mut() = Some(range(&scope, 100));
            enter(&outsider);
        },
        bind_to_0,
        || **cell.borrow_mut() = None,
        bind_to_0,
    );
    table.push(Row::at_most(
        "an outsider's bind to 0, with one private ephemeral range / with none",
        with / without,
        1.10,
    ));
    others = None;
    drop(others);

    // Ranges of units are the slowest to find: the program reads names.
    let admin = bench.loaded.admin().expect("the administrator program");
    let maps = std::cell::RefCell::new(bench.loaded.maps().expect("the maps"));
    let netns = portkeep_kernel::netns::current_cookie().expect("the namespace's cookie");
    let many: std::cell::RefCell<Vec<(u32, Token)>> = std::cell::RefCell::default();
    let end = || {
        for (id, token) in many.borrow_mut().drain(..) {
            maps.borrow_mut().end_persistent(&admin, id, token).expect("it is in force");
        }
    };
    let (with, without) = paired::alternate(
        ROUNDS,
        1000,
        || {
            for number in 0..MANY {
                let wanted = Wanted {
                    start: 0,
                    count: 1,
                    align: Align::ANY,
                    transports: Transports::Both,
                    audience: Audience::Unit(format!("unit-{number}.service")),
                    strict: false,
                    ephemeral: true,
                    label: String::new(),
                };
                let (id, token, _) = maps.borrow_mut().claim_persistent(&admin, netns, &wanted).expect("a range");
                admin.confirm(id, token).expect("it is pending");
                many.borrow_mut().push((id, token));
            }
            enter(&outsider);
        },
        bind_to_0,
        end,
        bind_to_0,
    );
    end();
    table.push(Row::at_most("the same with 1,000 of them, each of a unit / with none", with / without, 1.15));
    sockets::leave_cgroup();
    [&scope, &outsider].iter().for_each(|folder| drop(fs::remove_dir(folder)));
}

/// With 90 % of the ephemeral range in use, the kernel tries many ports before it finds a free one.
fn crowded(scope: &Path, table: &mut Table) {
    // Below the usual range: there the connections of the earlier rows are still in TIME_WAIT.
    const FIRST: u16 = 12000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).expect("the limit of open files");
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let before = fs::read_to_string(path).expect("the ephemeral range");
    fs::write(path, format!("{FIRST} {}", FIRST + 9999)).expect("a narrow ephemeral range");
    sockets::leave_cgroup();
    let held: Vec<Socket> = (0..9000)
        .map(|_| {
            let socket = tcp();
            socket.bind(&any(0)).expect("a port");
            socket
        })
        .collect();
    let (within, outside) =
        paired::alternate(ROUNDS, 100, || enter(scope), bind_to_0, sockets::leave_cgroup, bind_to_0);
    drop(held);
    fs::write(path, before).expect("the ephemeral range as it was");
    table.push(Row::at_most("the same with 90 % of 10,000 ephemeral ports in use", within / outside, 1.0 / 50.0));
    table.note(format!("with 90 % in use: {within:.0} ns out of a range, {outside:.0} ns outside"));
}
