//! BPF programs of others, in cgroups below and above: their effects on us, and the effects that we must not have on
//! them.

use std::{
    fs,
    fs::File,
    io,
    net::TcpListener,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use portkeep_core::{Errno, Transport};
use portkeep_kernel::{Loaded, Settings};
use portkeep_testkit::{
    TestCgroup, World,
    audit::uses,
    bpf::{Other, attach_other},
    process::in_child,
    sockets::{bind, connect, errno, port, reserve, tcp, udp},
};
use socket2::Domain;

use crate::siege::owner_binds;

/// A cgroup below with a program of its own.
fn below(world: &World, other: Other) -> PathBuf {
    let own = world.sandbox().cgroup().child("other").unwrap();
    attach_other(&File::open(&own).unwrap(), other).unwrap();
    own
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

const SOCKOPT_PROGRAMS: [Other; 3] = [Other::RewriteTos, Other::SkipPriority, Other::AnswerOwn];

/// Other programs may change options that are not ours, and we keep the result (N4): rewritten, skipped, answered.
#[test]
fn other_peoples_sockopt_programs_keep_their_say() {
    let Some(world) = World::enter("bypass::other_sockopt") else { return };
    for other in SOCKOPT_PROGRAMS {
        let own = below(&world, other);
        in_child(|| {
            enter(&own);
            has_its_say(other);
        });
        fs::remove_dir(&own).unwrap();
    }
    world.assert_empty();
}

/// The same for programs above a narrow enforcement, which run after ours.
#[test]
fn other_peoples_sockopt_programs_above_keep_their_say() {
    let Some(_world) = World::with_outside("bypass::other_sockopt_above") else { return };
    for other in SOCKOPT_PROGRAMS {
        let above = TestCgroup::new("above").unwrap();
        let own = above.child("below").unwrap();
        let mut loaded = Loaded::load().unwrap();
        loaded.attach(&Settings::default(), &own, &own).unwrap();
        attach_other(&File::open(above.path()).unwrap(), other).unwrap();
        in_child(|| {
            enter(&own);
            has_its_say(other);
        });
        fs::remove_dir(&own).unwrap();
    }
}

fn has_its_say(other: Other) {
    let socket = udp();
    let mut answer = [0u8; 4];
    let mut length = 4;
    // SAFETY: the kernel writes at most `length` bytes into `answer`, which has as many.
    let own = unsafe { libc::getsockopt(socket.as_raw_fd(), 0x504c, 7, answer.as_mut_ptr().cast(), &mut length) };
    socket.set_tos_v4(0x04).unwrap();
    let priority = 3i32;
    // SAFETY: the kernel reads four bytes from `priority`.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PRIORITY, (&raw const priority).cast(), 4)
    };
    assert_eq!(set, 0);
    match other {
        Other::RewriteTos => assert_eq!(socket.tos_v4().unwrap(), 0x10),
        Other::SkipPriority => assert_eq!(read_priority(&socket).unwrap(), 0),
        Other::AnswerOwn => assert_eq!((own, length, answer), (0, 4, [42, 0, 0, 0])),
        Other::RefuseAfterBind | Other::AllowBind | Other::BindAtConnect(_) => unreachable!("not in the list above"),
    }
    // Our own options work as before.
    reserve(&socket, 0, 1);
}

fn read_priority(socket: &impl AsRawFd) -> io::Result<i32> {
    let (mut value, mut length) = (0i32, 4);
    // SAFETY: the kernel writes at most four bytes into `value`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PRIORITY, (&raw mut value).cast(), &mut length)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// All programs of a hook run, even if one has refused. Binds that other programs refuse do not stay counted.
#[test]
fn a_bind_that_another_program_refuses_afterwards_leaves_no_count() {
    let Some(world) = World::enter("bypass::other_post_bind") else { return };
    let owner = tcp();
    reserve(&owner, 61000, 1);
    let own = below(&world, Other::RefuseAfterBind);
    let before = std::process::id();
    // The owner process itself, which is in the scope; it moves back afterwards.
    let home = fs::read_to_string("/proc/self/cgroup").unwrap();
    let home = home.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let root = portkeep_kernel::cgroup::root().unwrap().join(home.trim_start_matches('/'));
    enter(&own);
    let socket = tcp();
    for _ in 0..5 {
        bind(&socket, 61000).unwrap_err();
    }
    // The same for a pool port that is not reserved.
    let outsider = tcp();
    for _ in 0..5 {
        bind(&outsider, 61001).unwrap_err();
    }
    drop((socket, outsider));
    fs::write(root.join("cgroup.procs"), before.to_string()).unwrap();
    for number in [61000, 61001] {
        assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, number), 0);
    }
    fs::remove_dir(&own).unwrap();
    bind(&tcp(), 61000).unwrap();
    drop(owner);
    world.assert_empty();
}

/// bpf_bind runs no bind program. The port that it gives a connection is checked when the socket connects.
#[test]
fn another_programs_bpf_bind_gives_no_connection_from_a_reserved_port() {
    let Some(world) = World::enter("bypass::other_bpf_bind") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 61000, 1);
    let server = TcpListener::bind("127.0.0.1:20000").unwrap();
    let to = server.local_addr().unwrap().to_string();
    for (number, result) in [(61000, Err(Errno::EADDRINUSE)), (61001, Ok(61001))] {
        let own = below(&world, Other::BindAtConnect(number));
        in_child(|| {
            enter(&own);
            let outsider = tcp();
            outsider.set_linger(Some(std::time::Duration::ZERO)).unwrap();
            let connected = connect(&outsider, &to);
            match result {
                Ok(wanted) => assert_eq!((connected.is_ok(), port(&outsider)), (true, wanted)),
                Err(wanted) => assert_eq!(errno(connected), wanted),
            }
        });
        fs::remove_dir(&own).unwrap();
    }
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop((owner, server));
    world.assert_empty();
}
