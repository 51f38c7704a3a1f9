//! Persistent reservations as the agent keeps them: declared by files and by commands, over its socket, through kills.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use portkeep::{
    Align, PortRange, State, Transport, Transports,
    persistent::{
        Account, Audience, Lifetime, Name, PersistentError, Proposal, Which, lookup,
        protocol::{self, Change, EventKind},
    },
};
use portkeep_core::{Errno, wire};
use portkeep_testkit::{
    World,
    agent::{AgentFolder, end_all},
    eventually,
    process::{Child, become_user, in_child},
    sockets::{acquire, bind, errno, port, reserve, tcp, udp},
};
use proptest::prelude::*;
use rustix::process::Signal;

const NOBODY: u32 = 65534;
const OTHER: u32 = 65533;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn ports(start: u16, count: u16) -> PortRange {
    PortRange::new(start, count).unwrap()
}

fn user(uid: u32) -> Audience {
    Audience::User(Account::Id(uid))
}

fn web(start: u16) -> Proposal {
    Proposal::new(name("web"), ports(start, 1), Transports::Tcp).audience(user(NOBODY))
}

fn bound_by(uid: u32, port: u16) -> Result<(), Errno> {
    let mut child = Child::fork(|talk| {
        become_user(uid);
        talk.say(bind(&tcp(), port).map_or_else(|error| error.raw_os_error().unwrap() as u64, |()| 0));
    });
    let answer = child.talk.hear();
    child.join();
    if answer == 0 { Ok(()) } else { Err(Errno(answer as i32)) }
}

#[test]
fn created_it_is_in_force_through_every_death_and_deleted_it_is_gone() {
    let Some(world) = World::enter("created_it_is_in_force") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let created = place.connect().create(&web(8443), Lifetime::UntilDeleted).unwrap();
    assert_eq!(created.ports, ports(8443, 1));
    let token = lookup(ports(8443, 1), Transport::Tcp).unwrap();
    assert_eq!(Some(token), created.token);
    assert!(matches!(lookup(ports(8443, 1), Transport::Udp), Err(PersistentError::NotFound)));
    assert!(matches!(lookup(ports(8442, 2), Transport::Tcp), Err(PersistentError::NotFound)));
    assert_eq!(bound_by(NOBODY, 8443), Ok(()));
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE));
    assert_eq!(errno(bind(&tcp(), 8443)), Errno::EADDRINUSE, "root");
    assert!(fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap().contains("8443"));

    // The agent dies: nothing changes. The next one finds it, with the same token.
    agent.kill();
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE));
    let agent = place.agent();
    assert_eq!(lookup(ports(8443, 1), Transport::Tcp).unwrap(), token);
    assert_eq!(place.state("web"), Some(State::Active));

    // Kernel enforcement is taken down, as in a reboot. The reservation comes back from the store, with another token.
    agent.stop();
    end_all(&world);
    assert_eq!(bound_by(OTHER, 8443), Ok(()));
    let agent = place.agent();
    assert_ne!(lookup(ports(8443, 1), Transport::Tcp).unwrap(), token);
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE));

    assert!(matches!(place.connect().create(&web(9443), Lifetime::UntilDeleted), Err(PersistentError::NameTaken(_))));
    place.connect().delete(&Which::Name(name("web"))).unwrap();
    assert_eq!(bound_by(OTHER, 8443), Ok(()));
    assert!(matches!(place.connect().delete(&Which::Name(name("web"))), Err(PersistentError::NotFound)));
    agent.kill();
    let agent = place.agent();
    assert_eq!(place.list(), []);
    agent.stop();
    world.assert_empty();
}

#[test]
fn until_the_reboot_is_until_the_reboot() {
    let Some(world) = World::enter("until_the_reboot") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    place.connect().create(&web(8443), Lifetime::UntilReboot).unwrap();
    agent.kill();
    end_all(&world);
    let agent = place.agent();
    assert_eq!(place.state("web"), Some(State::Active), "the same boot");
    place.connect().delete(&Which::Block { ports: ports(8443, 1).into(), transports: Transports::Tcp }).unwrap();
    agent.stop();
    world.assert_empty();
}

#[test]
fn delete_matches_the_block_exactly() {
    let Some(world) = World::enter("delete_matches") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let rtp = Proposal::new(name("rtp"), ports(5000, 20), Transports::Udp);
    place.connect().create(&rtp, Lifetime::UntilDeleted).unwrap();
    for (ports, transports) in [
        (ports(5000, 19), Transports::Udp),
        (ports(5001, 19), Transports::Udp),
        (ports(5000, 20), Transports::Tcp),
        (ports(5000, 20), Transports::Both),
    ] {
        let which = Which::Block { ports: ports.into(), transports };
        assert!(matches!(place.connect().delete(&which), Err(PersistentError::NotFound)), "{which:?}");
    }
    place.connect().delete(&Which::Block { ports: ports(5000, 20).into(), transports: Transports::Udp }).unwrap();
    agent.stop();
    world.assert_empty();
}

#[test]
fn any_block_is_chosen_once_and_kept() {
    let Some(world) = World::enter("any_block") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let mut any = Proposal::any(name("rtp"), 20, Transports::Both);
    any.block = portkeep::persistent::Block::Any { count: 20, align: Align::new(2).unwrap() };
    let created = place.connect().create(&any, Lifetime::UntilDeleted).unwrap();
    let block = created.ports;
    assert!(block.count() == 20 && block.start().is_multiple_of(2) && block.start() >= 61000);
    agent.stop();
    end_all(&world);
    // If the numbers were not kept, another process would get them now.
    let agent = place.agent();
    assert_eq!(place.list()[0].ports, block);
    assert_ne!(reserve(&tcp(), 0, 1).start, block.start());
    place.connect().delete(&Which::Name(name("rtp"))).unwrap();
    agent.stop();
    world.assert_empty();
}

