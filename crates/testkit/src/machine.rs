//! A small machine for the real command. It has a cgroup to enforce in, a network namespace with loopback up, and a
//! mount namespace with a BPF file system. The root cgroup, the pins and the sysctls of the computer do not change,
//! even if the test fails. In a machine that was booted for the tests, enforcement may be in the root: then the
//! programs of tests are in the cgroup, and there is one [`Machine`] at a time.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, UdpSocket},
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::{Outcome, TestCgroup, at_root, eventually, new_namespace, note};

const NOBODY: &str = "65534";
/// The namespaces of the machine, as nsenter names them.
const NAMESPACES: [&str; 2] = ["--mount", "--net"];

/// The folder of the pins, below that of the machine.
const PINS: &str = "bpf/portkeep";

/// The folder of users' files, which any user may write.
const USER: &str = "user";

/// Make a `portkeep` command keep everything below `folder`: its pins, the agent's socket, the store, and the system
/// files that it reads.
pub fn keep_below(folder: &Path, command: &mut Command) {
    command.env("PORTKEEP_PIN_DIR", folder.join(PINS)).env("PORTKEEP_RUNTIME_DIR", folder.join("run"));
    command.env("XDG_RUNTIME_DIR", folder.join(USER));
    command.env("PORTKEEP_STATE_DIR", folder.join("state")).env("PORTKEEP_ROOT", folder.join("root"));
}

/// The machine. When it is dropped, its namespaces and its cgroup are removed.
#[derive(Debug)]
pub struct Machine {
    /// The cgroup that its programs live in.
    pub cgroup: TestCgroup,
    /// The folder of everything that the programs write.
    pub folder: TempDir,
    portkeep: &'static str,
    /// The namespaces, and with them the pins, exist as long as this process.
    holder: Child,
    _alone: Option<MutexGuard<'static, ()>>,
}

static AT_THE_ROOT: Mutex<()> = Mutex::new(());

impl Machine {
    /// A machine for `portkeep`, the command that was built: `env!("CARGO_BIN_EXE_portkeep")`.
    ///
    /// # Panics
    ///
    /// If it cannot be made or used; this applies to the other functions here, too.
    pub fn new(portkeep: &'static str, name: &str) -> Self {
        Self::made(portkeep, name, r#"mount -t bpf bpf "$0/bpf" && chmod 755 "$0/bpf""#)
    }

    /// The machine of a benchmark; this process enters its network and its cgroup. Without root `None`, after a
    /// message.
    pub fn of_benchmark(portkeep: &'static str, name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            note("SKIPPED: not root");
            return None;
        }
        let machine = Self::new(portkeep, name);
        machine.enter_network();
        machine.cgroup.enter(std::process::id()).expect("into the cgroup");
        Some(machine)
    }

