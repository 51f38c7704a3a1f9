//! Every row of the table of native errors, on every control code that can return it. No failing call may change
//! anything, so the maps are compared before and after each call.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    ptr,
};

use portkeep::control;
use portkeep_core::{
    Errno, Token,
    wire::{self, AcquireRequest, AgentMark, Also, SelectRequest},
};
use portkeep_kernel::Maps;
use portkeep_testkit::{
    TestCgroup, World, audit,
    process::{Child, become_user, in_child},
    random::Random,
    sockets::{acquire, bind, errno, reserve, tcp, tcp6, token, udp, udp6},
};
use socket2::{Domain, Protocol, Socket, Type};
use zerocopy::IntoBytes;

const NOBODY: u32 = 65534;
const SET: [i32; 5] = [wire::ACQUIRE, wire::RELEASE, wire::ASSOCIATE, wire::SELECT, wire::AGENT];
const GET: [i32; 3] = [wire::VERSION, wire::GRANTED, wire::STATE];
const UNKNOWN: [i32; 10] = [0, 1, 99, 105, 199, 203, 300, -1, i32::MAX, i32::MIN];

fn check(result: i32) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(Errno(io::Error::last_os_error().raw_os_error().unwrap())) }
}

/// setsockopt itself, with any descriptor, pointer and length.
fn raw_set(fd: RawFd, option: i32, value: *const u8, length: u32) -> Result<(), Errno> {
    // SAFETY: setsockopt only reads, and it is the kernel that does, through its checked copy: a bad pointer is EFAULT.
    check(unsafe { libc::setsockopt(fd, wire::SOL_PORTKEEP, option, value.cast(), length) })
}

/// getsockopt itself.
///
/// # Safety
///
/// `value` and `length` must be memory that nobody minds being written to, or none at all.
unsafe fn raw_get(fd: RawFd, option: i32, value: *mut u8, length: *mut u32) -> Result<(), Errno> {
    // SAFETY: the caller promises that what can be written to may be; what cannot is EFAULT.
    check(unsafe { libc::getsockopt(fd, wire::SOL_PORTKEEP, option, value.cast(), length) })
}

fn set(fd: RawFd, option: i32, value: &[u8]) -> Result<(), Errno> {
    raw_set(fd, option, value.as_ptr(), value.len() as u32)
}

fn get(fd: RawFd, option: i32, size: usize) -> Result<usize, Errno> {
    let mut buffer = vec![0u8; size];
    let mut length = size as u32;
    // SAFETY: the buffer is as long as `length` says, and both are ours.
    unsafe { raw_get(fd, option, buffer.as_mut_ptr(), &mut length) }.map(|()| length as usize)
}

/// Two pages of memory with no access to the second.
struct Edge {
    start: *mut u8,
}

const PAGE: usize = 4096;

impl Edge {
    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the second page of the mapping just made.
        assert_eq!(unsafe { libc::mprotect(start.cast::<u8>().add(PAGE).cast(), PAGE, libc::PROT_NONE) }, 0);
        Self { start: start.cast() }
    }

    /// `n` bytes before the inaccessible page.
    fn before(&self, n: usize) -> *mut u8 {
        // SAFETY: n is at most the page.
        unsafe { self.start.add(PAGE - n) }
    }

    fn write_protect(&self) {
        // SAFETY: the first page of our mapping.
        assert_eq!(unsafe { libc::mprotect(self.start.cast(), PAGE, libc::PROT_READ) }, 0);
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: our mapping, of which no reference is left.
        unsafe { libc::munmap(self.start.cast(), 2 * PAGE) };
    }
}

/// Watches the maps: a failing call must change nothing.
struct Watch {
    netns: u64,
    maps: Maps,
}

impl Watch {
    fn new(world: &World) -> Self {
        Self { netns: world.netns(), maps: world.maps() }
    }