#[test]
fn a_declaration_waits_for_a_socket_in_the_way_and_reports_it() {
    let Some(world) = World::enter("who_is_there") else { return };
    let place = AgentFolder::new();
    place.drop_in("web.toml", "[[reservation]]\nname = \"web\"\ntcp = 8443\nuser = 65534\n");
    // In a process of its own: the agent would inherit the socket.
    let mut outsider = Child::fork(|talk| {
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8443)).unwrap();
        talk.say(1);
        talk.hear();
    });
    outsider.talk.hear();
    let agent = place.agent();
    let why = place.reason("web", State::Waiting);
    assert!(why.starts_with("8443/tcp is in use by pid"), "{why}");
    let error =
        place.connect().create(&Proposal::new(name("x"), ports(8443, 1), Transports::Tcp), Lifetime::UntilReboot);
    let Err(PersistentError::InUse(why)) = error else { panic!("{error:?}") };
    assert!(why.contains("reserved as `web`"), "{why}");
    // The port is not reserved, so the first process that binds it has it.
    outsider.kill();
    eventually(|| place.state("web") == Some(State::Active));
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE));

    // A runtime reservation is in the way, too, and named.
    let owner = udp();
    let block = reserve(&owner, 0, 2);
    let taken = Proposal::new(name("y"), ports(block.start, 1), Transports::Udp);
    let Err(PersistentError::InUse(why)) = place.connect().create(&taken, Lifetime::UntilReboot) else { panic!() };
    assert!(why.contains("is reserved by pid"), "{why}");
    drop(owner);
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

#[test]
fn a_waiting_declaration_keeps_automatic_choices_out_and_names_its_reason() {
    let Some(world) = World::enter("what_waits") else { return };
    let place = AgentFolder::new();
    // The agent is started before there are sockets that it would inherit.
    let agent = place.agent();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = server.local_addr().unwrap();
    let mut client = Child::fork(|talk| {
        let stream = TcpStream::connect(peer).unwrap();
        talk.say(stream.local_addr().unwrap().port().into());
        talk.hear();
    });
    let port = client.talk.hear() as u16;
    let (accepted, _) = server.accept().unwrap();
    place.drop_in("web.toml", &format!("[[reservation]]\nname = \"web\"\ntcp = \"{}-{port}\"\n", port - 1));
    assert_eq!(place.connect().reload().unwrap().waiting, 1);
    let entry = place.list().pop().unwrap();
    let why = place.reason("web", State::Waiting);
    assert!(why.contains(&format!("{port}/tcp is in use by pid {}", client.pid())), "{why}");
    let [socket] = &entry.waits_for[..] else { panic!("{entry:?}") };
    let pid = socket.process.as_ref().map(|process| process.pid);
    assert_eq!((socket.port, pid, socket.state.as_deref()), (port, Some(client.pid()), Some("connected")));
    assert_eq!(socket.peer.as_deref(), Some(peer.to_string().as_str()));
    // It waits, and its ports are no longer chosen.
    let entered = || fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
    for _ in 0..3 {
        place.connect().reload().unwrap();
        assert!(entered().contains(&format!("{}-{port}", port - 1)), "{}", entered());
    }
    // The server closes first, so that no TIME_WAIT stays with the client's port.
    drop(accepted);
    client.kill();
    eventually(|| place.state("web") == Some(State::Active));
    assert_eq!(place.list()[0].waits_for, []);
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

#[test]
fn outgoing_connections_keep_enough_ports_unless_it_is_forced() {
    let Some(world) = World::enter("outgoing_connections") else { return };
    let place = AgentFolder::new();
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40999").unwrap();
    place.drop_in(
        "much.toml",
        "[[reservation]]\nname = \"much\"\ntcp = \"40000-40999\"\n[[reservation]]\nname = \"bit\"\nudp = \"40000-40399\"\n",
    );
    let agent = place.agent();
    let why = place.reason("much", State::Waiting);
    assert!(why.contains("leave 0 of the 1000 ephemeral ports") && why.contains("at least 500"), "{why}");
    assert_eq!(place.state("bit"), Some(State::Active));
    // While it waits, it keeps its ports from the declarations of others. So it is removed.
    place.drop_in("much.toml", "[[reservation]]\nname = \"bit\"\nudp = \"40000-40399\"\n");
    place.connect().reload().unwrap();
    // Together they may not have them, either: a block of UDP and one of TCP reserve the ports for both.
    let mut more = Proposal::new(name("more"), ports(40400, 101), Transports::Tcp);
    let Err(PersistentError::Exhausts(why)) = place.connect().create(&more, Lifetime::UntilDeleted) else {
        panic!("{:?}", place.list())
    };
    assert!(why.contains("leave 499 of the 1000"), "{why}");
    assert_eq!(bound_by(OTHER, 40400), Ok(()));
    // The same ports for the other transport leave as many as before.
    let same = Proposal::new(name("same"), ports(40000, 400), Transports::Tcp);
    place.connect().create(&same, Lifetime::UntilDeleted).unwrap();
    // The requests of a user count together.
    let mut user = Child::fork(|talk| {
        become_user(NOBODY);
        let at = |start, count| {
            let asked =
                portkeep::Reservation::tcp().at(start).ports(count).require(portkeep::Require::Kernel).acquire();
            let granted = asked.is_ok();
            std::mem::forget(asked);
            u64::from(granted)
        };
        talk.say(at(40400, 60));
        talk.say(at(40460, 60));
        talk.hear();
    });
    assert_eq!((user.talk.hear(), user.talk.hear()), (1, 0));
    user.kill();
    more.force = true;
    eventually(|| place.connect().create(&more, Lifetime::UntilDeleted).is_ok());
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

/// The entries of a block remain for an instant after it has ended. They count neither for nor against the next one.
#[test]
fn a_forced_block_that_has_ended_permits_nothing() {
    let Some(world) = World::enter("ended_block") else { return };
    let place = AgentFolder::new();
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40999").unwrap();
    let agent = place.agent();
    let proposal = |text: &str, start, count| Proposal::new(name(text), ports(start, count), Transports::Tcp);
    let create = |proposal: &Proposal| place.connect().create(proposal, Lifetime::UntilDeleted);
    let delete = |text: &str| place.connect().delete(&Which::Name(name(text)));
    let all = proposal("all", 40000, 1000);
    let forced = Proposal { force: true, ..proposal("forced", 40000, 1000) };
    create(&proposal("bit", 8443, 1)).unwrap();
    let set = || {
        place.connect().change(&name("bit"), &Change { ports: Some(ports(40000, 1000).into()), ..Change::default() })
    };
    let request = || portkeep::Reservation::tcp().at(40000).ports(1000).require(portkeep::Require::Kernel).acquire();
    let with_pool = || {
        place.configure("pool = \"40000-40999\"\n");
        let complaints = place.connect().reload().unwrap().complaints;
        place.configure("");
        complaints
    };
    for _ in 0..3 {
        create(&forced).unwrap();
        delete("forced").unwrap();
        assert!(matches!(create(&all), Err(PersistentError::Exhausts(_))), "{:?}", place.list());
        create(&forced).unwrap();
        delete("forced").unwrap();
        assert!(matches!(set(), Err(PersistentError::Exhausts(_))), "{:?}", place.list());
        create(&forced).unwrap();
        delete("forced").unwrap();
        assert!(matches!(request(), Err(portkeep::AcquireError::NoRoom { .. })), "{:?}", place.list());
        create(&forced).unwrap();
        delete("forced").unwrap();
        let complaints = with_pool();
        assert!(complaints.iter().any(|why| why.contains("the pool stays as it was")), "{complaints:?}");
        // A block that has ended takes nothing from the next one.
        create(&proposal("low", 40000, 500)).unwrap();
        delete("low").unwrap();
        create(&proposal("high", 40500, 500)).unwrap();
        delete("high").unwrap();
    }
    // In one step: a file takes the place of another, and a file comes into force because a command's block ends.
    let drop_in = |text: &str| place.drop_in("all.toml", &format!("[[reservation]]\n{text}\n"));
    drop_in("name = \"forced\"\ntcp = \"40000-40999\"\nforce = true");
    place.connect().reload().unwrap();
    assert_eq!(place.state("forced"), Some(State::Active));
    drop_in("name = \"all\"\nudp = \"40000-40999\"");
    place.connect().reload().unwrap();
    assert!(place.reason("all", State::Waiting).contains("leave 0 of the 1000"), "{:?}", place.list());
    place.withdraw("all.toml");
    place.connect().reload().unwrap();
    create(&forced).unwrap();
    drop_in("name = \"all\"\ntcp = \"40000-40999\"");
    place.connect().reload().unwrap();
    assert_eq!(place.state("all"), Some(State::Conflict));
    delete("forced").unwrap();
    assert!(place.reason("all", State::Waiting).contains("leave 0 of the 1000"), "{:?}", place.list());
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

/// If a bind comes between the agent's look and the confirmation, the bind wins. The declaration was in the store by
/// then: after the refusal it must not come into force later.
#[test]
fn a_declaration_that_loses_to_a_bind_is_refused_and_not_stored() {
    let Some(world) = World::enter("overtaken") else { return };
    let place = AgentFolder::new();
    let mut agent = place.agent();
    let mut outsider = Child::fork(|talk| {
        become_user(OTHER);
        talk.say(1);
        loop {
            let _ = bind(&tcp(), 8443);
        }
    });
    outsider.talk.hear();
    for kept in [Lifetime::UntilDeleted, Lifetime::UntilReboot] {
        eventually(|| match place.connect().create(&web(8443), kept) {
            Ok(_) => {
                place.connect().delete(&Which::Name(name("web"))).unwrap();
                false
            }
            Err(PersistentError::InUse(why)) => why.contains("at this moment"),
            Err(error) => panic!("{error}"),
        });
        assert_eq!(place.list(), []);
        agent.kill();
        agent = place.agent();
        assert_eq!(place.list(), [], "it is not in the store either");
    }
    outsider.kill();
    assert_eq!(bound_by(OTHER, 8443), Ok(()));
    agent.stop();
    world.assert_empty();
}

#[test]
fn around_keeps_sockets_of_the_audience_only() {
    let Some(world) = World::enter("around") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    // A service of that user is there already.
    let mut service = Child::fork(|talk| {
        become_user(NOBODY);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8443)).unwrap();
        talk.say(1);
        talk.hear();
        drop(listener);
        talk.say(2);
        talk.hear();
    });
    service.talk.hear();
    let plain = place.connect().create(&web(8443), Lifetime::UntilDeleted);
    assert!(matches!(plain, Err(PersistentError::InUse(_))), "{plain:?}");
    let mut around = web(8443);
    around.around = true;
    let mut others = around.clone();
    others.audience = user(OTHER);
    let error = place.connect().create(&others, Lifetime::UntilDeleted);
    assert!(matches!(error, Err(PersistentError::InUse(_))), "{error:?}");
    place.connect().create(&around, Lifetime::UntilDeleted).unwrap();
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE));
    // It stops, and no outsider can bind the port until it is there again.
    service.talk.say(1);
    service.talk.hear();
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE));
    assert_eq!(bound_by(NOBODY, 8443), Ok(()));
    service.kill();
    agent.stop();
    end_all(&world);
}

