//! The others of a reservation (rule R11), with real sockets and processes.

use portkeep::control;
use portkeep_core::{
    Align, Errno, Token, Transport, Transports,
    persistent::{Audience, Others},
    wire::{self, AcquireRequest, SelectRequest},
};
use portkeep_kernel::{Admin, Claimed, CreateError, Maps, Wanted};
use portkeep_testkit::{
    Below, World,
    process::{Child, become_user},
    sockets::{bind, errno, port, tcp, token, udp},
};
use socket2::Socket;

const FRIEND: u32 = 65534;
const OTHER: u32 = 65533;

fn others(list: impl IntoIterator<Item = Audience<u32>>) -> Others<u32> {
    Others::new(list).expect("they can be named")
}

fn unit(name: &str) -> Audience<u32> {
    Audience::Unit(name.into())
}

/// A reservation of this process that admits others.
#[track_caller]
fn acquire(owner: &Socket, request: &AcquireRequest, also: &Others<u32>) -> wire::Grant {
    control::acquire_also(owner, request, &also.to_wire()).expect("the ports are granted");
    control::granted(owner).expect("they were granted")
}

fn ports(start: u16, count: u16) -> AcquireRequest {
    AcquireRequest { start, count, ..Default::default() }
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

/// The result of `work` as a user that is in these groups besides its own.
fn as_user<T: From<u8>>(uid: u32, groups: &[u32], work: impl FnOnce() -> u8) -> T {
    let mut child = Child::fork(|talk| {
        become_user_of(uid, groups);
        talk.say(work().into());
    });
    let answer = child.talk.hear();
    child.join();
    T::from(answer as u8)
}

fn become_user_of(uid: u32, groups: &[u32]) {
    if groups.is_empty() {
        return become_user(uid);
    }
    // SAFETY: these change this child's credentials only.
    let done = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr()) == 0
            && libc::setresgid(uid, uid, uid) == 0
            && libc::setresuid(uid, uid, uid) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

fn user_may_bind(uid: u32, port: u16) -> bool {
    as_user::<u8>(uid, &[], || may_bind(port).into()) == 1
}

fn unit_may_bind(world: &World, path: &str, port: u16) -> bool {
    Below::new(world, path).ask(|| may_bind(port).into()) == 1
}

#[test]
fn r11_a_user_a_group_and_units_are_let_in_beside_the_process() {
    let Some(world) = World::enter("r11") else { return };
    let owner = tcp();
    let also = others([Audience::User(FRIEND), Audience::Group(4711), unit("docker.service"), unit("podman.service")]);
    let made = acquire(&owner, &ports(61000, 2), &also);
    let other_user = |groups: &[u32]| as_user::<u8>(OTHER, groups, || may_bind(61000).into()) == 1;
    assert!(may_bind(61000), "the owner");
    assert!(user_may_bind(FRIEND, 61000) && user_may_bind(FRIEND, 61001));
    assert!(!user_may_bind(OTHER, 61000));
    assert!(other_user(&[4711]) && other_user(&[5, 4711]) && !other_user(&[4710, 4712]));
    for name in ["docker.service", "system.slice/docker.service", "system.slice/podman.service/below"] {
        assert!(unit_may_bind(&world, name, 61000), "{name}");
    }
    for name in [
        "system.slice/docker.service2",
        "system.slice/containerd.service",
        // A container or a user can give a cgroup any name.
        "user.slice/user-1000.slice/user@1000.service/docker.service",
        "docker-1f.scope/docker.service",
    ] {
        assert!(!unit_may_bind(&world, name, 61000), "{name}");
    }
    // Nothing else is allowed: no other port, no other transport, no RELEASE.
    assert!(user_may_bind(OTHER, 61002));
    assert_eq!(bind(&udp(), 61000).ok(), Some(()));
    let released = as_user::<u8>(FRIEND, &[], || {
        u8::try_from(errno(control::release(tcp(), token(&made))).0).expect("a small number")
    });
    assert_eq!(i32::from(released), Errno::EPERM.0);
    world.assert_consistent();
    drop(owner);
    assert!(user_may_bind(OTHER, 61000));
    world.assert_empty();
}

#[test]
fn r11_a_query_reports_them() {
    let Some(world) = World::enter("r11_query") else { return };
    let owner = tcp();
    let also = others([unit(&format!("{}.scope", "n".repeat(121))), Audience::User(0), Audience::Group(7)]);
    let made = acquire(&owner, &ports(61000, 1), &also);
    let select =
        SelectRequest { by: wire::BY_PORT, port: 61000, transport: Transport::Tcp.bit(), ..Default::default() };
    let (state, listed) = control::state_also(tcp(), &select).expect("it is there");
    assert_eq!((state.also, Others::from_wire(&listed)), (3, also.clone()));
    // A buffer without room for the others is no error. A buffer with room for two gets two.
    assert_eq!(control::state(tcp(), &select).expect("it is there").also, 3);
    let mut buffer = [0; size_of::<wire::State>() + 2 * size_of::<wire::Also>() + 100];
    let socket = tcp();
    control::state(&socket, &select).expect("it is there");
    assert_eq!(control::get(&socket, wire::STATE, &mut buffer).expect("it is there"), buffer.len() - 100);
    // The token is shown to processes that may use it.
    let shown = || u8::from(control::state(tcp(), &select).expect("it is there").token == made.token);
    assert_eq!(shown(), 1);
    assert_eq!(as_user::<u8>(FRIEND, &[7], shown), 1);
    assert_eq!(as_user::<u8>(FRIEND, &[8], shown), 0);
    let maps = world.maps();
    let (_, entry) = maps.reservations().map(|item| item.expect("an entry")).next().expect("the reservation");
    assert_eq!(Others::from_wire(&maps.also(&entry).expect("the map")), also);
    drop(owner);
    world.assert_empty();
}

#[test]
fn r11_strict_is_for_sockets_that_are_associated_theirs_too() {
    let Some(world) = World::enter("r11_strict") else { return };
    let owner = tcp();
    let request = AcquireRequest { flags: wire::STRICT, ..ports(61000, 2) };
    let made = acquire(&owner, &request, &others([Audience::User(FRIEND)]));
    let draw = || {
        let socket = tcp();
        let associated = control::associate(&socket, token(&made)).is_ok();
        u8::from(may_bind(61000)) << 2
            | u8::from(associated) << 1
            | u8::from(associated && bind(&socket, 0).is_ok() && (61000..61002).contains(&port(&socket)))
    };
    assert_eq!(as_user::<u8>(FRIEND, &[], draw), 0b011);
    assert_eq!(as_user::<u8>(OTHER, &[], draw), 0);
    drop(owner);
    world.assert_empty();
}

/// Port 0 draws for the scope only: the automatic choices of other programs do not change.
#[test]
fn r11_others_bind_a_private_ephemeral_range_by_number_only() {
    let Some(world) = World::enter("r11_ephemeral") else { return };
    let owner = tcp();
    let request = AcquireRequest { flags: wire::EPHEMERAL, ..ports(61000, 4) };
    acquire(&owner, &request, &others([Audience::User(FRIEND)]));
    let inside = || {
        let socket = tcp();
        bind(&socket, 0).expect("a port");
        u8::from((61000..61004).contains(&port(&socket)))
    };
    assert_eq!(inside(), 1);
    assert_eq!(as_user::<u8>(FRIEND, &[], inside), 0);
    assert!(user_may_bind(FRIEND, 61003));
    drop(owner);
    world.assert_empty();
}

/// A new reservation gets the entry of the one before.
#[test]
fn r11_others_of_one_holder_are_outsiders_of_the_next() {
    let Some(world) = World::enter("r11_next") else { return };
    let (owner, next) = (tcp(), tcp());
    for round in 0..50 {
        let made = acquire(&owner, &ports(61000, 1), &others([Audience::User(FRIEND)]));
        if round % 10 == 0 {
            assert!(user_may_bind(FRIEND, 61000));
        }
        control::release(&owner, token(&made)).unwrap();
        let also = if round % 2 == 0 { others([Audience::User(OTHER)]) } else { Others::default() };
        let made = acquire(&next, &ports(61000, 1), &also);
        if round % 10 < 2 {
            assert!(!user_may_bind(FRIEND, 61000));
            assert_eq!(user_may_bind(OTHER, 61000), round % 2 == 0);
        }
        world.assert_consistent();
        control::release(&next, token(&made)).unwrap();
    }
    assert_eq!(world.maps().admitted().count(), 0);
    world.assert_empty();
}

#[test]
fn r11_a_request_that_fails_leaves_none_of_them_behind() {
    let Some(world) = World::enter("r11_fails") else { return };
    let (owner, other) = (tcp(), tcp());
    let friend = others([Audience::User(FRIEND)]);
    acquire(&owner, &ports(61000, 1), &Others::default());
    let failed = control::acquire_also(&other, &ports(61000, 1), &friend.to_wire());
    assert_eq!(errno(failed), Errno::EADDRINUSE);
    // The third has a kind that others cannot have.
    let mut list = others([Audience::User(FRIEND), Audience::Group(7), Audience::User(OTHER)]).to_wire();
    list[2].kind = wire::SCOPE_CGROUP.into();
    assert_eq!(errno(control::acquire_also(&other, &ports(61010, 1), &list)), Errno::EINVAL);
    assert_eq!(world.maps().admitted().count(), 0);
    assert!(!user_may_bind(FRIEND, 61000));
    drop((owner, other));
    world.assert_empty();
}

fn several(units: &[&str]) -> Audience<u32> {
    Audience::any_of(units.iter().map(|name| unit(name))).expect("they can be named")
}

/// The tools of an administrator.
struct Persistent {
    admin: Admin,
    maps: Maps,
    netns: u64,
}

impl Persistent {
    fn claim(&mut self, wanted: &Wanted) -> Result<(u32, Token), CreateError> {
        let claimed = Claimed::claim(&self.admin, &mut self.maps, self.netns, std::slice::from_ref(wanted))?;
        let made = claimed.confirm(&self.admin, &mut self.maps).expect("it is pending");
        Ok((made[0].0, made[0].1))
    }
}

#[test]
fn a_persistent_one_is_for_several_units_and_they_can_be_changed() {
    let Some(world) = World::enter("r11_persistent") else { return };
    let admin = world.sandbox().loaded().admin().expect("the administrator program");
    let mut made = Persistent { admin, maps: world.maps(), netns: world.netns() };
    let wanted = Wanted {
        start: 80,
        count: 1,
        align: Align::ANY,
        transports: Transports::Tcp,
        audience: several(&["nginx.service", "certbot.service"]),
        strict: false,
        ephemeral: false,
        label: "web".into(),
    };
    let (id, token) = made.claim(&wanted).expect("the port is free");
    let who = |world: &World| {
        ["nginx.service", "certbot.service", "apache2.service"]
            .map(|name| unit_may_bind(world, &format!("system.slice/{name}"), 80))
    };
    assert_eq!(who(&world), [true, true, false]);
    // Other audiences: the second one only, then the first one only, then a new first one with two more.
    for (units, expected) in [
        (&["nginx.service", "apache2.service"][..], [true, false, true]),
        (&["nginx.service"], [true, false, false]),
        (&["apache2.service", "nginx.service", "certbot.service"], [true, true, true]),
        (&["certbot.service"], [false, true, false]),
    ] {
        let changed = Wanted { audience: several(units), ..wanted.clone() };
        made.maps.change_persistent(&made.admin, (id, token), &changed).expect("it is in force");
        assert_eq!(who(&world), expected);
        assert!(!may_bind(80), "root");
        let entry = made.maps.reservation(id).expect("the map").expect("it is in force");
        assert_eq!(made.maps.audience(id, &entry), Some(changed.audience));
        world.assert_consistent();
    }
    // It would not be clear whose binds to port 0 draw from it.
    let ranges = Wanted { start: 8000, ephemeral: true, ..wanted };
    let error = made.claim(&ranges).expect_err("a range is for one");
    assert!(matches!(error, CreateError::Admin(error) if error.errno() == Some(Errno::EINVAL)));
    made.maps.end_persistent(&made.admin, id, token).expect("it is in force");
    assert_eq!(made.maps.admitted().count(), 0);
    world.assert_empty();
}
