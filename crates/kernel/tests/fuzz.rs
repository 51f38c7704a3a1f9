//! Random requests on random sockets of several processes, valid and invalid. Afterwards the test checks whether the
//! maps are consistent.
//!
//! `PORTKEEP_FUZZ_REQUESTS` sets how many requests are made (200,000 by default); `PORTKEEP_FUZZ_SEED` repeats a run.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use portkeep_core::{
    Token,
    wire::{self, AcquireRequest, AgentMark, Also, SelectRequest},
};
use portkeep_testkit::{
    World, audit,
    process::{Child, Talk},
    random::Random,
};
use socket2::{Domain, Protocol, Socket, Type};
use zerocopy::IntoBytes;

const SLOTS: usize = 24;

/// A port near a limit: of the pool, of a word, of the port numbers.
fn some_port(random: &mut Random) -> u16 {
    let base = random.of(&[0, 1, 80, 1023, 5000, 60999, 61000, 61056, 61060, 61063, 61119, 62000, 65472, 65535]);
    (base as u16).wrapping_add(random.below(20) as u16)
}

struct Fuzzer {
    random: Random,
    sockets: [Option<Socket>; SLOTS],
    /// Some of these have ended, some were never valid.
    tokens: [u64; 16],
    secret: [u64; 2],
}

impl Fuzzer {
    fn new(seed: u64, secret: [u64; 2]) -> Self {
        Self { random: Random::new(seed), sockets: Default::default(), tokens: [0; 16], secret }
    }

    fn fresh(&mut self) -> Option<Socket> {
        let domain = self.random.of(&[Domain::IPV4, Domain::IPV4, Domain::IPV6]);
        let (kind, protocol) = self.random.of(&[
            (Type::STREAM, Protocol::TCP),
            (Type::STREAM, Protocol::TCP),
            (Type::DGRAM, Protocol::UDP),
            (Type::DGRAM, Protocol::UDP),
            (Type::RAW, Protocol::UDP),
        ]);
        let socket = Socket::new(domain, kind, Some(protocol)).ok()?;
        if self.random.one_in(4) {
            let _ = socket.set_reuse_address(true);
        }
        if self.random.one_in(4) {
            let _ = socket.set_reuse_port(true);
        }
        let _ = socket.set_nonblocking(true);
        Some(socket)
    }

    fn token(&mut self) -> u64 {
        let number = self.random.of(&[self.tokens; 1])[self.random.below(16) as usize];
        match self.random.below(12) {
            0 => number ^ 1 << self.random.below(64),
            1 => self.random.number(),
            _ => number,
        }
    }

    fn acquire_request(&mut self) -> Vec<u8> {
        let r = &mut self.random;
        let mut request = AcquireRequest {
            start: if r.one_in(2) { 0 } else { some_port(r) },
            count: r.of(&[1, 1, 2, 3, 4, 8, 20, 63, 64, 65, 200, 1000]),
            ..Default::default()
        };
        request.flags = r.of(&[
            0,
            0,
            0,
            wire::BOTH,
            wire::BOTH,
            wire::STRICT,
            wire::BOTH | wire::STRICT,
            wire::EPHEMERAL,
            wire::BOTH | wire::EPHEMERAL,
        ]);
        request.scope = r.of(&[0, 0, 0, 1, 2]);
        if r.one_in(4) {
            request.align = 1 << r.below(8);
            request.start = 0;
        }
        let size = r.of(&[8, 16, 24, 48, 48, 64]);
        let mut bytes = request.as_bytes().to_vec();
        bytes.resize(size, 0);
        if r.one_in(4) {
            let count = r.below(7);
            bytes.resize(48, 0);
            bytes[12] = if r.one_in(8) { r.number() as u8 } else { count as u8 };
            for _ in 0..count {
                let id = r.of(&[0, 1, 65534]);
                bytes.extend(Also { kind: r.of(&[1, 1, 3, 4, 4, 2, 5, 0]), id, name: [b'n'; 128] }.as_bytes());
            }
        }
        let size = bytes.len();
        if r.one_in(10) {
            let at = r.below(size as u64) as usize;
            bytes[at] = r.number() as u8;
        }
        if r.one_in(30) {
            let cut = r.below(size as u64 + 1) as usize;
            bytes.truncate(cut);
        }
        bytes
    }