#[test]
fn files_come_go_and_change_and_the_ports_stay_reserved() {
    let Some(world) = World::enter("files_change") else { return };
    let place = AgentFolder::new();
    let stanza = |user: u32| format!("[[reservation]]\nname = \"web\"\ntcp = \"8443-8445\"\nuser = {user}\n");
    place.drop_in("web.toml", &stanza(NOBODY));
    let agent = place.agent();
    assert_eq!((bound_by(NOBODY, 8444), bound_by(OTHER, 8444)), (Ok(()), Err(Errno::EADDRINUSE)));
    let token = lookup(ports(8443, 3), Transport::Tcp).unwrap();

    // SIGHUP changes it to another user. The token shows that it never ended.
    place.drop_in("web.toml", &stanza(OTHER));
    agent.hang_up();
    eventually(|| bound_by(OTHER, 8444) == Ok(()));
    assert_eq!(bound_by(NOBODY, 8444), Err(Errno::EADDRINUSE));
    assert_eq!(lookup(ports(8443, 3), Transport::Tcp).unwrap(), token);

    // A file is not deleted by a command.
    let Err(PersistentError::FromFile(why)) = place.connect().delete(&Which::Name(name("web"))) else { panic!() };
    assert!(why.contains("web.toml:1") && why.contains("/dev/null"), "{why}");

    // Conflicts name both files; mistakes are reported and affect nothing else.
    place.drop_in("xeb.toml", "[[reservation]]\nname = \"xeb\"\ntcp = 8445\n");
    place.drop_in("yeb.toml", "[[reservation]]\nname = \"yeb\"\ntcp = 8446\nstrickt = true\n");
    place.drop_in("zeb.toml", "[[reservation]]\nname = \"zeb\"\ntcp = 8447\nuser = \"no-such-user\"\n");
    let reloaded = place.connect().reload().unwrap();
    assert_eq!((reloaded.added, reloaded.removed, reloaded.waiting), (0, 0, 2));
    let (conflicts, mistakes) = (reloaded.complaints.join("\n"), reloaded.errors.join("\n"));
    assert!(conflicts.contains("xeb.toml") && conflicts.contains("web.toml"), "{conflicts}");
    assert!(mistakes.contains("strickt") && mistakes.contains("strict"), "{mistakes}");
    assert_eq!(place.state("xeb"), Some(State::Conflict));
    let why = place.reason("zeb", State::Waiting);
    assert_eq!(why, "there is no user \"no-such-user\"");

    fs::remove_file(place.path().join("root/etc/portkeep/ports.d/web.toml")).unwrap();
    let reloaded = place.connect().reload().unwrap();
    assert_eq!((reloaded.added, reloaded.removed), (1, 1), "xeb has its port now");
    assert_eq!(bound_by(NOBODY, 8443), Ok(()));
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

#[test]
fn a_damaged_store_is_reported_and_kept_and_reservations_stay_in_force() {
    let Some(world) = World::enter("damaged_store") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    place.connect().create(&web(8443), Lifetime::UntilDeleted).unwrap();
    agent.stop();
    let file = place.path().join("state/persistent.redb");
    let rubbish = b"this is no database".repeat(500);
    fs::write(&file, &rubbish).unwrap();

    let agent = place.agent();
    assert_eq!(bound_by(OTHER, 8443), Err(Errno::EADDRINUSE), "it may be the store's");
    let error =
        place.connect().create(&Proposal::new(name("b"), ports(9000, 1), Transports::Tcp), Lifetime::UntilDeleted);
    let Err(PersistentError::Store(why)) = error else { panic!("{error:?}") };
    assert!(why.contains("persistent.redb"), "{why}");
    assert_eq!(bind(&tcp(), 9000).map_err(|error| error.to_string()), Ok(()), "nothing half");
    // Work that needs no store goes on.
    place.connect().create(&Proposal::new(name("c"), ports(9001, 1), Transports::Tcp), Lifetime::UntilReboot).unwrap();
    assert!(place.connect().reload().unwrap().errors.iter().any(|why| why.contains("persistent.redb")));
    agent.stop();
    assert_eq!(fs::read(&file).unwrap(), rubbish, "kept untouched");
    end_all(&world);
    world.assert_empty();
}

#[test]
fn only_administrators_change_anything() {
    let Some(world) = World::enter("only_administrators") else { return };
    let place = AgentFolder::new();
    place.configure(&format!("administrators = {OTHER}\n"));
    let agent = place.agent();
    in_child(|| {
        become_user(NOBODY);
        let refused = |error: Result<(), PersistentError>| {
            let error = error.unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EACCES), "{error}");
        };
        refused(place.connect().create(&web(8443), Lifetime::UntilDeleted).map(drop));
        refused(place.connect().delete(&Which::Name(name("web"))).map(drop));
        refused(place.connect().reload().map(drop));
        refused(place.connect().watch().map(drop));
        assert_eq!(place.list(), []);
    });
    assert_eq!(bound_by(OTHER, 8443), Ok(()));
    in_child(|| {
        // The group that the configuration names.
        become_user(OTHER);
        place.connect().create(&web(8443), Lifetime::UntilDeleted).unwrap();
        let token = lookup(ports(8443, 1), Transport::Tcp).unwrap();
        portkeep::control::associate(tcp(), token).unwrap();
        assert_eq!(errno(bind(&tcp(), 8443)), Errno::EADDRINUSE, "it is another user's port all the same");
        place.connect().delete(&Which::Name(name("web"))).unwrap();
    });
    agent.stop();
    world.maps().reconfigure(&portkeep_kernel::Settings::default()).unwrap();
    world.assert_empty();
}

