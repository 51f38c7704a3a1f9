//! Processes that inherit reservations. There is only one test, because a process that forks should have no other
//! thread at work.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use portkeep::{
    AssociateError, BindError, PortkeepSocket, ReleaseError, Require, Reservation, Scope, list, lookup, release,
};
use portkeep_testkit::{Sandbox, kernel_or_skip, new_namespace};
use socket2::{Domain, Protocol, Socket, Type};

fn tcp() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn refused(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// True if all of `checks` hold in a child.
fn in_child(checks: impl FnOnce() -> bool) -> bool {
    // SAFETY: no other thread of this process is at work, so no lock is left taken in the child, which may then do
    // whatever the parent might; it leaves without running what the parent has registered for its exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let holds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(checks)).unwrap_or(false);
        // SAFETY: ends the process; nothing comes after it.
        unsafe { libc::_exit(i32::from(!holds)) };
    }
    let mut status = -1;
    // SAFETY: `status` is writable, and `child` is a child of ours that nobody else waits for.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status == 0
}

fn outsiders_unless_the_scope_lets_them_in() {
    let own = Reservation::tcp().acquire().unwrap();
    let shared = Reservation::tcp().scope(Scope::User).acquire().unwrap();
    let group = Reservation::tcp().scope(Scope::Cgroup(0)).acquire().unwrap();
    let handed = tcp();
    own.associate(&handed).unwrap();
    assert!(in_child(|| {
        assert!(refused(tcp().bind(&at(own.ports().start()).into())));
        assert!(matches!(tcp().associate(own.token()), Err(AssociateError::NotInScope)));
        assert!(matches!(release(own.token()), Err(ReleaseError::NotOwner)));
        assert!(matches!(release(shared.token()), Err(ReleaseError::NotOwner)));
        tcp().bind_from(shared.token(), at(0)).unwrap();
        tcp().bind(&at(group.ports().start()).into()).unwrap();
        assert_eq!(lookup(own.token()).unwrap().unwrap().token, None);
        // A2: an associated socket has the right itself.
        handed.bind(&at(0).into()).unwrap();
        true
    }));
    // The child's copies of the guards have ended nothing, whether they were dropped or not.
    assert_eq!(list().unwrap().len(), 3);
    let (first, second) = (own.token(), shared.token());
    let copies = |reservation: &Reservation| {
        use std::os::fd::AsFd;
        Reservation::adopt(reservation.as_fd().try_clone_to_owned().unwrap(), reservation.token()).unwrap()
    };
    let (dropped, released) = (copies(&own), copies(&shared));
    let (dropped, released) = (std::mem::ManuallyDrop::new(dropped), std::mem::ManuallyDrop::new(released));
    assert!(in_child(|| {
        drop(std::mem::ManuallyDrop::into_inner(dropped));
        matches!(std::mem::ManuallyDrop::into_inner(released).release(), Err(ReleaseError::NotOwner))
    }));
    assert!(lookup(first).unwrap().is_some() && lookup(second).unwrap().is_some());
}

fn held_is_for_the_process_that_holds() {
    let held = Reservation::tcp().require(Require::Held).acquire().unwrap();
    let token = held.token();
    assert!(in_child(|| {
        assert!(matches!(release(token), Err(ReleaseError::NotOwner)));
        assert!(matches!(held.bind_tcp(Ipv4Addr::UNSPECIFIED), Err(BindError::Associate(AssociateError::NotInScope))));
        true
    }));
    held.bind_tcp(Ipv4Addr::UNSPECIFIED).unwrap();
}

#[test]
fn children() {
    held_is_for_the_process_that_holds();
    if kernel_or_skip("children") {
        Sandbox::get();
        new_namespace();
        outsiders_unless_the_scope_lets_them_in();
    }
}
