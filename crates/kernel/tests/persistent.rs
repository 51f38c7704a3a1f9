//! Persistent reservations: the administrator program makes and ends them, and only their audience can use them.

use std::fs;

use portkeep::control;
use portkeep_core::{
    Align, Errno, Token, Transport, Transports,
    persistent::Audience,
    wire::{self, SelectRequest},
};
use portkeep_kernel::{Admin, Claimed, CreateError, Maps, Settings, Wanted};
use portkeep_testkit::{
    Below, World,
    process::{Child, become_user, in_child, in_groups},
    sockets::{bind, errno, port, tcp, tcp6, udp},
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

const NOBODY: u32 = 65534;
const OTHER: u32 = 65533;

fn wanted(start: u16, audience: Audience<u32>) -> Wanted {
    Wanted {
        start,
        count: 1,
        align: Align::ANY,
        transports: Transports::Tcp,
        audience,
        strict: false,
        ephemeral: false,
        label: "web".into(),
    }
}

/// The tools of an administrator.
struct Fixture {
    admin: Admin,
    maps: Maps,
    netns: u64,
}

impl Fixture {
    fn of(world: &World) -> Self {
        let admin = world.sandbox().loaded().admin().expect("the administrator program");
        Self { admin, maps: world.maps(), netns: world.netns() }
    }

    fn claim(&mut self, wanted: &Wanted) -> Result<Claimed, CreateError> {
        Claimed::claim(&self.admin, &mut self.maps, self.netns, std::slice::from_ref(wanted))
    }

    #[track_caller]
    fn create(&mut self, wanted: &Wanted) -> (u32, Token) {
        let claimed = self.claim(wanted).expect("the block is vacant");
        let claims = claimed.confirm(&self.admin, &mut self.maps).expect("it is pending");
        (claims[0].0, claims[0].1)
    }

    fn end(&mut self, (id, token): (u32, Token)) {
        self.maps.end_persistent(&self.admin, id, token).expect("it is in force");
    }

    fn refusal(&mut self, wanted: &Wanted) -> Errno {
        match self.claim(wanted) {
            Err(CreateError::Admin(error)) => error.errno().expect("an answer"),
            other => panic!("{other:?}"),
        }
    }
}

fn may_bind(port: u16) -> bool {
    match bind(&tcp(), port) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE.0), "{error}");
            false
        }
    }
}

fn may_associate(token: Token) -> bool {
    match control::associate(tcp(), token) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::EPERM.0), "{error}");
            false
        }
    }
}

/// Whether a user may bind the port without association, and whether it may associate with the token.
fn as_user(uid: u32, port: u16, token: Token) -> (bool, bool) {
    let mut child = Child::fork(|talk| {
        become_user(uid);
        talk.say(u64::from(may_bind(port)) << 1 | u64::from(may_associate(token)));
    });
    let answer = child.talk.hear();
    child.join();
    (answer & 2 != 0, answer & 1 != 0)
}

#[test]
fn a_users_port_is_refused_to_others_and_to_root() {
    let Some(world) = World::enter("persistent_user") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&wanted(8443, Audience::User(NOBODY)));
    // Root is not in the audience, so it may not bind; as administrator it may associate.
    assert!(!may_bind(8443));
    assert!(may_associate(made.1));
    assert_eq!(as_user(NOBODY, 8443, made.1), (true, true));
    assert_eq!(as_user(OTHER, 8443, made.1), (false, false));
    // Only one transport is reserved.
    bind(&udp(), 8443).unwrap();
    world.assert_consistent();
    fixture.end(made);
    assert!(may_bind(8443));
    world.assert_empty();
}

#[test]
fn ports_below_1024_are_bound_without_a_capability() {
    let Some(world) = World::enter("persistent_privileged") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&wanted(80, Audience::User(NOBODY)));
    assert_eq!(as_user(NOBODY, 80, made.1), (true, true));
    in_child(|| {
        become_user(OTHER);
        // Port 81 is free, and still privileged.
        assert_eq!(errno(bind(&tcp(), 81)), Errno::EACCES);
    });
    fixture.end(made);
    world.assert_empty();
}