    fn state(&self) -> impl PartialEq + std::fmt::Debug {
        let maps = &self.maps;
        let mut quotas: Vec<_> = maps.quotas().map(Result::unwrap).filter(|(_, quota)| quota.used != 0).collect();
        quotas.sort_by_key(|(uid, _)| *uid);
        (audit::snapshot(maps, self.netns), maps.counters().unwrap(), quotas, maps.entries_taken().unwrap())
    }

    #[track_caller]
    fn fails(&self, what: &str, wanted: Errno, call: impl FnOnce() -> Result<(), Errno>) {
        let before = self.state();
        assert_eq!(call(), Err(wanted), "{what}");
        assert_eq!(self.state(), before, "{what} left something behind");
    }
}

fn bytes_of(request: &AcquireRequest, length: usize) -> Vec<u8> {
    let mut bytes = request.as_bytes().to_vec();
    bytes.resize(length, 0);
    bytes
}

#[test]
fn malformed_requests_are_einval() {
    let Some(world) = World::enter("malformed_requests_are_einval") else { return };
    let watch = Watch::new(&world);
    let (owner, one) = (tcp(), AcquireRequest { count: 1, ..Default::default() });
    let fd = owner.as_raw_fd();
    // ACQUIRE by size: 8, 16, 24, and 48 with any number of zeros behind it up to 256 bytes in all.
    for size in (0..=300).chain([4095, 4096, 4097, 8192, 65536, 1 << 20]) {
        let request = bytes_of(&one, size);
        let known = [8, 16, 24].contains(&size) || (48..=256).contains(&size);
        if known {
            set(fd, wire::ACQUIRE, &request).unwrap();
            control::release(&owner, token(&control::granted(&owner).unwrap())).unwrap();
        } else {
            watch.fails(&format!("{size} bytes"), Errno::EINVAL, || set(fd, wire::ACQUIRE, &request));
        }
    }
    for at in 48..256 {
        let mut request = bytes_of(&one, 256);
        request[at] = 1;
        watch.fails(&format!("byte {at}"), Errno::EINVAL, || set(fd, wire::ACQUIRE, &request));
        watch.fails(&format!("byte {at}, the last"), Errno::EINVAL, || set(fd, wire::ACQUIRE, &request[..=at]));
    }
    // Each field with a bad value.
    let mut bad = vec![
        AcquireRequest::default(),
        AcquireRequest { start: 61000, ..Default::default() },
        AcquireRequest { start: 65535, count: 2, ..Default::default() },
        AcquireRequest { start: 1, count: 65535 - 1, align: 2, ..Default::default() },
        AcquireRequest { start: 61000, count: 4537, ..Default::default() },
        AcquireRequest { start: 65535, count: 65535, ..Default::default() },
        AcquireRequest { scope: 3, ..one },
        AcquireRequest { scope: u16::MAX, ..one },
        AcquireRequest { zero: 1, ..one },
        AcquireRequest { zero: 1 << 15, ..one },
        AcquireRequest { cgroup: 1, ..one },
        AcquireRequest { cgroup: 1, scope: wire::SCOPE_USER, ..one },
        AcquireRequest { cgroup: u64::MAX, scope: wire::SCOPE_CGROUP, ..one },
        AcquireRequest { align: 3, ..one },
        AcquireRequest { align: u16::MAX, ..one },
        AcquireRequest { start: 61001, align: 2, ..one },
        AcquireRequest { flags: wire::STRICT | wire::EPHEMERAL, ..one },
    ];
    bad.extend((3..32).map(|bit| AcquireRequest { flags: 1 << bit, ..one }));
    for request in &bad {
        watch.fails(&format!("{request:?}"), Errno::EINVAL, || set(fd, wire::ACQUIRE, request.as_bytes()));
    }
    // The others follow the request: exactly as many as it says, and no byte more.
    let other = |kind: u16| Also { kind: kind.into(), id: 7, name: [0; 128] };
    let with = |count: u16, also: &[Also]| [AcquireRequest { also: count, ..one }.as_bytes(), also.as_bytes()].concat();
    for count in 1..=wire::ALSO_MAX {
        let request = with(count as u16, &vec![other(wire::SCOPE_GROUP); count]);
        set(fd, wire::ACQUIRE, &request).unwrap();
        control::release(&owner, token(&control::granted(&owner).unwrap())).unwrap();
        for size in [16, 24, 48, request.len() - 1, request.len() + 1, request.len() + 136, 4096, 4097] {
            let mut request = request.clone();
            request.resize(size, 0);
            watch.fails(&format!("{count} in {size} bytes"), Errno::EINVAL, || set(fd, wire::ACQUIRE, &request));
        }
    }
    for (count, also) in [
        (5, vec![other(wire::SCOPE_USER); 5]),
        (u16::MAX, vec![other(wire::SCOPE_USER); 5]),
        (1, vec![other(wire::SCOPE_PROCESS)]),
        (1, vec![other(wire::SCOPE_CGROUP)]),
        (1, vec![other(wire::SCOPE_ADMIN)]),
        (2, vec![other(wire::SCOPE_UNIT), other(6)]),
        (2, vec![other(wire::SCOPE_UNIT), Also { kind: 1 << 16 | 1, ..other(0) }]),
    ] {
        watch.fails(&format!("{count}: {also:?}"), Errno::EINVAL, || set(fd, wire::ACQUIRE, &with(count, &also)));
    }
    // The control codes of a fixed size.
    let grant = reserve(&owner, 0, 1);
    let select = SelectRequest { by: wire::BY_TOKEN, token: grant.token, ..Default::default() };
    for (option, exact, valid) in [
        (wire::RELEASE, 8, grant.token.as_bytes()),
        (wire::ASSOCIATE, 8, grant.token.as_bytes()),
        (wire::SELECT, 16, select.as_bytes()),
        (wire::AGENT, 24, &[0; 24]),
    ] {
        for size in (0..100).chain([255, 256, 4096, 4097, 1 << 16]).filter(|size| *size != exact) {
            let mut value = valid.to_vec();
            value.resize(size, 0);
            watch.fails(&format!("{option} of {size} bytes"), Errno::EINVAL, || set(fd, option, &value));
        }
    }
    for bad in [
        SelectRequest { by: 0, ..select },
        SelectRequest { by: 6, ..select },
        SelectRequest { by: u16::MAX, ..select },
        SelectRequest { zero: [1, 0, 0], ..select },
        SelectRequest { zero: [0, 0, 1], ..select },
        SelectRequest { by: wire::BY_PORT, ..select },
        SelectRequest { by: wire::BY_NEXT, transport: 3, ..select },
    ] {
        watch.fails(&format!("{bad:?}"), Errno::EINVAL, || set(fd, wire::SELECT, bad.as_bytes()));
    }
    // Lengths that are negative in the kernel.
    for option in SET {
        let value = [0u8; 48];
        watch.fails("negative", Errno::EINVAL, || raw_set(fd, option, value.as_ptr(), u32::MAX));
        watch.fails("negative", Errno::EINVAL, || raw_set(fd, option, value.as_ptr(), 1 << 31));
    }
    // Answers: a buffer that is too small gets EINVAL. For a larger one the kernel reports the number of bytes written.
    control::state(&owner, &select).unwrap();
    for (option, exact) in [
        (wire::VERSION, size_of::<wire::Version>()),
        (wire::GRANTED, size_of::<wire::Grant>()),
        (wire::STATE, size_of::<wire::State>()),
    ] {
        for size in 0..exact {
            watch.fails(&format!("{option} into {size} bytes"), Errno::EINVAL, || get(fd, option, size).map(drop));
        }
        for size in [exact, exact + 1, 200, 4096, 4097, 70000] {
            assert_eq!(get(fd, option, size), Ok(exact), "{option} into {size} bytes");
        }
        let (mut byte, mut length) = (0u8, u32::MAX);
        // SAFETY: both are ours; a negative length is refused before anything is written.
        watch.fails("negative", Errno::EINVAL, || unsafe { raw_get(fd, option, &mut byte, &mut length) });
    }
    watch.fails("nothing selected", Errno::EINVAL, || get(tcp().as_raw_fd(), wire::STATE, 256).map(drop));
    drop(owner);
    world.assert_empty();
}