#[test]
fn the_configuration_is_put_into_effect_and_one_with_mistakes_is_not() {
    let Some(world) = World::enter("configuration") else { return };
    let place = AgentFolder::new();
    // The pool is outside the ephemeral range. Otherwise it would be entered into the sysctl of every namespace that
    // can be seen, this machine's own among them.
    place.configure(&format!(
        "pool = \"20000-20099\"\ndeny_errno = \"EACCES\"\n[quota]\ndefault = 4\ncontainers = 9\n[quota.users]\n\
         {NOBODY} = 7\n[privileged]\nusers = [{NOBODY}]\n"
    ));
    // Subordinate uids of OTHER, and of a user that does not exist.
    fs::create_dir_all(place.path().join("root/etc")).unwrap();
    fs::write(place.path().join("root/etc/subuid"), format!("{OTHER}:100000:1000\nno-such-user:200000:1000\n"))
        .unwrap();
    let agent = place.agent();
    let most = |uid: u32| {
        let mut child = Child::fork(|talk| {
            if uid == 0 {
                portkeep_testkit::new_namespace();
            } else {
                become_user(uid);
            }
            let owner = tcp();
            let ask = |count| wire::AcquireRequest { count, ..Default::default() };
            let most = (1..20).rev().find(|count| portkeep::control::acquire(&owner, &ask(*count)).is_ok());
            talk.say(most.unwrap_or(0).into());
        });
        let most = child.talk.hear();
        child.join();
        most
    };
    assert_eq!((most(NOBODY), most(OTHER)), (7, 4));
    assert_eq!(most(0), 9, "root of another namespace");
    let mut holder = Child::fork(|talk| {
        become_user(100_999);
        let owner = tcp();
        acquire(&owner, &wire::AcquireRequest { count: 3, ..Default::default() }).unwrap();
        talk.say(0);
        talk.hear();
    });
    holder.talk.hear();
    assert_eq!((most(OTHER), most(100_000), most(101_000)), (1, 1, 4));
    holder.talk.say(0);
    holder.join();
    let reloaded = place.connect().reload().unwrap();
    assert!(reloaded.complaints.iter().any(|why| why.contains("etc/subuid:2: ")), "{reloaded:?}");
    assert_eq!(portkeep::version().unwrap().pool, PortRange::inclusive(20000, 20099).ok());
    let owner = tcp();
    let reserved = reserve(&owner, 0, 1).start;
    assert_eq!((bound_by(OTHER, reserved), bound_by(OTHER, 20099)), (Err(Errno::EACCES), Ok(())));
    drop(owner);
    for (uid, granted) in [(NOBODY, true), (OTHER, false)] {
        in_child(|| {
            become_user(uid);
            let asked = portkeep::Reservation::tcp().at(999).require(portkeep::Require::Kernel).acquire();
            assert_eq!(asked.is_ok(), granted, "{asked:?}");
        });
    }
    place.configure("pool = \"1-\"\nquotas = 3\n");
    let reloaded = place.connect().reload().unwrap();
    assert!(reloaded.errors.len() >= 2, "{reloaded:?}");
    assert_eq!(most(NOBODY), 7, "as before");
    place.configure("");
    place.connect().reload().unwrap();
    assert_eq!((most(NOBODY), most(OTHER)), (19, 19));
    // A file that does not mention an option of `up` does not change it.
    agent.stop();
    let mut settings = portkeep_kernel::Settings::default();
    settings.pool = PortRange::inclusive(62000, 62999).ok();
    settings.quota = 5;
    settings.deny_errno = Errno::EACCES;
    world.maps().reconfigure(&settings).unwrap();
    place.configure("[quota]\ncontainers = 9\n");
    let agent = place.agent();
    let owner = tcp();
    let reserved = reserve(&owner, 0, 1).start;
    assert!(reserved >= 62000 && most(OTHER) == 5, "{reserved}");
    assert_eq!(bound_by(OTHER, reserved), Err(Errno::EACCES));
    drop(owner);
    agent.stop();
    world.maps().reconfigure(&portkeep_kernel::Settings::default()).unwrap();
    world.assert_empty();
}

