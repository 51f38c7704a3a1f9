//! The owner process is one process. A child, a process that shares its descriptors, or a process with the same number
//! in another pid namespace is not the owner. After exec and setuid it is still the owner.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use portkeep::control;
use portkeep_core::{
    Transport,
    wire::{self, AcquireRequest},
};
use portkeep_testkit::{
    World, new_namespace,
    process::{Child, become_user, in_child},
    sockets::{acquire, bind, reserve, tcp, token, udp},
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use socket2::{Domain, Socket};

use crate::siege::{NOBODY, Who, absent, besiege, owner_binds, set};

#[track_caller]
fn refused(socket: &Socket, port: u16) {
    assert_eq!(bind(socket, port).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: called in forked children, which have one thread and open no file by a relative path.
    unsafe { unshare_unsafe(flags) }
}

const AFTER_EXEC: &str = "PORTKEEP_TEST_AFTER_EXEC";

/// The work of the program that replaced this one by exec.
#[test]
#[ignore = "started by the next test in the place of another program"]
fn after_exec() {
    let Ok(port) = std::env::var(AFTER_EXEC) else { return };
    bind(&tcp(), port.parse().unwrap()).unwrap();
}

#[test]
fn exec_keeps_the_right_and_fork_with_exec_does_not_give_it() {
    let Some(world) = World::enter("bypass::exec") else { return };
    let become_another = |port: u16| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "processes::after_exec", "--ignored"]).env(AFTER_EXEC, port.to_string());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    in_child(|| {
        let owner = tcp();
        owner.set_cloexec(false).unwrap();
        let grant = reserve(&owner, 0, 1);
        assert!(!become_another(grant.start).status().unwrap().success(), "a child is another process");
        panic!("{}", become_another(grant.start).exec());
    });
    // Exec closes the owner socket, and without the owner socket no reservation is left.
    in_child(|| {
        let owner = tcp();
        let grant = reserve(&owner, 0, 1);
        let mut after = Child::fork(|talk| {
            talk.hear();
            refused(&tcp(), grant.start);
        });
        drop(owner);
        after.talk.say(0);
        after.join();
    });
    world.assert_empty();
}

#[test]
fn setuid_keeps_the_process_scope_and_leaves_the_user_scope() {
    let Some(world) = World::enter("bypass::setuid") else { return };
    in_child(|| {
        let owner = tcp();
        let own = reserve(&owner, 0, 1);
        let request = AcquireRequest { count: 1, scope: wire::SCOPE_USER, ..Default::default() };
        let users = acquire(&owner, &request).unwrap();
        in_child(|| bind(&tcp(), users.start).unwrap());
        become_user(NOBODY);
        bind(&tcp(), own.start).unwrap();
        refused(&tcp(), users.start);
        assert_eq!(control::associate(tcp(), token(&users)).unwrap_err().raw_os_error(), Some(libc::EPERM));
        // It is still the owner process, and may end the reservation.
        control::release(&owner, token(&users)).unwrap();
    });
    // The scope compares the real uid. A process with only the effective uid, as of a setuid program, is not in the
    // scope.
    let owner = tcp();
    let request = AcquireRequest { count: 1, scope: wire::SCOPE_USER, ..Default::default() };
    let roots = acquire(&owner, &request).unwrap();
    in_child(|| {
        // SAFETY: changes credentials only. Real: nobody; effective and saved: root.
        assert_eq!(unsafe { libc::setresuid(NOBODY, 0, 0) }, 0);
        refused(&tcp(), roots.start);
    });
    owner_binds(Domain::IPV4, Transport::Tcp, &roots);
    drop(owner);
    world.assert_empty();
}

/// Fork by clone itself, with flags that fork does not use.
fn fork_with(flags: libc::c_int, work: impl FnOnce()) {
    // SAFETY: as fork, in a process with one thread (a forked child): without CLONE_VM the memory is copied. The child
    // ends by _exit and returns to no caller.
    match unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) } {
        0 => {
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
            // SAFETY: ends the process here and now.
            unsafe { libc::_exit(failed.into()) }
        }
        child => {
            let child = rustix::process::Pid::from_raw(child as i32).expect("clone");
            let (_, status) =
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(0));
        }
    }
}

#[test]
fn a_shared_descriptor_table_makes_no_owner() {
    let Some(world) = World::enter("bypass::clone_files") else { return };
    in_child(|| {
        let owner = tcp();
        let grant = reserve(&owner, 0, 1);
        let plain = tcp();
        fork_with(libc::CLONE_FILES, || {
            refused(&plain, grant.start);
            refused(&tcp(), grant.start);
            assert_eq!(control::release(&owner, token(&grant)).unwrap_err().raw_os_error(), Some(libc::EPERM));
        });
        owner_binds(Domain::IPV4, Transport::Tcp, &grant);
        // The child can close the owner socket: both processes share one table, so it closes the last descriptor.
        fork_with(libc::CLONE_FILES, || {
            // SAFETY: the owner is forgotten below and never used as a socket again.
            assert_eq!(unsafe { libc::close(owner.as_raw_fd()) }, 0);
        });
        std::mem::forget(owner);
        bind(&plain, grant.start).unwrap();
        drop(plain);
        world.assert_empty();
    });
    world.assert_empty();
}

#[test]
fn unshare_and_setns_give_no_right() {
    let Some(world) = World::enter("bypass::unshare") else { return };
    besiege(&world, |target| {
        if target.who != Who::Root {
            return;
        }
        let home = fs::File::open("/proc/thread-self/ns/net").unwrap();
        for flags in [UnshareFlags::NEWCGROUP, UnshareFlags::NEWNS, UnshareFlags::NEWUTS, UnshareFlags::FILES] {
            in_child(|| {
                unshare(flags).unwrap();
                target.refused("unshared", &target.socket(), target.any());
            });
        }
        // In the other namespace it may bind the number, since it is another port there. Back in the first namespace it
        // may not, with either socket.
        in_child(|| {
            new_namespace();
            let there = target.socket();
            move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            target.refused("back home", &target.socket(), target.any());
            // Not reserved there.
            there.bind(&target.any().into()).unwrap();
        });
    });
}

