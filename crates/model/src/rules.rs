//! One test for each rule of the facility, named after it.

use super::*;
use portkeep_core::{Scope, Transport, wire};

const HERE: Namespace = 1;
const THERE: Namespace = 2;
const OWNER: Pid = 100;
const OTHER: Pid = 200;
const AGENT: Pid = 300;
const AUTOMATIC: u16 = 40000;
const SERVER: u16 = 8000;

/// A pool of 100 ports, two users, and tokens that count up from 1.
struct World {
    model: Model,
    tokens: u64,
}

impl World {
    fn new() -> Self {
        let pool = PortRange::new(61000, 100).ok();
        let mut model = Model::new(Settings { pool, quota: 50, ..Settings::default() });
        model.spawn(OWNER, 1000, vec![1, 10, 11], false);
        model.spawn(OTHER, 1001, vec![1, 10, 12], false);
        Self { model, tokens: 0 }
    }

    fn with_agent() -> Self {
        let mut world = Self::new();
        world.model.spawn(AGENT, 0, vec![1], true);
        let beacon = world.model.socket(AGENT, HERE, Some(Transport::Udp), false, Options::default());
        world.model.mark(AGENT, beacon, Role::Beacon).unwrap();
        world
    }

    fn tcp(&mut self, pid: Pid) -> Descriptor {
        self.model.socket(pid, HERE, Some(Transport::Tcp), false, Options::default())
    }

    fn udp(&mut self, pid: Pid) -> Descriptor {
        self.model.socket(pid, HERE, Some(Transport::Udp), false, Options::default())
    }

    fn ask(&mut self, pid: Pid, on: Descriptor, request: Request) -> Result<(Token, PortRange), Errno> {
        self.tokens += 1;
        let token = Token::new(self.tokens).unwrap();
        self.model.acquire(pid, on, &request, token)?;
        let (shown, reservation) = self.model.granted(pid, on).unwrap();
        assert_eq!(shown, token);
        Ok((token, reservation.block))
    }

    fn pending(&mut self, pid: Pid, on: Descriptor, request: Request) -> Token {
        assert_eq!(self.ask(pid, on, request), Err(Errno::EINPROGRESS));
        Token::new(self.tokens).unwrap()
    }

    fn bind(&mut self, pid: Pid, on: Descriptor, port: u16) -> Result<u16, Errno> {
        self.model.bind(pid, on, Address::V4Any, port, AUTOMATIC)
    }

    /// A fresh UDP socket that draws from the reservation.
    fn drawn(&mut self, token: Token) -> (Descriptor, Result<u16, Errno>) {
        let socket = self.udp(OWNER);
        self.model.associate(OWNER, socket, token.get()).unwrap();
        (socket, self.bind(OWNER, socket, 0))
    }
}

fn range(start: u16, count: u16) -> PortRange {
    PortRange::new(start, count).unwrap()
}

#[test]
fn r1_all_of_the_block_or_nothing() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let (first, block) = w.ask(OWNER, s, Request::new(61004, 2)).unwrap();
    assert_eq!(block, range(61004, 2));
    assert_eq!(w.ask(OWNER, s, Request::new(61000, 10)), Err(Errno::EADDRINUSE));
    assert_eq!(w.model.reserved().len(), 2, "a request that failed left nothing behind");
    w.model.release(OWNER, s, first.get()).unwrap();
    assert_eq!(w.ask(OWNER, s, Request::new(61000, 10)).unwrap().1, range(61000, 10));
}

#[test]
fn r2_no_outsider_binds_whatever_its_options_address_or_uid() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    w.ask(OWNER, s, Request::new(61000, 4)).unwrap();
    w.model.spawn(1, 0, vec![1], true);
    let options = Options { reuse_address: true, reuse_port: true };
    for address in [Address::V4Any, Address::V4Loopback, Address::V6Any, Address::V6Loopback, Address::V6Mapped] {
        for pid in [1, OTHER] {
            let outsider = w.model.socket(pid, HERE, Some(Transport::Tcp), address.is_v6(), options);
            assert_eq!(w.model.bind(pid, outsider, address, 61002, 0), Err(Errno::EADDRINUSE));
        }
    }
    // The other transport is another block.
    let udp = w.udp(OTHER);
    assert_eq!(w.bind(OTHER, udp, 61002), Ok(61002));
}

#[test]
fn r2_the_error_an_outsider_gets_is_configurable() {
    let mut w = World::new();
    w.model.settings.deny = Errno::EACCES;
    let s = w.tcp(OWNER);
    w.ask(OWNER, s, Request::new(61050, 1)).unwrap();
    let outsider = w.tcp(OTHER);
    assert_eq!(w.bind(OTHER, outsider, 61050), Err(Errno::EACCES));
    assert_eq!(w.bind(OTHER, outsider, 8080), Ok(8080));
}

#[test]
fn n1_a_port_that_is_not_reserved_is_free_for_everybody() {
    let mut w = World::new();
    for port in [60999, 61000, 61099, 61100] {
        let s = w.tcp(OTHER);
        assert_eq!(w.bind(OTHER, s, port), Ok(port));
    }
    let a = w.tcp(OTHER);
    assert_eq!(w.model.bind(OTHER, a, Address::V4Any, 0, 61050), Ok(61050), "an automatic choice in the pool");
}