    fn set(&mut self, slot: usize, option: i32, value: &[u8]) -> bool {
        let Some(socket) = &self.sockets[slot] else { return false };
        let pointer = value.as_ptr().cast();
        // SAFETY: the kernel reads `value`, of the size given.
        unsafe { libc::setsockopt(socket.as_raw_fd(), wire::SOL_PORTKEEP, option, pointer, value.len() as u32) == 0 }
    }

    fn get(&mut self, slot: usize, option: i32, buffer: &mut [u8]) -> bool {
        let Some(socket) = &self.sockets[slot] else { return false };
        let mut length = buffer.len() as u32;
        let pointer = buffer.as_mut_ptr().cast();
        // SAFETY: the kernel writes into `buffer`, of the size given.
        unsafe { libc::getsockopt(socket.as_raw_fd(), wire::SOL_PORTKEEP, option, pointer, &mut length) == 0 }
    }

    fn step(&mut self) {
        let slot = self.random.below(SLOTS as u64) as usize;
        if self.sockets[slot].is_none() {
            self.sockets[slot] = self.fresh();
        }
        match self.random.below(20) {
            0..=4 => {
                let request = self.acquire_request();
                self.set(slot, wire::ACQUIRE, &request);
                let mut grant = wire::Grant::default();
                if self.get(slot, wire::GRANTED, grant.as_mut_bytes()) {
                    let keep = self.random.below(16) as usize;
                    self.tokens[keep] = grant.token;
                }
            }
            5..=6 => {
                let token = self.token();
                self.set(slot, wire::RELEASE, token.as_bytes());
            }
            7..=9 => {
                let token = self.token();
                self.set(slot, wire::ASSOCIATE, token.as_bytes());
            }
            10..=12 => {
                let port = if self.random.one_in(2) { 0 } else { some_port(&mut self.random) };
                if let Some(socket) = &self.sockets[slot] {
                    let v4 = self.random.of(&[Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 1)]);
                    let v6 = self.random.of(&[Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, v4.to_ipv6_mapped()]);
                    let address = match socket.domain() {
                        Ok(Domain::IPV6) => SocketAddr::from((v6, port)),
                        _ => SocketAddr::from((v4, port)),
                    };
                    let _ = socket.bind(&address.into());
                    if self.random.one_in(3) {
                        let _ = socket.listen(1);
                    }
                }
            }
            13 => {
                if let Some(socket) = &self.sockets[slot] {
                    let address: SocketAddr = match socket.domain() {
                        Ok(Domain::IPV6) => (Ipv6Addr::LOCALHOST, 9).into(),
                        _ => (Ipv4Addr::LOCALHOST, 9).into(),
                    };
                    let _ = socket.connect(&address.into());
                }
            }
            14 => {
                let r = &mut self.random;
                let select = SelectRequest {
                    by: r.below(7) as u16,
                    port: some_port(r),
                    transport: r.below(4) as u8,
                    zero: [0; 3],
                    token: self.tokens[r.below(16) as usize],
                };
                self.set(slot, wire::SELECT, select.as_bytes());
                let mut state = wire::State::default();
                self.get(slot, wire::STATE, state.as_mut_bytes());
            }
            15 => {
                let size = self.random.below(120) as usize;
                let mut buffer = vec![0; size];
                let option = self.random.of(&[wire::VERSION, wire::GRANTED, wire::STATE, 203, 100]);
                self.get(slot, option, &mut buffer);
            }
            16 => {
                // Any control code with any bytes.
                let size = self.random.of(&[0, 1, 7, 8, 9, 16, 24, 48, 100, 256, 257, 5000]);
                let zeros = self.random.one_in(2);
                let value: Vec<u8> = (0..size).map(|_| if zeros { 0 } else { self.random.number() as u8 }).collect();
                let option = 99 + self.random.below(7) as i32;
                self.set(slot, option, &value);
            }
            17 => {
                let r = &mut self.random;
                // Sometimes there is an agent: then specific requests outside the pool become PENDING.
                let role = r.of(&[0, wire::AGENT_BEACON, wire::AGENT_BEACON, wire::AGENT_PROBE, 4]);
                let mark = AgentMark { secret: self.secret, role, zero: 0 };
                if r.one_in(6) {
                    self.set(slot, wire::AGENT, mark.as_bytes());
                }
            }
            // Closing the socket ends what it owns and has bound, unless another descriptor keeps it open for a while.
            18 => self.sockets[slot] = None,
            _ => {
                let copy = self.sockets[slot].as_ref().and_then(|socket| socket.try_clone().ok());
                let other = self.random.below(SLOTS as u64) as usize;
                self.sockets[other] = copy;
            }
        }
    }
}

