//! Calls that do not concern reservations must work as without Portkeep: every socket option of any size, binds of
//! ports that are not reserved, and other families. They must work with full maps, too.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    net::{TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

use portkeep::control;
use portkeep_core::{
    Errno, Transport,
    wire::{self, AcquireRequest},
};
use portkeep_kernel::{Loaded, Settings};
use portkeep_testkit::{
    Sandbox, TestCgroup, World, audit, new_namespace,
    process::Child,
    sockets::{bind, connect, errno, port, reserve, socket, tcp, tcp6, token, udp, udp6},
};
use socket2::{Domain, Protocol, Socket, Type};

fn outcome(result: i32) -> String {
    if result == 0 {
        return "done".into();
    }
    let error = io::Error::last_os_error();
    Errno(error.raw_os_error().unwrap()).to_string()
}

fn get(socket: &impl AsRawFd, level: i32, option: i32, size: usize) -> (String, usize, Vec<u8>) {
    let mut buffer = vec![0u8; size];
    let mut length = size as u32;
    // SAFETY: the kernel writes at most `length` bytes into `buffer`, which is that long.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &mut length) };
    (outcome(result), length as usize, buffer)
}

fn set(socket: &impl AsRawFd, level: i32, option: i32, value: &[u8]) -> String {
    // SAFETY: the kernel reads `value`, of the size given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as u32) };
    outcome(result)
}

/// The results of every option of every level in every size, on all kinds of sockets.
fn every_option() -> String {
    let mut protocol = String::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.write_all(&[1; 100]).unwrap();
    let netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, None).unwrap();
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
    let sockets: [(&str, Socket); 8] = [
        ("tcp", tcp()),
        ("tcp6", tcp6()),
        ("udp", udp()),
        ("udp6", udp6()),
        ("connected", connected.into()),
        ("netlink", netlink),
        ("raw", raw),
        ("unix", UnixDatagram::unbound().map(|s| std::os::fd::OwnedFd::from(s).into()).unwrap()),
    ];
    let levels = [
        (libc::SOL_SOCKET, 1..85),
        (libc::SOL_IP, 1..70),
        (libc::SOL_TCP, 1..48),
        (libc::SOL_UDP, 1..110),
        (libc::SOL_IPV6, 1..82),
        (libc::SOL_NETLINK, 1..14),
        (libc::SOL_RAW, 1..3),
        // Levels that no program uses, one of them next to ours.
        (0x504c, 99..103),
        (-1, 100..101),
    ];
    for (name, socket) in &sockets {
        for (level, options) in &levels {
            for option in options.clone() {
                // This option makes the kernel load modules by name.
                if (*level, option) == (libc::SOL_TCP, libc::TCP_ULP) {
                    continue;
                }
                for size in [0, 1, 4, 8, 16, 200, 4095, 4096, 4097, 20_000] {
                    let (outcome, length, _) = get(socket, *level, option, size);
                    writeln!(protocol, "get {name} {level} {option} of {size}: {outcome} {length}").unwrap();
                }
                for size in [0, 1, 4, 8, 16, 4096, 4097, 20_000] {
                    let outcome = set(socket, *level, option, &vec![0; size]);
                    writeln!(protocol, "set {name} {level} {option} of {size}: {outcome}").unwrap();
                }
            }
        }
    }
    // Legacy firewalls pass their rule sets through options far larger than a page.
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    for (option, size) in [(64, 40), (64, 5000), (64, 100_000), (65, 5000), (66, 5000)] {
        writeln!(protocol, "rules {option} {size}: {}", set(&raw, libc::SOL_IP, option, &vec![0; size])).unwrap();
        let (outcome, length, _) = get(&raw, libc::SOL_IP, option, size);
        writeln!(protocol, "rules {option} {size}: {outcome} {length}").unwrap();
    }
    protocol
}

