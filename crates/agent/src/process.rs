//! Processes as `/proc` shows them, and the processes that have a port bound.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use portkeep::{BoundSocket, PortRange, Process, Transport};
use portkeep_core::wire;
use portkeep_kernel::cgroup;

/// The process with this number, `None` if it is gone. Users are left without a name.
pub fn of(pid: u32) -> Option<Process> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = wire::printable(comm.trim_ascii_end());
    Some(Process { pid, comm, command: command_line(pid), uid: real_uid(pid), user: None, unit: unit(pid) })
}

fn real_uid(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// Whether pids here mean what they mean to the BPF programs, which number
/// processes as the first pid namespace does. (`PROC_PID_INIT_INO` of
/// `include/linux/proc_ns.h`.)
pub fn in_first_pid_namespace() -> bool {
    const PROC_PID_INIT_INO: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(PROC_PID_INIT_INO))
}

fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return None;
    }
    Some(wire::printable(&words.join(&b' ')))
}

fn unit(pid: u32) -> Option<String> {
    let path = cgroup::of_process(pid)?;
    let root = cgroup::root()?;
    let below = Path::new("/").join(path.strip_prefix(&root).ok()?);
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    let unit = below.iter().rev().filter_map(|part| part.to_str()).find(is_unit).map(str::to_owned);
    Some(unit.unwrap_or_else(|| below.display().to_string()))
}

/// The processes that have the port bound, in the network namespace of this
/// process. Without root only the own ones can be seen.
#[derive(Clone, Debug, Default)]
pub struct Binders {
    /// Those that can be seen.
    pub known: Vec<Process>,
}

impl Binders {
    /// `None`: nobody has it bound, as far as `/proc/net` shows. (It does not show TCP sockets that do not listen yet.)
    pub fn of(transport: Transport, port: u16) -> Option<Self> {
        Self::in_block(transport, PortRange::single(port).ok()?).remove(&port)
    }

    /// The sockets of these processes on one port; one without a process if none can be seen.
    pub fn sockets(self, transport: Transport, port: u16) -> Vec<BoundSocket> {
        let socket = |process| BoundSocket { port, transport, state: None, local: None, peer: None, process };
        match self.known.is_empty() {
            true => vec![socket(None)],
            false => self.known.into_iter().map(|process| socket(Some(process))).collect(),
        }
    }

    /// For each port of the block that somebody has bound. One round through `/proc`, however large the block.
    pub fn in_block(transport: Transport, block: PortRange) -> BTreeMap<u16, Self> {
        let inside = |(port, _): &(u16, u64)| block.contains(*port);
        let ports: HashMap<u64, u16> =
            sockets(transport).into_iter().filter(inside).map(|(port, inode)| (inode, port)).collect();
        let mut owners: BTreeMap<u16, Self> = ports.values().map(|port| (*port, Self::default())).collect();
        if ports.is_empty() {
            return owners;
        }
        for pid in pids() {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
            let its: BTreeSet<u16> =
                links.filter_map(|link| ports.get(&socket_inode(link.to_str()?)?).copied()).collect();
            let Some(process) = (!its.is_empty()).then(|| self::of(pid)).flatten() else { continue };
            for port in its {
                owners.entry(port).or_default().known.push(process.clone());
            }
        }
        for binders in owners.values_mut() {
            binders.known.sort();
        }
        owners
    }
}

/// Which process has one of these sockets open, by their inodes. One round through `/proc`.
pub fn by_inode(inodes: &BTreeSet<u64>) -> HashMap<u64, Process> {
    let mut found = HashMap::new();
    for pid in pids() {
        if found.len() == inodes.len() {
            break;
        }
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let its: Vec<u64> =
            links.filter_map(|link| socket_inode(link.to_str()?)).filter(|inode| inodes.contains(inode)).collect();
        if let Some(process) = (!its.is_empty()).then(|| of(pid)).flatten() {
            its.into_iter().for_each(|inode| _ = found.entry(inode).or_insert_with(|| process.clone()));
        }
    }
    found
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn sockets(transport: Transport) -> Vec<(u16, u64)> {
    // Of this thread, not of the process: a thread can be in another network namespace.
    let tables = [format!("/proc/thread-self/net/{transport}"), format!("/proc/thread-self/net/{transport}6")];
    let text: String = tables.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    text.lines().filter_map(|line| socket_line(line, transport)).collect()
}

/// Local port and inode in a line of `/proc/net/tcp` (or udp), if the socket has bound the port.
fn socket_line(line: &str, transport: Transport) -> Option<(u16, u64)> {
    const ESTABLISHED_OR_UNCONNECTED: [&str; 2] = ["01", "07"];
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (_, hex) = local.rsplit_once(':')?;
    // An accepted TCP connection has the port of its listener without having bound it.
    let holds = match transport {
        Transport::Tcp => *state == LISTEN,
        Transport::Udp => ESTABLISHED_OR_UNCONNECTED.contains(state),
    };
    if !holds {
        return None;
    }
    Some((u16::from_str_radix(hex, 16).ok()?, inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_names_port_and_inode() {
        let line = "   0: 0100007F:EE48 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        assert_eq!(socket_line(line, Transport::Tcp), Some((61000, 4242)));
        assert_eq!(socket_line("  sl  local_address rem_address   st", Transport::Tcp), None);
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let binders = Binders::of(Transport::Tcp, listener.local_addr().unwrap().port()).unwrap();
        assert!(binders.known.iter().any(|process| process.pid == std::process::id()));
    }
}
