//! The possible steps, and how often each is chosen.
//!
//! Processes, descriptors and tokens are named by numbers. These are taken modulo the number that exists, so a history
//! stays meaningful while it is being shrunk.

use portkeep_core::Transport;
use proptest::prelude::*;

/// A descriptor: the number of a process, and the number of one of its descriptors.
pub type At = (u8, u8);

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    Spawn {
        uid: u8,
        cgroup: u8,
        privileged: bool,
    },
    Fork(u8),
    Exit {
        process: u8,
        killed: bool,
    },
    SetUid {
        process: u8,
        uid: u8,
    },
    Socket {
        process: u8,
        namespace: u8,
        transport: Transport,
        v6: bool,
        reuse_address: bool,
        reuse_port: bool,
    },
    Duplicate(At),
    Pass {
        from: At,
        to: u8,
    },
    Close(At),
    Acquire {
        on: At,
        ask: Ask,
    },
    Granted(At),
    Release {
        on: At,
        token: u8,
        thread: bool,
    },
    Associate {
        on: At,
        token: u8,
        thread: bool,
    },
    /// A new socket of the right kind, of the owner or of another process, gets a port of a reservation.
    Consume {
        token: u8,
        by_owner: bool,
        associate: bool,
        how: How,
        v6: bool,
        reuse_port: bool,
        thread: bool,
    },
    /// The owner releases, through one of its sockets.
    GiveUp {
        token: u8,
        socket: u8,
    },
    Query {
        on: At,
        select: Query,
    },
    Bind {
        on: At,
        address: u8,
        port: u16,
        thread: bool,
    },
    Connect(At),
    Listen(At),
    Agent(bool),
    Decide {
        token: u8,
        confirm: bool,
    },
    End(u8),
    /// A persistent reservation; it is pending until it is confirmed or refused.
    Create {
        namespace: u8,
        start: u16,
        count: u16,
        /// The alignment of a block that is chosen: 2 to the power of this.
        align: u8,
        both: bool,
        transport: Transport,
        strict: bool,
        ephemeral: bool,
        /// Its audience: a user, the administrators, or a cgroup.
        scope: u8,
        whom: u8,
        also: Vec<u8>,
    },
    SetAside {
        namespace: u8,
        transport: Transport,
        port: u16,
    },
    GiveBack(u8),
    /// Wildcard requests get these ports last; a count of 0: no ports.
    Avoid {
        namespace: u8,
        start: u16,
        count: u16,
    },
}

/// An ACQUIRE.
#[derive(Clone, Debug)]
pub struct Ask {
    pub start: u16,
    pub count: u16,
    pub both: bool,
    pub strict: bool,
    pub ephemeral: bool,
    pub align: u16,
    pub scope: u8,
    pub cgroup: u8,
    /// Users that are admitted.
    pub also: Vec<u8>,
    pub label: String,
    pub thread: bool,
}

/// How a socket gets its port.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Draw,
    Connect,
    /// At an offset into the block; sometimes beyond it.
    Explicit(u8),
    /// From an address that no interface has, so the bind fails.
    Fail,
}

/// A query.
#[derive(Clone, Copy, Debug)]
pub enum Query {
    Token(u8),
    Port(Transport, u16),
    Next(Transport, u16),
    Indexes,
    Associated,
}

/// Ports near important limits: the pool and its limits, a few elsewhere, a few privileged ones.
fn port() -> impl Strategy<Value = u16> + Clone {
    prop_oneof![6 => 61000..61040u16, 2 => 61040..61096u16, 1 => 60996..61000u16, 1 => 61096..61100u16, 2 => 5000..5012u16, 2 => 1016..1032u16]
}

fn port_or_zero() -> impl Strategy<Value = u16> {
    prop_oneof![2 => Just(0), 3 => port()]
}

fn at() -> impl Strategy<Value = At> {
    (any::<u8>(), any::<u8>())
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)]
}

/// Users beside a scope, usually none.
fn also() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => Just(Vec::new()), 2 => prop::collection::vec(any::<u8>(), 1..4)]
}

