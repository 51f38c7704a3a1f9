//! The memory that all processes of a soak share. When a process is killed, its data here stays, so that the others
//! and the host know what it held and what it did last.
//!
//! Everything in it is an atomic, all of them may be zero, and they are read and written in one order (`SeqCst`): the
//! checks rest on what was written before what.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap},
};

use super::tally::{self, OPERATIONS, OUTCOMES, Operation, Outcomes};

/// Grants one process can have written down at a time.
pub(super) const GRANTS: usize = 64;
/// Steps of each process that are remembered.
pub(super) const STEPS: usize = 48;
/// Bytes of a remembered step, in words of eight.
const STEP_WORDS: usize = 16;
/// TCP's ports, then UDP's.
pub(super) const PORTS: usize = 2 * 65536;

/// The data of all processes.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Common {
    /// Odd: everybody waits.
    pub(super) pause: AtomicU32,
    pub(super) violations: AtomicU32,
    /// Numbers grants, so that no two are ever taken for one.
    pub(super) sequence: AtomicU64,
    pub(super) processes: AtomicU64,
    /// By operation and outcome.
    pub(super) tally: [AtomicU64; OPERATIONS * OUTCOMES],
}

impl Common {
    /// Count an operation. The outcome is 0 or an error number.
    pub(super) fn count(&self, operation: Operation, outcome: i32) {
        let outcome = (outcome.unsigned_abs() as usize).min(OUTCOMES - 1);
        self.tally[operation as usize * OUTCOMES + outcome].fetch_add(1, SeqCst);
    }

    /// The lines of the table: operation, how often, and the outcomes with their counts.
    pub(super) fn lines(&self) -> Vec<(Operation, u64, Outcomes)> {
        let line = |operation: &Operation| {
            let row = &self.tally[*operation as usize * OUTCOMES..][..OUTCOMES];
            let outcomes: Vec<_> =
                row.iter().map(|count| count.load(SeqCst)).enumerate().filter(|(_, n)| *n > 0).collect();
            let all = outcomes.iter().map(|(_, n)| n).sum();
            let named = outcomes.into_iter().map(|(number, n)| (tally::name(number as i32), n)).collect();
            (*operation, all, named)
        };
        Operation::ALL.iter().map(line).collect()
    }
}

/// A reservation that somebody certainly has. Valid while `sequence` is not 0 and its holder is alive.
#[repr(C)]
#[derive(Debug)]
pub(super) struct GrantCell {
    pub(super) sequence: AtomicU64,
    pub(super) incarnation: AtomicU64,
    pub(super) token: AtomicU64,
    /// start, count, transports, scope, flags.
    pub(super) block: AtomicU64,
    /// pid, then uid or gid.
    pub(super) owner: AtomicU64,
    pub(super) cgroup: AtomicU64,
    /// When it was certain, CLOCK_MONOTONIC, ns.
    pub(super) since: AtomicU64,
}

/// The data of one process.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Crew {
    /// Which incarnation of this number lives; 0 from before it is killed.
    pub(super) alive: AtomicU64,
    /// The last pause it has seen.
    pub(super) paused: AtomicU32,
    pub(super) uid: AtomicU32,
    pub(super) grants: [GrantCell; GRANTS],
    steps_done: AtomicU64,
    steps: [[AtomicU64; STEP_WORDS]; STEPS],
}

impl Crew {
    /// Remember a step.
    pub(super) fn step(&self, text: &str) {
        let done = self.steps_done.load(SeqCst);
        let place = &self.steps[done as usize % STEPS];
        let mut bytes = [0; STEP_WORDS * 8];
        let end = (0..=bytes.len().min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        for (word, part) in place.iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(part.try_into().expect("eight bytes")), SeqCst);
        }
        self.steps_done.store(done + 1, SeqCst);
    }

    /// The last steps, the latest last.
    pub(super) fn last_steps(&self) -> Vec<String> {
        let done = self.steps_done.load(SeqCst);
        let first = done.saturating_sub(STEPS as u64);
        let read = |number: u64| {
            let place = &self.steps[number as usize % STEPS];
            let bytes: Vec<u8> = place.iter().flat_map(|word| word.load(SeqCst).to_ne_bytes()).collect();
            format!("{number:>7}  {}", portkeep_core::wire::text(&bytes))
        };
        (first..done).map(read).collect()
    }
}

/// The certain holder of each port, in one network namespace.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Section {
    /// The grant a port belongs to.
    pub(super) granted: [AtomicU64; PORTS],
    /// The bound socket that drew it.
    pub(super) drawn: [AtomicU64; PORTS],
}

/// The shared memory. Never unmapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    pub(super) common: &'static Common,
    pub(super) crew: &'static [Crew],
    /// The first one is that of the namespace most live in.
    pub(super) sections: &'static [Section],
}

impl Shared {
    /// Make it. The descriptor stays open in the host, where the others find it.
    pub(super) fn create(crew: usize, sections: usize) -> io::Result<(Self, OwnedFd)> {
        let memory = memfd_create("portkeep-soak", MemfdFlags::CLOEXEC)?;
        let (_, _, length) = layout(crew, sections);
        ftruncate(&memory, length as u64)?;
        let file = File::from(memory);
        let shared = Self::map(&file, crew, sections)?;
        Ok((shared, file.into()))
    }

    /// Open the memory of another process, by the path below `/proc` from [`path_of`].
    pub(super) fn open(path: &Path, crew: usize, sections: usize) -> io::Result<Self> {
        Self::map(&OpenOptions::new().read(true).write(true).open(path)?, crew, sections)
    }

    fn map(file: &File, crew: usize, sections: usize) -> io::Result<Self> {
        let (crew_at, sections_at, length) = layout(crew, sections);
        if file.metadata()?.len() < length as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours. It is page-aligned, has
        // `length` bytes that the file really has (the check above; nobody shortens it), and is never unmapped, so
        // 'static references into it hold. `layout` puts the three parts side by side with room and alignment for what
        // they are. They consist of atomics only, for which any bytes are valid, and which others may change meanwhile.
        unsafe {
            let start =
                mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)?;
            Ok(Self {
                common: &*start.cast(),
                crew: std::slice::from_raw_parts(start.byte_add(crew_at).cast(), crew),
                sections: std::slice::from_raw_parts(start.byte_add(sections_at).cast(), sections),
            })
        }
    }
}

/// Where the crew and the sections begin, and the whole length.
fn layout(crew: usize, sections: usize) -> (usize, usize, usize) {
    let crew_at = size_of::<Common>().next_multiple_of(64);
    let sections_at = (crew_at + crew * size_of::<Crew>()).next_multiple_of(64);
    (crew_at, sections_at, sections_at + sections * size_of::<Section>())
}

/// Where other processes find a descriptor of this one.
pub(super) fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd())
}
