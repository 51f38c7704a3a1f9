//! Users can cost the agent only so much, and root always gets through.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use portkeep::{
    PortRange, Process, Transports,
    persistent::{
        Connection, Lifetime, PersistentError, Proposal,
        protocol::{Event, EventKind, Request},
    },
};
use portkeep_testkit::{
    World,
    agent::{AgentFolder, end_all},
    eventually,
    process::{Child, become_user, in_child},
    sockets::{bind, reserve, tcp, token},
};
use rustix::{
    process::Signal,
    thread::{CapabilitySet, CapabilitySets, set_capabilities},
};

const NOBODY: u32 = 65534;
const OTHER: u32 = 65533;

fn proposal(name: &str, port: u16) -> Proposal {
    Proposal::new(name.parse().unwrap(), PortRange::single(port).unwrap(), Transports::Tcp)
}

fn line(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    line
}

#[test]
fn r13_a_request_whose_client_has_gone_is_never_carried_out() {
    let Some(world) = World::enter("client_has_gone") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    agent.signal(Signal::STOP);
    let mut client = UnixStream::connect(place.socket()).unwrap();
    let create = Request::Create { proposal: proposal("gone", 8443), kept: Lifetime::UntilReboot };
    client.write_all(&line(&create)).unwrap();
    drop(client);
    // A client that has only finished sending gets its answer.
    let mut waiting = UnixStream::connect(place.socket()).unwrap();
    let create = Request::Create { proposal: proposal("there", 8444), kept: Lifetime::UntilReboot };
    waiting.write_all(&line(&create)).unwrap();
    waiting.shutdown(std::net::Shutdown::Write).unwrap();
    agent.signal(Signal::CONT);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("created"), "{answer}");
    let names: Vec<String> = place.list().iter().map(|info| info.name.clone().unwrap()).collect();
    assert_eq!(names, ["there"]);
    place.connect().delete(&portkeep::persistent::Which::Name("there".parse().unwrap())).unwrap();
    agent.stop();
    world.assert_empty();
}

#[test]
fn a_peer_that_asks_and_never_reads_costs_one_answer() {
    let Some(world) = World::enter("asks_and_never_reads") else { return };
    let place = AgentFolder::new();
    let stanzas: String = (0..500)
        .map(|n| {
            format!("[[reservation]]\nname = \"p{n}\"\ntcp = {}\ndescription = \"{}\"\n", 10_000 + n, "d".repeat(200))
        })
        .collect();
    place.drop_in("many.toml", &stanzas);
    let agent = place.agent();
    assert_eq!(place.list().len(), 500);
    let before = agent.peak_memory();
    let mut flood = Child::fork(|talk| {
        become_user(NOBODY);
        let peers: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(place.socket()).unwrap()).collect();
        let requests = line(&Request::List).repeat(10_000);
        for mut peer in &peers {
            peer.set_nonblocking(true).unwrap();
            let _ = peer.write(&requests);
        }
        talk.say(1);
        for _ in 0..300 {
            peers.iter().for_each(|mut peer| _ = peer.write(&requests));
            thread::sleep(Duration::from_millis(5));
        }
        talk.say(2);
        talk.hear();
    });
    assert_eq!(flood.talk.hear(), 1);
    for _ in 0..10 {
        assert_eq!(place.list().len(), 500);
    }
    assert_eq!(flood.talk.hear(), 2);
    // Each list has 170,000 bytes; ten thousand of them were asked for eight times over.
    let more = agent.peak_memory() - before;
    assert!(more < 16 * 1024, "{more} kB more");
    flood.kill();
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

#[test]
fn subordinate_uids_have_the_connections_of_their_user_and_root_has_its_own() {
    let Some(world) = World::enter("connections") else { return };
    let place = AgentFolder::new();
    fs::create_dir_all(place.path().join("root/etc")).unwrap();
    fs::write(place.path().join("root/etc/subuid"), format!("{OTHER}:100000:1000\n")).unwrap();
    let agent = place.agent();
    let hold = |uid: u32| {
        let mut child = Child::fork(|talk| {
            become_user(uid);
            let held: Vec<_> = (0..8).map(|_| UnixStream::connect(place.socket())).collect();
            talk.say(held.iter().filter(|stream| stream.is_ok()).count() as u64);
            talk.hear();
        });
        assert_eq!(child.talk.hear(), 8);
        child
    };
    let first = hold(100_000);
    for uid in [OTHER, 100_999] {
        in_child(|| {
            become_user(uid);
            let error = place.connect().list().unwrap_err();
            assert!(error.to_string().contains("too many connections"), "{error}");
        });
    }
    // Many users hold as many connections as they can.
    let others: Vec<Child> = (0..8).map(|n| hold(200_000 + n)).collect();
    for _ in 0..8 {
        assert_eq!(place.list(), []);
    }
    let held: Vec<Connection> = (0..7).map(|_| place.connect()).collect();
    assert_eq!(place.list(), []);
    drop(held);
    others.into_iter().chain([first]).for_each(Child::kill);
    agent.stop();
    world.assert_empty();
}