#[test]
fn a_refused_bind_is_reported_readably() {
    let Some(world) = World::enter("a_refused_bind_is_reported") else { return };
    let place = AgentFolder::new();
    place.drop_in(
        "tomcat.toml",
        "# tomcat\n[[reservation]]\nname = \"tomcat\"\ntcp = 8443\nunit = \"tomcat.service\"\n",
    );
    let agent = place.agent();
    let mut events = place.connect().watch().unwrap();
    let mut hammer = Child::fork(|talk| {
        become_user(NOBODY);
        rustix::thread::set_name(c"nginx").unwrap();
        for _ in 0..5000 {
            assert_eq!(errno(bind(&tcp(), 8443)), Errno::EADDRINUSE);
        }
        talk.say(u64::from(std::process::id()));
    });
    let pid = hammer.talk.hear();
    let event = events.next().unwrap().unwrap();
    assert_eq!((event.what, event.ports), (EventKind::Refused, ports(8443, 1).into()));
    let process = event.process.unwrap();
    assert_eq!((u64::from(process.pid), process.comm.as_str(), process.uid), (pid, "nginx", Some(NOBODY)));
    let user = process.user.clone().unwrap_or_else(|| format!("uid {NOBODY}"));
    let file = place.path().join("root/etc/portkeep/ports.d/tomcat.toml");
    assert_eq!(
        event.message,
        format!(
            "nginx (pid {pid}, {user}) was refused 8443/tcp: reserved for unit tomcat.service by {}:2",
            file.display()
        )
    );
    assert_eq!(event.reservation.unwrap().name.as_deref(), Some("tomcat"));
    hammer.join();

    // All other events arrive, however many refusals there were.
    let owner = tcp();
    let block = reserve(&owner, 0, 3);
    let mut refusals = 1;
    let granted = loop {
        let event = events.next().unwrap().unwrap();
        match event.what {
            EventKind::Refused => refusals += 1,
            _ => break event,
        }
    };
    assert_eq!(
        (granted.what, granted.ports.start(), granted.process.unwrap().pid),
        (EventKind::Granted, block.start, std::process::id())
    );
    assert!(refusals < 100, "{refusals} of 5000 reported one by one");
    drop(owner);
    assert_eq!(events.next().unwrap().unwrap().what, EventKind::Ended);
    place.connect().create(&web(9443), Lifetime::UntilReboot).unwrap();
    let created = events.next().unwrap().unwrap();
    assert!(created.message.starts_with("9443/tcp is reserved for user 65534 as \"web\""), "{}", created.message);
    agent.stop();
    assert!(events.next().is_none());
    end_all(&world);
}

/// The largest uid is 2^32 - 2. None of them is a negative number, and none is an account of a container's root.
#[test]
fn users_from_uid_2_to_the_31_on_are_users_like_others() {
    let Some(world) = World::enter("users_from_uid_2_to_the_31_on") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    for (uid, port) in [(1 << 31, 8443), (u32::MAX - 1, 8444)] {
        let of_user =
            |port| Proposal::new(name(&format!("u{port}")), ports(port, 1), Transports::Tcp).audience(user(uid));
        place.connect().create(&of_user(port), Lifetime::UntilReboot).unwrap();
        assert_eq!((bound_by(uid, port), bound_by(NOBODY, port)), (Ok(()), Err(Errno::EADDRINUSE)));

        let events = place.connect().watch().unwrap();
        let mut owner = Child::fork(|talk| {
            become_user(uid);
            let owner = tcp();
            talk.say(reserve(&owner, 0, 2).start.into());
            talk.hear();
        });
        let start = owner.talk.hear() as u16;
        let granted = events.map(Result::unwrap).find(|event| event.what == EventKind::Granted).unwrap();
        assert_eq!((granted.ports.start(), granted.process.unwrap().uid), (start, Some(uid)));
        let counters = place.connect().counters().unwrap();
        let quota = counters.quotas.iter().find(|quota| quota.uid == Some(uid)).expect("it has a quota");
        assert_eq!((quota.account.as_str(), quota.used, quota.limit), (&*format!("user {uid}"), 2, Some(1024)));
        assert_eq!(bound_by(NOBODY, start), Err(Errno::EADDRINUSE));
        owner.talk.say(0);
        owner.join();
    }
    agent.stop();
    end_all(&world);
}