#[test]
fn n1_what_was_not_granted_leaves_no_mark_on_ports_of_others() {
    let mut w = World::with_agent();
    let reuse = Options { reuse_port: true, ..Options::default() };
    let worker = |w: &mut World, port| {
        let s = w.model.socket(OTHER, HERE, Some(Transport::Tcp), false, reuse);
        w.bind(OTHER, s, port)
    };
    let s = w.tcp(OWNER);
    assert_eq!(worker(&mut w, 61010), Ok(61010));
    assert_eq!(w.ask(OWNER, s, Request::new(61010, 1)), Err(Errno::EADDRINUSE));
    assert_eq!(worker(&mut w, 61010), Ok(61010));
    let token = w.pending(OWNER, s, Request::new(5000, 1));
    assert_eq!(worker(&mut w, 5000), Ok(5000));
    w.model.refuse(token, Errno::EADDRINUSE).unwrap();
    assert_eq!(worker(&mut w, 5000), Ok(5000));
    assert!(w.model.reserved().is_empty());
}

#[test]
fn n2_no_grant_of_a_port_that_is_bound() {
    let mut w = World::new();
    let outsider = w.tcp(OTHER);
    w.bind(OTHER, outsider, 61001).unwrap();
    let s = w.tcp(OWNER);
    assert_eq!(w.ask(OWNER, s, Request::new(61000, 2)), Err(Errno::EADDRINUSE));
    assert_eq!(w.ask(OWNER, s, Request::new(0, 2)).unwrap().1, range(61002, 2));
    w.model.close(OTHER, outsider).unwrap();
    assert!(w.ask(OWNER, s, Request::new(61000, 2)).is_ok(), "without an agent it is granted");
}

#[test]
fn n2_ports_closed_lately_come_last() {
    let mut w = World::with_agent();
    w.model.settings.pool = PortRange::new(61000, 4).ok();
    let outsider = w.tcp(OTHER);
    w.bind(OTHER, outsider, 61000).unwrap();
    w.model.close(OTHER, outsider).unwrap();
    let s = w.tcp(OWNER);
    assert_eq!(w.ask(OWNER, s, Request::new(0, 3)).unwrap().1, range(61001, 3));
    assert_eq!(w.ask(OWNER, s, Request::new(61000, 1)), Err(Errno::EINPROGRESS), "the agent has to look");
    w.model.end(Token::new(w.tokens).unwrap()).unwrap();
    assert_eq!(w.ask(OWNER, s, Request::new(0, 1)).unwrap().1, range(61000, 1), "nothing else is left");
}

#[test]
fn n3_ports_of_automatic_choices_come_last() {
    let mut w = World::new();
    w.model.settings.pool = PortRange::new(61000, 6).ok();
    w.model.avoid(HERE, PortRange::new(61000, 3).ok());
    w.model.avoid(HERE + 1, PortRange::new(61003, 3).ok());
    let outsider = w.tcp(OTHER);
    w.bind(OTHER, outsider, 61004).unwrap();
    w.model.close(OTHER, outsider).unwrap();
    let s = w.tcp(OWNER);
    assert_eq!(w.ask(OWNER, s, Request::new(0, 2)).unwrap().1, range(61003, 2), "rather those closed lately");
    assert_eq!(w.ask(OWNER, s, Request::new(0, 1)).unwrap().1, range(61005, 1));
    assert_eq!(w.ask(OWNER, s, Request::new(0, 3)).unwrap().1, range(61000, 3), "nothing else is left");
}

#[test]
fn r3_no_automatic_choice_lands_in_a_block() {
    let mut w = World::with_agent();
    let s = w.tcp(OWNER);
    let token = w.pending(OWNER, s, Request::new(40000, 10));
    w.model.confirm(token).unwrap();
    let a = w.tcp(OTHER);
    assert_eq!(w.model.bind(OTHER, a, Address::V4Any, 0, 40009), Err(Errno::EADDRINUSE));
    assert_eq!(w.model.connect(OTHER, a, SERVER, 40009), Err(Errno::EADDRINUSE));
    assert_eq!(w.model.bind(OTHER, a, Address::V4Any, 0, 40010), Ok(40010));
}

#[test]
fn a_request_that_waits_gives_way_to_a_bind() {
    for pid in [OWNER, OTHER] {
        let mut w = World::with_agent();
        let s = w.tcp(OWNER);
        let token = w.pending(OWNER, s, Request::new(5000, 4));
        let t = w.tcp(pid);
        assert_eq!(w.bind(pid, t, 5001), Ok(5001));
        assert_eq!(w.model.confirm(token), Err(Errno::EADDRINUSE));
        w.model.select(OWNER, s, Select::Token(token.get())).unwrap();
        assert_eq!(w.model.state(OWNER, s).unwrap().1.state, State::Contested);
        assert_eq!(w.model.refuse(token, Errno::EACCES), Ok(()), "the agent may say why");
        assert_eq!(w.model.granted(OWNER, s).unwrap().1.state, State::Refused(Errno::EACCES));
    }
    let mut w = World::with_agent();
    let s = w.tcp(OWNER);
    let token = w.pending(OWNER, s, Request::new(5000, 4));
    let t = w.tcp(OTHER);
    assert_eq!(w.model.bind(OTHER, t, Address::V4Any, 0, 5001), Ok(5001));
    assert_eq!(w.model.granted(OWNER, s).unwrap().1.state, State::Contested);
    assert_eq!(w.model.confirm(token), Err(Errno::ENOENT), "its owner has heard of it");
    assert!(w.model.reservations().is_empty());
}

