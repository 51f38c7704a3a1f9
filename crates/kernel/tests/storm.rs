//! Invariants under concurrency: many processes acquire, release, bind and connect, and are killed in the middle.
//! `PORTKEEP_STORM_MS` sets how long the storms last (2,000 ms by default). `PORTKEEP_STORM_CYCLES` sets after how many
//! acquire-and-release cycles the maps must not have grown (1,000,000 by default).

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use portkeep::control;
use portkeep_core::{
    Errno, Transport,
    wire::{self, AcquireRequest, AgentMark},
};
use portkeep_kernel::Maps;
use portkeep_testkit::{
    World, audit,
    process::Child,
    random::Random,
    sockets::{acquire, bind, connect, port, socket, tcp, token, udp},
};
use socket2::{Domain, Socket};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn storm_end() -> Instant {
    Instant::now() + Duration::from_millis(number("PORTKEEP_STORM_MS", 2000))
}

/// Memory that forked children share with this process.
struct Shared<T: 'static>(&'static [T]);

impl<T: 'static> Shared<T> {
    /// `count` of them, all zero.
    ///
    /// # Safety
    ///
    /// All zero must be a valid `T`, and `T` must be made to be changed by several threads at once.
    unsafe fn zeroed(count: usize) -> Self {
        // SAFETY: a fresh shared mapping of that many bytes, page-aligned, zero, and never unmapped.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            Self(std::slice::from_raw_parts(start.cast(), count))
        }
    }
}

fn elements(maps: &Maps) -> (usize, usize, u32) {
    (maps.words().count(), maps.spaces().count(), maps.entries_taken().unwrap())
}

/// All kinds of calls, without end.
fn rage(seed: u64, beacon: Option<[u64; 2]>) {
    let mut random = Random::new(seed);
    let mut sockets: Vec<Option<Socket>> = (0..16).map(|_| None).collect();
    let mut tokens = [None; 8];
    if let Some(secret) = beacon {
        let beacon = udp();
        control::agent_mark(&beacon, &AgentMark { secret, role: wire::AGENT_BEACON, zero: 0 }).unwrap();
        std::mem::forget(beacon);
    }
    loop {
        let slot = random.below(16) as usize;
        let kept = random.below(8) as usize;
        let transport = if random.below(2) == 0 { Transport::Tcp } else { Transport::Udp };
        let domain = if random.below(3) == 0 { Domain::IPV6 } else { Domain::IPV4 };
        let Some(at_hand) = &sockets[slot] else {
            sockets[slot] = Some(socket(domain, transport));
            continue;
        };
        match random.below(10) {
            0..=2 => {
                // Few ports for many processes: they compete for the same ones.
                let request = AcquireRequest {
                    start: if random.below(3) == 0 { 0 } else { 61040 + random.below(100) as u16 },
                    count: 1 + random.below(70) as u16,
                    flags: random.below(2) as u32 * wire::BOTH + u32::from(random.below(3) == 0) * wire::EPHEMERAL,
                    scope: random.below(3) as u16,
                    ..Default::default()
                };
                if let Ok(grant) = acquire(at_hand, &request) {
                    tokens[kept] = Some(token(&grant));
                }
            }
            3 => {
                if let Some(token) = tokens[kept].take() {
                    let _ = control::release(at_hand, token);
                }
            }
            4 | 5 => {
                if let Some(token) = tokens[kept] {
                    let _ = control::associate(at_hand, token);
                }
            }
            6 => drop(bind(at_hand, 0)),
            7 => drop(bind(at_hand, 61040 + random.below(170) as u16)),
            8 => {
                let _ = at_hand.set_nonblocking(true);
                let _ = connect(at_hand, if domain == Domain::IPV6 { "[::1]:9" } else { "127.0.0.1:9" });
            }
            _ => sockets[slot] = None,
        }
    }
}

#[test]
fn a_storm_of_kills_leaves_nothing_behind() {
    let Some(world) = World::enter("a_storm_of_kills_leaves_nothing_behind") else { return };
    let maps = world.maps();
    let secret = maps.config().unwrap().secret;
    let mut random = Random::new(u64::from(std::process::id()));
    let mut seed = 0;
    let mut start = || {
        seed += 1;
        Child::fork(|_| rage(seed, (seed % 3 == 0).then_some(secret)))
    };
    let mut crowd: Vec<Child> = (0..8).map(|_| start()).collect();
    let end = storm_end();
    let mut killed = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.below(20)));
        let victim = random.below(8) as usize;
        crowd[victim] = start();
        killed += 1;
    }
    drop(crowd);
    println!("{killed} processes killed in the storm, 8 after it");
    world.assert_empty();
    let counters = maps.counters().unwrap();
    assert_eq!((counters.reservations, counters.ports, counters.agents, counters.listeners), (0, 0, 0, 0));
    assert_eq!((counters.ranges, maps.ranges().count()), ([0; 8], 0));
    assert_eq!(maps.entries_taken().unwrap(), 0);
    assert!(maps.quotas().map(Result::unwrap).all(|(_, quota)| quota.used == 0));
}

