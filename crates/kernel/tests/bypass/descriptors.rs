//! Descriptors are passed between processes, and the rights of their sockets with them.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use portkeep::control;
use portkeep_core::Transport;
use portkeep_testkit::{
    World, new_namespace,
    process::{Child, become_user, in_child},
    sockets::{bind, port, reserve, socket, tcp, token, udp},
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Socket};

use crate::siege::{KINDS, NOBODY, besiege, owner_binds};

/// Sockets passed by SCM_RIGHTS. An outsider's socket remains the outsider's. The owner socket keeps the reservation,
/// but its new holder can do nothing else with it. A holder that passes an associated socket gives a port away on
/// purpose.
#[test]
fn a_descriptor_carries_only_the_association_it_was_given() {
    let Some(world) = World::enter("bypass::scm_rights") else { return };
    for (domain, transport) in KINDS {
        let owner = socket(domain, transport);
        let grant = reserve(&owner, 0, 1);
        let mut outsider = Child::fork(|talk| {
            become_user(NOBODY);
            let owner = Socket::from(talk.take());
            let plain = Socket::from(talk.take());
            for socket in [&owner, &plain] {
                assert_eq!(bind(socket, grant.start).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
                let associate = control::associate(socket, token(&grant)).unwrap_err();
                assert_eq!(associate.raw_os_error(), Some(libc::EPERM));
                let release = control::release(socket, token(&grant)).unwrap_err();
                assert_eq!(release.raw_os_error(), Some(libc::EPERM));
            }
            talk.say(0);
            let associated = Socket::from(talk.take());
            bind(&associated, 0).unwrap();
            talk.say(port(&associated).into());
        });
        outsider.talk.pass(&owner);
        // A socket made by a process in the scope, and not associated: it has no right.
        outsider.talk.pass(socket(domain, transport));
        outsider.talk.hear();
        let gift = socket(domain, transport);
        control::associate(&gift, token(&grant)).unwrap();
        outsider.talk.pass(&gift);
        drop(gift);
        assert_eq!(outsider.talk.hear() as u16, grant.start);
        outsider.join();
        owner_binds(domain, transport, &grant);
        drop(owner);
        world.assert_empty();
    }
}

/// pidfd_getfd copies a descriptor that was not passed. An ordinary user may not use it (ptrace's rules). Root may: it
/// gets the right of an associated socket, as it could by ptrace.
#[test]
fn pidfd_getfd_is_for_those_who_may_trace_the_owner() {
    let Some(world) = World::enter("bypass::pidfd_getfd") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let associated = tcp();
    control::associate(&associated, token(&grant)).unwrap();
    let me = Pid::from_raw(std::process::id() as i32).unwrap();
    let take = |descriptor: &Socket| {
        let pidfd = pidfd_open(me, PidfdFlags::empty())?;
        pidfd_getfd(&pidfd, descriptor.as_raw_fd(), PidfdGetfdFlags::empty()).map(Socket::from)
    };
    in_child(|| {
        become_user(NOBODY);
        for descriptor in [&owner, &associated] {
            assert_eq!(take(descriptor).unwrap_err(), rustix::io::Errno::PERM);
        }
    });
    in_child(|| {
        let stolen = take(&owner).unwrap();
        assert_eq!(bind(&stolen, grant.start).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(control::release(&stolen, token(&grant)).unwrap_err().raw_os_error(), Some(libc::EPERM));
        bind(&take(&associated).unwrap(), 0).unwrap();
    });
    drop(associated);
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop(owner);
    world.assert_empty();
}

/// dup2 over the owner socket and close_range are ordinary closes.
#[test]
fn dup2_and_close_range_end_a_reservation_and_nothing_else() {
    let Some(world) = World::enter("bypass::dup2") else { return };
    let in_force = |port: u16| {
        let held = world.maps().reservations().any(|item| item.unwrap().1.netns == world.netns());
        in_child(|| assert_eq!(bind(&tcp(), port).is_err(), held));
        held
    };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    // Over a copy: the owner socket still has another descriptor.
    let copy = owner.try_clone().unwrap();
    let other = udp();
    // SAFETY: both descriptors are open and ours; the copy's owner below goes on to own what replaces it.
    assert!(unsafe { libc::dup2(other.as_raw_fd(), copy.as_raw_fd()) } >= 0);
    assert!(in_force(grant.start));
    bind(&tcp(), grant.start).unwrap();
    // Over the last descriptor.
    // SAFETY: as above.
    assert!(unsafe { libc::dup2(other.as_raw_fd(), owner.as_raw_fd()) } >= 0);
    assert!(!in_force(grant.start));
    world.assert_empty();
    drop((owner, copy, other));

    let mut closer = Child::fork(|talk| {
        let owner = tcp();
        let grant = reserve(&owner, 0, 1);
        bind(&tcp(), grant.start).unwrap();
        talk.say(grant.start.into());
        talk.hear();
        let descriptor = owner.as_raw_fd() as u32;
        std::mem::forget(owner);
        // SAFETY: one descriptor, whose owner was just forgotten.
        assert_eq!(unsafe { libc::syscall(libc::SYS_close_range, descriptor, descriptor, 0) }, 0);
        talk.say(0);
        talk.hear();
    });
    let number = closer.talk.hear() as u16;
    assert!(in_force(number));
    closer.talk.say(0);
    closer.talk.hear();
    assert!(!in_force(number));
    closer.talk.say(0);
    closer.join();
    world.assert_empty();
}

/// A socket belongs to the namespace in which it was made, even if no process is left in it.
#[test]
fn a_socket_of_a_detached_namespace_is_no_way_into_another() {
    let Some(world) = World::enter("bypass::detached_namespace") else { return };
    for (domain, transport) in KINDS {
        let detached = std::thread::spawn(move || {
            new_namespace();
            let owner = socket(domain, transport);
            let grant = reserve(&owner, 62000, 1);
            (owner, grant, socket(domain, transport))
        });
        // The thread has ended, so the namespace has no process left.
        let (there, grant, outsider) = detached.join().unwrap();
        let here = socket(domain, transport);
        let same_numbers = reserve(&here, 62000, 1);
        in_child(|| {
            for socket in [&outsider, &socket(domain, transport)] {
                assert_eq!(bind(socket, 62000).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
            }
        });
        // A token is valid in its own namespace only, and each socket binds the port of its own namespace.
        assert_eq!(control::associate(&outsider, token(&same_numbers)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        control::associate(&outsider, token(&grant)).unwrap();
        bind(&outsider, 0).unwrap();
        owner_binds(domain, transport, &same_numbers);
        drop((there, outsider, here));
        world.assert_empty();
    }
}

/// If an outsider passes a descriptor to the owner and the owner binds it, the bind is the owner's.
#[test]
fn a_bind_of_the_owner_for_others_is_charged_to_the_owner() {
    let Some(world) = World::enter("bypass::bound_for_others") else { return };
    let mut outsider = Child::fork(|talk| {
        become_user(NOBODY);
        let mine = tcp();
        talk.pass(&mine);
        let port = talk.hear() as u16;
        // The outsider also has the descriptor, so it has the port until it closes the descriptor.
        assert_eq!(self::port(&mine), port);
        talk.say(0);
        talk.hear();
        drop(mine);
        talk.say(0);
        talk.hear();
    });
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let theirs = Socket::from(outsider.talk.take());
    bind(&theirs, grant.start).unwrap();
    drop(theirs);
    outsider.talk.say(grant.start.into());
    outsider.talk.hear();
    assert_eq!(portkeep_testkit::audit::uses(&world.maps(), world.netns(), Transport::Tcp, grant.start), 1);
    outsider.talk.say(0);
    outsider.talk.hear();
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    outsider.talk.say(0);
    outsider.join();
    drop(owner);
    world.assert_empty();
}

/// [`besiege`] with sockets that were made before a fork.
#[test]
fn inherited_sockets_give_no_right() {
    let Some(world) = World::enter("bypass::inherited") else { return };
    let made_here: Vec<Socket> = KINDS.iter().map(|(domain, transport)| socket(*domain, *transport)).collect();
    besiege(&world, |target| {
        let which = KINDS.iter().position(|kind| *kind == (target.domain, target.transport)).unwrap();
        target.refused("made by the owner process", &made_here[which], target.any());
        // A copy of it, too.
        let copy: SocketAddr = target.loopback();
        // SAFETY: dup makes a descriptor that nobody else owns.
        let copied = unsafe { Socket::from(OwnedFd::from_raw_fd(libc::dup(made_here[which].as_raw_fd()))) };
        target.refused("a copy", &copied, copy);
    });
}