#[test]
fn at_most_64_requests_of_a_user_wait() {
    let mut w = World::with_agent();
    w.model.set_quota(1000, u32::MAX);
    let s = w.tcp(OWNER);
    let tokens: Vec<Token> = (0..64).map(|n| w.pending(OWNER, s, Request::new(5000 + n, 1))).collect();
    assert_eq!(w.ask(OWNER, s, Request::new(5100, 1)), Err(Errno::EDQUOT));
    w.model.confirm(tokens[0]).unwrap();
    w.pending(OWNER, s, Request::new(5100, 1));
    let other = w.tcp(OTHER);
    w.pending(OTHER, other, Request::new(5200, 1));
}

#[test]
fn a8_privileged_ports_of_the_home_namespace_need_a_right() {
    let mut w = World::with_agent();
    w.model.settings.home = Some(HERE);
    let s = w.tcp(OWNER);
    assert_eq!(w.ask(OWNER, s, Request::new(1023, 2)), Err(Errno::EACCES));
    w.pending(OWNER, s, Request::new(1024, 2));
    let there = w.model.socket(OWNER, THERE, Some(Transport::Tcp), false, Options::default());
    w.pending(OWNER, there, Request::new(80, 1));
    w.model.spawn(1, 0, vec![1], true);
    let root = w.tcp(1);
    w.pending(1, root, Request::new(80, 1));
}

#[test]
fn r4_no_block_over_another_or_over_a_port_still_in_use() {
    let mut w = World::new();
    let (a, b) = (w.udp(OWNER), w.udp(OTHER));
    let (token, _) = w.ask(OWNER, a, Request::new(61000, 4)).unwrap();
    let (_, port) = w.drawn(token);
    assert_eq!(port, Ok(61000));
    w.model.release(OWNER, a, token.get()).unwrap();
    assert_eq!(w.ask(OTHER, b, Request::new(61000, 4)), Err(Errno::EADDRINUSE));
    assert!(w.ask(OTHER, b, Request::new(61001, 4)).is_ok());
    let t = w.tcp(OTHER);
    assert!(w.ask(OTHER, t, Request::new(61000, 4)).is_ok(), "in use by UDP says nothing about TCP");
}

#[test]
fn r4_outside_the_pool_the_agent_has_to_look() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    for request in [Request::new(5000, 20), Request::new(60999, 2), Request::new(61099, 2)] {
        assert_eq!(w.ask(OWNER, s, request), Err(Errno::ENETDOWN));
    }

    let mut w = World::with_agent();
    let s = w.tcp(OWNER);
    let token = w.pending(OWNER, s, Request::new(5000, 20));
    let t = w.tcp(OWNER);
    assert_eq!(w.model.associate(OWNER, t, token.get()), Err(Errno::ENOENT), "not in force yet");
    w.model.confirm(token).unwrap();
    assert_eq!(w.model.confirm(token), Err(Errno::ENOENT));
    assert_eq!(w.model.refuse(token, Errno::EADDRINUSE), Err(Errno::ENOENT));
    assert_eq!(w.bind(OWNER, t, 5000), Ok(5000));
}

#[test]
fn r4_a_refusal_is_reported_once_and_costs_a_port_until_then() {
    let mut w = World::with_agent();
    let s = w.tcp(OWNER);
    let token = w.pending(OWNER, s, Request::new(80, 1));
    w.model.refuse(token, Errno::EACCES).unwrap();
    assert_eq!(w.model.reserved().len(), 0);
    assert_eq!(w.model.ports_of(1000), 1);
    assert_eq!(w.model.granted(OWNER, s).unwrap().1.state, State::Refused(Errno::EACCES));
    assert!(w.model.granted(OWNER, s).is_err());
    assert_eq!(w.model.ports_of(1000), 0);

    let token = w.pending(OWNER, s, Request::new(80, 1));
    w.model.refuse(token, Errno::EACCES).unwrap();
    assert_eq!(w.model.release(OWNER, s, token.get()), Err(Errno::ENOENT), "but the trace is gone");
    assert!(w.model.reservations().is_empty());
}

#[test]
fn r4_requests_pass_by_what_is_set_aside_and_binds_do_not() {
    let mut w = World::new();
    let at = Place { namespace: HERE, transport: Transport::Tcp, port: 61001 };
    w.model.set_aside(at).unwrap();
    assert_eq!(w.model.set_aside(at), Ok(()));
    let outsider = w.tcp(OTHER);
    assert_eq!(w.bind(OTHER, outsider, 61001), Ok(61001));
    w.model.close(OTHER, outsider).unwrap();
    w.model.set_closed_lately(BTreeSet::new());
    let s = w.tcp(OWNER);
    assert_eq!(w.ask(OWNER, s, Request::new(61000, 4)), Err(Errno::EADDRINUSE));
    assert_eq!(w.ask(OWNER, s, Request::new(0, 4)).unwrap().1, range(61002, 4));
    w.model.give_back(at).unwrap();
    assert_eq!(w.model.give_back(at), Err(Errno::ENOENT));
    assert!(w.ask(OWNER, s, Request::new(61000, 2)).is_ok());
}

