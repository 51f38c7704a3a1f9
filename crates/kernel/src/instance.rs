//! Kernel enforcement, pinned in a BPF file system: up, down, upgrade, open.
//!
//! The folder looks like this, and is renamed into place when complete, so
//! that nobody ever sees half of it:
//!
//! ```text
//! /sys/fs/bpf/portkeep/maps/{config,words,...}
//!                      links/{portkeep_bind4,...}
//!                      programs/portkeep_admin
//! ```
//!
//! Changes are made under an exclusive lock on `/sys/fs/bpf/portkeep-lock`, a
//! folder that only root can open: on the BPF file system itself, which others
//! may be able to open, anybody could hold the lock and everything up.

use std::{
    error::Error,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use aya::{EbpfLoader, maps::MapError};
use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};

use crate::{
    admin::Admin,
    bpffs, cgroup,
    events::Events,
    load::{ADMIN, ENFORCING, LoadError, Loaded, SERVING},
    maps::{self, Config, MapAccessError, Maps},
    obstacle::Obstacle,
    settings::{BUILD, Settings},
    sys,
};

const MOUNTING: &str = "mounting a BPF file system at";
/// Name of the folder below the BPF file system.
const NAME: &str = "portkeep";
/// Unfinished folders begin with this. No dot: bpffs refuses names that have one (`bpf_lookup` in kernel/bpf/inode.c).
const UNFINISHED: &str = "portkeep-unfinished-";

/// Why the pinned instance could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// Nothing is pinned: `portkeep up` has not been run.
    #[error("kernel enforcement is not up (nothing is pinned in {0}); root brings it up with `portkeep up`")]
    NotUp(PathBuf),
    /// It is up, but another version of Portkeep brought it up.
    #[error(
        "version skew: the loaded BPF programs are abi {loaded_abi} build {loaded_build:016x}, this program has abi \
         {own_abi} build {own_build:016x}; `portkeep upgrade` swaps the programs without a gap"
    )]
    Skew {
        /// ABI of what is up.
        loaded_abi: u32,
        /// Build of what is up.
        loaded_build: u64,
        /// ABI of this program.
        own_abi: u32,
        /// Build of this program.
        own_build: u64,
    },
    /// The layout of the maps changed between the two versions.
    #[error(
        "the loaded BPF programs keep their state in the layout of abi {loaded}, this program knows abi {own}: run \
         `portkeep down` and `portkeep up` when no reservation is held"
    )]
    Layout {
        /// ABI of what is up.
        loaded: u32,
        /// ABI of this program.
        own: u32,
    },
    /// It is up, but on other cgroups than asked for.
    #[error("already up, {what} in {have}, not in {want}; run `portkeep down` first")]
    Elsewhere {
        /// "enforced" or "served".
        what: &'static str,
        /// Where it is.
        have: String,
        /// Where it was to be.
        want: String,
    },
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted here, and kernel enforcement requires one: mount one (`mount -t cgroup2 none \
         DIR` does it beside cgroup v1, too), or in a container have the host run `portkeep up`"
    )]
    NoCgroup2,
    /// Another process holds the lock.
    #[error("locking {path}")]
    Lock {
        /// The file to lock.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file system call failed.
    #[error("{what} {path}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A pin could not be made or opened.
    #[error("pin {path}: {message}")]
    Pin {
        /// Which one.
        path: PathBuf,
        /// The problem.
        message: String,
    },
    /// The system does not let this process do it, for a reason that somebody can do something about.
    #[error("{why}; what failed is {step}")]
    Hindered {
        /// The reason, with a remedy.
        why: Obstacle,
        /// The action that failed.
        step: String,
        /// The system's error.
        source: io::Error,
    },
    /// Loading or attaching failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] MapAccessError),
}

