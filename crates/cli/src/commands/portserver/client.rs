//! The process that a request is for.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use portkeep_kernel::netns;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, getuid, pidfd_open},
};

use super::request::{Malformed, process_of};

/// A process that may have a port.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) pid: Pid,
    /// Readable once the process has ended.
    pub(super) pidfd: OwnedFd,
}

/// A reason to answer with nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("process {0} does not exist")]
    Absent(i32),
    #[error("process {0} belongs to another user")]
    ForeignUser(i32),
    #[error("process {peer} is in another network namespace; start a port server there")]
    ForeignNetwork { peer: i32 },
    #[error("process {peer} names process {named} of its own pid namespace, which is not one of its ancestors")]
    Unrelated { peer: i32, named: i32 },
    #[error("a client sent no complete request within {0} s")]
    Slow(u64),
    #[error("a client sent no request, and {0} others came after it")]
    Crowded(usize),
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// The process that `request`, sent over `connection`, names. It must belong to this user.
pub(super) fn named(request: &[u8], connection: &UnixStream) -> Result<Client, Refusal> {
    let number = process_of(request)?;
    let peer = socket_peercred(connection).map_err(std::io::Error::from)?.pid.as_raw_nonzero().get();
    // An accepted socket is in the network namespace of the socket that connected.
    if netns::cookie_of(connection)? != netns::current_cookie()? {
        return Err(Refusal::ForeignNetwork { peer });
    }
    let number = translated(number, peer).ok_or(Refusal::Unrelated { peer, named: number })?;
    // If a client names process 1, process 1 has adopted it: the process that it means has ended.
    let pid = Pid::from_raw(number).filter(|pid| *pid != Pid::INIT);
    let pid = pid.ok_or(Malformed::NoProcess(number.into()))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| Refusal::Absent(number))?;
    let user = status_field(number, "Uid:").and_then(|ids| ids.split_whitespace().next()?.parse::<u32>().ok());
    // The user was read before this check. If the process still runs, it is the user of this process, and not of a
    // later one.
    if has_ended(&pidfd) {
        return Err(Refusal::Absent(number));
    }
    if user != Some(getuid().as_raw()) {
        return Err(Refusal::ForeignUser(number));
    }
    Ok(Client { pid, pidfd })
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)), Ok(0))
}

fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned())
}

/// A number as `peer` sees it, in this process's pid namespace. From a container a process can name itself and its
/// ancestors.
fn translated(number: i32, peer: i32) -> Option<i32> {
    let mut pid = peer;
    loop {
        let numbers = status_field(pid, "NSpid:")?;
        let mut numbers = numbers.split_whitespace().rev();
        let innermost = numbers.next()?.parse::<i32>().ok()?;
        if numbers.next().is_none() {
            // In our own namespace the number is the same. A process outside the peer's namespace has no number there.
            return (pid == peer).then_some(number);
        }
        if innermost == number {
            return Some(pid);
        }
        pid = status_field(pid, "PPid:")?.parse().ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_processes_are_absent() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let refusal = named(format!("{pid}\n").as_bytes(), &ours).unwrap_err();
        assert!(matches!(refusal, Refusal::Absent(_)), "{refusal}");
        let own = named(format!("{}\n", std::process::id()).as_bytes(), &ours).unwrap();
        assert!(!has_ended(&own.pidfd));
    }
}
