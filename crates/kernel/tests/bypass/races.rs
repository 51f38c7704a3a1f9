//! Two calls at once on the same reservation. Every outcome follows one rule: an outsider gets nothing, a socket with a
//! port is counted until it closes, and at the end nothing is left. (The storms test overlapping ACQUIREs, kills and
//! draws.)

use std::{sync::Barrier, thread};

use portkeep::control;
use portkeep_core::{Errno, Transport};
use portkeep_testkit::{
    World,
    audit::uses,
    process::{Child, become_user},
    sockets::{acquire, bind, errno, port, reserve, socket, token},
};
use socket2::Domain;

use crate::siege::NOBODY;

const ROUNDS: usize = 1000;
/// Reading all the maps takes longer than a round.
const AUDIT: usize = 100;

/// Run both at the same moment.
fn at_once<A: Send, B: Send>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B + Send) -> (A, B) {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            start.wait();
            other()
        });
        start.wait();
        (one(), other.join().expect("the other thread"))
    })
}

#[test]
fn release_against_bind() {
    let Some(world) = World::enter("bypass::release_bind") else { return };
    let mut outcomes = [0, 0];
    for round in 0..ROUNDS {
        let transport = Transport::ALL[round % 2];
        let owner = socket(Domain::IPV4, transport);
        let grant = reserve(&owner, 61000, 1);
        let inside = socket(Domain::IPV4, transport);
        let associated = round % 4 < 2;
        if associated {
            control::associate(&inside, token(&grant)).unwrap();
        }
        let (released, bound) =
            at_once(|| control::release(&owner, token(&grant)), || bind(&inside, if associated { 0 } else { 61000 }));
        released.unwrap();
        if round % AUDIT == 0 {
            world.assert_consistent();
        }
        let request = portkeep_core::wire::AcquireRequest { start: 61000, count: 1, ..Default::default() };
        match bound {
            Ok(()) => {
                // The bind came before the end: the socket keeps the port until it closes.
                assert_eq!(port(&inside), 61000);
                assert_eq!(uses(&world.maps(), world.netns(), transport, 61000), 1);
                assert_eq!(errno(control::acquire(&owner, &request)), Errno::EADDRINUSE);
            }
            Err(error) => {
                assert_eq!(port(&inside), 0);
                assert!([libc::EACCES, libc::EADDRINUSE].contains(&error.raw_os_error().unwrap()), "{error}");
                control::acquire(&owner, &request).unwrap();
            }
        }
        outcomes[usize::from(port(&inside) != 0)] += 1;
        drop((inside, owner));
    }
    world.assert_empty();
    // If a race always ends the same way, it is no race. How often each outcome occurs depends on the scheduler.
    eprintln!("too late {}, in time {}", outcomes[0], outcomes[1]);
}

/// The program itself binds the draw at a connect. If the reservation ends at that moment, the socket has no port or
/// one that is counted. The next holder never finds an uncounted port in use.
#[test]
fn release_against_connect() {
    let Some(world) = World::enter("bypass::release_connect") else { return };
    let peer = std::net::UdpSocket::bind("127.0.0.1:20000").unwrap().local_addr().unwrap();
    let mut outcomes = [0, 0];
    for _ in 0..5 * ROUNDS {
        let owner = socket(Domain::IPV4, Transport::Udp);
        let grant = reserve(&owner, 61000, 1);
        let inside = socket(Domain::IPV4, Transport::Udp);
        control::associate(&inside, token(&grant)).unwrap();
        let (released, connected) =
            at_once(|| control::release(&owner, token(&grant)), || inside.connect(&peer.into()));
        released.unwrap();
        let counted = uses(&world.maps(), world.netns(), Transport::Udp, 61000);
        assert_eq!(counted, u16::from(port(&inside) == 61000), "{connected:?}");
        outcomes[usize::from(connected.is_ok())] += 1;
    }
    eprintln!("too late {}, in time {}", outcomes[0], outcomes[1]);
    world.assert_empty();
}

#[test]
fn close_against_associate_and_bind() {
    let Some(world) = World::enter("bypass::close_associate") else { return };
    for round in 0..ROUNDS {
        let transport = Transport::ALL[round % 2];
        let owner = socket(Domain::IPV6, transport);
        let grant = reserve(&owner, 61000, 2);
        let inside = socket(Domain::IPV6, transport);
        let (_, result) = at_once(
            move || drop(owner),
            || {
                control::associate(&inside, token(&grant))?;
                bind(&inside, 0)
            },
        );
        if round % AUDIT == 0 {
            world.assert_consistent();
        }
        match result {
            Ok(()) => assert_eq!(uses(&world.maps(), world.netns(), transport, port(&inside)), 1),
            Err(error) => {
                let number = error.raw_os_error().unwrap();
                assert!([libc::ENOENT, libc::EACCES, libc::EADDRINUSE].contains(&number), "{error}");
                assert_eq!(port(&inside), 0);
            }
        }
        drop(inside);
    }
    world.assert_empty();
}

/// An outsider tries to bind one port again and again, while its reservation is released and acquired anew. In between
/// the port is free for everybody (N1). Once it is reserved, no outsider keeps it from the owner.
#[test]
fn a_port_acquired_between_the_binds_of_an_outsider_belongs_to_the_owner() {
    let Some(world) = World::enter("bypass::acquire_against_binds") else { return };
    for user in [false, true] {
        let mut outsider = Child::fork(|talk| {
            if user {
                become_user(NOBODY);
            }
            talk.say(0);
            let mut got = 0;
            for round in 0..20 * ROUNDS {
                let thief = socket(Domain::IPV4, Transport::ALL[round % 2]);
                let _ = thief.set_reuse_port(true);
                match bind(&thief, 61000) {
                    Ok(()) => got += 1,
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE)),
                }
            }
            assert!(got > 0, "UDP was never reserved");
        });
        outsider.talk.hear();
        let owner = socket(Domain::IPV4, Transport::Tcp);
        let request = portkeep_core::wire::AcquireRequest { start: 61000, count: 1, ..Default::default() };
        for _ in 0..ROUNDS {
            let grant = loop {
                match acquire(&owner, &request) {
                    Ok(grant) => break grant,
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE)),
                }
            };
            let inside = socket(Domain::IPV4, Transport::Tcp);
            // An earlier bind of an outsider, or its close, may still be in progress in the kernel for a moment, but
            // not longer.
            let mut tries = 0;
            while let Err(error) = bind(&inside, 61000) {
                assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
                tries += 1;
                assert!(tries < 100_000, "an outsider has the port");
                thread::yield_now();
            }
            drop(inside);
            control::release(&owner, token(&grant)).unwrap();
        }
        outsider.join();
        drop(owner);
        world.assert_empty();
    }
}