#[test]
fn uid_0_without_capabilities_is_no_administrator() {
    let Some(world) = World::enter("without_capabilities") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    in_child(|| {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        assert_eq!(place.list(), []);
        let error = place.connect().create(&proposal("web", 8443), Lifetime::UntilReboot).unwrap_err();
        assert!(matches!(error, PersistentError::NotAllowed(_)), "{error:?}");
    });
    place.connect().create(&proposal("web", 8443), Lifetime::UntilReboot).unwrap();
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

fn name_of(event: &Event) -> Option<&str> {
    event.reservation.as_ref()?.name.as_deref()
}

/// The events that a watcher gets until something called `end` is created.
fn watch(place: &AgentFolder, happens: impl FnOnce()) -> Vec<Event> {
    let events = place.connect().watch().unwrap();
    happens();
    place.connect().create(&proposal("end", 9999), Lifetime::UntilReboot).unwrap();
    let events = events.map(Result::unwrap);
    events.take_while(|event| name_of(event) != Some("end")).collect()
}

#[test]
fn a_storm_costs_a_few_lines_and_is_counted() {
    let Some(world) = World::enter("storm") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    place.connect().create(&proposal("web", 8443), Lifetime::UntilReboot).unwrap();
    let events = watch(&place, || {
        // A process for each try, as with a service manager that starts a service again and again.
        for _ in 0..100 {
            in_child(|| {
                become_user(NOBODY);
                assert!(bind(&tcp(), 8443).is_err());
            });
        }
        in_child(|| {
            become_user(OTHER);
            let owner = tcp();
            for _ in 0..5000 {
                let grant = reserve(&owner, 0, 1);
                portkeep::control::release(&owner, token(&grant)).unwrap();
            }
        });
    });
    let of = |what: EventKind| events.iter().filter(|event| event.what == what).collect::<Vec<_>>();
    let refused = of(EventKind::Refused);
    assert!(refused.len() >= 2 && refused.len() < 20, "{}", refused.len());
    let by_somebody = |process: &Process| process.uid == Some(NOBODY) && process.pid != 0 && !process.comm.is_empty();
    assert!(refused.iter().all(|event| event.process.as_ref().is_some_and(by_somebody)));
    let granted = of(EventKind::Granted);
    assert!(!granted.is_empty() && granted.len() < 1000, "{} of 5000", granted.len());
    // An administrator's action is reported with the process that did it.
    let made = watch_one(&place);
    let Some(process) = &made.process else { panic!("{made:?}") };
    assert_eq!((process.pid, process.uid), (std::process::id(), Some(0)));
    assert!(!process.comm.is_empty() && made.message.contains(&format!("pid {}", process.pid)), "{made:?}");
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

fn watch_one(place: &AgentFolder) -> Event {
    let mut events = place.connect().watch().unwrap();
    place.connect().create(&proposal("made", 8500), Lifetime::UntilReboot).unwrap();
    events.find_map(|event| event.ok().filter(|event| name_of(event) == Some("made"))).unwrap()
}

#[test]
fn a_refused_request_is_reported_once_and_not_as_an_end() {
    let Some(world) = World::enter("refused_request") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let there = tcp();
    bind(&there, 5000).unwrap();
    let events = watch(&place, || {
        let asked = portkeep::Reservation::tcp().at(5000).require(portkeep::Require::Kernel).acquire();
        assert!(asked.is_err());
        thread::sleep(Duration::from_millis(100));
    });
    let what: Vec<EventKind> = events.iter().map(|event| event.what).collect();
    assert_eq!(what, [EventKind::Denied], "{events:?}");
    assert_eq!(events[0].process.as_ref().unwrap().pid, std::process::id());
    drop(there);
    eventually(|| world.maps().reservations().flatten().all(|(_, r)| r.is_persistent()));
    agent.stop();
    end_all(&world);
    world.assert_empty();
}
