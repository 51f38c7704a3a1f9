//! Invariants after any history: the model checks itself.

use proptest::prelude::*;

use super::*;
use portkeep_core::Scope;
use portkeep_core::Transport;

#[derive(Clone, Debug)]
enum Step {
    Socket { pid: Pid, namespace: Namespace, transport: Transport, reuse: bool },
    Acquire { pid: Pid, on: Descriptor, request: Request },
    Release { pid: Pid, on: Descriptor, nth: usize },
    Associate { pid: Pid, on: Descriptor, nth: usize },
    Bind { pid: Pid, on: Descriptor, port: u16 },
    Connect { pid: Pid, on: Descriptor },
    Close { pid: Pid, on: Descriptor },
    Pass { from: Pid, on: Descriptor, to: Pid },
    Decide { nth: usize, confirm: bool },
}

const PIDS: [Pid; 3] = [1, 2, 3];

fn step() -> impl Strategy<Value = Step> {
    let pid = || prop::sample::select(&PIDS[..]);
    let on = || 0..6u32;
    let transport = prop::sample::select(&Transport::ALL[..]);
    let port = || prop_oneof![Just(0u16), 61000..61032u16, 5000..5008u16];
    let request = (port(), 1..9u16, any::<bool>(), 0..3u8, prop::sample::select(vec![0u16, 2, 4]), any::<bool>())
        .prop_map(|(start, count, both, kind, align, user)| Request {
            both,
            strict: kind == 1,
            ephemeral: kind == 2,
            align,
            scope: if user { Scope::User } else { Scope::Process },
            ..Request::new(start, count)
        });
    prop_oneof![
        3 => (pid(), 1..3u64, transport, any::<bool>())
            .prop_map(|(pid, namespace, transport, reuse)| Step::Socket { pid, namespace, transport, reuse }),
        4 => (pid(), on(), request).prop_map(|(pid, on, request)| Step::Acquire { pid, on, request }),
        1 => (pid(), on(), 0..8usize).prop_map(|(pid, on, nth)| Step::Release { pid, on, nth }),
        3 => (pid(), on(), 0..8usize).prop_map(|(pid, on, nth)| Step::Associate { pid, on, nth }),
        4 => (pid(), on(), port()).prop_map(|(pid, on, port)| Step::Bind { pid, on, port }),
        1 => (pid(), on()).prop_map(|(pid, on)| Step::Connect { pid, on }),
        1 => (pid(), on()).prop_map(|(pid, on)| Step::Close { pid, on }),
        1 => (pid(), on(), pid()).prop_map(|(from, on, to)| Step::Pass { from, on, to }),
        1 => (0..8usize, any::<bool>()).prop_map(|(nth, confirm)| Step::Decide { nth, confirm }),
    ]
}

fn world() -> Model {
    let mut model = Model::new(Settings { pool: PortRange::new(61000, 32).ok(), quota: 24, ..Settings::default() });
    model.spawn(99, 0, vec![1], true);
    let beacon = model.socket(99, 1, Some(Transport::Udp), false, Options::default());
    model.mark(99, beacon, Role::Beacon).unwrap();
    for pid in PIDS {
        model.spawn(pid, if pid == 1 { 0 } else { 1000 }, vec![1, 10], false);
    }
    model
}

fn apply(model: &mut Model, step: &Step, number: u64) {
    let nth = |model: &Model, n: usize| model.reservations().keys().nth(n).map_or(0, |token| token.get());
    let before = model.reserved();
    match step.clone() {
        Step::Socket { pid, namespace, transport, reuse } => {
            let options = Options { reuse_port: reuse, ..Options::default() };
            model.socket(pid, namespace, Some(transport), false, options);
        }
        Step::Acquire { pid, on, request } => {
            let token = Token::new(number + 1).unwrap();
            match model.acquire(pid, on, &request, token) {
                Ok(()) | Err(Errno::EINPROGRESS) => {
                    let granted = &model.reservations()[&token];
                    assert_eq!(granted.block.count(), request.count);
                    assert!(granted.places().all(|at| !before.contains(&at)), "granted what was reserved");
                    assert!(request.start == 0 || request.start == granted.block.start());
                    assert!(granted.block.start().is_multiple_of(request.align.max(1)));
                }
                Err(_) => assert_eq!(model.reserved(), before, "a failed ACQUIRE left something behind"),
            }
        }
        Step::Release { pid, on, nth: n } => {
            let _ = model.release(pid, on, nth(model, n));
        }
        Step::Associate { pid, on, nth: n } => {
            let _ = model.associate(pid, on, nth(model, n));
        }
        Step::Bind { pid, on, port } => {
            let _ = model.bind(pid, on, Address::V4Any, port, 40000 + number as u16);
        }
        Step::Connect { pid, on } => {
            let _ = model.connect(pid, on, 8000, 40000 + number as u16);
        }
        Step::Close { pid, on } => {
            let _ = model.close(pid, on);
        }
        Step::Pass { from, on, to } => {
            let _ = model.pass(from, on, to);
        }
        Step::Decide { nth: n, confirm } => {
            if let Some(token) = Token::new(nth(model, n)) {
                // The agent confirms no block with a port that is in use.
                let places: Vec<Place> = model.reservations()[&token].places().collect();
                let in_use = model.sockets().values().filter_map(Socket::place).any(|at| places.contains(&at));
                let confirm = confirm && !in_use;
                let _ = if confirm { model.confirm(token) } else { model.refuse(token, Errno::EADDRINUSE) };
            }
        }
    }
}

fn check(model: &Model) {
    let mut seen = BTreeSet::new();
    for reservation in model.reservations().values() {
        for at in reservation.places() {
            assert!(seen.insert(at), "{at:?} is in two blocks");
        }
    }
    for socket in model.sockets().values() {
        let Some(at) = socket.place() else { continue };
        let consumer = socket.bound.is_some_and(|bound| bound.consumer);
        assert!(!consumer || model.is_reserved(at), "{at:?} was freed under a socket");
        let in_force = model.block_at(at).is_some_and(|(_, reservation)| reservation.state == State::Active);
        assert!(!in_force || consumer, "{at:?} is bound by an outsider");
    }
    assert!(model.ports_of(1000) <= 24);
}

proptest! {
    #[test]
    fn no_history_breaks_the_invariants(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = world();
        for (number, step) in steps.iter().enumerate() {
            apply(&mut model, step, number as u64);
            check(&model);
        }
        for pid in PIDS {
            model.exit(pid);
            check(&model);
        }
        prop_assert!(model.reservations().is_empty());
        prop_assert!(model.reserved().is_empty(), "ports leaked: {:?}", model.reserved());
        prop_assert!(model.hints.is_empty(), "hints leaked");
    }
}