#[test]
fn r5_a_socket_owns_many_and_many_consume_one() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (first, _) = w.ask(OWNER, s, Request::new(0, 2)).unwrap();
    let (_, second) = w.ask(OWNER, s, Request::new(0, 2)).unwrap();
    assert_eq!(second, range(61002, 2));
    assert_eq!(w.drawn(first).1, Ok(61000));
    // The owner socket itself, too.
    w.model.associate(OWNER, s, first.get()).unwrap();
    assert_eq!(w.bind(OWNER, s, 0), Ok(61001));
}

#[test]
fn r5_a_socket_owns_128_at_most() {
    let mut w = World::new();
    w.model.settings.pool = PortRange::new(61000, 1000).ok();
    w.model.set_quota(1000, u32::MAX);
    let s = w.udp(OWNER);
    for _ in 0..wire::OWNED {
        w.ask(OWNER, s, Request::new(0, 1)).unwrap();
    }
    assert_eq!(w.ask(OWNER, s, Request::new(0, 1)), Err(Errno::EDQUOT));
    let token = *w.model.reservations().keys().next().unwrap();
    w.model.release(OWNER, s, token.get()).unwrap();
    assert!(w.ask(OWNER, s, Request::new(0, 1)).is_ok());
}

#[test]
fn r6_it_lives_as_long_as_the_last_descriptor() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    w.ask(OWNER, s, Request::new(61000, 4)).unwrap();
    let copy = w.model.duplicate(OWNER, s).unwrap();
    w.model.fork(OWNER, 101);
    let passed = w.model.pass(OWNER, s, OTHER).unwrap();
    w.model.close(OWNER, s).unwrap();
    assert_eq!(w.model.close(OWNER, s), Err(Errno::EBADF));
    w.model.close(OWNER, copy).unwrap();
    w.model.exit(101);
    w.model.exit(OWNER);
    assert_eq!(w.model.reserved().len(), 4);
    w.model.close(OTHER, passed).unwrap();
    assert_eq!(w.model.reserved().len(), 0);
    assert!(w.model.sockets().is_empty());
}

#[test]
fn r7_release_is_for_the_owner_process_through_any_of_its_sockets() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(0, 4)).unwrap();
    w.model.fork(OWNER, 101);
    assert_eq!(w.model.release(101, s, token.get()), Err(Errno::EPERM));
    let t = w.tcp(OTHER);
    assert_eq!(w.model.release(OTHER, t, token.get()), Err(Errno::EPERM));
    let u = w.udp(OWNER);
    assert_eq!(w.model.release(OWNER, u, token.get()), Err(Errno::EINVAL));
    let elsewhere = w.model.socket(OWNER, THERE, Some(Transport::Tcp), true, Options::default());
    assert_eq!(w.model.release(OWNER, elsewhere, token.get()), Err(Errno::EINVAL));
    let any = w.tcp(OWNER);
    assert_eq!(w.model.release(OWNER, any, token.get()), Ok(()));
    for gone in [token.get(), 0, 4711] {
        assert_eq!(w.model.release(OWNER, any, gone), Err(Errno::ENOENT));
    }
}

#[test]
fn r7_the_end_does_not_disturb_what_is_bound() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 4)).unwrap();
    let (bound, _) = w.drawn(token);
    w.model.close(OWNER, s).unwrap();
    let at = Place { namespace: HERE, transport: Transport::Udp, port: 61000 };
    assert!(w.model.lingers(at));
    assert_eq!(w.model.reserved(), BTreeSet::from([at]), "the other three are free at once");
    let again = w.udp(OWNER);
    assert_eq!(w.bind(OWNER, again, 61000), Err(Errno::EADDRINUSE), "even its former owner is an outsider now");
    w.model.close(OWNER, bound).unwrap();
    assert!(w.model.reserved().is_empty());
}

#[test]
#[should_panic(expected = "R8")]
fn r8_a_token_never_comes_twice() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let token = Token::new(7).unwrap();
    w.model.acquire(OWNER, s, &Request::new(0, 1), token).unwrap();
    let _ = w.model.acquire(OWNER, s, &Request::new(0, 1), token);
}

#[test]
fn r9_both_is_one_step_and_one_token() {
    let mut w = World::new();
    let (t, u) = (w.tcp(OWNER), w.udp(OWNER));
    w.ask(OWNER, u, Request::new(61001, 1)).unwrap();
    let both = Request { both: true, ..Request::new(0, 2) };
    let (token, block) = w.ask(OWNER, t, both.clone()).unwrap();
    assert_eq!(block, range(61002, 2), "free for TCP alone is not enough");
    assert_eq!(w.ask(OWNER, t, Request { start: 61000, ..both }), Err(Errno::EADDRINUSE));
    w.model.associate(OWNER, u, token.get()).unwrap();
    w.model.associate(OWNER, t, token.get()).unwrap();
    assert_eq!(w.bind(OWNER, u, 61003), Ok(61003));
    assert_eq!(w.bind(OWNER, t, 61003), Ok(61003));
}