#[test]
fn random_bytes_get_an_errno_of_the_table_or_a_whole_grant() {
    let Some(world) = World::enter("random_bytes") else { return };
    let mut random = Random::new(1);
    let mut next = || random.number();
    let owner = udp();
    let known = [
        Errno::EINVAL,
        Errno::EADDRINUSE,
        Errno::ENOSPC,
        Errno::ENOENT,
        Errno::ENETDOWN,
        Errno::EDQUOT,
        Errno::EPERM,
        Errno::ENOPROTOOPT,
    ];
    for _ in 0..20_000 {
        let mut value = vec![0u8; [0, 4, 7, 8, 9, 16, 24, 48, 56, 256][next() as usize % 10]];
        // Mostly zero bytes: most all-random requests fail the first check.
        value.iter_mut().for_each(|byte| *byte = if next() % 4 == 0 { next() as u8 } else { 0 });
        // At any alignment.
        let offset = next() as usize % 8;
        let mut room = vec![0u8; offset];
        room.extend_from_slice(&value);
        let option = SET[next() as usize % SET.len()];
        if let Err(errno) = set(owner.as_raw_fd(), option, &room[offset..]) {
            assert!(known.contains(&errno), "{option} {value:x?}: {errno}");
        }
        if let Err(errno) = get(owner.as_raw_fd(), GET[next() as usize % 3], next() as usize % 200) {
            assert!(known.contains(&errno), "{errno}");
        }
    }
    world.assert_consistent();
    drop(owner);
    world.assert_empty();
}