#[test]
fn a_groups_port_is_for_its_members_by_real_effective_and_supplementary_gid() {
    let Some(world) = World::enter("persistent_group") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&wanted(8443, Audience::Group(4711)));
    assert!(!may_bind(8443));
    let with = |real, effective, groups: &[u32]| in_groups(real, effective, groups, || may_bind(8443));
    assert!(with(4711, 5, &[]));
    assert!(with(5, 4711, &[]));
    assert!(with(5, 5, &[4711]));
    assert!(with(5, 5, &[1, 2, 3, 4711, 60000]));
    assert!(with(5, 5, &[4711, 9000, 9001, 9002]));
    assert!(with(5, 5, &(4700..4712).collect::<Vec<_>>()));
    assert!(!with(5, 5, &[]));
    assert!(!with(5, 5, &[1, 4710, 4712, 60000]));
    assert!(!with(0, 0, &[]));
    fixture.end(made);
    world.assert_empty();
}

#[test]
fn administrators_are_root_and_the_group_that_is_named() {
    let Some(world) = World::enter("persistent_administrators") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&wanted(8443, Audience::Administrators));
    assert!(may_bind(8443) && may_associate(made.1));
    assert_eq!(as_user(OTHER, 8443, made.1), (false, false));
    let mut settings = Settings::default();
    settings.admin_gid = OTHER;
    world.maps().reconfigure(&settings).unwrap();
    // `become_user` also sets the gid of the same number.
    assert_eq!(as_user(OTHER, 8443, made.1), (true, true));
    assert_eq!(as_user(NOBODY, 8443, made.1), (false, false));
    world.maps().reconfigure(&Settings::default()).unwrap();
    assert_eq!(as_user(OTHER, 8443, made.1), (false, false));
    fixture.end(made);
    world.assert_empty();
}

fn may_bind_in(cgroup: &Below, port: u16) -> bool {
    cgroup.ask(|| may_bind(port).into()) == 1
}

#[test]
fn a_units_port_is_for_the_unit_whenever_it_starts() {
    let Some(world) = World::enter("persistent_unit") else { return };
    assert!(world.sandbox().loaded().knows_places(), "this kernel has BTF and no lockdown");
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&wanted(5432, Audience::Unit("postgresql.service".into())));
    assert!(!may_bind(5432), "root");
    let manager = |path: &str| Below::new(&world, path);

    // The unit's cgroup does not exist yet, is made, is removed, and is made again with another id.
    for _ in 0..3 {
        let unit = manager("system.slice/postgresql.service");
        assert!(may_bind_in(&unit, 5432));
        let inner = manager("system.slice/postgresql.service/worker");
        assert!(may_bind_in(&inner, 5432), "what is below a unit is the unit's");
    }
    assert!(may_bind_in(&manager("postgresql.service"), 5432));
    assert!(may_bind_in(&manager("system.slice/system-postgresql.slice/postgresql.service"), 5432));

    for outsider in [
        "system.slice/nginx.service",
        "system.slice/postgresql.service2",
        "system.slice/postgresql.servic",
        "system.slice/xpostgresql.service",
        "system.slice",
        // A user can choose any name for a cgroup below a unit of its own.
        "user.slice/user-1000.slice/user@1000.service/app.slice/postgresql.service",
        "system.slice/docker-1f.scope/system.slice/postgresql.service",
        "plain/postgresql.service",
        "postgresql.service.slice/x.service",
    ] {
        assert!(!may_bind_in(&manager(outsider), 5432), "{outsider}");
    }
    world.assert_consistent();
    fixture.end(made);
    assert_eq!(world.maps().places().count(), 0);
    world.assert_empty();
}

