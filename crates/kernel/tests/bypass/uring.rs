//! Calls without a system call of their own: io_uring binds (Linux 6.11) and sets options (6.7).

use std::{io, net::SocketAddr, os::fd::AsRawFd};

use io_uring::{IoUring, Probe, opcode, squeue, types::Fd};
use portkeep_core::{Transport, wire};
use portkeep_kernel::netns;
use portkeep_testkit::{
    World,
    audit::uses,
    process::{become_user, in_child},
    sockets::{acquire, port, socket, tcp},
};
use socket2::{SockAddr, Socket};

use crate::siege::{KINDS, NOBODY, absent, besiege};

/// A ring that can bind, if this kernel supports it and this machine allows it.
fn ring() -> Result<IoUring, String> {
    let ring = IoUring::new(4).map_err(|error| format!("no io_uring here: {error}"))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| error.to_string())?;
    probe.is_supported(opcode::Bind::CODE).then_some(ring).ok_or_else(|| "this kernel's io_uring cannot bind".into())
}

fn submit(ring: &mut IoUring, entry: squeue::Entry) -> io::Result<()> {
    // SAFETY: what the entry points to lives until `submit` returns, which is after the operation is complete.
    unsafe { ring.submission().push(&entry).expect("room for one") };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().expect("a completion").result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

fn bind(ring: &mut IoUring, socket: &Socket, to: SocketAddr, flags: squeue::Flags) -> io::Result<()> {
    let address = SockAddr::from(to);
    let entry = opcode::Bind::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
    submit(ring, entry.build().flags(flags))
}

#[test]
fn io_uring_binds_for_the_owner_and_for_no_outsider() {
    let Some(world) = World::enter("bypass::io_uring") else { return };
    if let Err(why) = ring() {
        return absent("io_uring bind", why);
    }
    besiege(&world, |target| {
        let mut ring = ring().unwrap();
        // At once, and in a worker thread of the kernel in the process's name.
        for flags in [squeue::Flags::empty(), squeue::Flags::ASYNC] {
            for to in [target.any(), target.loopback()] {
                let socket = target.socket();
                let refused = bind(&mut ring, &socket, to, flags).expect_err("an outsider");
                assert_eq!(refused.raw_os_error(), Some(libc::EADDRINUSE), "{target:?}");
                assert_eq!(port(&socket), 0);
            }
        }
    });
    for (domain, transport) in KINDS {
        let owner = socket(domain, transport);
        let grant = acquire(&owner, &wire::AcquireRequest { count: 1, ..Default::default() }).unwrap();
        for flags in [squeue::Flags::empty(), squeue::Flags::ASYNC] {
            let rightful = socket(domain, transport);
            let loopback = if domain == socket2::Domain::IPV6 { "[::1]:0" } else { "127.0.0.1:0" };
            let mut to: SocketAddr = loopback.parse().unwrap();
            to.set_port(grant.start);
            bind(&mut ring().unwrap(), &rightful, to, flags).unwrap();
            assert_eq!(uses(&world.maps(), netns::cookie_of(&rightful).unwrap(), transport, grant.start), 1);
        }
        drop(owner);
        world.assert_empty();
    }
}

/// The kernel thread that polls a ring (SQPOLL) works in the name of the process that made the ring.
#[test]
fn a_polling_thread_binds_as_its_process() {
    let Some(world) = World::enter("bypass::sqpoll") else { return };
    if let Err(why) = ring() {
        return absent("io_uring bind by a polling thread", why);
    }
    besiege(&world, |target| {
        let mut ring = IoUring::builder().setup_sqpoll(10).build(4).unwrap();
        let socket = target.socket();
        let refused = bind(&mut ring, &socket, target.any(), squeue::Flags::empty()).expect_err("an outsider");
        assert_eq!(refused.raw_os_error(), Some(libc::EADDRINUSE), "{target:?}");
    });
}

/// If a process passes a ring to another process, the ring acts in its maker's name, as a descriptor does. The maker
/// does this on purpose: no process can use a ring that was not passed to it.
#[test]
fn a_ring_of_the_owner_acts_for_the_owner() {
    let Some(world) = World::enter("bypass::a_ring_of_the_owner") else { return };
    let mut polling =
        match ring().and_then(|_| IoUring::builder().setup_sqpoll(2000).build(4).map_err(|error| error.to_string())) {
            Ok(ring) => ring,
            Err(why) => return absent("a ring of the owner", why),
        };
    let owner = portkeep_testkit::sockets::tcp();
    let grant = portkeep_testkit::sockets::reserve(&owner, 0, 1);
    let spare = portkeep_testkit::sockets::tcp();
    let to = SocketAddr::from(([127, 0, 0, 1], grant.start));
    // The thread reads the address in the memory of its process, so the address is written before the fork.
    let address = SockAddr::from(to);
    let entry = opcode::Bind::new(Fd(spare.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
    in_child(|| {
        // The child's own call is refused. The call of the owner's thread is not: it finds `spare` in the owner's
        // table.
        assert_eq!(spare.bind(&to.into()).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        submit(&mut polling, entry).unwrap();
    });
    assert_eq!(port(&spare), grant.start);
    drop((spare, owner, polling));
    portkeep_testkit::audit::wait_until_empty(&world.maps(), world.netns());
    world.assert_empty();
}

/// How the kernel performs an operation: at once, in a worker thread, in the thread that polls the ring.
const WAYS: [(bool, squeue::Flags); 3] =
    [(false, squeue::Flags::empty()), (false, squeue::Flags::ASYNC), (true, squeue::Flags::empty())];

fn ring_for(polls: bool) -> IoUring {
    if polls { IoUring::builder().setup_sqpoll(10).build(4).unwrap() } else { IoUring::new(4).unwrap() }
}

/// The threads of a ring are not kernel threads: they are in every scope of their process. So they can bind for another
/// process of the user or of the cgroup, and not for an outsider.
#[test]
fn the_threads_of_a_ring_are_in_the_scopes_of_their_process() {
    let Some(world) = World::enter("bypass::uring_scopes") else { return };
    if let Err(why) = ring() {
        return absent("io_uring bind in the scopes", why);
    }
    for scope in [wire::SCOPE_USER, wire::SCOPE_CGROUP] {
        let owner = tcp();
        let grant = acquire(&owner, &wire::AcquireRequest { count: 1, scope, ..Default::default() }).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], grant.start));
        for (polls, flags) in WAYS {
            in_child(|| {
                let socket = tcp();
                bind(&mut ring_for(polls), &socket, to, flags).unwrap();
                assert_eq!(port(&socket), grant.start);
            });
            in_child(|| {
                become_user(NOBODY);
                let outcome = bind(&mut ring_for(polls), &tcp(), to, flags);
                let expected = (scope == wire::SCOPE_USER).then_some(libc::EADDRINUSE);
                assert_eq!(outcome.err().and_then(|error| error.raw_os_error()), expected, "{scope} {polls} {flags:?}");
            });
            // A ring, and the socket with it, outlives its process for a moment.
            while uses(&world.maps(), world.netns(), Transport::Tcp, grant.start) > 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        drop(owner);
        world.assert_empty();
    }
}

/// A control code through a ring is charged to the account of the process that made the ring, even if another process
/// made the socket.
#[test]
fn a_request_through_a_ring_is_charged_to_its_process() {
    let Some(world) = World::enter("bypass::uring_acquires") else { return };
    if let Err(why) = ring() {
        return absent("socket options by io_uring", why);
    }
    // The machine's root made the socket; root has no quota.
    let socket = tcp();
    let charged =
        || world.maps().quotas().flatten().find(|(uid, _)| *uid == u64::from(NOBODY)).map_or(0, |(_, q)| q.used);
    for (polls, flags) in WAYS {
        let before = charged();
        in_child(|| {
            become_user(NOBODY);
            let request = wire::AcquireRequest { count: 3, ..Default::default() };
            let bytes = zerocopy::IntoBytes::as_bytes(&request);
            let code = opcode::SetSockOpt::new(
                Fd(socket.as_raw_fd()),
                wire::SOL_PORTKEEP as u32,
                wire::ACQUIRE as u32,
                bytes.as_ptr().cast(),
                bytes.len() as u32,
            );
            submit(&mut ring_for(polls), code.build().flags(flags)).unwrap();
        });
        assert_eq!(charged(), before + 3, "{polls} {flags:?}");
    }
    drop(socket);
    portkeep_testkit::audit::wait_until_empty(&world.maps(), world.netns());
    assert_eq!(charged(), 0);
    world.assert_empty();
}
