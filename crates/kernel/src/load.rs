//! Loading the programs and attaching them to cgroups.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError, ProgramFd, SchedClassifier},
};

use crate::{
    admin::Admin,
    cgroup,
    events::Events,
    maps::{self, MapAccessError, Maps},
    object::{ADMIN, ENFORCING, OBJECT, SERVING},
    settings::Settings,
    sys::{self, AttachPoint},
};

/// Why the BPF programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The maps could not be made from the object; without CAP_BPF, loading fails here.
    #[error("loading the BPF programs")]
    Object(#[from] EbpfError),
    /// The kernel refused a program. Linux 6.1 is the oldest that is supported.
    #[error("loading program {name}")]
    Program {
        /// Which one.
        name: String,
        /// The kernel's error, the verifier's log included.
        source: ProgramError,
    },
    /// A program could not be attached to a cgroup.
    #[error("attaching program {name} to {cgroup}")]
    Attach {
        /// Which one.
        name: String,
        /// To which cgroup.
        cgroup: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A cgroup folder could not be opened, or the path is not a cgroup.
    #[error("cgroup {path}")]
    Cgroup {
        /// Which folder.
        path: String,
        /// The problem.
        source: io::Error,
    },
    /// `serve` must be `enforce` or below it: otherwise no program would see the close of some owner sockets.
    #[error("the control codes would be served in {serve}, outside {enforce} where they are enforced")]
    ServedOutside {
        /// Where they would be served.
        serve: String,
        /// Where they are enforced.
        enforce: String,
    },
    /// A map could not be set up.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// There is no randomness for the key.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

/// An attached program. It is detached when the value is dropped, unless it is pinned.
#[derive(Debug)]
pub struct Link {
    pub(crate) name: &'static str,
    pub(crate) fd: OwnedFd,
}

/// The BPF programs, loaded into this process.
///
/// When the value is dropped, the links are detached. The maps are freed once no socket uses them.
#[derive(Debug)]
pub struct Loaded {
    pub(crate) ebpf: Ebpf,
    pub(crate) links: Vec<Link>,
    places_known: bool,
}

/// How deep a cgroup is below the hierarchy's root.
fn level_of(path: &Path) -> u32 {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    cgroup::below_root(&path).map_or(0, |below| below.components().count() as u32)
}

fn open_cgroup(path: &Path) -> Result<(File, u64), LoadError> {
    let wrap = |source| LoadError::Cgroup { path: path.display().to_string(), source };
    let id = cgroup::id(path).map_err(wrap)?;
    Ok((File::open(path).map_err(wrap)?, id))
}

impl Loaded {
    /// Load all programs. Nothing is enforced yet. Requires CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON. The verifier
    /// follows pointers as freely as these programs need only with CAP_PERFMON.
    pub fn load() -> Result<Self, LoadError> {
        Self::with(&mut EbpfLoader::new())
    }

    /// Whether the audience of a persistent reservation can be a unit, a cgroup by path or a supplementary group here.
    /// It cannot if the kernel has no BTF, or if it does not allow programs to read its memory (lockdown).
    pub fn knows_places(&self) -> bool {
        self.places_known
    }

    /// For tests of full maps: some maps have room for fewer elements.
    #[doc(hidden)]
    pub fn load_cramped(limits: &[(&'static str, u32)]) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        for (name, limit) in limits {
            loader.map_max_entries(name, *limit);
        }
        Self::with(&mut loader)
    }

    /// Load with every optional feature. If the kernel refuses, load without the features that not every kernel allows.
    pub(crate) fn with(loader: &mut EbpfLoader<'_>) -> Result<Self, LoadError> {
        if Path::new("/sys/kernel/btf/vmlinux").exists() {
            match Self::knowing(loader, true) {
                Err(LoadError::Object(_) | LoadError::Program { .. }) => {}
                done => return done,
            }
        }
        Self::knowing(loader, false)
    }

    fn knowing(loader: &mut EbpfLoader<'_>, places_known: bool) -> Result<Self, LoadError> {
        const KNOWN: [u8; 2] = [0, 1];
        let mptcp_known = &KNOWN[usize::from(Path::new("/proc/sys/net/mptcp").exists())];
        loader.override_global("mptcp_known", mptcp_known, true);
        loader.override_global("places_known", &KNOWN[usize::from(places_known)], true);
        let mut ebpf = loader.load(OBJECT)?;
        for (name, program) in ebpf.programs_mut() {
            let result = match program {
                Program::CgroupSockopt(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSock(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            result.map_err(|source| LoadError::Program { name: name.to_owned(), source })?;
        }
        Ok(Self { ebpf, links: Vec::new(), places_known })
    }

    /// Write the settings and attach: the reservations are enforced for sockets made in `enforce` and below; those made
    /// in `serve` and below may use the control codes.
    pub fn attach(&mut self, settings: &Settings, enforce: &Path, serve: &Path) -> Result<(), LoadError> {
        let absolute = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if !absolute(serve).starts_with(absolute(enforce)) {
            return Err(LoadError::ServedOutside {
                serve: serve.display().to_string(),
                enforce: enforce.display().to_string(),
            });
        }
        let (enforce_fd, enforce_id) = open_cgroup(enforce)?;
        let (serve_fd, serve_id) = open_cgroup(serve)?;
        let config = settings.to_config((enforce_id, level_of(enforce)), serve_id).map_err(LoadError::Random)?;
        self.maps()?.set_config(&config)?;
        for (name, point) in ENFORCING {
            self.attach_program(name, point, &enforce_fd, enforce)?;
        }
        for (name, point) in SERVING {
            self.attach_program(name, point, &serve_fd, serve)?;
        }
        Ok(())
    }

    fn attach_program(
        &mut self,
        name: &'static str,
        point: AttachPoint,
        cgroup: &File,
        path: &Path,
    ) -> Result<(), LoadError> {
        let fd = sys::link_create(self.program_fd(name)?, cgroup, point).map_err(|source| LoadError::Attach {
            name: name.to_owned(),
            cgroup: path.display().to_string(),
            source,
        })?;
        self.links.push(Link { name, fd });
        Ok(())
    }

    pub(crate) fn program_fd(&self, name: &str) -> Result<&ProgramFd, LoadError> {
        let program = self.ebpf.program(name).ok_or(ProgramError::NotLoaded);
        program.and_then(Program::fd).map_err(|source| LoadError::Program { name: name.into(), source })
    }

    /// The state, read from outside.
    pub fn maps(&self) -> Result<Maps, MapAccessError> {
        Maps::from_ebpf(&self.ebpf)
    }

    /// The bytes that the maps use at the moment. Exact since Linux 6.4 (kernel commit 9629363cd056 and its
    /// neighbours); before, an estimate from the maps' limits.
    pub fn map_memory(&self) -> io::Result<u64> {
        let mut total = 0;
        for (_, map) in self.ebpf.maps() {
            let (Map::Array(data)
            | Map::HashMap(data)
            | Map::LpmTrie(data)
            | Map::RingBuf(data)
            | Map::SkStorage(data)) = map
            else {
                continue;
            };
            let fd = data.fd().as_fd().as_raw_fd();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
            let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
            total += bytes.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(total)
    }

    /// The administrator program.
    pub fn admin(&mut self) -> Result<Admin, LoadError> {
        let wrap = |source| LoadError::Program { name: ADMIN.to_owned(), source };
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(ADMIN)
            .ok_or(ProgramError::NotLoaded)
            .and_then(|program| program.try_into())
            .map_err(wrap)?;
        Admin::from_program(program).map_err(wrap)
    }

    /// The event ring, through a descriptor of its own. There is one ring: each event goes to one reader only. A new
    /// reader continues where the last one was when the new one opened the ring.
    pub fn events(&self) -> Result<Events, MapAccessError> {
        let Some(Map::RingBuf(ring)) = self.ebpf.map("events") else {
            return Err(MapAccessError::Missing("events"));
        };
        Events::new(maps::again(ring).map_err(maps::call("events"))?)
    }
}