#[test]
fn a_name_of_every_length_is_compared_whole() {
    let Some(world) = World::enter("persistent_names") else { return };
    let mut fixture = Fixture::of(&world);
    for length in [8, 9, 15, 16, 17, 63, 64, 126, 127] {
        let name = format!("{}.scope", "n".repeat(length - 6));
        let made = fixture.create(&wanted(5432, Audience::Unit(name.clone())));
        assert!(may_bind_in(&Below::new(&world, &name), 5432), "{length}");
        assert!(!may_bind_in(&Below::new(&world, &format!("{}m.scope", "n".repeat(length - 7))), 5432), "{length}");
        assert!(!may_bind_in(&Below::new(&world, &format!("n{name}")), 5432), "{length}");
        fixture.end(made);
    }
    let too_long = Audience::Unit(format!("{}.scope", "n".repeat(122)));
    assert!(matches!(fixture.claim(&wanted(5432, too_long)), Err(CreateError::Name)));
    assert!(matches!(fixture.claim(&wanted(5432, Audience::Unit(String::new()))), Err(CreateError::Name)));
    assert!(matches!(fixture.claim(&wanted(5432, Audience::Cgroup("/".into()))), Err(CreateError::Name)));
    world.assert_empty();
}

#[test]
fn a_cgroups_port_is_for_the_cgroup_with_that_path() {
    let Some(world) = World::enter("persistent_cgroup") else { return };
    let mut fixture = Fixture::of(&world);
    let name = Below::new(&world, "a/b").name();
    let made = fixture.create(&wanted(5432, Audience::Cgroup(name.clone())));
    assert!(!may_bind(5432));
    assert!(may_bind_in(&Below::new(&world, "a/b"), 5432));
    assert!(may_bind_in(&Below::new(&world, "a/b/c/d"), 5432));
    for outsider in ["a", "a/c", "b", "b/b", "a/bb", "x/a/b"] {
        assert!(!may_bind_in(&Below::new(&world, outsider), 5432), "{outsider}");
    }
    for path in ["a/b/c", "a/b", "x/a", "x", "a", "b"] {
        let _ = fs::remove_dir(world.sandbox().cgroup().path().join(path));
    }
    fixture.end(made);
    world.assert_empty();
}

/// uid 0 without the other rights of root, as in a container that has dropped its capabilities.
#[test]
fn root_without_capabilities_is_no_administrator() {
    let Some(world) = World::enter("persistent_capless") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&wanted(443, Audience::Administrators));
    assert!(may_bind(443) && may_associate(made.1));
    in_child(|| {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).unwrap();
        assert!(!may_bind(443) && !may_associate(made.1));
    });
    fixture.end(made);
    world.assert_empty();
}

#[test]
fn strict_is_consumed_by_association_only() {
    let Some(world) = World::enter("persistent_strict") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&Wanted { strict: true, count: 3, ..wanted(8000, Audience::Administrators) });
    assert!(!may_bind(8000));
    for expected in [8000, 8001, 8002] {
        let socket = tcp6();
        control::associate(&socket, made.1).unwrap();
        bind(&socket, 0).unwrap();
        assert_eq!(port(&socket), expected, "next-fit");
    }
    fixture.end(made);
    world.assert_empty();
}

#[test]
fn a_bind_goes_before_a_claim_that_is_not_confirmed() {
    let Some(world) = World::enter("persistent_claimed") else { return };
    let mut fixture = Fixture::of(&world);
    let claimed = fixture.claim(&wanted(8443, Audience::Administrators)).unwrap();
    assert_eq!(errno(control::associate(tcp(), claimed.blocks()[0].1)), Errno::ENOENT);
    assert!(may_bind(8443));
    assert_eq!(claimed.confirm(&fixture.admin, &mut fixture.maps).unwrap_err().errno(), Some(Errno::EADDRINUSE));
    assert!(may_bind(8443));
    world.assert_empty();

    // The administrator is killed in between: the next one ends the reservation.
    let _left_behind = fixture.claim(&wanted(8443, Audience::Unit("a.service".into()))).unwrap();
    let standing = fixture.create(&wanted(8444, Audience::Unit("b.service".into())));
    let Fixture { admin, maps, .. } = &mut fixture;
    assert_eq!(maps.sweep_persistent(admin).unwrap(), 1);
    assert!(may_bind(8443));
    assert_eq!(maps.places().count(), 1, "the name of the one in force");
    assert!(!may_bind(8444));
    fixture.end(standing);
    world.assert_empty();
}