/// A request that was not granted reserves nothing. So its end frees no ports, and nobody is informed of it.
#[test]
fn n1_the_end_of_a_request_that_was_not_granted_is_no_event() {
    let Some(world) = World::enter("n1_the_end_of_a_request") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let _server = TcpListener::bind("127.0.0.1:7777").unwrap();
    let events = place.connect().watch().unwrap();
    // The owner does not wait for the answer. Port 7777 is in use, the others are vacant.
    let ask_and_close = |start| {
        in_child(move || {
            become_user(NOBODY);
            let request = wire::AcquireRequest { start, count: 1, ..Default::default() };
            assert_eq!(errno(acquire(&tcp(), &request)), Errno::EINPROGRESS);
        });
    };
    (0..50).for_each(|_| ask_and_close(7777));
    agent.signal(Signal::STOP);
    [7777, 7778, 7779].into_iter().for_each(ask_and_close);
    agent.signal(Signal::CONT);
    // A user of its own: events of earlier tests are still read, and only so many of an account are reported.
    in_child(|| {
        become_user(NOBODY - 1);
        let owner = tcp();
        let request = wire::AcquireRequest { start: 7790, count: 2, ..Default::default() };
        assert_eq!(errno(acquire(&owner, &request)), Errno::EINPROGRESS);
        eventually(|| portkeep::control::granted(&owner).unwrap().state == wire::ACTIVE);
    });
    // The agent may still be reading events of earlier tests; those of declarations come at once.
    let mut events = events.map(|event| event.map(|event| (event.what, event.ports.start())).unwrap());
    let mut ended = Vec::new();
    for marker in 9443..9643 {
        let other = Proposal { name: name(&format!("web-{marker}")), ..web(marker) };
        place.connect().create(&other, Lifetime::UntilReboot).unwrap();
        let seen = events.by_ref().take_while(|(_, start)| *start != marker);
        ended.extend(seen.filter(|(what, start)| *what == EventKind::Ended && *start < 8000).map(|(_, start)| start));
        if !ended.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ended, [7790]);
    agent.stop();
    end_all(&world);
}

/// The agent looks at the ports in each try, with sockets of its own. Their ends must not cause the next try.
#[test]
fn a_request_that_waits_for_a_socket_to_close_rarely_asks_the_agent() {
    const SECONDS: u64 = 4;
    let Some(world) = World::enter("waits_for_a_socket") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    for (count, most) in [(1, SECONDS + 5), (2, SECONDS + 20)] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 8090)).unwrap();
        let request = portkeep::Reservation::tcp().at(8090).ports(count).require(portkeep::Require::Kernel);
        let request = request.wait(Duration::from_secs(SECONDS));
        let mut tries = 0;
        let refused = request.acquire_unless(None, |why| {
            tries += u64::from(why.is_some());
            false
        });
        assert!(matches!(refused, Err(portkeep::AcquireError::InUse { by: None, .. })), "{refused:?}");
        assert!(tries <= most, "{tries} tries for {count} ports");
        // The end of the listener is noticed.
        let (waits, waiting) = std::sync::mpsc::channel();
        let granted = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                request.clone().wait(Duration::MAX).acquire_unless(None, move |why| {
                    let _ = why.map(|_| waits.send(()));
                    false
                })
            });
            waiting.recv().unwrap();
            drop(listener);
            thread.join().unwrap()
        });
        assert_eq!(granted.unwrap().ports().first(), ports(8090, count));
    }
    agent.stop();
    world.assert_empty();
}

/// The BPF programs report ten refusals of a process in a second, and count the others.
#[test]
fn each_refusal_is_counted_whether_its_process_lives_or_ends() {
    const BINDS: u32 = 300;
    let Some(world) = World::enter("each_refusal_is_counted") else { return };
    let place = AgentFolder::new();
    place.drop_in("web.toml", "[[reservation]]\nname = \"guarded\"\ntcp = 8443\nunit = \"guarded.service\"\n");
    let agent = place.agent();
    let events = place.connect().watch().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || events.flatten().all(|event| send.send(event).is_ok()));
    for (comm, lives) in [(c"lives", true), (c"ends", false)] {
        let mut refused = Child::fork(|talk| {
            become_user(NOBODY);
            rustix::thread::set_name(comm).unwrap();
            for _ in 0..BINDS {
                assert_eq!(errno(bind(&tcp(), 8443)), Errno::EADDRINUSE);
            }
            talk.say(0);
            if lives {
                talk.hear();
            }
        });
        refused.talk.hear();
        let (pid, comm) = (refused.pid(), comm.to_str().unwrap());
        let mut living = Some(refused);
        if !lives {
            living.take().unwrap().join();
        }
        let (mut counted, mut first) = (0, None);
        while counted < BINDS {
            let event = receive.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{comm}: {counted}"));
            let process = event.process.unwrap();
            assert_eq!((event.what, process.pid, process.comm.as_str()), (EventKind::Refused, pid, comm));
            counted += 1 + event.unreported;
            // The last events have what was known at the first one.
            assert_eq!(
                *first.get_or_insert((process.unit.clone(), process.command.clone())),
                (process.unit, process.command)
            );
        }
        assert_eq!(counted, BINDS, "{comm}");
        if let Some(mut living) = living {
            living.talk.say(0);
            living.join();
        }
    }
    // Nothing is counted twice.
    place.connect().create(&web(9443), Lifetime::UntilReboot).unwrap();
    assert_eq!(receive.recv().unwrap().what, EventKind::Granted);
    agent.stop();
    assert!(reader.join().unwrap());
    end_all(&world);
    world.assert_empty();
}