#[test]
fn r9_align() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    w.ask(OWNER, s, Request::new(0, 1)).unwrap();
    assert_eq!(w.ask(OWNER, s, Request { align: 2, ..Request::new(0, 2) }).unwrap().1, range(61002, 2));
    assert_eq!(w.ask(OWNER, s, Request { align: 64, ..Request::new(0, 2) }).unwrap().1, range(61056, 2));
    for bad in [Request { align: 3, ..Request::new(0, 2) }, Request { align: 4, ..Request::new(61002, 2) }] {
        assert_eq!(w.ask(OWNER, s, bad), Err(Errno::EINVAL));
    }
    let far = Request { align: 4096, ..Request::new(0, 1) };
    assert_eq!(w.ask(OWNER, s, far), Err(Errno::ENOSPC), "61440 is past this pool");
}

#[test]
fn r9_wider_scopes() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    w.model.spawn(102, 1000, vec![1, 20], false);
    let user = Request { scope: Scope::User, ..Request::new(61000, 1) };
    let group = Request { scope: Scope::Cgroup(10), ..Request::new(61001, 1) };
    let own = Request { scope: Scope::Cgroup(0), ..Request::new(61002, 1) };
    let foreign = Request { scope: Scope::Cgroup(12), ..Request::new(61003, 1) };
    for request in [user, group, own] {
        w.ask(OWNER, s, request).unwrap();
    }
    assert_eq!(w.ask(OWNER, s, foreign), Err(Errno::EINVAL), "a cgroup it is not in");
    let expected = [(OWNER, [true, true, true]), (OTHER, [false, true, false]), (102, [true, false, false])];
    for (pid, allowed) in expected {
        for (port, allowed) in (61000..).zip(allowed) {
            let t = w.tcp(pid);
            assert_eq!(w.bind(pid, t, port).is_ok(), allowed, "process {pid}, port {port}");
            w.model.close(pid, t).unwrap();
        }
    }
}

#[test]
fn r10_another_namespace_is_another_world() {
    let mut w = World::new();
    let here = w.tcp(OWNER);
    let there = w.model.socket(OTHER, THERE, Some(Transport::Tcp), false, Options::default());
    let (token, _) = w.ask(OWNER, here, Request::new(61000, 4)).unwrap();
    assert!(w.ask(OTHER, there, Request::new(61000, 4)).is_ok());
    let mine_there = w.model.socket(OWNER, THERE, Some(Transport::Tcp), false, Options::default());
    assert_eq!(w.model.associate(OWNER, mine_there, token.get()), Err(Errno::EINVAL));
    assert_eq!(w.bind(OWNER, mine_there, 61000), Err(Errno::EADDRINUSE));
    w.model.select(OWNER, mine_there, Select::Token(token.get())).unwrap();
    assert_eq!(w.model.state(OWNER, mine_there).err(), Some(Errno::ENOENT));
}

#[test]
fn a1_associate_comes_before_bind_and_the_last_one_counts() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (first, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let (second, _) = w.ask(OWNER, s, Request::new(61010, 2)).unwrap();
    let t = w.udp(OWNER);
    w.model.associate(OWNER, t, first.get()).unwrap();
    w.model.associate(OWNER, t, second.get()).unwrap();
    assert_eq!(w.bind(OWNER, t, 0), Ok(61010));
    assert_eq!(w.model.associate(OWNER, t, first.get()), Err(Errno::EINVAL));
    assert_eq!(w.bind(OWNER, t, 0), Err(Errno::EINVAL));
}

#[test]
fn a2_only_the_scope_associates_but_the_right_travels() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let theirs = w.tcp(OTHER);
    assert_eq!(w.model.associate(OTHER, theirs, token.get()), Err(Errno::EPERM));
    let u = w.udp(OWNER);
    assert_eq!(w.model.associate(OWNER, u, token.get()), Err(Errno::EINVAL));
    let t = w.tcp(OWNER);
    w.model.associate(OWNER, t, token.get()).unwrap();
    let passed = w.model.pass(OWNER, t, OTHER).unwrap();
    assert_eq!(w.bind(OTHER, passed, 0), Ok(61000));
}

#[test]
fn a3_draws_are_next_fit() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 3)).unwrap();
    let (first, port) = w.drawn(token);
    assert_eq!(port, Ok(61000));
    w.model.close(OWNER, first).unwrap();
    let (second, port) = w.drawn(token);
    assert_eq!(port, Ok(61001), "the one just given up is the last to come round");
    assert_eq!(w.drawn(token).1, Ok(61002));
    assert_eq!(w.drawn(token).1, Ok(61000));
    w.model.close(OWNER, second).unwrap();
    assert_eq!(w.drawn(token).1, Ok(61001));
}

#[test]
fn a3_a_bind_that_failed_keeps_its_port_out_of_the_way_only_as_long_as_others_are_free() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let unlucky = w.udp(OWNER);
    w.model.associate(OWNER, unlucky, token.get()).unwrap();
    assert!(w.model.bind(OWNER, unlucky, Address::V4Elsewhere, 0, 0).is_err());
    assert_eq!(w.drawn(token).1, Ok(61001));
    assert_eq!(w.drawn(token).1, Ok(61000));
    assert_eq!(w.bind(OWNER, unlucky, 0), Err(Errno::EADDRINUSE));
}