#[test]
fn it_outlives_everybody_and_is_not_charged_to_anybody() {
    let Some(world) = World::enter("persistent_lifetime") else { return };
    let mut fixture = Fixture::of(&world);
    let charged = || world.maps().quotas().map(|item| u64::from(item.unwrap().1.used)).sum::<u64>();
    assert_eq!(charged(), 0);
    let mut made = None;
    // The process that made it may end, too.
    let mut child = Child::fork(|talk| {
        let (id, token) = fixture.create(&Wanted { count: 500, ..wanted(20000, Audience::User(NOBODY)) });
        talk.say(id.into());
        talk.say(token.get());
    });
    let (id, token) = (child.talk.hear() as u32, child.talk.hear());
    child.join();
    made.replace((id, Token::new(token).unwrap()));
    assert!(!may_bind(20499));
    assert_eq!(charged(), 0);
    // A socket bound from it outlives it (R7).
    let bound = tcp();
    control::associate(&bound, made.unwrap().1).unwrap();
    bind(&bound, 20007).unwrap();
    assert_eq!(errno(control::release(tcp(), made.unwrap().1)), Errno::EPERM, "RELEASE is not for persistent ones");
    fixture.end(made.unwrap());
    assert!(may_bind(20006));
    assert!(!may_bind(20007));
    assert_eq!(fixture.refusal(&wanted(20007, Audience::Administrators)), Errno::EADDRINUSE);
    drop(bound);
    assert!(may_bind(20007));
    world.assert_empty();
}

#[test]
fn blocks_conflict_with_all_others_and_bad_ones_are_refused() {
    let Some(world) = World::enter("persistent_conflicts") else { return };
    let mut fixture = Fixture::of(&world);
    let made = fixture.create(&Wanted { count: 10, ..wanted(9000, Audience::Administrators) });
    for (start, count) in [(9000, 10), (8990, 11), (9009, 1), (8000, 3000)] {
        let overlapping = Wanted { count, ..wanted(start, Audience::Administrators) };
        assert_eq!(fixture.refusal(&overlapping), Errno::EADDRINUSE);
    }
    // The other transport and the neighbours are free; `both` is not free.
    let other = fixture.create(&Wanted { transports: Transports::Udp, ..wanted(9000, Audience::Administrators) });
    let both = Wanted { transports: Transports::Both, ..wanted(9009, Audience::Administrators) };
    assert_eq!(fixture.refusal(&both), Errno::EADDRINUSE);
    let after = fixture.create(&Wanted { transports: Transports::Both, ..wanted(9010, Audience::Administrators) });

    for (start, count) in [(0, 0), (5, 0), (65535, 2)] {
        let bad = Wanted { count, ..wanted(start, Audience::Administrators) };
        assert_eq!(fixture.refusal(&bad), Errno::EINVAL, "{start}+{count}");
    }
    // Any block: from the pool.
    let any = fixture
        .claim(&Wanted { count: 20, align: Align::new(2).unwrap(), ..wanted(0, Audience::Administrators) })
        .unwrap();
    let start = any.blocks()[0].2.start();
    assert!(start >= 61000 && start.is_multiple_of(2));
    any.end(&fixture.admin, &mut fixture.maps);
    // A runtime reservation has the port.
    let owner = tcp();
    let taken = portkeep_testkit::sockets::reserve(&owner, 0, 4);
    assert_eq!(fixture.refusal(&wanted(taken.start + 3, Audience::Administrators)), Errno::EADDRINUSE);
    drop(owner);
    for made in [made, other, after] {
        fixture.end(made);
    }
    assert!(fixture.maps.end_persistent(&fixture.admin, made.0, made.1).is_err(), "ended already");
    world.assert_empty();
}