#[test]
fn random_requests_leave_the_maps_consistent() {
    let Some(world) = World::enter("random_requests_leave_the_maps_consistent") else { return };
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let requests = number("PORTKEEP_FUZZ_REQUESTS", 200_000);
    let seed = number("PORTKEEP_FUZZ_SEED", u64::from(std::process::id()) << 20 | 0x5eed);
    println!("PORTKEEP_FUZZ_REQUESTS={requests} PORTKEEP_FUZZ_SEED={seed}");
    let secret = world.maps().config().unwrap().secret;
    let admin = world.sandbox().loaded().admin().unwrap();
    let mut random = Random::new(seed);

    // Each round has two processes at once. The second is forked from the first in the middle of the round, with all
    // its sockets. Then both stop, and the maps are checked while everything is still open.
    let per_round = (requests / 40).clamp(1, 5000);
    let (mut held, mut waiting, mut bound, mut lingering) = (0, 0, 0, 0);
    let mut done = 0;
    let mut round = 0;
    while done < requests {
        let seed = random.number();
        let work = move |talk: &mut Talk| {
            let mut fuzzer = Fuzzer::new(seed, secret);
            (0..per_round / 4).for_each(|_| fuzzer.step());
            let mut heir = Child::fork(|talk| {
                fuzzer.random = Random::stream(seed, &[1]);
                (0..per_round / 4).for_each(|_| fuzzer.step());
                talk.say(0);
                talk.try_hear();
            });
            (0..per_round / 2).for_each(|_| fuzzer.step());
            heir.talk.hear();
            talk.say(0);
            talk.hear();
            // Each process is killed or ends by itself. The other may still have the same sockets.
            if seed & 0x100 == 0 {
                heir.talk.say(0);
                heir.join();
            } else {
                heir.kill();
            }
        };
        let mut child = Child::fork(work);
        assert!(child.talk.try_hear().is_some(), "round {round} of seed {seed}");
        let maps = world.maps();
        world.assert_consistent();
        for (_, reservation) in maps.reservations().map(Result::unwrap) {
            held += 1;
            waiting += u64::from(reservation.state() == wire::PENDING);
        }
        for (_, word) in maps.words().map(Result::unwrap) {
            bound += word.uses.iter().filter(|pair| **pair != 0).count();
            lingering += word.lingering.count_ones();
        }
        // The agent answers the requests that wait, and an administrator changes things.
        for (id, reservation) in maps.reservations().map(Result::unwrap).collect::<Vec<_>>() {
            let token: Token = reservation.token().unwrap();
            match random.below(6) {
                0 => drop(admin.confirm(id, token)),
                1 => drop(admin.refuse(id, token, portkeep_core::Errno::EADDRINUSE)),
                2 => drop(admin.end(id, token)),
                _ => {}
            }
        }
        world.assert_consistent();
        if round % 4 == 3 {
            child.kill();
            // Its child ends with it, but it is not ours to wait for.
            audit::wait_until_empty(&maps, world.netns());
        } else {
            child.talk.say(0);
            child.join();
        }
        done += per_round;
        round += 1;
        world.assert_empty();
        let counters = maps.counters().unwrap();
        assert_eq!((counters.agents, counters.reservations, counters.ports), (0, 0, 0));
    }
    println!("at the looks: {held} reservations, {waiting} pending, {bound} ports bound, {lingering} lingering");
    assert!(
        requests < 100_000 || held * waiting * bound as u64 * u64::from(lingering) != 0,
        "too tame to show anything"
    );
}