#[test]
fn a_second_bind_is_the_ordinary_error_wherever_it_goes() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let t = w.tcp(OWNER);
    w.bind(OWNER, t, 8080).unwrap();
    w.model.associate(OWNER, t, token.get()).unwrap_err();
    for port in [0, 61000, 61001, 61050, 8081] {
        assert_eq!(w.bind(OWNER, t, port), Err(Errno::EINVAL));
    }
    // For a reserved port, this is reported before any other check.
    for (port, errno) in [(61000, Errno::EINVAL), (61050, Errno(99))] {
        assert_eq!(w.model.bind(OWNER, t, Address::V4Elsewhere, port, 0), Err(errno));
    }
    assert!(!w.model.socket_at(OWNER, t).unwrap().options.reuse_address, "and leaves no trace");
}

#[test]
fn a4_explicit_ports_inside_the_block_only() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    w.ask(OWNER, s, Request::new(61010, 2)).unwrap();
    let t = w.udp(OWNER);
    w.model.associate(OWNER, t, token.get()).unwrap();
    // The ephemeral ports and the owner's other block are outside as well.
    for port in [60999, 61002, 61010, 40000] {
        assert_eq!(w.bind(OWNER, t, port), Err(Errno::EACCES));
    }
    assert_eq!(w.bind(OWNER, t, 61001), Ok(61001));
    let u = w.udp(OWNER);
    w.model.associate(OWNER, u, token.get()).unwrap();
    assert_eq!(w.bind(OWNER, u, 61001), Err(Errno::EADDRINUSE));
}

#[test]
fn a4_the_ordinary_rules_of_sharing_hold_inside() {
    let mut w = World::new();
    let options = Options { reuse_port: true, ..Options::default() };
    let s = w.tcp(OWNER);
    w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    for _ in 0..2 {
        let t = w.model.socket(OWNER, HERE, Some(Transport::Tcp), false, options);
        assert_eq!(w.bind(OWNER, t, 61000), Ok(61000));
        assert_eq!(w.model.listen(OWNER, t, 0), Ok(61000));
    }
    let plain = w.tcp(OWNER);
    assert_eq!(w.bind(OWNER, plain, 61000), Err(Errno::EADDRINUSE));
    let v6 = w.model.socket(OWNER, HERE, Some(Transport::Tcp), true, Options::default());
    assert_eq!(w.model.bind(OWNER, v6, Address::V6Loopback, 61000, 0), Ok(61000));
}

#[test]
fn a4_an_association_with_what_has_ended_is_no_way_to_any_port() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let t = w.udp(OWNER);
    w.model.associate(OWNER, t, token.get()).unwrap();
    w.model.release(OWNER, s, token.get()).unwrap();
    for port in [0, 61000, 8080] {
        assert_eq!(w.bind(OWNER, t, port), Err(Errno::EACCES));
    }
    assert_eq!(w.model.connect(OWNER, t, SERVER, AUTOMATIC), Err(Errno::EACCES));
}

#[test]
fn a5_an_exhausted_block() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 1)).unwrap();
    assert_eq!(w.drawn(token).1, Ok(61000));
    assert_eq!(w.drawn(token).1, Err(Errno::EADDRINUSE));
}

#[test]
fn a6_connect_draws() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 1)).unwrap();
    let t = w.tcp(OWNER);
    w.model.associate(OWNER, t, token.get()).unwrap();
    assert_eq!(w.model.connect(OWNER, t, SERVER, AUTOMATIC), Ok(61000));
    let u = w.tcp(OWNER);
    w.model.associate(OWNER, u, token.get()).unwrap();
    assert_eq!(w.model.connect(OWNER, u, SERVER, AUTOMATIC), Err(Errno::EADDRINUSE));
    // A socket does not connect to itself.
    w.model.close(OWNER, t).unwrap();
    assert_eq!(w.model.connect(OWNER, u, 61000, AUTOMATIC), Err(Errno::EADDRINUSE));
    let plain = w.tcp(OWNER);
    assert_eq!(w.model.connect(OWNER, plain, SERVER, AUTOMATIC), Ok(AUTOMATIC));
}

#[test]
fn a7_unmodified_servers_work_unless_it_is_strict() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    w.ask(OWNER, s, Request::new(61000, 1)).unwrap();
    let (strict, _) = w.ask(OWNER, s, Request { strict: true, ..Request::new(61001, 1) }).unwrap();
    let t = w.tcp(OWNER);
    assert_eq!(w.bind(OWNER, t, 61001), Err(Errno::EADDRINUSE));
    assert_eq!(w.bind(OWNER, t, 61000), Ok(61000));
    let u = w.tcp(OWNER);
    w.model.associate(OWNER, u, strict.get()).unwrap();
    assert_eq!(w.bind(OWNER, u, 61001), Ok(61001));
}

#[test]
fn a8_consumers_need_no_privilege_for_a_low_port() {
    let mut w = World::with_agent();
    let s = w.tcp(OWNER);
    let token = w.pending(OWNER, s, Request::new(80, 2));
    w.model.confirm(token).unwrap();
    let t = w.tcp(OWNER);
    assert_eq!(w.bind(OWNER, t, 82), Err(Errno::EACCES));
    assert_eq!(w.bind(OWNER, t, 81), Ok(81));
    assert_eq!(w.bind(OWNER, t, 82), Err(Errno::EACCES), "what is bound already gets no privilege");
    // A draw at a connect is not a bind.
    let u = w.tcp(OWNER);
    w.model.associate(OWNER, u, token.get()).unwrap();
    assert_eq!(w.model.connect(OWNER, u, SERVER, AUTOMATIC), Err(Errno::EACCES));
    assert_eq!(w.bind(OWNER, u, 0), Ok(80));
}