#[test]
fn everybody_can_look_it_up() {
    let Some(world) = World::enter("persistent_lookup") else { return };
    let mut fixture = Fixture::of(&world);
    let wanted = Wanted { count: 2, strict: true, label: "x".repeat(40), ..wanted(7000, Audience::User(NOBODY)) };
    let made = fixture.create(&wanted);
    let (netns, id) = (world.netns(), made.0);
    in_child(|| {
        become_user(OTHER);
        let select =
            SelectRequest { by: wire::BY_PORT, port: 7001, transport: Transport::Tcp.bit(), ..Default::default() };
        let state = control::state(udp(), &select).unwrap();
        assert_eq!((state.start, state.count, state.token), (7000, 2, made.1.get()));
        assert_eq!((state.pid, state.uid, state.netns), (0, NOBODY, netns));
        assert_eq!(u32::from(state.flags), wire::STRICT | wire::PERSISTENT);
        assert_eq!(wire::text(&state.label), "x".repeat(24));
        let info = portkeep::who(Transport::Tcp, 7000).unwrap().unwrap();
        assert!(info.persistent && info.strict && info.scope.is_none());
    });
    let kept = fixture.maps.reservation(id).unwrap().unwrap();
    assert_eq!(fixture.maps.audience(id, &kept), Some(Audience::User(NOBODY)));
    fixture.end(made);
    world.assert_empty();
}

#[test]
fn group_quotas_apply_where_the_user_has_none() {
    let Some(world) = World::enter("group_quotas") else { return };
    let mut settings = Settings::default();
    (settings.quota, settings.group_quotas) = (5, true);
    world.maps().reconfigure(&settings).unwrap();
    world.maps().set_group_limits(&[(OTHER, 8)].into()).unwrap();
    let most = |uid: u32| {
        let mut child = Child::fork(|talk| {
            become_user(uid);
            let owner = tcp();
            let ask = |count| wire::AcquireRequest { count, ..Default::default() };
            let most = (1..20).rev().find(|count| control::acquire(&owner, &ask(*count)).is_ok());
            talk.say(most.unwrap_or(0).into());
        });
        let most = child.talk.hear();
        child.join();
        most
    };
    assert_eq!((most(OTHER), most(NOBODY)), (8, 5));
    let admin = world.sandbox().loaded().admin().unwrap();
    admin.set_quota_limit(OTHER, 3).unwrap();
    assert_eq!(most(OTHER), 3);
    admin.set_quota_limit(OTHER, 0).unwrap();
    world.maps().set_group_limits(&Default::default()).unwrap();
    world.maps().reconfigure(&Settings::default()).unwrap();
    assert_eq!(most(OTHER), 19);
    world.assert_empty();
}

#[test]
fn whom_it_is_for_changes_while_the_ports_stay_reserved() {
    let Some(world) = World::enter("persistent_change") else { return };
    let mut fixture = Fixture::of(&world);
    let mut wanted = Wanted { count: 3, transports: Transports::Both, ..wanted(8443, Audience::User(NOBODY)) };
    let made = fixture.create(&wanted);
    // In the meantime a process tries to bind all the time.
    let mut hammer = Child::fork(|talk| {
        become_user(OTHER);
        let mut tries = 0u64;
        while tries < 20_000 {
            assert!(!may_bind(8444), "after {tries} tries");
            tries += 1;
        }
        talk.say(tries);
    });
    for round in 0..300 {
        wanted.audience = match round % 4 {
            0 => Audience::Unit("a.service".into()),
            1 => Audience::Cgroup("/a/b/c".into()),
            2 => Audience::Group(4711),
            _ => Audience::User(NOBODY),
        };
        wanted.strict = round % 2 == 0;
        fixture.maps.change_persistent(&fixture.admin, made, &wanted).unwrap();
        let kept = fixture.maps.reservation(made.0).unwrap().unwrap();
        assert_eq!(fixture.maps.audience(made.0, &kept), Some(wanted.audience.clone()));
        assert_eq!((kept.token, kept.count, kept.transports), (made.1.get(), 3, 3));
    }
    assert_eq!(hammer.talk.hear(), 20_000);
    hammer.join();
    assert_eq!(as_user(NOBODY, 8443, made.1), (true, true), "the last change");
    fixture.end(made);
    assert_eq!(world.maps().places().count(), 0);
    world.assert_empty();
}
