//! 32-bit system calls: the kernel runs no program for their socket options, but runs the other programs as usual.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
};

use portkeep::control;
use portkeep_core::{Errno, Transport, wire};
use portkeep_testkit::{
    World,
    audit::uses,
    process::{Child, become_user},
    sockets::{acquire, bind, connect, errno, reserve, tcp, token},
};

use crate::siege::{NOBODY, absent};

/// A program that makes one 32-bit call, built as a 32-bit program or as a 64-bit one.
fn build(folder: &Path, bits: &str) -> Result<PathBuf, String> {
    let program = folder.join(format!("compat{bits}"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bypass/compat.c");
    let gcc = Command::new("gcc")
        .args([&format!("-m{bits}"), "-Wall", "-Werror", "-O1", "-static", "-no-pie", "-fno-pie", "-o"])
        .args([&program, Path::new(source)])
        .output()
        .map_err(|error| format!("no gcc: {error}"))?;
    if !gcc.status.success() {
        return Err(String::from_utf8_lossy(&gcc.stderr).lines().next().unwrap_or("gcc fails").to_owned());
    }
    // A kernel may not have this entry.
    Command::new(&program).arg("bind").output().map_err(|error| error.to_string()).and_then(|output| {
        if output.status.success() { Ok(program) } else { Err("this kernel has no 32-bit system calls".into()) }
    })
}

fn result(program: &Path, what: &str, number: i32) -> Errno {
    let output = Command::new(program).args([what, &number.to_string()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Errno(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
}

const DONE: Errno = Errno(0);

#[test]
fn calls_of_32_bits_are_held_to_the_reservations_and_have_no_control_codes() {
    let Some(world) = World::enter("bypass::compat") else { return };
    if !cfg!(target_arch = "x86_64") {
        return absent("32-bit system calls", "only x86-64 is tried");
    }
    let folder = tempfile::tempdir().unwrap();
    let programs = match ["32", "64"].map(|bits| build(folder.path(), bits)) {
        [Ok(one), Ok(other)] => [one, other],
        [Err(why), _] | [_, Err(why)] => return absent("32-bit system calls", why),
    };
    for program in &programs {
        assert_eq!(result(program, "acquire", 0), Errno::ENOPROTOOPT);
        assert_eq!(result(program, "version", wire::VERSION), Errno::EOPNOTSUPP);
        let owner = tcp();
        let grant = reserve(&owner, 0, 1);
        assert_eq!(result(program, "bind", grant.start.into()), Errno::EADDRINUSE);
        assert_eq!(result(program, "bind", 0), DONE);
        // The process is in the scope, as below `portkeep run`.
        let request = wire::AcquireRequest { count: 1, scope: wire::SCOPE_CGROUP, ..Default::default() };
        let grant = acquire(&owner, &request).unwrap();
        assert_eq!(result(program, "bind", grant.start.into()), DONE);
        assert_eq!(uses(&world.maps(), world.netns(), Transport::Tcp, grant.start), 0, "gone with its process");
        drop(owner);
        world.assert_empty();
    }
}

/// The next holder of the port has to wait for such a connection, as without Portkeep.
#[test]
fn a_call_of_32_bits_takes_so_reuseaddr_off_a_connection() {
    let Some(world) = World::enter("bypass::compat_reuse") else { return };
    if !cfg!(target_arch = "x86_64") {
        return absent("32-bit system calls", "only x86-64 is tried");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = match build(folder.path(), "32") {
        Ok(program) => program,
        Err(why) => return absent("32-bit system calls", why),
    };
    let mut former = Child::fork(|talk| {
        become_user(NOBODY);
        let owner = tcp();
        let grant = reserve(&owner, 61000, 1);
        let listener = tcp();
        bind(&listener, 61000).unwrap();
        listener.listen(1).unwrap();
        let client = tcp();
        connect(&client, "127.0.0.1:61000").unwrap();
        let (kept, _) = listener.accept().unwrap();
        kept.set_cloexec(false).unwrap();
        kept.set_reuse_address(false).unwrap();
        assert!(kept.reuse_address().unwrap(), "a call of 64 bits does not");
        assert_eq!(result(&program, "clear", kept.as_raw_fd()), DONE);
        assert!(!kept.reuse_address().unwrap());
        control::release(&owner, token(&grant)).unwrap();
        drop((owner, listener));
        talk.say(0);
        talk.hear();
        // The other end closes first: then no TIME_WAIT remains on this port.
        drop(client);
        let mut byte = [std::mem::MaybeUninit::uninit()];
        assert_eq!(kept.recv(&mut byte).unwrap(), 0);
        drop(kept);
    });
    former.talk.hear();
    let owner = tcp();
    reserve(&owner, 61000, 1);
    assert_eq!(errno(bind(&tcp(), 61000)), Errno::EADDRINUSE);
    former.talk.say(0);
    former.join();
    let begin = std::time::Instant::now();
    while let Err(error) = bind(&tcp(), 61000) {
        assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE.0));
        assert!(
            begin.elapsed() < std::time::Duration::from_secs(20),
            "the connection is over, and the port is not free"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    drop(owner);
    world.assert_empty();
}