impl InstanceError {
    /// Report why the system refused, if that is known. The verifier's log is of no use then.
    fn explained(self) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&self);
        let errno = loop {
            match cause {
                None => return self,
                Some(error) => {
                    // aya's error is transparent: the chain of sources skips its inner error.
                    let inner = match error.downcast_ref() {
                        Some(MapError::IoError(inner)) => Some(inner),
                        _ => error.downcast_ref::<io::Error>(),
                    };
                    match inner.and_then(io::Error::raw_os_error) {
                        Some(errno) => break errno,
                        None => cause = error.source(),
                    }
                }
            }
        };
        let mounting = matches!(&self, Self::Io { what, .. } if *what == MOUNTING);
        match Obstacle::behind(errno, mounting) {
            Some(why) => Self::Hindered { why, step: self.to_string(), source: io::Error::from_raw_os_error(errno) },
            None => self,
        }
    }
}

/// How `up` shall bring kernel enforcement up.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct UpOptions {
    /// Where the pins go: a folder in a BPF file system, by default `/sys/fs/bpf/portkeep`.
    pub folder: Option<PathBuf>,
    /// Cgroup whose sockets are held to the reservations; the whole host by default.
    pub enforce: Option<PathBuf>,
    /// Cgroup whose sockets may use the control codes; `enforce` by default.
    pub serve: Option<PathBuf>,
    /// The rest.
    pub settings: Settings,
}

/// The findings of `down`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DownReport {
    /// Reservations that ended with it.
    pub reservations: u32,
    /// Whether the BPF file system was unmounted, being empty.
    pub unmounted: bool,
}

/// An exclusive lock on the folder beside the pins, gone when dropped. Its folder goes with it if nothing is up then,
/// so that whatever failed leaves no trace.
#[derive(Debug)]
struct Lock {
    _file: File,
    path: PathBuf,
    pins: PathBuf,
}

/// The instance that is pinned in a folder.
#[derive(Debug)]
pub struct Instance {
    folder: PathBuf,
    config: Config,
    newly_up: bool,
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstanceError + use<'a> {
    move |source| InstanceError::Io { what, path: path.to_owned(), source }
}

fn pin_error<E: std::error::Error>(path: &Path) -> impl FnOnce(E) -> InstanceError + use<'_, E> {
    move |error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        InstanceError::Pin { path: path.to_owned(), message: format!("{error}{cause}") }
    }
}

