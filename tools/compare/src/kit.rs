//! All that the measurement needs besides this program, in a temporary folder that is removed at the end: the peers in
//! the versions of their registries, the scripts that use them, and the `portkeep` command.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::subject::Subject;
use portkeep_tool::Tool;

const PYTHON: Tool = Tool { name: "python3", remedy: "apt-get install python3 python3-pip" };
const NPM: Tool = Tool { name: "npm", remedy: "apt-get install nodejs npm" };

const PORTPICKER: &str = "portpicker";
const EPHEMERAL_PORT_RESERVE: &str = "ephemeral-port-reserve";

/// The pool of portpicker's server unless it is given another.
pub(super) const PORTSERVER_POOL: &str = "15000-24999";

pub(super) struct Kit {
    folder: PathBuf,
}

impl Kit {
    /// The contents of a folder that [`install`](Self::install) has filled.
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Install everything that is available. Report what is missing, and return the subjects that remain.
    pub(super) fn install(folder: &Path) -> Result<(Self, Vec<Subject>)> {
        let kit = Self::at(folder);
        // In held mode the command runs as nobody.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        let built = env::current_exe()?.with_file_name("portkeep");
        fs::copy(&built, kit.portkeep()).with_context(|| format!("copying {}", built.display()))?;
        fs::create_dir_all(folder.join("js"))?;
        fs::write(folder.join("pickers.py"), include_str!("scripts/pickers.py"))?;
        fs::write(folder.join("js/get_port.mjs"), include_str!("scripts/get_port.mjs"))?;

        let mut subjects = Subject::ALL.to_vec();
        let mut without = |gone: &[Subject], outcome: Result<()>| {
            if let Err(error) = outcome {
                for subject in gone {
                    println!("SKIPPED {}: {error:#}", subject.name());
                }
                subjects.retain(|subject| !gone.contains(subject));
            }
        };
        without(&[Subject::Portpicker, Subject::Portserver, Subject::PortkeepServer], kit.pip(PORTPICKER));
        without(&[Subject::EphemeralPortReserve], kit.pip(EPHEMERAL_PORT_RESERVE));
        without(&[Subject::GetPort], kit.npm("get-port"));
        Ok((kit, subjects))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn portkeep(&self) -> PathBuf {
        self.folder.join("portkeep")
    }

    /// This program, in another role.
    pub(super) fn job(&self, name: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()));
        command.arg(name);
        command
    }

    /// The same, as an outsider to the ports that the subject gives.
    pub(super) fn outsider(&self, subject: Subject, name: &str) -> Command {
        let mut command = self.job(name);
        command.args(subject.is_for_a_user().then_some("--as-nobody"));
        command
    }

    fn python_script(&self) -> Command {
        let mut command = self.python();
        command.arg(self.folder.join("pickers.py"));
        command
    }

    fn node_script(&self) -> Command {
        let mut command = Command::new("node");
        command.arg(self.folder.join("js/get_port.mjs"));
        command
    }

    /// The program that takes ports in its way and speaks the protocol of `allocator.rs`.
    pub(super) fn allocator(&self, subject: Subject) -> Command {
        match subject {
            Subject::Kernel | Subject::Held | Subject::Bind0 | Subject::Hold => {
                let mut command = self.job("allocate");
                command.arg(subject.name()).arg(self.folder());
                command
            }
            Subject::GetPort => self.node_script(),
            Subject::Portpicker | Subject::Portserver | Subject::PortkeepServer | Subject::EphemeralPortReserve => {
                let mut command = self.python_script();
                command.arg(subject.name());
                if subject.has_server() {
                    command.env("PORTSERVER_ADDRESS", self.portserver_address());
                }
                command
            }
        }
    }

    /// A name in the abstract name space. Each network namespace has its own.
    pub(super) fn portserver_address(&self) -> &'static str {
        "@portkeep-compare"
    }

    /// The subject's port server, if it has one, in the calling thread's network namespace and ready to serve. The pool is
    /// that of portpicker's own server; Portkeep's is the machine's.
    pub(super) fn server(&self, subject: Subject, pool: &str) -> Result<Option<Portserver>> {
        if !subject.has_server() {
            return Ok(None);
        }
        // It must end with this process, even if this process is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if subject == Subject::PortkeepServer {
            command.arg(self.portkeep()).args(["portserver", "--address", self.portserver_address()]);
        } else {
            command.arg(PYTHON.name).env("PYTHONPATH", self.python_path());
            command.arg(self.python_package(PORTPICKER).join("bin/portserver.py"));
            command.arg(format!("--portserver_static_pool={pool}"));
            command.arg(format!("--portserver_address={}", self.portserver_address()));
        }
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Portserver(server.context("starting portserver (with setpriv of util-linux)")?);
        let begun = Instant::now();
        let listens = || {
            let sockets = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
            sockets.lines().any(|line| line.ends_with(self.portserver_address()))
        };
        while !listens() {
            ensure!(begun.elapsed() < Duration::from_secs(20), "{} does not come up", subject.name());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(server))
    }

    fn python(&self) -> Command {
        let mut command = PYTHON.command();
        command.env("PYTHONPATH", self.python_path());
        command
    }

    fn python_package(&self, name: &str) -> PathBuf {
        self.folder.join("python").join(name)
    }

    fn python_path(&self) -> OsString {
        let folders = [PORTPICKER, EPHEMERAL_PORT_RESERVE].map(|name| self.python_package(name));
        env::join_paths(folders).unwrap_or_default()
    }

    fn pip(&self, package: &str) -> Result<()> {
        let mut pip = PYTHON.command();
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
        pip.arg("--target").arg(self.python_package(package)).arg(package);
        PYTHON.run(pip.stdout(Stdio::null())).with_context(|| format!("installing {package} from PyPI"))
    }

    fn npm(&self, package: &str) -> Result<()> {
        let mut npm = NPM.command();
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(self.folder.join("js"));
        NPM.run(npm.arg(package).stdout(Stdio::null())).with_context(|| format!("installing {package} from npm"))
    }
}

/// Killed when dropped, as it has no other end.
pub(super) struct Portserver(Child);

impl Drop for Portserver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