#[test]
fn pointers_outside_the_address_space_are_efault() {
    let Some(world) = World::enter("pointers_outside_the_address_space_are_efault") else { return };
    let watch = Watch::new(&world);
    let owner = tcp();
    let fd = owner.as_raw_fd();
    let grant = reserve(&owner, 0, 1);
    control::state(&owner, &SelectRequest { by: wire::BY_TOKEN, token: grant.token, ..Default::default() }).unwrap();
    let edge = Edge::new();
    let inaccessible = edge.before(0);
    // Nothing is ever mapped in the first pages.
    let unmapped = PAGE as *mut u8;
    let kernel = usize::MAX as *mut u8;
    let bad = [ptr::null_mut(), inaccessible, unmapped, kernel, ptr::dangling_mut()];
    for option in SET.into_iter().chain(UNKNOWN) {
        for length in [8, 16, 24, 48, 64, 4096, 5000] {
            for pointer in bad {
                watch
                    .fails(&format!("{option} at {pointer:?}"), Errno::EFAULT, || raw_set(fd, option, pointer, length));
            }
            watch.fails(&format!("{option} over the edge"), Errno::EFAULT, || {
                raw_set(fd, option, edge.before(7), length)
            });
        }
        // Without bytes no pointer is needed: the call is malformed, and it is not a fault.
        let wanted = if SET.contains(&option) { Errno::EINVAL } else { Errno::ENOPROTOOPT };
        watch.fails("nothing at all", wanted, || raw_set(fd, option, ptr::null(), 0));
    }
    let mut length = 256;
    for option in GET {
        // The kernel treats an answer to NULL as a query of its length.
        // SAFETY: nothing is written through NULL, `length` is ours.
        let null = unsafe { raw_get(fd, option, ptr::null_mut(), &mut length) };
        assert!(null.is_ok() || null == Err(Errno::EFAULT));
        for pointer in bad[1..].iter().copied().chain([edge.before(3)]) {
            length = 256;
            // SAFETY: `pointer` cannot be written to (three bytes of it can, and are ours), `length` is ours.
            watch.fails(&format!("{option} to {pointer:?}"), Errno::EFAULT, || unsafe {
                raw_get(fd, option, pointer, &mut length)
            });
        }
        let mut buffer = [0u8; 256];
        for pointer in bad {
            let before = watch.state();
            // SAFETY: `buffer` is ours, the length cannot be written to.
            let result = unsafe { raw_get(fd, option, buffer.as_mut_ptr(), pointer.cast()) };
            // If the kernel ignores a length that it cannot read, the program finds no room for the answer.
            assert!([Err(Errno::EFAULT), Err(Errno::EINVAL)].contains(&result), "{option}: {result:?}");
            assert!(watch.state() == before);
        }
    }
    edge.write_protect();
    for option in GET {
        length = 256;
        // SAFETY: memory that can be read but not written, and `length` is ours.
        watch.fails("read-only", Errno::EFAULT, || unsafe { raw_get(fd, option, edge.before(256), &mut length) });
    }
    let _ = length;
    assert_eq!(control::granted(&owner).unwrap(), grant, "the answer is still there");
    drop(owner);
    world.assert_empty();
}

