//! Cgroups. The kernel runs the hooks of the cgroup in which a socket was *made*, even if another process holds the
//! socket, or if its process moves. `up` attaches to the root, so the hooks run for every socket.

use std::{
    fs::{self, File},
    path::Path,
};

use portkeep_core::wire::{self, AcquireRequest};
use portkeep_kernel::{Loaded, Settings};
use portkeep_testkit::{
    TestCgroup, World, audit,
    bpf::{Trick, attach_to_cgroup},
    process::{Child, become_user, in_child},
    sockets::{acquire, bind, reserve, tcp, tcp6, udp},
};
use socket2::Socket;

use crate::siege::NOBODY;

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

#[track_caller]
fn refused(socket: &Socket, port: u16) {
    assert_eq!(bind(socket, port).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
}

/// Remove a cgroup whose processes have just ended.
fn remove(cgroup: &Path) {
    fs::remove_dir(cgroup).unwrap_or_else(|error| panic!("{}: {error}", cgroup.display()));
}

#[test]
fn a_socket_made_before_up_is_held_to_what_comes_after() {
    let Some(_world) = World::with_outside("bypass::before_up") else { return };
    let cgroup = TestCgroup::new("before-up").unwrap();
    let mut early = Child::fork(|talk| {
        talk.hear();
        let sockets = [tcp(), tcp6(), udp()];
        let bound = udp();
        bind(&bound, 61500).unwrap();
        talk.say(0);
        let port = talk.hear() as u16;
        become_user(NOBODY);
        sockets.iter().for_each(|socket| refused(socket, port));
    });
    cgroup.enter(early.pid()).unwrap();
    early.talk.say(0);
    early.talk.hear();
    // `up`, while the sockets exist already.
    let mut loaded = Loaded::load().unwrap();
    loaded.attach(&Settings::default(), cgroup.path(), cgroup.path()).unwrap();
    let mut owner = Child::fork(|talk| {
        talk.hear();
        let keeper = tcp();
        let request = AcquireRequest { count: 1, flags: wire::BOTH, ..Default::default() };
        let grant = acquire(&keeper, &request).unwrap();
        talk.say(grant.start.into());
        talk.hear();
        bind(&tcp(), grant.start).unwrap();
        bind(&udp(), grant.start).unwrap();
    });
    cgroup.enter(owner.pid()).unwrap();
    owner.talk.say(0);
    early.talk.say(owner.talk.hear());
    early.join();
    owner.talk.say(0);
    owner.join();
    audit::assert_consistent(&loaded.maps().unwrap());
}

/// A cgroup that is removed before `up` still exists for the sockets made in it.
#[test]
fn a_socket_of_a_cgroup_that_is_gone_is_held_too() {
    let Some(_world) = World::with_outside("bypass::gone_cgroup") else { return };
    let cgroup = TestCgroup::new("gone").unwrap();
    let below = cgroup.child("below").unwrap();
    let mut early = Child::fork(|talk| {
        enter(&below);
        let orphan = tcp();
        enter(cgroup.path());
        remove(&below);
        talk.say(0);
        let port = talk.hear() as u16;
        refused(&orphan, port);
        // Otherwise the socket works.
        bind(&orphan, 20000).unwrap();
    });
    early.talk.hear();
    let mut loaded = Loaded::load().unwrap();
    loaded.attach(&Settings::default(), cgroup.path(), cgroup.path()).unwrap();
    let mut owner = Child::fork(|talk| {
        enter(cgroup.path());
        let keeper = tcp();
        let grant = reserve(&keeper, 0, 1);
        talk.say(grant.start.into());
        talk.hear();
        bind(&tcp(), grant.start).unwrap();
    });
    early.talk.say(owner.talk.hear());
    early.join();
    owner.talk.say(0);
    owner.join();
}

#[test]
fn child_cgroups_and_moves_between_cgroups_change_nothing() {
    let Some(world) = World::enter("bypass::child_cgroups") else { return };
    let sandbox = world.sandbox().cgroup();
    let (one, other) = (sandbox.child("one").unwrap(), sandbox.child("other").unwrap());
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    for user in [false, true] {
        in_child(|| {
            enter(&one);
            let made_in_one = [tcp(), tcp6()];
            enter(&other);
            if user {
                become_user(NOBODY);
            }
            for socket in made_in_one.iter().chain([&tcp(), &tcp6()]) {
                refused(socket, grant.start);
            }
        });
    }
    bind(&tcp(), grant.start).unwrap();
    drop(owner);
    [&one, &other].into_iter().for_each(|cgroup| remove(cgroup));
    world.assert_empty();
}

/// If reservations are enforced in a part of the machine only (`up --enforce`), Portkeep sees only sockets made there.
/// A socket made outside is not seen, even if its holder moves in. This is the price of a narrow `--enforce`.
#[test]
fn a_socket_made_outside_the_enforced_cgroup_is_not_held() {
    let Some(world) = World::with_outside("bypass::outside") else { return };
    let outside = TestCgroup::new("outside").unwrap();
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    let mut outsider = Child::fork(|talk| {
        talk.hear();
        let made_outside = tcp();
        enter(world.sandbox().cgroup().path());
        refused(&tcp(), grant.start);
        bind(&made_outside, grant.start).unwrap();
        talk.say(0);
        talk.hear();
    });
    outside.enter(outsider.pid()).unwrap();
    outsider.talk.say(0);
    outsider.talk.hear();
    // Now the kernel, not Portkeep, refuses the owner's bind, and the counts are right.
    refused(&tcp(), grant.start);
    world.assert_consistent();
    outsider.talk.say(0);
    outsider.join();
    bind(&tcp(), grant.start).unwrap();
    drop(owner);
    world.assert_empty();
}

/// Programs in a cgroup below run before ours. They cannot keep ours from running, with any flag. Ours see a call as
/// those programs changed it.
#[test]
fn a_cgroup_with_programs_of_its_own_is_held() {
    let Some(world) = World::enter("bypass::own_programs") else { return };
    let owner = tcp();
    let grant = reserve(&owner, 0, 1);
    for multi in [false, true] {
        for trick in [Trick::Rewrite(grant.start), Trick::Forgive] {
            let own = world.sandbox().cgroup().child("own").unwrap();
            attach_to_cgroup(&File::open(&own).unwrap(), trick, multi).unwrap();
            in_child(|| {
                enter(&own);
                if matches!(trick, Trick::Rewrite(_)) {
                    refused(&tcp(), 20000);
                }
                refused(&tcp(), grant.start);
            });
            remove(&own);
        }
    }
    bind(&tcp(), grant.start).unwrap();
    drop(owner);
    world.assert_empty();
}

/// A program in a cgroup above runs after ours. It can undo our refusal, or replace another port with the reserved one
/// after our program has run. Then our second program refuses, because it sees the port that was really bound. Such a
/// program requires CAP_BPF and the right to the cgroup. `up` attaches to the root, and no cgroup is above the root.
#[test]
fn a_program_above_a_narrow_enforcement_does_not_get_a_port_either() {
    let Some(_world) = World::with_outside("bypass::program_above") else { return };
    let above = TestCgroup::new("above").unwrap();
    let below = above.child("below").unwrap();
    let mut loaded = Loaded::load().unwrap();
    loaded.attach(&Settings::default(), &below, &below).unwrap();
    let mut owner = Child::fork(|talk| {
        enter(&below);
        let keeper = tcp();
        talk.say(reserve(&keeper, 0, 1).start.into());
        let port = talk.hear() as u16;
        bind(&tcp(), port).unwrap();
    });
    let port = owner.talk.hear() as u16;
    let folder = File::open(above.path()).unwrap();
    attach_to_cgroup(&folder, Trick::Forgive, true).unwrap();
    in_child(|| {
        enter(&below);
        refused(&tcp(), port);
    });
    owner.talk.say(port.into());
    owner.join();
    let mut owner = Child::fork(|talk| {
        enter(&below);
        let keeper = tcp();
        talk.say(reserve(&keeper, 0, 1).start.into());
        talk.hear();
    });
    attach_to_cgroup(&folder, Trick::Rewrite(owner.talk.hear() as u16), true).unwrap();
    in_child(|| {
        enter(&below);
        refused(&tcp(), 20000);
    });
    owner.talk.say(0);
    owner.join();
    remove(&below);
    audit::assert_consistent(&loaded.maps().unwrap());
}