fn ask() -> impl Strategy<Value = Ask> {
    let start = prop_oneof![5 => Just(0), 4 => port(), 1 => any::<u16>()];
    let count = prop_oneof![14 => 1..5u16, 3 => 5..20u16, 1 => 20..100u16, 1 => Just(0), 1 => any::<u16>()];
    let align = prop_oneof![6 => Just(0u16), 1 => Just(1), 2 => Just(2), 1 => Just(4), 1 => Just(16), 1 => Just(64), 1 => Just(3)];
    let label = prop_oneof![3 => Just(String::new()), 1 => "[a-z]{1,24}"];
    let scope = prop_oneof![4 => Just(0u8), 1 => Just(1), 2 => Just(2)];
    let cgroup = prop_oneof![2 => Just(0u8), 3 => 1..6u8];
    let kind = (prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    (start, count, any::<bool>(), kind, align, (scope, also()), cgroup, label, any::<bool>()).prop_map(
        |(start, count, both, (strict, ephemeral), align, (scope, also), cgroup, label, thread)| Ask {
            start,
            count,
            both: both && count % 2 == 0,
            strict,
            ephemeral,
            align,
            scope,
            cgroup,
            also,
            label,
            thread,
        },
    )
}

fn query() -> impl Strategy<Value = Query> {
    prop_oneof![
        any::<u8>().prop_map(Query::Token),
        (transport(), port()).prop_map(|(transport, port)| Query::Port(transport, port)),
        (transport(), port_or_zero()).prop_map(|(transport, port)| Query::Next(transport, port)),
        Just(Query::Indexes),
        Just(Query::Associated),
    ]
}

fn consume() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        5 => Just(How::Draw),
        2 => Just(How::Connect),
        4 => any::<u8>().prop_map(How::Explicit),
        1 => Just(How::Fail),
    ];
    let likely = || prop::bool::weighted(0.8);
    (any::<u8>(), likely(), likely(), how, any::<bool>(), prop::bool::weighted(0.3), prop::bool::weighted(0.2))
        .prop_map(|(token, by_owner, associate, how, v6, reuse_port, thread)| Step::Consume {
            token,
            by_owner,
            associate,
            how,
            v6,
            reuse_port,
            thread,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let byte = any::<u8>;
    let thread = || prop::bool::weighted(0.2);
    let socket = (
        byte(),
        prop::bool::weighted(0.25),
        transport(),
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(process, other, transport, v6, reuse_address, reuse_port)| Step::Socket {
            process,
            namespace: other.into(),
            transport,
            v6,
            reuse_address,
            reuse_port,
        });
    let processes = prop_oneof![
        2 => (byte(), byte(), prop::bool::weighted(0.3))
            .prop_map(|(uid, cgroup, privileged)| Step::Spawn { uid, cgroup, privileged }),
        2 => byte().prop_map(Step::Fork),
        2 => (byte(), any::<bool>()).prop_map(|(process, killed)| Step::Exit { process, killed }),
        1 => (byte(), byte()).prop_map(|(process, uid)| Step::SetUid { process, uid }),
    ];
    let descriptors = prop_oneof![
        1 => at().prop_map(Step::Duplicate),
        2 => (at(), byte()).prop_map(|(from, to)| Step::Pass { from, to }),
        6 => at().prop_map(Step::Close),
    ];
    let reservations = prop_oneof![
        8 => (at(), ask()).prop_map(|(on, ask)| Step::Acquire { on, ask }),
        1 => at().prop_map(Step::Granted),
        2 => (at(), byte(), thread()).prop_map(|(on, token, thread)| Step::Release { on, token, thread }),
        3 => (at(), byte(), thread()).prop_map(|(on, token, thread)| Step::Associate { on, token, thread }),
        10 => consume(),
        2 => (byte(), byte()).prop_map(|(token, socket)| Step::GiveUp { token, socket }),
        3 => (at(), query()).prop_map(|(on, select)| Step::Query { on, select }),
    ];
    let binds = prop_oneof![
        6 => (at(), byte(), port_or_zero(), thread())
            .prop_map(|(on, address, port, thread)| Step::Bind { on, address, port, thread }),
        2 => at().prop_map(Step::Connect),
        1 => at().prop_map(Step::Listen),
    ];
    let agent = prop_oneof![
        1 => any::<bool>().prop_map(Step::Agent),
        6 => (byte(), prop::bool::weighted(0.7)).prop_map(|(token, confirm)| Step::Decide { token, confirm }),
        1 => byte().prop_map(Step::End),
        3 => (byte(), port_or_zero(), (1..6u16, 0..7u8), any::<bool>(), transport(), (prop::bool::weighted(0.2), prop::bool::weighted(0.3)), (byte(), byte()), also()).prop_map(
            |(namespace, start, (count, align), both, transport, (strict, ephemeral), (scope, whom), also)| Step::Create {
                namespace: u8::from(namespace % 4 == 0),
                start,
                count,
                align,
                both,
                transport,
                strict,
                ephemeral,
                scope,
                whom,
                also,
            }
        ),
        1 => (byte(), transport(), port()).prop_map(|(namespace, transport, port)| Step::SetAside { namespace, transport, port }),
        1 => byte().prop_map(Step::GiveBack),
        1 => (byte(), port(), prop_oneof![Just(0u16), 1..60u16])
            .prop_map(|(namespace, start, count)| Step::Avoid { namespace, start, count }),
    ];
    prop_oneof![3 => processes, 5 => socket, 5 => descriptors, 16 => reservations, 8 => binds, 5 => agent]
}

/// Histories.
pub fn strategy() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 20..250)
}