impl Lock {
    fn exclusive(folder: &Path) -> Result<Self, InstanceError> {
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push("-lock");
        let path = folder.with_file_name(name);
        let locking = |source: io::Error| InstanceError::Lock { path: path.clone(), source };
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(locking(error)),
                _ => {}
            }
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(locking)?,
            };
            if !file.metadata().is_ok_and(|meta| meta.uid() == geteuid().as_raw()) {
                return Err(locking(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else")));
            }
            flock(&file, FlockOperation::LockExclusive).map_err(|errno| locking(errno.into()))?;
            // `down` removes the folder: then this lock is on nothing.
            if same_folder(&file, &path) {
                return Ok(Self { _file: file, path, pins: folder.to_owned() });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the file closes: who comes next either waits for this lock or makes a new folder.
        if !self.pins.exists() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl Instance {
    /// Where the pins are if nothing else is said.
    pub fn default_folder() -> PathBuf {
        Path::new(bpffs::DEFAULT).join(NAME)
    }

    /// Bring kernel enforcement up, or adopt the instance that is up already.
    ///
    /// Idempotent and atomic: of several callers one builds, the others find
    /// it. A process that is killed half-way leaves an unfinished folder that enforces
    /// nothing for long: the next `up` or `down` removes it. Needs CAP_BPF,
    /// CAP_NET_ADMIN, CAP_PERFMON, and the right to write the BPF file system.
    pub fn up(options: &UpOptions) -> Result<Self, InstanceError> {
        Self::bring_up(options).map_err(InstanceError::explained)
    }

    fn bring_up(options: &UpOptions) -> Result<Self, InstanceError> {
        let folder = options.folder.clone().unwrap_or_else(Self::default_folder);
        let root = cgroup::root().ok_or(InstanceError::NoCgroup2)?;
        let enforce = options.enforce.clone().unwrap_or(root);
        let serve = options.serve.clone().unwrap_or_else(|| enforce.clone());

        let parent = folder.parent().unwrap_or(&folder);
        let mounted = bpffs::ensure(bpffs::mount_point_of(parent).as_deref().unwrap_or(parent))
            .map_err(io_error(MOUNTING, parent))?;
        let done = Self::up_in(&folder, options, (&enforce, &serve));
        if done.is_err() && mounted {
            bpffs::unmount_own(parent);
        }
        done
    }

    /// The BPF file system is there.
    fn up_in(folder: &Path, options: &UpOptions, (enforce, serve): (&Path, &Path)) -> Result<Self, InstanceError> {
        let parent = folder.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(io_error("making", parent))?;
        let _lock = Lock::exclusive(folder)?;
        remove_unfinished(parent)?;
        match Self::open(folder) {
            Ok(mut instance) => {
                instance.check_cgroup("enforced", instance.config.enforce, options.enforce.as_deref())?;
                instance.check_cgroup("served", instance.config.serve, options.serve.as_deref())?;
                if instance.config.transient != 0 && !options.settings.transient {
                    // Somebody's for the time being; from now on it stays.
                    instance.config.transient = 0;
                    instance.maps()?.set_config(&instance.config)?;
                }
                return Ok(instance);
            }
            Err(InstanceError::NotUp(_)) => {}
            Err(error) => return Err(error),
        }

        let unfinished = parent.join(format!("{UNFINISHED}{}", std::process::id()));
        let built = build(&unfinished, &options.settings, enforce, serve)
            .and_then(|()| fs::rename(&unfinished, folder).map_err(io_error("renaming into place", folder)));
        if let Err(error) = built {
            let _ = remove_tree(&unfinished);
            return Err(error);
        }
        let mut instance = Self::open(folder)?;
        instance.newly_up = true;
        Ok(instance)
    }

    /// The instance that is up, if this program is of its version.
    pub fn open(folder: &Path) -> Result<Self, InstanceError> {
        let instance = Self::open_any(folder)?;
        let config = &instance.config;
        if config.abi != portkeep_core::wire::ABI || config.build != BUILD {
            return Err(InstanceError::Skew {
                loaded_abi: config.abi,
                loaded_build: config.build,
                own_abi: portkeep_core::wire::ABI,
                own_build: BUILD,
            });
        }
        Ok(instance)
    }

    /// The instance that is up, of any version.
    fn open_any(folder: &Path) -> Result<Self, InstanceError> {
        if !folder.join("maps").join("config").exists() {
            return Err(InstanceError::NotUp(folder.to_owned()));
        }
        let config = Maps::config_pinned(&folder.join("maps"))?;
        Ok(Self { folder: folder.to_owned(), config, newly_up: false })
    }

    fn check_cgroup(&self, what: &'static str, have: u64, want: Option<&Path>) -> Result<(), InstanceError> {
        let Some(want) = want else { return Ok(()) };
        let id = cgroup::id(want).map_err(io_error("reading cgroup", want))?;
        if id == have {
            return Ok(());
        }
        let have = cgroup::path_of(have).map_or_else(|| format!("cgroup {have}"), |path| path.display().to_string());
        Err(InstanceError::Elsewhere { what, have, want: want.display().to_string() })
    }

    /// Remove the instance, whatever its version. Reservations end; sockets keep what they have bound. Nothing is
    /// refused any more when this returns.
    pub fn down(folder: &Path) -> Result<DownReport, InstanceError> {
        let parent = folder.parent().unwrap_or(folder);
        if !parent.exists() {
            return Err(InstanceError::NotUp(folder.to_owned()));
        }
        if !bpffs::is_bpffs(parent) {
            return Err(InstanceError::NotUp(folder.to_owned()));
        }
        let report = Self::down_in(folder, parent).map_err(InstanceError::explained);
        let unmounted = bpffs::unmount_own(parent);
        Ok(DownReport { unmounted, ..report? })
    }

    fn down_in(folder: &Path, parent: &Path) -> Result<DownReport, InstanceError> {
        let _lock = Lock::exclusive(folder)?;
        remove_unfinished(parent)?;
        Self::open_any(folder)?.take_down()
    }

    fn take_down(&self) -> Result<DownReport, InstanceError> {
        let reservations = self.maps()?.counters()?.reservations;
        // The control codes first: from here on nothing new is acquired.
        for (name, _) in SERVING.iter().chain(&ENFORCING) {
            let path = self.folder.join("links").join(name);
            let link = sys::open_pin(&path);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &path)(error));
                }
                _ => {}
            }
            // The pin first: a link that is pinned and does nothing would pass for one that does. If this fails, or we
            // are killed here, the kernel does it by itself, a little later.
            if let Ok(link) = link {
                let _ = sys::link_detach(link);
            }
        }
        remove_tree(&self.folder)?;
        Ok(DownReport { reservations, unmounted: false })
    }

    /// Put this program's version under the links that are up. Enforcement does not blink.
    /// True if there was anything to do.
    pub fn upgrade(folder: &Path) -> Result<bool, InstanceError> {
        // Looked at first, so that nothing is locked where nothing is.
        if !folder.parent().is_some_and(bpffs::is_bpffs) {
            return Err(InstanceError::NotUp(folder.to_owned()));
        }
        Self::swap(folder).map_err(InstanceError::explained)
    }

    fn swap(folder: &Path) -> Result<bool, InstanceError> {
        let _lock = Lock::exclusive(folder)?;
        let instance = Self::open_any(folder)?;
        if instance.config.abi != portkeep_core::wire::ABI {
            return Err(InstanceError::Layout { loaded: instance.config.abi, own: portkeep_core::wire::ABI });
        }
        if instance.config.build == BUILD {
            return Ok(false);
        }
        let paths: Vec<_> = maps::NAMES.map(|name| (name, folder.join("maps").join(name))).into();
        let mut loader = EbpfLoader::new();
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        let loaded = Loaded::with(&mut loader)?;
        for (name, _) in ENFORCING.iter().chain(&SERVING) {
            let path = folder.join("links").join(name);
            let link = sys::open_pin(&path).map_err(io_error("opening", &path))?;
            let program = loaded.program_fd(name)?;
            sys::link_update(link, program).map_err(io_error("swapping the program under", &path))?;
        }
        let admin = folder.join("programs").join(ADMIN);
        fs::remove_file(&admin).map_err(io_error("removing", &admin))?;
        loaded.pin_admin(&admin)?;
        let mut maps = instance.maps()?;
        maps.set_config(&Config { build: BUILD, ..instance.config })?;
        Ok(true)
    }

    /// Where the pins are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The configuration it is up with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether this very `up` brought it up, as against adopting it.
    pub fn is_newly_up(&self) -> bool {
        self.newly_up
    }

    /// The state.
    pub fn maps(&self) -> Result<Maps, InstanceError> {
        Ok(Maps::from_pins(&self.folder.join("maps"))?)
    }

    /// The administrator's door.
    pub fn admin(&self) -> Result<Admin, InstanceError> {
        let path = self.folder.join("programs").join(ADMIN);
        Admin::from_pin(&path).map_err(pin_error(&path))
    }

    /// The event ring.
    pub fn events(&self) -> Result<Events, InstanceError> {
        Ok(Events::from_pin(&self.folder.join("maps").join("events"))?)
    }

    /// Make it look as if another build had brought it up: for tests of what happens then.
    #[doc(hidden)]
    pub fn pretend_build(&self, build: u64) -> Result<(), InstanceError> {
        Ok(self.maps()?.set_config(&Config { build, ..self.config })?)
    }

    /// Say that somebody needs a transient instance: it stays up as long as one such guard is open.
    pub fn need(&self) -> Result<File, InstanceError> {
        let locking = |source: io::Error| InstanceError::Lock { path: self.folder.clone(), source };
        let file = File::open(&self.folder).map_err(locking)?;
        flock(&file, FlockOperation::LockShared).map_err(|errno| locking(errno.into()))?;
        Ok(file)
    }

    /// Bring up or adopt an instance and say that it is needed, in one step, so
    /// that no other's end can take it away in between.
    pub fn up_and_need(options: &UpOptions) -> Result<(Self, File), InstanceError> {
        for _ in 0..16 {
            let instance = Self::up(options)?;
            let guard = instance.need()?;
            // Taken down and perhaps brought up anew between the two steps: the guard would be on a dead folder.
            if same_folder(&guard, instance.folder()) {
                return Ok((instance, guard));
            }
        }
        Err(InstanceError::NotUp(options.folder.clone().unwrap_or_else(Self::default_folder)))
    }

    /// Give a transient instance up: if nobody else needs it, it goes. True if it went.
    pub fn need_no_more(folder: &Path, guard: File) -> Result<bool, InstanceError> {
        let parent = folder.parent().unwrap_or(folder);
        let lock = Lock::exclusive(folder)?;
        let Ok(instance) = Self::open_any(folder) else { return Ok(false) };
        if instance.config.transient == 0 || !same_folder(&guard, folder) {
            return Ok(false);
        }
        if flock(&guard, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        instance.take_down()?;
        drop(lock);
        drop(guard);
        bpffs::unmount_own(parent);
        Ok(true)
    }
}

