//! Processes as `/proc` shows them, and the processes that have a socket open.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    mem::MaybeUninit,
    path::Path,
    thread,
    time::Duration,
};

use portkeep::{Info, Process, Time};
use portkeep_core::wire;
use portkeep_kernel::{cgroup, in_first_user_namespace};
use rustix::{
    fs::{Mode, OFlags, RawDir, readlinkat_raw},
    io::Errno,
    param::clock_ticks_per_second,
    process::geteuid,
    time::ClockId,
};

/// Bytes that are read of a folder at a time, and of a link. The links that matter here are shorter.
const READ: usize = 32 * 1024;
const LINK: usize = 512;
/// If there are this many processes or more, several threads read them, at most `PARTS`.
const MANY: usize = 256;
const PARTS: usize = 4;

/// The process with this number, `None` if it has ended. The user has no name yet.
pub fn of(pid: u32) -> Option<Process> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = wire::printable(comm.trim_ascii_end());
    let unit = cgroup::of_process(pid).and_then(|path| unit_of(&path));
    Some(Process { pid, comm, command: command_line(pid), uid: real_uid(pid), user: None, unit, started: started(pid) })
}

fn real_uid(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// When it started, by field 22 of `/proc/PID/stat`: clock ticks after boot, time in suspend included.
fn started(pid: u32) -> Option<Time> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets, and may contain anything.
    let (_, rest) = text.rsplit_once(')')?;
    let ticks: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let since_boot = Duration::from_secs(ticks) / u32::try_from(clock_ticks_per_second()).ok()?;
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let now = Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
    Some(std::time::SystemTime::now().checked_sub(now.saturating_sub(since_boot))?.into())
}

/// The rights that this process lacks to see every process of the machine, as messages name them; `None` if it lacks
/// none. Root of a user or PID namespace has only the rights of root there.
pub fn lacks() -> Option<&'static str> {
    match (geteuid().is_root(), in_first_user_namespace(), in_first_pid_namespace()) {
        (false, ..) => Some("root"),
        (_, false, false) => Some("root in the first user namespace and the first PID namespace"),
        (_, false, true) => Some("root in the first user namespace"),
        (_, true, false) => Some("root in the first PID namespace"),
        (true, true, true) => None,
    }
}

/// Whether pids here are the same as those of the BPF programs, which number processes as the first pid namespace does.
/// (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.)
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

/// The systemd unit of a cgroup folder: the innermost service or scope (a container of the systemd driver is one). If
/// there is none, the cgroup itself.
pub fn unit_of(cgroup: &Path) -> Option<String> {
    let below = Path::new("/").join(cgroup::below_root(cgroup)?);
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    let unit = below.iter().rev().filter_map(|part| part.to_str()).find(is_unit).map(str::to_owned);
    Some(unit.unwrap_or_else(|| below.display().to_string()))
}

/// The unit of a cgroup as the BPF programs find it, by the names on its path: the topmost one below the enforced
/// cgroup that is not a slice. `depth` is how deep the enforced cgroup is below the root of the hierarchy.
pub fn unit_in(cgroup: &[String], depth: usize) -> Option<&str> {
    cgroup.iter().skip(depth).map(String::as_str).find(|name| !name.ends_with(".slice"))
}

/// The processes that have sockets open.
#[derive(Debug, Default)]
pub struct Openers {
    processes: Vec<Process>,
    /// Indices into `processes`. One process can have ten thousands of sockets open.
    by_inode: HashMap<u64, Vec<usize>>,
    /// The blocks that these processes claim to hold in held mode.
    pub held: Vec<Info>,
    /// The descriptors of every process could be read: if no process has a socket open, it is the kernel's own.
    pub all: bool,
}

