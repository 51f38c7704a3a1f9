//! Tokens that are forged, guessed, old, or of another process.

use portkeep::control;
use portkeep_core::{
    Errno, Token, Transport,
    wire::{self, AcquireRequest},
};
use portkeep_testkit::{
    World, audit,
    process::{become_user, in_child},
    sockets::{acquire, bind, errno, port, reserve, socket, tcp, token, udp},
};
use socket2::Domain;

use crate::siege::{KINDS, NOBODY, owner_binds};

/// ENOENT for a token that names no reservation: a token is 64 bits under a key that only the kernel has.
#[test]
fn forged_and_guessed_tokens_name_nothing() {
    let Some(world) = World::enter("bypass::forged") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let before = audit::snapshot(&world.maps(), world.netns());
    // Derived from the true one: every single bit, its neighbours, its complement (which means "pending" inside).
    let near = (0..64).map(|bit| grant.token ^ 1 << bit);
    let near = near.chain((1..1000).flat_map(|n| [grant.token.wrapping_add(n), grant.token.wrapping_sub(n)]));
    let mut number = 1u64;
    let guessed = (0..20_000).map(|_| {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        number
    });
    // A token before it is encrypted: generation and entry.
    let plain = (0..200u64).flat_map(|generation| (0..8).map(move |id| generation << 16 | id));
    let tokens: Vec<Token> = near.chain(guessed).chain(plain).chain([!grant.token]).filter_map(Token::new).collect();
    let attack = || {
        let socket = tcp();
        for token in tokens.iter().filter(|token| token.get() != grant.token) {
            assert_eq!(errno(control::associate(&socket, *token)), Errno::ENOENT);
            assert_eq!(errno(control::release(&socket, *token)), Errno::ENOENT);
            let select = wire::SelectRequest { by: wire::BY_TOKEN, token: token.get(), ..Default::default() };
            assert_eq!(errno(control::state(&socket, &select)), Errno::ENOENT);
        }
    };
    // It fails for the owner process, too.
    attack();
    in_child(|| {
        become_user(NOBODY);
        attack();
    });
    assert_eq!(audit::snapshot(&world.maps(), world.netns()), before);
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop(owner);
    world.assert_empty();
}

#[test]
fn old_tokens_do_not_name_their_successors() {
    let Some(world) = World::enter("bypass::old") else { return };
    for (domain, transport) in KINDS {
        let owner = socket(domain, transport);
        let mut old = Vec::new();
        // The same block and, one at a time, the same entry.
        for _ in 0..50 {
            let grant = reserve(&owner, 61000, 2);
            for token in &old {
                assert_eq!(errno(control::associate(socket(domain, transport), *token)), Errno::ENOENT);
                assert_eq!(errno(control::release(&owner, *token)), Errno::ENOENT);
            }
            owner_binds(domain, transport, &grant);
            control::release(&owner, token(&grant)).unwrap();
            old.push(token(&grant));
        }
        // A socket that was associated with an ended reservation has no right, not even to the next reservation of the
        // block.
        let grant = reserve(&owner, 61000, 2);
        let late = socket(domain, transport);
        control::associate(&late, token(&grant)).unwrap();
        control::release(&owner, token(&grant)).unwrap();
        let successor = reserve(&owner, 61000, 2);
        for number in [0, 61000] {
            assert_eq!(errno(bind(&late, number)), Errno::EACCES);
        }
        owner_binds(domain, transport, &successor);
        drop((owner, late));
        world.assert_empty();
    }
}

/// EPERM for the true token of another process, EINVAL for a token of the other transport. A listing shows 0 instead of
/// it.
#[test]
fn foreign_tokens_are_of_no_use() {
    let Some(world) = World::enter("bypass::foreign") else { return };
    for scope in [wire::SCOPE_PROCESS, wire::SCOPE_USER] {
        let owner = tcp();
        let grant = acquire(&owner, &AcquireRequest { count: 2, scope, ..Default::default() }).unwrap();
        let token = token(&grant);
        in_child(|| {
            become_user(NOBODY);
            assert_eq!(errno(control::associate(tcp(), token)), Errno::EPERM);
            assert_eq!(errno(control::release(tcp(), token)), Errno::EPERM);
            assert_eq!(errno(control::associate(udp(), token)), Errno::EINVAL);
            assert_eq!(errno(control::release(udp(), token)), Errno::EINVAL);
            let select = wire::SelectRequest {
                by: wire::BY_PORT,
                port: grant.start,
                transport: Transport::Tcp.bit(),
                ..Default::default()
            };
            let seen = control::state(tcp(), &select).unwrap();
            assert_eq!((seen.start, seen.token), (grant.start, 0), "others see everything but the token");
        });
        let inside = tcp();
        control::associate(&inside, token).unwrap();
        bind(&inside, 0).unwrap();
        assert!((grant.start..grant.start + 2).contains(&port(&inside)));
        drop((inside, owner));
        world.assert_empty();
    }
}

/// The secret that marks the agent's sockets is as hard to guess as a token, twice as long.
#[test]
fn no_process_can_pretend_to_be_the_agent() {
    let Some(world) = World::enter("bypass::agent_mark") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    in_child(|| {
        for role in [wire::AGENT_BEACON, wire::AGENT_PROBE, wire::AGENT_READER] {
            for secret in [[0, 0], [u64::MAX; 2], [grant.token, grant.token]] {
                let mark = wire::AgentMark { secret, role, zero: 0 };
                assert_eq!(errno(control::agent_mark(tcp(), &mark)), Errno::EPERM);
            }
        }
        assert_eq!(control::version(tcp()).unwrap().agent, 0);
    });
    owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    drop(owner);
    world.assert_empty();
}