fn same_folder(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Load, pin and attach everything in a folder that is not in its place yet.
fn build(folder: &Path, settings: &Settings, enforce: &Path, serve: &Path) -> Result<(), InstanceError> {
    for part in ["maps", "links", "programs"] {
        let path = folder.join(part);
        fs::create_dir_all(&path).map_err(io_error("making", &path))?;
    }
    for path in [folder.to_owned(), folder.join("maps"), folder.join("links"), folder.join("programs")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(io_error("protecting", &path))?;
    }
    let mut loaded = Loaded::load()?;
    for name in maps::NAMES {
        let path = folder.join("maps").join(name);
        loaded.pin_map(name, &path)?;
    }
    loaded.pin_admin(&folder.join("programs").join(ADMIN))?;
    loaded.attach(settings, enforce, serve)?;
    for link in std::mem::take(&mut loaded.links) {
        let path = folder.join("links").join(link.name);
        sys::pin(&link.fd, &path).map_err(io_error("pinning", &path))?;
    }
    Ok(())
}

fn remove_unfinished(parent: &Path) -> Result<(), InstanceError> {
    for (path, _) in entries_of(parent)? {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// The contents of a folder, and whether it is a folder itself; nothing if there is no such folder. Read to the end
/// before anything below is opened (an entry of std's keeps the folder open): where descriptors ran out, one has to do.
fn entries_of(folder: &Path) -> Result<Vec<(PathBuf, bool)>, InstanceError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("reading", folder))?,
    };
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().map(|entry| (entry.path(), is_folder(&entry))).collect())
}

/// `fs::remove_dir_all` opens files in ways bpffs does not know; these few levels are done by hand.
fn remove_tree(folder: &Path) -> Result<(), InstanceError> {
    for (path, is_folder) in entries_of(folder)? {
        if is_folder {
            remove_tree(&path)?;
        } else {
            fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", folder)(error)),
        _ => Ok(()),
    }
}

impl Loaded {
    fn pin_map(&self, name: &'static str, path: &Path) -> Result<(), InstanceError> {
        self.ebpf.map(name).ok_or(MapAccessError::Missing(name))?.pin(path).map_err(pin_error(path))
    }

    fn pin_admin(&self, path: &Path) -> Result<(), InstanceError> {
        sys::pin(self.program_fd(ADMIN)?, path).map_err(io_error("pinning", path))
    }
}