#[test]
fn descriptors_that_are_none_or_no_sockets() {
    let Some(world) = World::enter("descriptors_that_are_none_or_no_sockets") else { return };
    let watch = Watch::new(&world);
    let request = AcquireRequest { count: 1, ..Default::default() };
    let closed = {
        let socket = tcp();
        // Far above what anybody uses, so that no other thread's descriptor takes its place.
        // SAFETY: duplicates to a free number, which is closed again at once by its only owner.
        let high = unsafe { OwnedFd::from_raw_fd(libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900)) };
        high.as_raw_fd()
    };
    for fd in [closed, -1, i32::MAX, libc::AT_FDCWD] {
        for option in SET {
            watch.fails("no descriptor", Errno::EBADF, || set(fd, option, request.as_bytes()));
        }
        for option in GET {
            watch.fails("no descriptor", Errno::EBADF, || get(fd, option, 256).map(drop));
        }
    }
    let (pipe, _other) = std::io::pipe().unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let path = rustix::fs::open("/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .unwrap();
    for (what, fd, wanted) in [
        ("file", File::open("/proc/self/exe").unwrap().into(), Errno::ENOTSOCK),
        ("folder", File::open("/").unwrap().into(), Errno::ENOTSOCK),
        ("device", File::open("/dev/null").unwrap().into(), Errno::ENOTSOCK),
        ("pipe", pipe.into(), Errno::ENOTSOCK),
        ("eventfd", event, Errno::ENOTSOCK),
        ("O_PATH", path, Errno::EBADF),
    ] {
        let fd: OwnedFd = fd;
        for option in SET {
            watch.fails(what, wanted, || set(fd.as_raw_fd(), option, request.as_bytes()));
        }
        for option in GET {
            watch.fails(what, wanted, || get(fd.as_raw_fd(), option, 256).map(drop));
        }
    }
    // A socket may have been made by another process: the process that calls is the owner process.
    let mut maker = Child::fork(|talk| {
        talk.pass(tcp());
        talk.hear();
    });
    let foreign = Socket::from(maker.talk.take());
    let grant = reserve(&foreign, 0, 1);
    control::release(tcp(), token(&grant)).unwrap();
    maker.talk.say(0);
    maker.join();
    drop(foreign);
    world.assert_empty();
}

