//! The Python package: built as a wheel, installed into an environment of its own, and its tests run where the kernel
//! enforces reservations and where it does not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use portkeep_testkit::{kernel_or_skip, machine::Machine, skip};
use tempfile::TempDir;

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// Set on machines that must build and test the Python package: there, a test that cannot do so fails.
const REQUIRE: &str = "PORTKEEP_REQUIRE_PYTHON";
/// The newest pip, because older ones install a local wheel for any Python.
const PACKAGES: [&str; 6] = ["pip>=24.2", "build", "mypy", "pytest", "pytest-asyncio", "pytest-xdist"];

/// A Python environment with the built wheel and the tests.
struct Environment {
    folder: TempDir,
}

impl Environment {
    /// One for all tests; `None`, with the reason on standard error, where Python, pip or a registry is missing.
    fn shared(test: &str) -> Option<Arc<Self>> {
        // It is removed with its last user.
        static SHARED: Mutex<Weak<Environment>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = shared.upgrade() {
            return Some(environment);
        }
        let environment = Arc::new(Self::new(test)?);
        *shared = Arc::downgrade(&environment);
        Some(environment)
    }

    fn new(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let environment = Self { folder };
        let packages =
            [&["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"][..], &PACKAGES].concat();
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(environment.path("venv")))
            .and_then(|_| run(environment.python().args(packages)));
        if let Err(reason) = made {
            skip(test, &reason, REQUIRE);
            return None;
        }
        environment.install().unwrap_or_else(|error| panic!("{error}"));
        Some(environment)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn interpreter(&self) -> PathBuf {
        self.path("venv/bin/python")
    }

    fn python(&self) -> Command {
        let mut command = Command::new(self.interpreter());
        command.current_dir(self.folder.path());
        command
    }

    /// The package's own tests, with the interpreter that `command` starts.
    fn suite(&self, mut command: Command) -> Command {
        command.args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]).arg(self.path("python/tests"));
        command
    }

    /// Build the source distribution, the wheel from it, and install the wheel.
    fn install(&self) -> Result<(), String> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python");
        run(Command::new("cp").arg("-r").arg(source).arg(self.path("python")))?;
        run(self.python().args(["-m", "build", "--outdir", "dist", "python"]))?;
        run(self.python().args(["-m", "pip", "install", "--no-index"]).arg(self.wheel())).map(drop)
    }

    fn wheel(&self) -> PathBuf {
        let mut wheels = fs::read_dir(self.path("dist")).unwrap().map(|entry| entry.unwrap().path());
        wheels.find(|path| path.extension().is_some_and(|extension| extension == "whl")).expect("a wheel")
    }
}

/// The output of a program, or why it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let name = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(format!("{name}: {}\n{text}\n{errors}", output.status)) }
}

#[test]
fn the_package_is_typed_and_passes_its_tests_without_enforcement() {
    let test = "the_package_is_typed_and_passes_its_tests_without_enforcement";
    let Some(environment) = Environment::shared(test) else { return };
    an_old_python_is_refused_the_wheel(&environment);
    run(environment.python().args(["-m", "mypy", "--config-file", "python/pyproject.toml", "python/src"])).unwrap();
    let mut command = environment.suite(environment.python());
    command.env_remove(portkeep_testkit::REQUIRE);
    println!("{}", run(&mut command).unwrap());
}

fn an_old_python_is_refused_the_wheel(environment: &Environment) {
    let mut install = environment.python();
    install.args(["-m", "pip", "install", "--no-index", "--only-binary", ":all:"]);
    install.args(["--python-version", "3.8", "--target", "old"]).arg(environment.wheel());
    let refusal = run(&mut install).unwrap_err();
    assert!(refusal.contains("requires a different Python: 3.8"), "{refusal}");
}

#[test]
fn the_package_passes_its_tests_where_the_kernel_enforces() {
    let test = "the_package_passes_its_tests_where_the_kernel_enforces";
    if !kernel_or_skip(test) {
        return;
    }
    let Some(environment) = Environment::shared(test) else { return };
    let machine = Machine::new(PORTKEEP, "python");
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.command(&["agent"]));

    let mut command = environment.suite(machine.program(&[environment.interpreter().to_str().unwrap()]));
    command.env(portkeep_testkit::REQUIRE, "1").env("PORTKEEP_TEST_AGENT", agent.pid().to_string());
    command.env("PORTKEEP_TEST_COMMAND", PORTKEEP);
    println!("{}", run(&mut command).unwrap());
    drop(agent);
    machine.portkeep(&["down"]).ok();
}
