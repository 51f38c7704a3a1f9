//! Kernel enforcement, pinned in a BPF file system: up, down, upgrade, open.
//!
//! The folder looks like this. It is renamed into place when it is complete, so that nobody sees an incomplete one:
//!
//! ```text
//! /sys/fs/bpf/portkeep/maps/{config,words,...}
//!                      links/{portkeep_bind4,...}
//!                      programs/portkeep_admin
//! ```
//!
//! Changes are made under an exclusive lock on `/sys/fs/bpf/portkeep-lock`, a folder that only root can open. The BPF
//! file system itself may be open to other users: one of them could hold a lock on it and block every change.

mod error;
mod lock;
mod pins;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::EbpfLoader;
use rustix::fs::{FlockOperation, flock};

pub use error::InstanceError;
use error::{MOUNTING, io_error, pin_error};
use lock::{Lock, same_folder};
use pins::{UNFINISHED, build, remove_tree, remove_unfinished};

use crate::{
    admin::Admin,
    bpffs, cgroup,
    events::Events,
    layout::Config,
    load::Loaded,
    maps::{self, Maps},
    object::{ADMIN, BUILD, ENFORCING, SERVING},
    settings::Settings,
    sys,
};

/// Name of the folder below the BPF file system.
const NAME: &str = "portkeep";

/// How `up` shall bring kernel enforcement up.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct UpOptions {
    /// Where the pins go: a folder in a BPF file system, by default `/sys/fs/bpf/portkeep`.
    pub folder: Option<PathBuf>,
    /// Cgroup in which reservations are enforced; the whole host by default.
    pub enforce: Option<PathBuf>,
    /// Cgroup whose sockets may use the control codes; `enforce` by default.
    pub serve: Option<PathBuf>,
    /// The rest.
    pub settings: Settings,
}

/// The result of `down`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DownReport {
    /// Reservations that ended with it.
    pub reservations: u32,
    /// Whether the BPF file system was unmounted, because it was empty.
    pub unmounted: bool,
}

/// The instance that is pinned in a folder.
#[derive(Debug)]
pub struct Instance {
    folder: PathBuf,
    config: Config,
    newly_up: bool,
}

impl Instance {
    /// Where the pins are by default.
    pub fn default_folder() -> PathBuf {
        Path::new(bpffs::DEFAULT).join(NAME)
    }

    /// Bring kernel enforcement up, or adopt the instance that is up already.
    ///
    /// Idempotent and atomic: if several processes call it, one of them builds the instance, and the others find it. If
    /// a process is killed half-way, it leaves an unfinished folder. That folder soon enforces nothing, and the next
    /// `up` or `down` removes it. Requires CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, and the right to write the BPF file
    /// system.
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

    /// `up`, once the BPF file system is mounted.
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
                    // It was transient; from now on it stays.
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

    /// The instance that is up, if it has the version of this program.
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

    /// Remove the instance, of any version. Reservations end; sockets keep what they have bound. Nothing is refused any
    /// more when this returns.
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
        // The control codes first: from here on no process can acquire ports.
        for (name, _) in SERVING.iter().chain(&ENFORCING) {
            let path = self.folder.join("links").join(name);
            let link = sys::open_pin(&path);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &path)(error));
                }
                _ => {}
            }
            // Remove the pin first: a pinned link that does nothing would look like one that works. If the detach
            // fails, or if this process is killed here, the kernel detaches the program by itself a little later.
            if let Ok(link) = link {
                let _ = sys::link_detach(link);
            }
        }
        remove_tree(&self.folder)?;
        Ok(DownReport { reservations, unmounted: false })
    }

    /// Replace the programs under the links that are up with this program's version. Enforcement continues without a
    /// gap. True if there was anything to do.
    pub fn upgrade(folder: &Path) -> Result<bool, InstanceError> {
        // Checked first, so that no lock is made where nothing is up.
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

    /// Whether this call of `up` brought it up, instead of adopting it.
    pub fn is_newly_up(&self) -> bool {
        self.newly_up
    }

    /// The state.
    pub fn maps(&self) -> Result<Maps, InstanceError> {
        Ok(Maps::from_pins(&self.folder.join("maps"))?)
    }

    /// The administrator program.
    pub fn admin(&self) -> Result<Admin, InstanceError> {
        let path = self.folder.join("programs").join(ADMIN);
        Admin::from_pin(&path).map_err(pin_error(&path))
    }

    /// The event ring.
    pub fn events(&self) -> Result<Events, InstanceError> {
        Ok(Events::from_pin(&self.folder.join("maps").join("events"))?)
    }

    /// For tests: make the instance look as if another build had brought it up.
    #[doc(hidden)]
    pub fn pretend_build(&self, build: u64) -> Result<(), InstanceError> {
        Ok(self.maps()?.set_config(&Config { build, ..self.config })?)
    }

    /// Declare that a process needs a transient instance: it stays up as long as one such guard is open.
    pub fn need(&self) -> Result<File, InstanceError> {
        let locking = |source: io::Error| InstanceError::Lock { path: self.folder.clone(), source };
        let file = File::open(&self.folder).map_err(locking)?;
        flock(&file, FlockOperation::LockShared).map_err(|errno| locking(errno.into()))?;
        Ok(file)
    }

    /// Bring up or adopt an instance and declare that it is needed, in one step. Otherwise another process could take
    /// it down in between.
    pub fn up_and_need(options: &UpOptions) -> Result<(Self, File), InstanceError> {
        for _ in 0..16 {
            let instance = Self::up(options)?;
            let guard = instance.need()?;
            // If it was taken down, and perhaps brought up again, between the two steps, the guard is on a removed
            // folder.
            if same_folder(&guard, instance.folder()) {
                return Ok((instance, guard));
            }
        }
        Err(InstanceError::NotUp(options.folder.clone().unwrap_or_else(Self::default_folder)))
    }

    /// Give up a transient instance: if no other process needs it, it is taken down. True if it was.
    pub fn need_no_more(folder: &Path, guard: File) -> Result<bool, InstanceError> {
        let parent = folder.parent().unwrap_or(folder);
        let lock = Lock::exclusive(folder)?;
        match Self::open_any(folder) {
            Ok(instance) => {
                if instance.config.transient == 0 || !same_folder(&guard, folder) {
                    return Ok(false);
                }
                if flock(&guard, FlockOperation::NonBlockingLockExclusive).is_err() {
                    return Ok(false);
                }
                instance.take_down()?;
            }
            // Another process took it down, and may have been killed before it finished.
            Err(InstanceError::NotUp(_)) => {}
            Err(_) => return Ok(false),
        }
        drop(lock);
        drop(guard);
        bpffs::unmount_own(parent);
        Ok(true)
    }
}