#[test]
fn malformed_requests_on_the_socket_are_refused_and_harmless() {
    let Some(world) = World::enter("nonsense_on_the_socket") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let say = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The agent may close before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    for nonsense in [
        &b"\n"[..],
        b"hello\n",
        b"{}\n",
        b"[]\n",
        b"{\"create\":{}}\n",
        b"{\"create\":{\"proposal\":{\"name\":\"a\",\"block\":{\"ports\":\"0\"},\"transports\":\"tcp\"}}}\n",
        b"{\"create\":{\"proposal\":{\"name\":\"../a\",\"block\":{\"ports\":\"1\"},\"transports\":\"tcp\"}}}\n",
        b"{\"delete\":{\"name\":5}}\n",
        b"\xff\xfe\n",
        &[b'['; 60_000].map(|b| b)[..],
        &[b'x'; 200_000][..],
    ] {
        let answer = say(nonsense);
        let whole = nonsense.ends_with(b"\n") || nonsense.len() >= protocol::LONGEST;
        assert_eq!(answer.contains("malformed"), whole, "{:?}: {answer}", &nonsense[..nonsense.len().min(40)]);
    }
    // Deep nesting, closed.
    let deep = [vec![b'['; 20_000], vec![b']'; 20_000], vec![b'\n']].concat();
    assert!(say(&deep).contains("malformed"));
    // Unknown accounts, and blocks that are not possible.
    let mut bad = web(8443);
    bad.audience = Audience::User(Account::Name("no-such-user".into()));
    assert!(matches!(place.connect().create(&bad, Lifetime::UntilReboot), Err(PersistentError::Malformed(_))));
    let none = Proposal::any(name("none"), 0, Transports::Tcp);
    assert!(matches!(place.connect().create(&none, Lifetime::UntilReboot), Err(PersistentError::Malformed(_))));
    let much = Proposal::any(name("much"), 60000, Transports::Tcp);
    assert!(matches!(place.connect().create(&much, Lifetime::UntilReboot), Err(PersistentError::NoRoom(_))));
    world.assert_consistent();

    // Too many connections of one user: the next is refused, others are served.
    in_child(|| {
        become_user(NOBODY);
        let open: Vec<_> = (0..8).map(|_| UnixStream::connect(place.socket()).unwrap()).collect();
        let error = place.connect().list().unwrap_err();
        assert!(error.to_string().contains("too many connections"), "{error}");
        drop(open);
    });
    assert_eq!(place.list(), []);
    // One that never reads its events does not hold the agent up.
    let _silent = place.connect().watch().unwrap();
    in_child(|| {
        for _ in 0..2000 {
            reserve(&tcp(), 0, 1);
        }
    });
    assert_eq!(place.list(), []);
    agent.stop();
    world.assert_empty();
}

/// The mistakes of a client: whole requests with bytes changed, cut, doubled or put in.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let request = prop_oneof![
        Just(protocol::Request::List),
        Just(protocol::Request::Create { proposal: web(8443), kept: Lifetime::UntilReboot }),
        Just(protocol::Request::Create {
            proposal: Proposal::any(name("any"), 3, Transports::Both),
            kept: Lifetime::UntilDeleted
        }),
        Just(protocol::Request::Delete(Which::Name(name("web")))),
        Just(protocol::Request::Change {
            name: name("web"),
            change: protocol::Change { ports: Some(ports(8500, 2).into()), strict: Some(true), ..Default::default() }
        }),
        Just(protocol::Request::Delete(Which::Block { ports: ports(8443, 1).into(), transports: Transports::Tcp })),
    ];
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4u8);
    (request, prop::collection::vec(change, 0..6)).prop_map(|(request, changes)| {
        let mut bytes = serde_json::to_vec(&request).unwrap();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes.push(b'\n');
        bytes
    })
}