#[test]
fn overlapping_blocks_are_never_granted_at_once() {
    let Some(world) = World::enter("overlapping_blocks_are_never_granted_at_once") else { return };
    // A process writes down each port that it holds. A grant of a port that is written down is a defect.
    // SAFETY: zero is a valid atomic.
    let held: Shared<AtomicU32> = unsafe { Shared::zeroed(2 * 65536) };
    // SAFETY: as above.
    let granted: Shared<AtomicU64> = unsafe { Shared::zeroed(2) };
    let end = storm_end();
    let contenders: Vec<_> = (1..=6u32)
        .map(|me| {
            Child::fork(|_| {
                let mut random = Random::new(u64::from(me));
                let owners = [tcp(), udp()];
                while Instant::now() < end {
                    let request = AcquireRequest {
                        start: if random.below(4) == 0 { 0 } else { 61000 + random.below(200) as u16 },
                        count: 1 + random.below(130) as u16,
                        flags: random.below(2) as u32 * wire::BOTH,
                        ..Default::default()
                    };
                    let owner = &owners[random.below(2) as usize];
                    let grant = match acquire(owner, &request) {
                        Ok(grant) => grant,
                        Err(error) => {
                            let errno = Errno(error.raw_os_error().unwrap());
                            assert!([Errno::EADDRINUSE, Errno::ENOSPC].contains(&errno), "{errno}");
                            granted.0[1].fetch_add(1, SeqCst);
                            continue;
                        }
                    };
                    let places = || {
                        let ports = grant.start..=grant.start + (grant.count - 1);
                        let tables = [1, 2].into_iter().filter(|bit| grant.transports & bit != 0);
                        tables.flat_map(move |bit| {
                            ports.clone().map(move |p| (usize::from(bit) - 1) << 16 | usize::from(p))
                        })
                    };
                    for place in places() {
                        assert_eq!(held.0[place].swap(me, SeqCst), 0, "port {} belongs to two", place & 0xffff);
                    }
                    for place in places() {
                        assert_eq!(held.0[place].swap(0, SeqCst), me, "port {} belongs to two", place & 0xffff);
                    }
                    granted.0[0].fetch_add(1, SeqCst);
                    control::release(owner, token(&grant)).unwrap();
                }
            })
        })
        .collect();
    contenders.into_iter().for_each(Child::join);
    let [won, lost] = [0, 1].map(|i| granted.0[i].load(SeqCst));
    println!("{won} blocks granted, {lost} refused");
    assert!(won > 0 && lost > 0);
    world.assert_empty();
}

#[test]
fn no_outsider_gets_in_while_reservations_come_and_go() {
    let Some(world) = World::enter("no_outsider_gets_in_while_reservations_come_and_go") else { return };
    const FIRST: u16 = 61000;
    const PORTS: u16 = 8;
    let end = storm_end();
    // Outsiders try all the time, and get the port when it is not reserved. The counters show who has which port.
    // SAFETY: zero is a valid atomic.
    let held: Shared<AtomicU32> = unsafe { Shared::zeroed(PORTS.into()) };
    let held = held.0;
    let nobody_else = || held.iter().all(|count| count.load(SeqCst) == 0);
    let outsiders: Vec<_> = (0..2)
        .map(|i| {
            Child::fork(move |_| {
                let mut random = Random::new(100 + i);
                while Instant::now() < end {
                    let transport = if random.below(2) == 0 { Transport::Tcp } else { Transport::Udp };
                    let outsider = socket(if random.below(2) == 0 { Domain::IPV4 } else { Domain::IPV6 }, transport);
                    let _ = outsider.set_reuse_port(true);
                    let offset = random.below(PORTS.into());
                    match bind(&outsider, FIRST + offset as u16) {
                        Ok(()) if transport == Transport::Tcp => {
                            held[offset as usize].fetch_add(1, SeqCst);
                            std::thread::yield_now();
                            held[offset as usize].fetch_sub(1, SeqCst);
                        }
                        Ok(()) => {}
                        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE)),
                    }
                }
            })
        })
        .collect();
    // Insiders draw from blocks that another thread ends at the same time; every bind gets a port of the block, or a
    // refusal.
    let insiders: Vec<_> = (0..2)
        .map(|_| {
            Child::fork(|_| {
                while Instant::now() < end {
                    let owner = tcp();
                    let Ok(grant) =
                        acquire(&owner, &AcquireRequest { start: FIRST, count: PORTS, ..Default::default() })
                    else {
                        continue;
                    };
                    assert!(nobody_else(), "granted, and an outsider has a port of it");
                    std::thread::scope(|scope| {
                        scope.spawn(|| {
                            for _ in 0..20 {
                                let inside = tcp();
                                if control::associate(&inside, token(&grant)).is_err() {
                                    return;
                                }
                                match bind(&inside, 0) {
                                    Ok(()) => assert!((FIRST..FIRST + PORTS).contains(&port(&inside))),
                                    Err(error) => {
                                        let errno = Errno(error.raw_os_error().unwrap());
                                        assert!([Errno::EACCES, Errno::EADDRINUSE].contains(&errno), "{errno}");
                                        assert_eq!(port(&inside), 0);
                                    }
                                }
                            }
                        });
                        std::thread::yield_now();
                        assert!(nobody_else(), "an outsider got in");
                        control::release(&owner, token(&grant)).unwrap();
                    });
                }
            })
        })
        .collect();
    outsiders.into_iter().chain(insiders).for_each(Child::join);
    world.assert_empty();
}