#[test]
fn a9_tcp_consumers_get_reuse_address() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let t = w.tcp(OWNER);
    w.model.associate(OWNER, t, token.get()).unwrap();
    w.bind(OWNER, t, 0).unwrap();
    assert!(w.model.socket_at(OWNER, t).unwrap().options.reuse_address);
    // But it cannot share a port that another socket has.
    let u = w.tcp(OWNER);
    w.model.associate(OWNER, u, token.get()).unwrap();
    assert_eq!(w.bind(OWNER, u, 61000), Err(Errno::EADDRINUSE));
}

#[test]
fn quotas_count_ports_of_a_uid_and_each_transport() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, _) = w.ask(OWNER, s, Request { both: true, ..Request::new(0, 20) }).unwrap();
    assert_eq!(w.ask(OWNER, s, Request::new(0, 11)), Err(Errno::EDQUOT));
    assert!(w.ask(OWNER, s, Request::new(0, 10)).is_ok());
    // Its reservations stay charged to the uid that acquired them.
    w.model.set_uid(OWNER, 0);
    assert!(w.ask(OWNER, s, Request::new(0, 60)).is_ok());
    assert_eq!(w.model.ports_of(1000), 50);
    w.model.release(OWNER, s, token.get()).unwrap();
    assert_eq!(w.model.ports_of(1000), 10);
}

#[test]
fn lingering_ports_cost_no_quota() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (token, block) = w.ask(OWNER, s, Request::new(0, 20)).unwrap();
    let bound = w.udp(OWNER);
    w.bind(OWNER, bound, block.start()).unwrap();
    assert_eq!(w.model.ports_of(1000), 20);
    w.model.release(OWNER, s, token.get()).unwrap();
    assert_eq!(w.model.ports_of(1000), 0);
    assert_eq!(w.model.reserved().len(), 1);
}

#[test]
fn wildcards_are_placed_next_fit() {
    let mut w = World::new();
    w.model.set_quota(1000, u32::MAX);
    let s = w.udp(OWNER);
    let (first, block) = w.ask(OWNER, s, Request::new(0, 40)).unwrap();
    assert_eq!(block, range(61000, 40));
    assert_eq!(w.ask(OWNER, s, Request::new(0, 50)).unwrap().1, range(61040, 50));
    w.model.release(OWNER, s, first.get()).unwrap();
    assert_eq!(w.ask(OWNER, s, Request::new(0, 10)).unwrap().1, range(61090, 10), "not where the last one just ended");
    assert_eq!(w.ask(OWNER, s, Request::new(0, 41)), Err(Errno::ENOSPC));
    assert_eq!(w.ask(OWNER, s, Request::new(0, 40)).unwrap().1, range(61000, 40));
}

#[test]
fn the_first_error_in_this_order() {
    let mut w = World::new();
    let raw = w.model.socket(OWNER, HERE, None, false, Options::default());
    let nonsense = Request { align: 3, scope: Scope::Cgroup(99), ..Request::new(1, 60000) };
    assert_eq!(w.ask(OWNER, 99, nonsense.clone()), Err(Errno::EBADF));
    assert_eq!(w.ask(OWNER, raw, nonsense.clone()), Err(Errno::EOPNOTSUPP));
    let s = w.tcp(OWNER);
    assert_eq!(w.ask(OWNER, s, nonsense.clone()), Err(Errno::EINVAL));
    let too_much = Request { align: 0, scope: Scope::Process, ..nonsense };
    assert_eq!(w.ask(OWNER, s, too_much), Err(Errno::EDQUOT), "before ENETDOWN");
    w.bind(OWNER, s, 8080).unwrap();
    assert_eq!(w.model.associate(OWNER, s, 0), Err(Errno::EINVAL), "bound, before the token is looked at");
}

#[test]
fn malformed_requests() {
    let valid = wire::AcquireRequest { count: 1, ..Default::default() };
    assert!(Request::from_wire(&valid, &[]).is_ok());
    let other = |kind: u16| wire::Also { kind: kind.into(), id: 7, name: [0; 128] };
    let with = |count| wire::AcquireRequest { also: count, ..valid };
    assert!(Request::from_wire(&with(2), &[other(wire::SCOPE_USER), other(wire::SCOPE_GROUP)]).is_ok());
    for (count, also) in [(1, vec![]), (0, vec![other(1)]), (5, vec![other(1); 5]), (1, vec![other(wire::SCOPE_ADMIN)])]
    {
        assert_eq!(Request::from_wire(&with(count), &also), Err(Errno::EINVAL), "{count}");
    }
    for bad in [
        wire::AcquireRequest { flags: 8, ..valid },
        wire::AcquireRequest { scope: 3, ..valid },
        wire::AcquireRequest { zero: 1, ..valid },
        wire::AcquireRequest { cgroup: 1, ..valid },
    ] {
        assert_eq!(Request::from_wire(&bad, &[]), Err(Errno::EINVAL));
    }
    let mut w = World::new();
    let s = w.tcp(OWNER);
    for bad in [Request::new(0, 0), Request::new(65535, 2), Request::new(2, 65535)] {
        assert_eq!(w.ask(OWNER, s, bad), Err(Errno::EINVAL));
    }
    assert_eq!(w.ask(OWNER, s, Request::new(0, 65535)), Err(Errno::EDQUOT));
    w.model.set_uid(OWNER, 0);
    assert_eq!(w.ask(OWNER, s, Request::new(0, 65535)), Err(Errno::ENOSPC));
}