#[test]
fn whatever_is_said_is_answered_line_by_line() {
    let Some(world) = World::enter("whatever_is_said_is_answered") else { return };
    let place = AgentFolder::new();
    let agent = place.agent();
    let config = proptest::test_runner::Config { cases: 400, failure_persistence: None, ..Default::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&mangled(), |bytes| {
            let mut stream = UnixStream::connect(place.socket())?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(&bytes)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answers = String::new();
            stream.read_to_string(&mut answers)?;
            prop_assert!(!answers.is_empty());
            for answer in answers.lines() {
                prop_assert!(serde_json::from_str::<protocol::Answer>(answer).is_ok(), "{answer}");
            }
            Ok(())
        })
        .unwrap();
    // No client was harmed: a proper request is answered, and the list shows what is in force.
    let in_force = world.maps().reservations().flatten().filter(|(_, r)| r.is_persistent()).count();
    assert_eq!(place.list().len(), in_force);
    world.assert_consistent();
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

/// Killed in the middle of every kind of request: what was reported holds, store and kernel agree, nobody waits for ever.
#[test]
fn killed_in_the_middle_of_requests_the_next_agent_agrees_with_the_store() {
    let Some(world) = World::enter("killed_in_the_middle") else { return };
    let place = AgentFolder::new();
    let mut known: std::collections::BTreeMap<u16, bool> = Default::default();
    for round in 0..25u32 {
        let agent = place.agent();
        // Connected before the fork: on a busy machine the agent may be killed before the child runs.
        let mut connection = place.connect();
        let mut client = Child::fork(move |talk| {
            for step in 0.. {
                let port = 20000 + ((round * 7 + step) % 40) as u16;
                let named = name(&format!("p{port}"));
                // The child reports the port first. Then it reports what was done: 1 is a creation, 2 a deletion, 0 is
                // not known.
                talk.say(u64::from(port));
                let created = Proposal::new(named.clone(), ports(port, 1), Transports::Tcp);
                let done = match connection.create(&created, Lifetime::UntilDeleted) {
                    Ok(_) => 1,
                    Err(PersistentError::NameTaken(_)) => match connection.delete(&Which::Name(named)) {
                        Ok(_) => 2,
                        Err(PersistentError::Lost(_)) => 0,
                        Err(error) => panic!("{error}"),
                    },
                    Err(PersistentError::Lost(_)) => 0,
                    Err(error) => panic!("{error}"),
                };
                talk.say(done);
                if done == 0 {
                    return;
                }
                if step % 5 == 0 {
                    let _ = connection.reload();
                }
            }
        });
        thread::sleep(Duration::from_millis(5 + u64::from(round * 13 % 60)));
        agent.kill();
        let mut unsure = None;
        while let Some(port) = client.talk.try_hear() {
            match client.talk.try_hear() {
                Some(1) => drop(known.insert(port as u16, true)),
                Some(2) => drop(known.insert(port as u16, false)),
                _ => unsure = Some(port as u16),
            }
        }
        client.join();
        let agent = place.agent();
        let listed: Vec<u16> = place.list().iter().map(|info| info.ports.start()).collect();
        assert!(place.list().iter().all(|info| info.state == State::Active));
        for port in 20000..20040 {
            let reserved = lookup(ports(port, 1), Transport::Tcp).is_ok();
            assert_eq!(reserved, listed.contains(&port), "{port}: kernel and store agree");
            if unsure != Some(port) {
                assert_eq!(reserved, known.get(&port).copied().unwrap_or(false), "{port} in round {round}");
            }
            known.insert(port, reserved);
        }
        world.assert_consistent();
        agent.stop();
    }
    end_all(&world);
    world.assert_empty();
}

#[test]
fn ten_thousand_come_into_force_at_once_and_cost_little() {
    let Some(world) = World::enter("ten_thousand") else { return };
    let place = AgentFolder::new();
    let stanzas: String = (0..10_000)
        .map(|n| format!("[[reservation]]\nname = \"p{n}\"\ntcp = {}\nuser = {NOBODY}\n", 10_000 + 4 * n))
        .collect();
    place.drop_in("many.toml", &stanzas);
    let began = Instant::now();
    let agent = place.agent();
    let took = began.elapsed();
    let peak = agent.peak_memory();
    eprintln!("10,000 persistent reservations: agent start-up {took:?} in this build, at most {peak} KiB");
    assert_eq!(world.maps().reservations().flatten().filter(|(_, r)| r.is_persistent()).count(), 10_000);
    assert_eq!(bound_by(NOBODY, 10_000 + 4 * 9_999), Ok(()));
    assert_eq!(bound_by(OTHER, 10_000 + 4 * 5_000), Err(Errno::EADDRINUSE));
    assert_eq!(bound_by(OTHER, 10_001), Ok(()));
    lookup(ports(10_400, 1), Transport::Tcp).unwrap();
    assert_eq!(place.list().len(), 10_000);
    agent.stop();
    // The next one adopts them.
    let agent = place.agent();
    assert_eq!(place.connect().reload().unwrap().added, 0);
    agent.stop();
    end_all(&world);
    world.assert_empty();
}

/// The ports that binds of a user to port 0 get, TCP and UDP.
fn chosen_by(uid: u32) -> (u16, u16) {
    let mut child = Child::fork(|talk| {
        become_user(uid);
        let (stream, datagram) = (tcp(), udp());
        bind(&stream, 0).unwrap();
        bind(&datagram, 0).unwrap();
        talk.say(u64::from(port(&stream)) << 16 | u64::from(port(&datagram)));
    });
    let answer = child.talk.hear();
    child.join();
    ((answer >> 16) as u16, answer as u16)
}

#[test]
fn e6_private_ephemeral_ranges_are_declared_and_created() {
    let Some(world) = World::enter("e6_declared") else { return };
    let place = AgentFolder::new();
    let stanza = |ports: &str, more: &str| {
        format!("[[reservation]]\nname = \"rmi\"\nboth = \"{ports}\"\nuser = {NOBODY}\n{more}")
    };
    place.drop_in("rmi.toml", &stanza("20000-20009", "ephemeral = true\n"));
    let agent = place.agent();
    let inside =
        |(tcp, udp): (u16, u16), first: u16| (first..first + 10).contains(&tcp) && (first..first + 10).contains(&udp);
    assert!(inside(chosen_by(NOBODY), 20000));
    assert!(!inside(chosen_by(OTHER), 20000));
    assert!(place.list()[0].ephemeral);

    // A change in place, there and back.
    for (more, still) in [("", false), ("ephemeral = true\n", true)] {
        place.drop_in("rmi.toml", &stanza("20000-20009", more));
        agent.hang_up();
        eventually(|| inside(chosen_by(NOBODY), 20000) == still);
    }
    world.assert_consistent();

    // These are refused.
    let range = |start: u16| Proposal::new(name("other"), ports(start, 10), Transports::Both).ephemeral(true);
    let refusal =
        |proposal: &Proposal| place.connect().create(proposal, Lifetime::UntilDeleted).unwrap_err().to_string();
    let text = refusal(&range(21000).audience(user(NOBODY)));
    assert!(text.contains("has a private ephemeral range"), "{text}");
    let text = refusal(&range(21000));
    assert!(text.contains("needs a user, group, unit or cgroup"), "{text}");
    let text = refusal(&range(21000).audience(user(OTHER)).strict(true));
    assert!(text.contains("cannot be `strict`"), "{text}");
    place.connect().create(&range(21000).audience(user(OTHER)), Lifetime::UntilDeleted).unwrap();
    assert!(inside(chosen_by(OTHER), 21000));

    // In use to the last port: the bind fails, and watchers get an event.
    let mut events = place.connect().watch().unwrap();
    let mut hog = Child::fork(|talk| {
        become_user(OTHER);
        let held: Vec<_> = (0..10)
            .map(|_| {
                let socket = tcp();
                bind(&socket, 0).unwrap();
                socket
            })
            .collect();
        assert_eq!(errno(bind(&tcp(), 0)), Errno::EADDRINUSE);
        talk.say(held.len() as u64);
        talk.hear();
    });
    assert_eq!(hog.talk.hear(), 10);
    let event = events.next().unwrap().unwrap();
    assert_eq!((event.what, &event.ports), (EventKind::Exhausted, &ports(21000, 10).into()), "{event:?}");
    assert!(event.message.contains("private ephemeral range"), "{}", event.message);
    hog.kill();

    // It stays in force when the agent is killed, until its end.
    agent.kill();
    assert!(inside(chosen_by(OTHER), 21000));
    let agent = place.agent();
    place.connect().delete(&Which::Name(name("other"))).unwrap();
    assert!(!inside(chosen_by(OTHER), 21000));
    agent.stop();
    end_all(&world);
    assert!(!inside(chosen_by(NOBODY), 20000));
    world.assert_empty();
}