/// The result of `work` in a child, in a cgroup and a namespace of its own.
fn said_in(cgroup: &TestCgroup, work: fn() -> String) -> String {
    let mut file: File = tempfile::tempfile().unwrap();
    let mut child = Child::fork(|talk| {
        talk.hear();
        // Sockets of one run must not hinder the other.
        new_namespace();
        (&file).write_all(work().as_bytes()).unwrap();
    });
    cgroup.enter(child.pid()).unwrap();
    child.talk.say(0);
    child.join();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn every_other_option_of_any_size_works_as_without_the_hooks() {
    let Some(world) = World::with_outside("every_other_option_of_any_size") else { return };
    let without = said_in(&TestCgroup::new("plain").unwrap(), every_option);
    let with = said_in(world.sandbox().cgroup(), every_option);
    let different: Vec<_> = without.lines().zip(with.lines()).filter(|(without, with)| without != with).collect();
    assert!(different.is_empty(), "without the hooks, and with them: {different:#?}");
    assert_eq!(without.len(), with.len());
    assert!(without.lines().count() > 10_000);
}

/// `struct group_filter` for `sources` IPv4 sources: 144 bytes, and 128 for each source.
fn group_filter(sources: u32) -> Vec<u8> {
    let address = |ip: [u8; 4]| {
        let mut storage = [0u8; 128];
        storage[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        storage[4..8].copy_from_slice(&ip);
        storage
    };
    let mut filter = vec![0u8; 8];
    filter[..4].copy_from_slice(&1u32.to_ne_bytes()); // the loopback interface
    filter.extend_from_slice(&address([239, 1, 2, 3]));
    filter.extend_from_slice(&1u32.to_ne_bytes()); // MCAST_INCLUDE
    filter.extend_from_slice(&sources.to_ne_bytes());
    for n in 0..sources {
        filter.extend_from_slice(&address([10, 1, (n >> 8) as u8, n as u8]));
    }
    filter
}

#[test]
fn values_larger_than_a_page_arrive_and_come_back_whole() {
    let Some(_world) = World::enter("values_larger_than_a_page") else { return };
    const MCAST_MSFILTER: i32 = 48;
    fs::write("/proc/sys/net/ipv4/igmp_max_msf", "1000").unwrap();
    fs::write("/proc/sys/net/ipv4/igmp_max_memberships", "1000").unwrap();
    let receiver = udp();
    let group = 239u32 << 24 | 1 << 16 | 2 << 8 | 3;
    // struct ip_mreqn: group, local address, interface.
    let mut membership = group.to_be_bytes().to_vec();
    membership.extend_from_slice(&[0; 4]);
    membership.extend_from_slice(&1u32.to_ne_bytes());
    assert_eq!(set(&receiver, libc::SOL_IP, libc::IP_ADD_MEMBERSHIP, &membership), "done");
    // From 32 sources on it is more than a page; 150 sources are the limit of Linux 6.1 (net.core.optmem_max).
    for sources in [1, 30, 32, 40, 150] {
        let filter = group_filter(sources);
        assert_eq!(set(&receiver, libc::SOL_IP, MCAST_MSFILTER, &filter), "done", "{sources} sources");
        // The query has room for all of them: the kernel reads the header and returns the rest.
        let mut answer = filter.clone();
        answer[144..].fill(0);
        let mut length = answer.len() as u32;
        // SAFETY: `answer` is `length` bytes long.
        let result = unsafe {
            libc::getsockopt(
                receiver.as_raw_fd(),
                libc::SOL_IP,
                MCAST_MSFILTER,
                answer.as_mut_ptr().cast(),
                &mut length,
            )
        };
        assert_eq!(outcome(result), "done", "{sources} sources");
        assert_eq!(length as usize, filter.len());
        for n in 0..sources as usize {
            let place = 144 + 128 * n;
            assert_eq!(answer[place..place + 8], filter[place..place + 8], "source {n} of {sources}");
        }
    }
    // One source at a time, each with a small option: struct ip_mreq_source is group, interface's address, source.
    let single = udp();
    for n in 0..100u8 {
        let mut source = 0xef01_0204u32.to_be_bytes().to_vec();
        source.extend_from_slice(&[127, 0, 0, 1]);
        source.extend_from_slice(&[10, 2, 0, n]);
        assert_eq!(set(&single, libc::SOL_IP, libc::IP_ADD_SOURCE_MEMBERSHIP, &source), "done", "source {n}");
    }
    // Write and read a socket filter longer than a page.
    const RETURN_ALL: [u8; 8] = [0x06, 0, 0, 0, 0xff, 0xff, 0, 0];
    let program = RETURN_ALL.repeat(1000);
    let filter = libc::sock_fprog { len: 1000, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads the structure and, through it, the thousand instructions.
    let result = unsafe {
        libc::setsockopt(
            receiver.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    assert_eq!(outcome(result), "done");
    let mut back = vec![0u8; program.len()];
    // The length of SO_GET_FILTER counts instructions.
    let mut length = 1000u32;
    // SAFETY: `back` has room for the thousand instructions that are announced.
    let result = unsafe {
        libc::getsockopt(
            receiver.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            back.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert_eq!((outcome(result), length), ("done".to_owned(), 1000));
    assert_eq!(back, program);
}

#[test]
fn unreserved_ports_and_other_families_are_left_alone() {
    let Some(world) = World::enter("unreserved_ports_and_other_families") else { return };
    let owner = tcp();
    reserve(&owner, 0, 64);
    for (domain, transport) in [
        (Domain::IPV4, Transport::Tcp),
        (Domain::IPV4, Transport::Udp),
        (Domain::IPV6, Transport::Tcp),
        (Domain::IPV6, Transport::Udp),
    ] {
        for number in [1, 80, 1023, 1024, 5000, 32768, 60999, 61616, 64738, 65535, 0, 0, 0] {
            let socket = socket(domain, transport);
            bind(&socket, number).unwrap();
            assert!(number == 0 || port(&socket) == number);
            let rival = portkeep_testkit::sockets::socket(domain, transport);
            assert_eq!(errno(bind(&rival, port(&socket))), Errno::EADDRINUSE);
            if transport == Transport::Tcp {
                assert!(!socket.reuse_address().unwrap(), "options are the program's own");
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = tcp();
    connect(&client, &listener.local_addr().unwrap().to_string()).unwrap();
    // Another port space with the same numbers.
    if let Ok(lite) = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(136))) {
        bind(&lite, 61000).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let bound = UnixDatagram::bind(&path).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
    assert_eq!(bound.recv(&mut [0; 1]).unwrap(), 1);
    let netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, None).unwrap();
    let mut address = [0u8; 12];
    address[..2].copy_from_slice(&(libc::AF_NETLINK as u16).to_ne_bytes());
    // SAFETY: a struct sockaddr_nl is these 12 bytes.
    assert_eq!(outcome(unsafe { libc::bind(netlink.as_raw_fd(), address.as_ptr().cast(), 12) }), "done");
    drop(owner);
    world.assert_empty();
}

#[test]
fn full_maps_refuse_what_is_reserved_and_pass_the_rest() {
    let Some(_world) = World::with_outside("full_maps") else { return };
    let loaded = Loaded::load_cramped(&[("words", 3), ("spaces", 1), ("quotas", 1)]).unwrap();
    let sandbox = Sandbox::beside_with("cramped", &Settings::default(), loaded);
    let mut child = Child::fork(|talk| {
        talk.hear();
        let owner = tcp();
        let request = |start, count| AcquireRequest { start, count, ..Default::default() };
        // Words 960 and 961 for TCP, then 960 for UDP: the table is full.
        let grant = reserve(&owner, 61440, 128);
        let half = udp();
        reserve(&half, 61440, 1);
        for (start, count, flags) in [(61568, 1, 0), (61568, 300, 0), (61504, 1, wire::BOTH)] {
            let no_room = AcquireRequest { flags, ..request(start, count) };
            let error = errno(control::acquire(if flags == 0 { &owner } else { &half }, &no_room));
            assert!([Errno::ENOMEM, Errno::EADDRINUSE].contains(&error), "{error}");
        }
        talk.say(1);
        talk.hear();
        // Reserved ports stay reserved, for processes in the scope and for outsiders.
        bind(&tcp(), 61441).unwrap();
        let inside = tcp();
        control::associate(&inside, token(&grant)).unwrap();
        bind(&inside, 0).unwrap();
        Child::fork(|_| {
            for number in [61440, 61500, 61567] {
                assert_eq!(errno(bind(&tcp(), number)), Errno::EADDRINUSE, "{number}");
                assert_eq!(errno(bind(&tcp6(), number)), Errno::EADDRINUSE, "{number}");
            }
            for number in [0, 1, 80, 5000, 60999, 61000, 61568, 65535] {
                for socket in [tcp(), udp(), tcp6(), udp6()] {
                    bind(&socket, number).unwrap();
                }
            }
            // There is no room for another namespace or another user: they cannot reserve, and nothing else fails.
            portkeep_testkit::process::become_user(65534);
            assert_eq!(errno(control::acquire(tcp(), &request(0, 1))), Errno::ENOMEM);
            bind(&tcp(), 5000).unwrap();
        })
        .join();
        Child::fork(|_| {
            new_namespace();
            assert_eq!(errno(control::acquire(tcp(), &request(0, 1))), Errno::ENOMEM);
            bind(&udp(), 5000).unwrap();
            bind(&udp(), 61440).unwrap();
        })
        .join();
        // A released reservation makes room.
        control::release(&owner, token(&grant)).unwrap();
        reserve(&owner, 61504, 64);
    });
    sandbox.cgroup().enter(child.pid()).unwrap();
    child.talk.say(0);
    assert_eq!(child.talk.hear(), 1);
    let maps = sandbox.loaded().maps().unwrap();
    audit::assert_consistent(&maps);
    child.talk.say(0);
    child.join();
    audit::assert_consistent(&maps);
    assert_eq!(maps.counters().unwrap().reservations, 0);
}