#[test]
fn concurrent_draws_never_get_the_same_port() {
    let Some(world) = World::enter("concurrent_draws_never_get_the_same_port") else { return };
    let owner = udp();
    let grant = acquire(
        &owner,
        &AcquireRequest { count: 40, flags: wire::BOTH, scope: wire::SCOPE_CGROUP, ..Default::default() },
    )
    .unwrap();
    // SAFETY: zero is a valid atomic.
    let held: Shared<AtomicU32> = unsafe { Shared::zeroed(2 * 65536) };
    let end = storm_end();
    let drawers: Vec<_> = (1..=4u32)
        .map(|me| {
            Child::fork(move |_| {
                let mut random = Random::new(u64::from(me));
                while Instant::now() < end {
                    let transport = if random.below(2) == 0 { Transport::Tcp } else { Transport::Udp };
                    let mut mine = Vec::new();
                    // Together they fit into the block, so every draw must succeed in the end. The hook runs before the
                    // kernel releases the port of a closed socket, so a process that draws the port in between gets
                    // EADDRINUSE.
                    for _ in 0..10 {
                        let inside = socket(Domain::IPV4, transport);
                        control::associate(&inside, token(&grant)).unwrap();
                        let by_connect = random.below(3) == 0 && transport == Transport::Udp;
                        let draw = || if by_connect { connect(&inside, "127.0.0.1:9") } else { bind(&inside, 0) };
                        let mut tries = 0;
                        while let Err(error) = draw() {
                            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
                            tries += 1;
                            assert!(tries < 100_000, "no port, and the block has room");
                            std::thread::yield_now();
                        }
                        let place = usize::from(transport.bit() - 1) << 16 | usize::from(port(&inside));
                        assert_eq!(held.0[place].swap(me, SeqCst), 0, "port {} drawn twice", port(&inside));
                        mine.push((place, inside));
                    }
                    for (place, _inside) in mine {
                        assert_eq!(held.0[place].swap(0, SeqCst), me);
                    }
                }
            })
        })
        .collect();
    drawers.into_iter().for_each(Child::join);
    world.assert_consistent();
    drop(owner);
    world.assert_empty();
}

#[test]
fn cycles_do_not_make_the_maps_grow() {
    let Some(world) = World::enter("cycles_do_not_make_the_maps_grow") else { return };
    let maps = world.maps();
    let owners = [tcp(), udp()];
    let cycle = |i: u64| {
        let request = AcquireRequest {
            count: [1, 4, 20, 64][i as usize / 2 % 4],
            flags: (i / 8 % 2) as u32 * wire::BOTH,
            ..Default::default()
        };
        let owner = &owners[i as usize % 2];
        let grant = acquire(owner, &request).unwrap();
        control::release(owner, token(&grant)).unwrap();
    };
    // Once round the pool, so that all its words exist.
    (0..10_000).for_each(cycle);
    let before = elements(&maps);
    (0..number("PORTKEEP_STORM_CYCLES", 1_000_000)).for_each(cycle);
    assert_eq!(elements(&maps), before);
    drop(owners);
    world.assert_empty();
    audit::assert_consistent(&maps);
    // The table is empty now, and the agent may forget it.
    world.maps().forget_quiet_namespaces(&world.sandbox().loaded().admin().unwrap(), 0).unwrap();
    assert!(!maps.words().map(Result::unwrap).any(|(key, _)| key.netns == world.netns()));
    assert!(!maps.spaces().map(Result::unwrap).any(|(netns, _)| netns == world.netns()));
}

#[test]
fn forgetting_many_namespaces_takes_as_long_as_there_are_words() {
    let Some(world) = World::enter("forgetting_many_namespaces_takes_as_long_as_there_are_words") else { return };
    let mut maps = world.maps();
    let admin = world.sandbox().loaded().admin().unwrap();
    // Each namespace of a container leaves its words behind.
    let mut forget = |namespaces: u32| {
        for _ in 0..namespaces {
            portkeep_testkit::new_namespace();
            let request = AcquireRequest { count: 4096, flags: wire::BOTH, ..Default::default() };
            acquire(&tcp(), &request).unwrap();
        }
        let begin = Instant::now();
        let gone = maps.forget_quiet_namespaces(&admin, 0).unwrap();
        (gone, begin.elapsed())
    };
    forget(1);
    let (few, while_few) = forget(10);
    let (many, while_many) = forget(100);
    assert!(few >= 10 * 128 && many >= 100 * 128, "{few} and {many} words");
    let ratio = while_many.as_secs_f64() / while_few.as_secs_f64();
    assert!(ratio < 25.0, "ten times as many take {ratio:.0} times as long");
    assert!(maps.words().count() == 0 && maps.spaces().count() == 0);
}