#[test]
fn queries() {
    let mut w = World::new();
    let s = w.udp(OWNER);
    let (first, _) = w.ask(OWNER, s, Request::new(61000, 2)).unwrap();
    let (second, _) = w.ask(OWNER, s, Request { scope: Scope::Cgroup(10), ..Request::new(61010, 2) }).unwrap();
    let (consumer, _) = w.drawn(second);
    let t = w.udp(OTHER);
    assert_eq!(w.model.state(OTHER, t).err(), Some(Errno::EINVAL), "nothing selected");
    let mut ask = |pid, on, select| {
        w.model.select(pid, on, select).unwrap();
        w.model.state(pid, on).map(|(token, reservation)| (token, reservation.block.start()))
    };
    assert_eq!(ask(OWNER, s, Select::Index(0)), Ok((Some(first), 61000)));
    assert_eq!(ask(OWNER, s, Select::Index(2)), Err(Errno::ENOENT));
    assert_eq!(ask(OWNER, consumer, Select::Associated), Ok((Some(second), 61010)));
    assert_eq!(ask(OTHER, t, Select::Associated), Err(Errno::ENOENT));
    assert_eq!(ask(OTHER, t, Select::Token(first.get())), Ok((None, 61000)), "not in its scope: no token");
    assert_eq!(ask(OTHER, t, Select::Next(Transport::Udp, 61001)), Ok((Some(second), 61010)));
    assert_eq!(ask(OTHER, t, Select::Port(Transport::Udp, 61011)), Ok((Some(second), 61010)));
    assert_eq!(ask(OTHER, t, Select::Port(Transport::Tcp, 61011)), Err(Errno::ENOENT));
    assert_eq!(w.model.bound_ports(&w.model.reservations()[&second]), 1);
    assert_eq!(w.model.version(), Version { agent: false, reservations: 2, ports: 4 });
}

#[test]
fn e1_to_e3_binds_to_port_0_draw_from_the_range_and_from_nowhere_else() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let range = Request { ephemeral: true, scope: Scope::User, ..Request::new(61000, 2) };
    assert_eq!(w.ask(OWNER, s, Request { strict: true, ..range.clone() }), Err(Errno::EINVAL));
    let (token, _) = w.ask(OWNER, s, range.clone()).unwrap();
    let (t, u, v) = (w.tcp(OWNER), w.tcp(OWNER), w.tcp(OWNER));
    assert_eq!(w.bind(OWNER, t, 0), Ok(61000));
    assert_eq!(w.bind(OWNER, u, 0), Ok(61001));
    assert_eq!(w.bind(OWNER, v, 0), Err(Errno::EADDRINUSE));
    w.model.close(OWNER, t).unwrap();
    assert_eq!(w.bind(OWNER, v, 0), Ok(61000));
    // Outsiders do not draw from it, nor UDP sockets, nor sockets that are associated with another reservation.
    let outsider = w.tcp(OTHER);
    assert_eq!(w.bind(OTHER, outsider, 0), Ok(AUTOMATIC));
    let udp = w.udp(OWNER);
    assert_eq!(w.bind(OWNER, udp, 0), Ok(AUTOMATIC));
    let (other, _) = w.ask(OWNER, s, Request::new(61010, 1)).unwrap();
    let associated = w.tcp(OWNER);
    w.model.associate(OWNER, associated, other.get()).unwrap();
    assert_eq!(w.bind(OWNER, associated, 0), Ok(61010));
    // One for each scope and transport.
    assert_eq!(w.ask(OWNER, s, Request { start: 0, ..range.clone() }), Err(Errno::EEXIST));
    w.model.release(OWNER, s, token.get()).unwrap();
    assert_eq!(w.ask(OWNER, s, Request { start: 0, ..range }).unwrap().1.count(), 2);
}

#[test]
fn e4_the_most_specific_range_wins() {
    let mut w = World::new();
    let s = w.tcp(OWNER);
    let ask = |w: &mut World, start: u16, scope: Scope| {
        w.ask(OWNER, s, Request { ephemeral: true, scope, ..Request::new(start, 5) }).unwrap().0
    };
    let first = |w: &mut World| {
        let t = w.tcp(OWNER);
        w.bind(OWNER, t, 0).unwrap() / 10 * 10
    };
    let user = ask(&mut w, 61000, Scope::User);
    assert_eq!(first(&mut w), 61000);
    ask(&mut w, 61010, Scope::Cgroup(10));
    assert_eq!(first(&mut w), 61010);
    let near = ask(&mut w, 61020, Scope::Cgroup(11));
    assert_eq!(first(&mut w), 61020);
    let own = ask(&mut w, 61030, Scope::Process);
    assert_eq!(first(&mut w), 61030);
    for (token, next) in [(own, 61020), (near, 61010)] {
        w.model.release(OWNER, s, token.get()).unwrap();
        assert_eq!(first(&mut w), next);
    }
    // The other process is in the outer cgroup, and of another user.
    let t = w.tcp(OTHER);
    assert_eq!(w.bind(OTHER, t, 0).unwrap() / 10 * 10, 61010);
    w.model.release(OWNER, s, user.get()).unwrap();
}
