//! Where the command is tried: a cgroup of its own to enforce in, and a mount
//! namespace of its own with a BPF file system, so that neither the machine's
//! root cgroup nor its pins are touched, whatever happens to the test. In a machine that was booted for the tests it
//! may be the root that is enforced in: then the programs only live in the cgroup, and there is one bed at a time.

pub(crate) mod schema;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use portkeep_testkit::{TestCgroup, at_root};
use tempfile::TempDir;

pub(crate) const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");
const NOBODY: &str = "65534";

pub(crate) struct Bed {
    pub(crate) cgroup: TestCgroup,
    pub(crate) folder: TempDir,
    /// The mount namespace lives as long as this process, and with it the pins.
    holder: Child,
    /// The holder's entry for the programs.
    enter: Vec<&'static str>,
    _alone: Option<MutexGuard<'static, ()>>,
}

static AT_THE_ROOT: Mutex<()> = Mutex::new(());

/// The output of a command and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Bed {
    pub(crate) fn new(name: &str) -> Self {
        Self::apart(name, &["--mount"])
    }

    /// With a network namespace of its own, too: for the agent, which writes sysctls.
    pub(crate) fn with_network(name: &str) -> Self {
        Self::apart(name, &["--mount", "--net"])
    }

    fn apart(name: &str, enter: &[&'static str]) -> Self {
        Self::made(name, enter, r#"mount -t bpf bpf "$0/bpf" && chmod 755 "$0/bpf""#)
    }

    /// With whatever `script` makes of the mount namespace; it has the bed's folder as `$0`.
    pub(crate) fn made(name: &str, enter: &[&'static str], script: &str) -> Self {
        let alone = at_root().then(|| AT_THE_ROOT.lock().unwrap_or_else(PoisonError::into_inner));
        if at_root() {
            // The kernel takes programs off a little later than their pins.
            eventually(|| portkeep::version().is_err());
        }
        let cgroup = TestCgroup::new(name).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bpf")).unwrap();
        // For nobody, who must get at the binary and must not get at the pins.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let script = format!("{script}\necho ready && exec cat >/dev/null");
        let mut holder = Command::new("unshare")
            .args(enter)
            .args(["sh", "-ec", &script])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { cgroup, folder, holder, enter: enter.to_vec(), _alone: alone }
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.folder.path().join("bpf").join("portkeep")
    }

    /// Where `up` enforces, as the commands name it.
    pub(crate) fn enforced(&self) -> String {
        if at_root() { "/".to_owned() } else { self.home() }
    }

    /// The cgroup that the programs live in, as the commands name it.
    pub(crate) fn home(&self) -> String {
        format!("/{}", self.cgroup.path().file_name().unwrap().to_str().unwrap())
    }

    /// Any program, in the cgroup and the mount namespace; it becomes the process that is started.
    pub(crate) fn program(&self, words: &[&str]) -> Command {
        let script = r#"echo $$ > "$0/cgroup.procs" && exec nsenter --target "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(self.cgroup.path()).arg(self.holder.id().to_string());
        command.args(&self.enter).arg("--").args(words);
        command.env("PORTKEEP_PIN_DIR", self.pins());
        if at_root() {
            command.env_remove("PORTKEEP_ENFORCE");
        } else {
            command.env("PORTKEEP_ENFORCE", self.cgroup.path());
        }
        command.env("PORTKEEP_RUNTIME_DIR", self.folder.path().join("run"));
        command.env("PORTKEEP_STATE_DIR", self.folder.path().join("state"));
        command.env("PORTKEEP_ROOT", self.folder.path().join("root"));
        command.env_remove("PORTKEEP_CONFIG");
        command.env_remove("PORTKEEP_SERVE");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.program(&[&[PORTKEEP], words].concat())
    }

    pub(crate) fn portkeep(&self, words: &[&str]) -> Said {
        let said: Said = self.command(words).output().unwrap().into();
        schema::check(words, &said.out);
        said
    }

    /// The same as a user without any right.
    pub(crate) fn portkeep_as_nobody(&self, words: &[&str]) -> Said {
        let copy = self.for_everybody(PORTKEEP);
        let said: Said = self.as_nobody(&[&[copy.as_str()], words].concat()).output().unwrap().into();
        schema::check(words, &said.out);
        said
    }

    /// Any program as a user without any right.
    pub(crate) fn as_nobody(&self, words: &[&str]) -> Command {
        let become_nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        self.program(&[&become_nobody, words].concat())
    }

    /// A copy of a program that anybody can start: where the build folder is in somebody's home, nobody else could.
    pub(crate) fn for_everybody(&self, program: &str) -> String {
        let name = std::path::Path::new(program).file_name().unwrap();
        let copy = self.folder.path().join(name);
        if !copy.exists() {
            // By another process: a child that is forked meanwhile would have our copy open for writing for a moment,
            // and what is open for writing cannot be started.
            assert!(Command::new("cp").arg(program).arg(&copy).status().unwrap().success());
        }
        copy.to_str().unwrap().to_owned()
    }

    /// Somebody in the cgroup who has nothing to do with any reservation binds the port.
    pub(crate) fn outsider_binds(&self, transport: &str, port: u16) -> String {
        let helper = std::env::current_exe().unwrap();
        let mut command =
            self.program(&[helper.to_str().unwrap(), "--exact", "helper_binds", "--ignored", "--nocapture"]);
        let output = command.env(HELPER, format!("{transport} {port}")).output().unwrap();
        answer(&String::from_utf8_lossy(&output.stdout))
    }

    /// `acquire`, and the line it printed.
    pub(crate) fn hold(&self, words: &[&str]) -> Holding {
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

    /// Nothing in the BPF file system but what the kernel itself puts there.
    pub(crate) fn nothing_pinned(&self) -> bool {
        let list = self.program(&["ls", self.folder.path().join("bpf").to_str().unwrap()]).output().unwrap();
        String::from_utf8_lossy(&list.stdout).lines().all(|name| name.ends_with(".debug"))
    }

    /// Cgroups below ours.
    pub(crate) fn subgroups(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cgroup.path()).unwrap().flatten();
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if at_root() {
            // A program that a test leaves running would keep the pins, and the next bed waiting.
            let _ = self.command(&["down"]).output();
        }
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

pub(crate) struct Holding {
    pub(crate) child: Child,
    pub(crate) line: String,
    _out: BufReader<ChildStdout>,
}

impl Holding {
    /// The same for one whose reservation may have ended before.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    /// Its input ends.
    pub(crate) fn let_go(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// Wait for what another process is about to do.
#[track_caller]
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(10), "it did not happen in ten seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Set for the process that plays somebody else.
pub(crate) const HELPER: &str = "PORTKEEP_TEST_BIND";
const MARK: &str = "helper: ";

/// The output of a helper, without what the test harness says around it.
pub(crate) fn answer(out: &str) -> String {
    let line = out.lines().find_map(|line| line.split_once(MARK));
    line.map(|(_, answer)| answer.to_owned()).unwrap_or_else(|| panic!("no answer in {out:?}"))
}

/// The body of the helper: bind the port of the variable, report how it went.
pub(crate) fn help() {
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