/// Pids are compared as the first pid namespace counts them.
#[test]
fn the_owners_number_in_another_pid_namespace_is_another_process() {
    let Some(world) = World::enter("bypass::pid_namespace") else { return };
    in_child(|| {
        let owner = tcp();
        let grant = reserve(&owner, 0, 1);
        let number = std::process::id();
        in_child(|| {
            unshare(UnshareFlags::NEWPID).unwrap();
            fork_with(0, || {
                assert_eq!(std::process::id(), 1);
                let namesake = fork_as(number, || {
                    assert_eq!(std::process::id(), number);
                    refused(&tcp(), grant.start);
                    assert_eq!(control::associate(tcp(), token(&grant)).unwrap_err().raw_os_error(), Some(libc::EPERM));
                });
                namesake.unwrap_or_else(|error| absent("a pid of one's choice", error));
            });
        });
        owner_binds(Domain::IPV4, Transport::Tcp, &grant);
    });
    world.assert_empty();
}

/// Fork a child with exactly this number (`clone3` with `set_tid`, for root).
fn fork_as(pid: u32, work: impl FnOnce()) -> std::io::Result<()> {
    let wanted = [pid as i32];
    let mut arguments = [0u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    arguments[8] = wanted.as_ptr() as u64;
    arguments[9] = 1;
    // SAFETY: as in `fork_with`; `arguments` is a struct clone_args and `wanted` its set_tid.
    match unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
            // SAFETY: ends the process here and now.
            unsafe { libc::_exit(failed.into()) }
        }
        child => {
            let child = rustix::process::Pid::from_raw(child as i32).expect("clone3");
            let (_, status) = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?.unwrap();
            assert_eq!(status.exit_status(), Some(0));
            Ok(())
        }
    }
}

/// The process scope identifies a process by its number. While the owner lives, no other process has that number. If
/// the owner has died and its socket is still open elsewhere, another process can get the number. With BTF a BPF
/// program distinguishes the two by when they began. Without BTF it cannot, and the new process is in scope. If the
/// socket was closed too, the reservation has ended.
#[test]
fn a_reused_pid_is_another_process() {
    let Some(world) = World::enter("bypass::pid_reuse") else { return };
    // With BTF the kernel shows when a process began. Without it only the number is known.
    let distinguished = world.sandbox().loaded().knows_places();
    for outlives in [true, false] {
        in_child(|| {
            let mut owner = Child::fork(|talk| {
                let keeper = tcp();
                let grant = reserve(&keeper, 0, 1);
                talk.say(grant.start.into());
                talk.pass(&keeper);
                talk.hear();
            });
            let (port, keeper) = (owner.talk.hear() as u16, owner.talk.take());
            let pid = owner.pid();
            if !outlives {
                drop(keeper);
                owner.talk.say(0);
                owner.join();
                let reused = fork_as(pid, || bind(&tcp(), port).unwrap());
                return reused.unwrap_or_else(|error| absent("a pid of one's choice", error));
            }
            owner.talk.say(0);
            owner.join();
            refused(&tcp(), port);
            in_child(|| refused(&tcp(), port));
            let reused = fork_as(pid, || {
                become_user(NOBODY);
                if distinguished { refused(&tcp(), port) } else { bind(&tcp(), port).unwrap() }
            });
            reused.unwrap_or_else(|error| absent("a pid of one's choice", error));
            drop(keeper);
            bind(&tcp(), port).unwrap();
        });
        world.assert_empty();
    }
}

/// Become root in a new user namespace; outside it the process has uid nobody.
fn root_of_a_user_namespace() -> Result<(), String> {
    become_user(NOBODY);
    // The change of user gave /proc/self to root, but this process has to write the map through it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).unwrap();
    unshare(UnshareFlags::NEWUSER).map_err(|error| error.to_string())?;
    fs::write("/proc/self/uid_map", format!("0 {NOBODY} 1")).map_err(|error| error.to_string())?;
    assert_eq!(rustix::process::getuid().as_raw(), 0);
    Ok(())
}

#[test]
fn root_of_a_user_namespace_is_a_user_here() {
    let Some(world) = World::enter("bypass::user_namespace") else { return };
    besiege(&world, |target| {
        if target.who != Who::Root {
            return;
        }
        if let Err(why) = root_of_a_user_namespace() {
            return absent("user namespaces", why);
        }
        target.refused_everywhere("root inside", || target.socket());
        for option in [libc::IP_TRANSPARENT, libc::IP_FREEBIND] {
            let socket = target.socket();
            let may = set(&socket, libc::SOL_IP, option, 1);
            assert_eq!(may.is_ok(), option == libc::IP_FREEBIND);
            target.refused("root inside, with options", &socket, target.any());
        }
        // It has the quota of its user outside.
        let owner = udp();
        let request = AcquireRequest { count: 1025, ..Default::default() };
        assert_eq!(control::acquire(&owner, &request).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
        reserve(&owner, 0, 1024);
        // It may make a network namespace and use any port there, under the same quota. This does not change the first
        // namespace.
        unshare(UnshareFlags::NEWNET).unwrap();
        assert_eq!(
            control::acquire(udp(), &AcquireRequest { count: 1, ..request }).unwrap_err().raw_os_error(),
            Some(libc::EDQUOT)
        );
        drop(owner);
        reserve(&udp(), 0, 1024);
    });
}