impl Openers {
    /// The processes that have one of these sockets open, by their inodes. Reads `/proc` once. Without root only this
    /// user's processes can be seen.
    pub fn of(inodes: &BTreeSet<u64>) -> Self {
        let mut found = Self { all: in_first_pid_namespace(), ..Self::default() };
        if inodes.is_empty() {
            return found;
        }
        let pids: Vec<u32> = pids().collect();
        let parts =
            if pids.len() < MANY { 1 } else { thread::available_parallelism().map_or(1, usize::from).min(PARTS) };
        let mut parts = pids.chunks(pids.len().div_ceil(parts).max(1));
        let first = parts.next().unwrap_or_default();
        thread::scope(|scope| {
            let start =
                |part| (part, thread::Builder::new().spawn_scoped(scope, move || Self::among(part, inodes)).ok());
            let rest: Vec<_> = parts.map(start).collect();
            found.add(Self::among(first, inodes));
            for (part, thread) in rest {
                // The system may not allow more threads.
                found.add(thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| Self::among(part, inodes)));
            }
        });
        found
    }

    fn add(&mut self, other: Self) {
        let before = self.processes.len();
        self.processes.extend(other.processes);
        for (inode, places) in other.by_inode {
            self.by_inode.entry(inode).or_default().extend(places.into_iter().map(|place| before + place));
        }
        self.held.extend(other.held);
        self.all &= other.all;
    }

    fn among(pids: &[u32], inodes: &BTreeSet<u64>) -> Self {
        let mut found = Self { all: true, ..Self::default() };
        let mut entries = Vec::with_capacity(READ);
        let mut target = [MaybeUninit::uninit(); LINK];
        for pid in pids.iter().copied() {
            let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = match rustix::fs::open(format!("/proc/{pid}/fd"), open, Mode::empty()) {
                Ok(folder) => folder,
                // The process has ended.
                Err(Errno::NOENT) => continue,
                Err(_) => {
                    found.all = false;
                    continue;
                }
            };
            let (mut its, mut held) = (BTreeSet::new(), Vec::new());
            let mut descriptors = RawDir::new(&folder, entries.spare_capacity_mut());
            while let Some(Ok(descriptor)) = descriptors.next() {
                // If PR_SET_DUMPABLE is off, the folder can be read, but its links cannot.
                let Ok((link, _)) = readlinkat_raw(&folder, descriptor.file_name(), &mut target) else { continue };
                let Ok(link) = str::from_utf8(link) else { continue };
                if let Some(inode) = socket_inode(link).filter(|inode| inodes.contains(inode)) {
                    its.insert(inode);
                } else if let Some(info) = Info::of_held_mark(link) {
                    held.push(info);
                }
            }
            let Some(process) = (!its.is_empty()).then(|| of(pid)).flatten() else { continue };
            for mut info in held {
                info.owner = Some(process.clone());
                found.held.push(info);
            }
            for inode in its {
                found.by_inode.entry(inode).or_default().push(found.processes.len());
            }
            found.processes.push(process);
        }
        found
    }

    /// The processes of one socket, in the order of `/proc`.
    pub fn with(&self, inode: u64) -> impl Iterator<Item = &Process> {
        self.by_inode.get(&inode).into_iter().flatten().map(|place| &self.processes[*place])
    }
}

/// The numbers and names of all processes that can be seen.
pub fn all() -> impl Iterator<Item = (u32, String)> {
    pids().filter_map(|pid| {
        let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
        Some((pid, wire::printable(comm.trim_ascii_end())))
    })
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn units_are_those_that_the_bpf_programs_see() {
        let unit = |path: &str, depth| {
            let names: Vec<String> = path.split('/').map(str::to_owned).collect();
            unit_in(&names, depth).map(str::to_owned)
        };
        assert_eq!(unit("system.slice/a.service/x", 0).as_deref(), Some("a.service"));
        assert_eq!(unit("user.slice/user-1.slice/user@1.service/b.service", 0).as_deref(), Some("user@1.service"));
        assert_eq!(unit("test/system.slice/a.service", 1).as_deref(), Some("a.service"));
        assert_eq!(unit("system.slice", 0), None);
    }

    #[test]
    fn this_process_is_described() {
        let own = of(std::process::id()).unwrap();
        assert_eq!(own.uid, Some(rustix::process::getuid().as_raw()));
        assert!(own.command.is_some());
        let began: SystemTime = own.started.unwrap().into();
        assert!(began <= SystemTime::now() + Duration::from_secs(1));
        assert_eq!(of(u32::MAX), None);
    }
}