    /// A machine with the mounts that `script` makes; the script gets the machine's folder as `$0`.
    pub fn made(portkeep: &'static str, name: &str, script: &str) -> Self {
        let alone = at_root().then(|| AT_THE_ROOT.lock().unwrap_or_else(PoisonError::into_inner));
        if at_root() {
            // The kernel detaches programs a little later than their pins are removed.
            eventually(|| portkeep::version().is_err());
        }
        let cgroup = TestCgroup::new(name).expect("a cgroup");
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("bpf")).expect("a folder");
        fs::create_dir(folder.path().join(USER)).expect("a folder");
        fs::set_permissions(folder.path().join(USER), fs::Permissions::from_mode(0o777)).expect("open to all");
        // User nobody must be able to reach the binary, but not the pins.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
        let script = format!("{script}\necho ready && exec cat >/dev/null");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "sh", "-ec", &script]).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        // The namespace is made by a thread that ends; the holder keeps it.
        let start = || {
            new_namespace();
            holder.spawn().expect("unshare of util-linux")
        };
        let mut holder = thread::scope(|scope| scope.spawn(start).join().expect("the namespaces"));
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("its output");
        assert_eq!(line, "ready\n");
        Self { cgroup, folder, portkeep, holder, _alone: alone }
    }

    /// Move this thread into the machine's network, to make sockets there. The thread stays outside of its cgroup.
    pub fn enter_network(&self) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("the namespace");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("into the namespace");
    }

    /// The process that keeps its namespaces.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// The folder of the pins.
    pub fn pins(&self) -> PathBuf {
        self.folder.path().join(PINS)
    }

    /// The cgroup that `up` enforces in, as the commands name it.
    pub fn enforced(&self) -> String {
        if at_root() { "/".to_owned() } else { self.home() }
    }

    /// The cgroup that the programs live in, as the commands name it.
    pub fn home(&self) -> String {
        format!("/{}", self.cgroup.path().file_name().unwrap().to_str().unwrap())
    }

    /// Any program, in the cgroup and the namespaces; the process that is started becomes the program.
    pub fn program(&self, words: &[&str]) -> Command {
        let script = r#"echo $$ > "$0/cgroup.procs" && exec nsenter --target "$@""#;
        let mut command = Command::new("sh");
        // A job of its own, as in an interactive shell.
        command.process_group(0);
        command.args(["-c", script]).arg(self.cgroup.path()).arg(self.holder.id().to_string());
        command.args(NAMESPACES).arg("--").args(words);
        keep_below(self.folder.path(), &mut command);
        if at_root() {
            command.env_remove("PORTKEEP_ENFORCE");
        } else {
            command.env("PORTKEEP_ENFORCE", self.cgroup.path());
        }
        command.env_remove("PORTKEEP_CONFIG");
        command.env_remove("PORTKEEP_SERVE");
        // `acquire` ends when its input ends, and refuses an input that has ended before it starts.
        command.stdin(if words.contains(&"acquire") { one_line() } else { Stdio::null() });
        command
    }

    /// `portkeep` with these arguments.
    pub fn command(&self, words: &[&str]) -> Command {
        self.program(&[&[self.portkeep], words].concat())
    }

    /// The same, run to its end.
    pub fn portkeep(&self, words: &[&str]) -> Outcome {
        let said: Outcome = self.command(words).output().unwrap().into();
        crate::schema::check(words, &said.out, said.code != Some(0));
        said
    }

    /// The same as a user without any right.
    pub fn portkeep_as_nobody(&self, words: &[&str]) -> Outcome {
        let copy = self.for_everybody(self.portkeep);
        let said: Outcome = self.as_nobody(&[&[copy.as_str()], words].concat()).output().unwrap().into();
        crate::schema::check(words, &said.out, said.code != Some(0));
        said
    }

    /// Any program as a user without any right.
    pub fn as_nobody(&self, words: &[&str]) -> Command {
        let become_nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        self.program(&[&become_nobody, words].concat())
    }

    /// A copy of a program that any user can start: if the build folder is in a home folder, other users cannot.
    pub fn for_everybody(&self, program: &str) -> String {
        let name = Path::new(program).file_name().unwrap();
        let copy = self.folder.path().join(name);
        if !copy.exists() {
            // Another process makes the copy: if this one wrote it, a child forked meanwhile would have it open for
            // writing for a moment. A file that is open for writing cannot be started.
            assert!(Command::new("cp").arg(program).arg(&copy).status().unwrap().success());
        }
        copy.to_str().unwrap().to_owned()
    }

    /// The result of a bind by an outsider in the cgroup: "bound", or the kind of the error. The test binary has an
    /// ignored test `helper_binds` that calls [`help`].
    pub fn outsider_binds(&self, transport: &str, port: u16) -> String {
        let helper = std::env::current_exe().unwrap();
        let mut command =
            self.program(&[helper.to_str().unwrap(), "--exact", "helper_binds", "--ignored", "--nocapture"]);
        let output = command.env(HELPER, format!("{transport} {port}")).output().unwrap();
        answer(&String::from_utf8_lossy(&output.stdout))
    }

    /// `acquire`, and the line it printed.
    pub fn hold(&self, words: &[&str]) -> Holding {
        let mut child = self
            .command(&[&["acquire"], words].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        Holding { child, line: line.trim_end().to_owned(), _out: out }
    }

    /// Whether the BPF file system contains only the kernel's own entries.
    pub fn nothing_pinned(&self) -> bool {
        let list = self.program(&["ls", "-A", self.folder.path().join("bpf").to_str().unwrap()]).output().unwrap();
        String::from_utf8_lossy(&list.stdout).lines().all(|name| name.ends_with(".debug"))
    }

    /// Nothing is pinned, there is no lock, and no cgroup below the machine's.
    #[track_caller]
    pub fn is_clean(&self) {
        assert!(self.nothing_pinned());
        assert_eq!(self.subgroups(), Vec::<String>::new());
    }

    /// `sh -c`, with the machine's folder as `$0`.
    pub fn shell(&self, script: &str) -> Outcome {
        self.program(&["sh", "-c", script, self.folder.path().to_str().unwrap()]).output().unwrap().into()
    }

    /// Start the agent by this command, and wait until it is running.
    #[track_caller]
    pub fn agent(&self, mut command: Command) -> Running {
        let log = File::create(self.folder.path().join("agent.log")).unwrap();
        let agent = Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually(|| self.portkeep(&["status", "--json"]).ok().json()["agent"] == true);
        agent
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    /// Cgroups below the machine's cgroup.
    pub fn subgroups(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cgroup.path()).unwrap().flatten();
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if at_root() {
            // If a test leaves a program running, the pins would stay, and the next machine would wait.
            let _ = self.command(&["down"]).output();
        }
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// An input that ends after one line.
pub fn one_line() -> Stdio {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    writer.write_all(b"\n").expect("a pipe has room for a byte");
    reader.into()
}

/// A program that a test has started. When it is dropped, it is killed and waited for.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `portkeep acquire`.
#[derive(Debug)]
pub struct Holding {
    /// Its process.
    pub child: Child,
    /// The line that it printed.
    pub line: String,
    _out: BufReader<ChildStdout>,
}

impl Holding {
    /// End its input. It may fail, since its reservation may have ended before.
    pub fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    /// End its input. It must succeed.
    pub fn let_go(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// Set for the process that plays an outsider: transport and port.
pub const HELPER: &str = "PORTKEEP_TEST_BIND";
const MARK: &str = "helper: ";

/// The output of a helper, without the text of the test harness around it.
pub fn answer(out: &str) -> String {
    let line = out.lines().find_map(|line| line.split_once(MARK));
    line.map(|(_, answer)| answer.to_owned()).unwrap_or_else(|| panic!("no answer in {out:?}"))
}

/// The body of the helper: bind the port of [`HELPER`], and report the result.
pub fn help() {
    let Ok(what) = std::env::var(HELPER) else { return };
    let (transport, port) = what.split_once(' ').unwrap();
    let port: u16 = port.parse().unwrap();
    let result = match transport {
        "tcp" => TcpListener::bind(("0.0.0.0", port)).map(drop),
        _ => UdpSocket::bind(("0.0.0.0", port)).map(drop),
    };
    let answer = match result {
        Ok(()) => "bound".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    println!("\n{MARK}{answer}");
    std::io::stdout().flush().unwrap();
}