#[test]
fn sockets_that_are_neither_tcp_nor_udp() {
    let Some(world) = World::enter("sockets_that_are_neither_tcp_nor_udp") else { return };
    let watch = Watch::new(&world);
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let request = AcquireRequest { count: 1, ..Default::default() };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let mut seen = Vec::new();
    for (what, domain, kind, protocol) in [
        ("MPTCP", libc::AF_INET, libc::SOCK_STREAM, 262),
        ("MPTCP over IPv6", libc::AF_INET6, libc::SOCK_STREAM, 262),
        ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        ("raw TCP", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        ("raw UDP", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_UDP),
        ("ICMP", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("ping", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        ("ping over IPv6", libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        ("UDP-Lite", libc::AF_INET, libc::SOCK_DGRAM, 136),
        ("UDP-Lite over IPv6", libc::AF_INET6, libc::SOCK_DGRAM, 136),
        ("SCTP", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("SCTP, many", libc::AF_INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
        ("SMC", 43, libc::SOCK_STREAM, 0),
        ("Unix stream", libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ("Unix datagram", libc::AF_UNIX, libc::SOCK_DGRAM, 0),
        ("Unix packets", libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("crypto", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ] {
        let made = Socket::new(Domain::from(domain), Type::from(kind), Some(Protocol::from(protocol)));
        // Skip families that this kernel does not have.
        let Ok(socket) = made else { continue };
        seen.push(what);
        let fd = socket.as_raw_fd();
        let select = SelectRequest { by: wire::BY_TOKEN, token: grant.token, ..Default::default() };
        for (option, value) in [
            (wire::ACQUIRE, request.as_bytes()),
            (wire::RELEASE, grant.token.as_bytes()),
            (wire::ASSOCIATE, grant.token.as_bytes()),
            (wire::SELECT, select.as_bytes()),
            (wire::AGENT, &[0; 24]),
            (12345, &[0; 4]),
        ] {
            watch.fails(&format!("{option} on {what}"), Errno::EOPNOTSUPP, || set(fd, option, value));
        }
        for option in [wire::GRANTED, wire::STATE] {
            watch.fails(&format!("{option} on {what}"), Errno::EOPNOTSUPP, || get(fd, option, 256).map(drop));
        }
        // The version can be queried on any socket.
        assert_eq!(control::version(&socket).unwrap().abi, wire::ABI, "{what}");
    }
    assert!(seen.contains(&"Unix stream") && seen.contains(&"raw") && seen.contains(&"ping"), "{seen:?}");
    drop(owner);
    world.assert_empty();
}

#[test]
fn impossible_requests_have_their_errno() {
    let Some(world) = World::enter("impossible_requests_have_their_errno") else { return };
    let watch = Watch::new(&world);
    let acquire_errno = |socket: &Socket, request: AcquireRequest| {
        control::acquire(socket, &request).map_err(|error| Errno(error.raw_os_error().unwrap()))
    };
    let owner = tcp();
    let grant = reserve(&owner, 61100, 100);
    let request = |start, count| AcquireRequest { start, count, ..Default::default() };
    for (start, count) in [(61100, 1), (61199, 1), (61000, 101), (61199, 200), (61100, 100), (61000, 4536)] {
        watch.fails("reserved", Errno::EADDRINUSE, || acquire_errno(&owner, request(start, count)));
    }
    for (start, count) in [(5000, 1), (80, 1), (60999, 2), (60999, 1), (1, 65535), (60000, 5000)] {
        watch.fails("no agent", Errno::ENETDOWN, || acquire_errno(&owner, request(start, count)));
    }
    for count in [4337, 4536, 4537, 65535] {
        watch.fails("no such run", Errno::ENOSPC, || acquire_errno(&owner, request(0, count)));
    }
    let largest = reserve(&owner, 0, 4336);
    assert_eq!(largest.start, 61200);
    let aligned = AcquireRequest { align: 128, ..request(0, 65) };
    watch.fails("no aligned run", Errno::ENOSPC, || acquire_errno(&owner, aligned));
    control::release(&owner, token(&largest)).unwrap();

    for option in UNKNOWN {
        for value in [&[0u8; 4][..], &[0; 48]] {
            watch.fails("unknown code", Errno::ENOPROTOOPT, || set(owner.as_raw_fd(), option, value));
            watch.fails("unknown code", Errno::ENOPROTOOPT, || get(owner.as_raw_fd(), option, 64).map(drop));
        }
    }
    for option in GET {
        watch.fails("a code of the other direction", Errno::ENOPROTOOPT, || set(owner.as_raw_fd(), option, &[0; 64]));
    }
    for option in SET {
        watch.fails("a code of the other direction", Errno::ENOPROTOOPT, || {
            get(owner.as_raw_fd(), option, 256).map(drop)
        });
    }
    // Tokens: zero, guessed, ended, of the other transport, too late.
    let over = reserve(&owner, 0, 1);
    control::release(&owner, token(&over)).unwrap();
    let bound = tcp6();
    bind(&bound, 0).unwrap();
    for option in [wire::RELEASE, wire::ASSOCIATE] {
        let fd = owner.as_raw_fd();
        for number in [0, 1, over.token, grant.token ^ 1, !grant.token, grant.token.swap_bytes(), u64::MAX] {
            watch.fails("unknown token", Errno::ENOENT, || set(fd, option, number.as_bytes()));
        }
        watch.fails("other transport", Errno::EINVAL, || set(udp().as_raw_fd(), option, grant.token.as_bytes()));
        in_child(|| {
            watch.fails("other process", Errno::EPERM, || set(tcp().as_raw_fd(), option, grant.token.as_bytes()));
        });
    }
    for number in [0, 1, grant.token] {
        watch.fails("after bind", Errno::EINVAL, || set(bound.as_raw_fd(), wire::ASSOCIATE, number.as_bytes()));
    }
    watch.fails("nothing granted", Errno::ENOENT, || get(tcp().as_raw_fd(), wire::GRANTED, 16).map(drop));
    // Queries for reservations that do not exist.
    for select in [
        SelectRequest { by: wire::BY_TOKEN, token: over.token, ..Default::default() },
        SelectRequest { by: wire::BY_TOKEN, ..Default::default() },
        SelectRequest { by: wire::BY_PORT, port: 61200, transport: 1, ..Default::default() },
        SelectRequest { by: wire::BY_PORT, port: 61100, transport: 2, ..Default::default() },
        SelectRequest { by: wire::BY_PORT, port: 0, transport: 1, ..Default::default() },
        SelectRequest { by: wire::BY_NEXT, port: 61101, transport: 1, ..Default::default() },
        SelectRequest { by: wire::BY_NEXT, port: 65535, transport: 1, ..Default::default() },
        SelectRequest { by: wire::BY_INDEX, port: 1, ..Default::default() },
        SelectRequest { by: wire::BY_INDEX, port: u16::MAX, ..Default::default() },
        SelectRequest { by: wire::BY_ASSOCIATED, ..Default::default() },
    ] {
        control::set(&owner, wire::SELECT, select.as_bytes()).unwrap();
        watch.fails(&format!("{select:?}"), Errno::ENOENT, || get(owner.as_raw_fd(), wire::STATE, 256).map(drop));
    }
    // The control code of the agent.
    let secret = world.maps().config().unwrap().secret;
    for (mark, wanted) in [
        (AgentMark { role: wire::AGENT_BEACON, ..Default::default() }, Errno::EPERM),
        (AgentMark { secret: [secret[0], !secret[1]], role: wire::AGENT_PROBE, zero: 0 }, Errno::EPERM),
        (AgentMark { secret, role: 0, zero: 0 }, Errno::EINVAL),
        (AgentMark { secret, role: 4, zero: 0 }, Errno::EINVAL),
        (AgentMark { secret, role: wire::AGENT_PROBE, zero: 1 }, Errno::EINVAL),
    ] {
        watch.fails(&format!("{mark:?}"), wanted, || set(owner.as_raw_fd(), wire::AGENT, mark.as_bytes()));
    }
    let marked = udp();
    let reader = AgentMark { secret, role: wire::AGENT_READER, zero: 0 };
    control::agent_mark(&marked, &reader).unwrap();
    watch.fails("marked twice", Errno::EINVAL, || set(marked.as_raw_fd(), wire::AGENT, reader.as_bytes()));
    drop(marked);
    drop((owner, bound));
    assert_eq!(world.maps().counters().unwrap().listeners, 0);
    world.assert_empty();
}

#[test]
fn over_the_quota_is_edquot() {
    let Some(world) = World::enter("over_the_quota_is_edquot") else { return };
    let watch = Watch::new(&world);
    let quota = portkeep_kernel::Settings::default().quota as u16;
    let request = |count, flags| AcquireRequest { count, flags, ..Default::default() };
    in_child(|| {
        // The maps are read as root, and the requests are made as an ordinary user, because the real uid counts.
        // SAFETY: changes only the real uid of this child.
        assert_eq!(unsafe { libc::setresuid(NOBODY, 0, 0) }, 0);
        let owner = tcp();
        let over = |request: AcquireRequest| {
            watch.fails(&format!("{request:?}"), Errno::EDQUOT, || {
                control::acquire(&owner, &request).map_err(|error| Errno(error.raw_os_error().unwrap()))
            });
        };
        over(request(quota + 1, 0));
        over(request(quota / 2 + 1, wire::BOTH));
        over(request(4536, 0));
        let first = acquire(&owner, &request(quota - 1, 0)).unwrap();
        over(request(2, 0));
        over(request(1, wire::BOTH));
        let last = acquire(&owner, &request(1, 0)).unwrap();
        over(request(1, 0));
        // A request that fails for another reason is not charged.
        watch.fails("in use", Errno::EDQUOT, || {
            let taken = AcquireRequest { start: first.start, count: 1, ..Default::default() };
            control::acquire(&owner, &taken).map_err(|error| Errno(error.raw_os_error().unwrap()))
        });
        control::release(&owner, token(&last)).unwrap();
        control::release(&owner, token(&first)).unwrap();
        acquire(&owner, &request(quota / 2, wire::BOTH)).unwrap();
        over(request(1, 0));
        world.assert_consistent();
    });
    world.assert_empty();
    // A limit for one user, and no limit.
    let admin = world.sandbox().loaded().admin().unwrap();
    admin.set_quota_limit(NOBODY, 3).unwrap();
    in_child(|| {
        become_user(NOBODY);
        let owner = tcp();
        assert_eq!(errno(control::acquire(&owner, &request(4, 0))), Errno::EDQUOT);
        reserve(&owner, 0, 3);
        assert_eq!(errno(control::acquire(&owner, &request(1, 0))), Errno::EDQUOT);
    });
    admin.set_quota_limit(NOBODY, u32::MAX).unwrap();
    in_child(|| {
        become_user(NOBODY);
        reserve(&tcp(), 0, 4536);
    });
    world.assert_empty();
}

#[test]
fn control_codes_that_are_not_served_are_enoprotoopt() {
    let Some(world) = World::with_outside("not_served") else { return };
    let outside = TestCgroup::new("unserved").unwrap();
    let mut outsider = Child::fork(|talk| {
        talk.hear();
        for socket in [tcp(), udp(), tcp6(), udp6()] {
            let request = AcquireRequest { count: 1, ..Default::default() };
            assert_eq!(errno(control::acquire(&socket, &request)), Errno::ENOPROTOOPT);
            // For getsockopt the kernel itself returns this for IPv6 only; for IPv4 it reports an unknown level as
            // EOPNOTSUPP.
            let wanted = match socket.domain().unwrap() {
                Domain::IPV6 => Errno::ENOPROTOOPT,
                _ => Errno::EOPNOTSUPP,
            };
            assert_eq!(errno(control::version(&socket)), wanted);
            assert_eq!(errno(control::associate(&socket, Token::new(1).unwrap())), Errno::ENOPROTOOPT);
        }
        // A socket belongs to the cgroup in which it was made, even if its process moves.
        let brought = Socket::from(talk.take());
        control::version(&brought).unwrap();
    });
    outside.enter(outsider.pid()).unwrap();
    outsider.talk.say(0);
    // SAFETY: the descriptor is the socket's own, given up here.
    let socket = unsafe { OwnedFd::from_raw_fd(tcp().into_raw_fd()) };
    outsider.talk.pass(&socket);
    outsider.join();
    drop(socket);
    world.assert_empty();
}
