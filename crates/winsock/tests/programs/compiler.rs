//! The C compilers of this machine, and the one documented line:
//! `cc prog.c $(pkg-config --cflags --libs portkeep-winsock)`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use portkeep::persistent::protocol::RUNTIME_DIR;
use portkeep_testkit::{World, agent::AgentProcess};
use portkeep_tool::winsock::{Installed, install};
use tempfile::TempDir;

/// The compiler options of every C program of these tests.
pub(crate) const STRICT: &[&str] = &["-std=c11", "-g", "-Wall", "-Wextra", "-Werror"];

/// The layer, installed where only these tests see it.
pub(crate) struct Kit {
    installed: Installed,
    folder: TempDir,
}

pub(crate) fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Source files of these tests.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name)
}

/// A static is never dropped, so another process removes the folder: it waits for the end of its input, which comes
/// when this process is gone, however it ends.
#[expect(clippy::zombie_processes, reason = "it outlives this process")]
fn remove_at_the_end(folder: &Path) {
    let mut janitor = Command::new("sh")
        .args(["-c", "cat >/dev/null; rm -rf \"$0\""])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh");
    std::mem::forget(janitor.stdin.take());
}

/// If there is no compiler, this is reported, and the result is `None`.
pub(crate) fn kit(test: &str) -> Option<&'static Kit> {
    static KIT: OnceLock<Option<Kit>> = OnceLock::new();
    let kit = KIT.get_or_init(|| {
        if !has("cc") || !has("pkg-config") {
            return None;
        }
        let folder = TempDir::with_prefix("portkeep-winsock-").expect("a folder");
        // So that tests can run a program as user nobody.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our own folder");
        remove_at_the_end(folder.path());
        // This test lies next to the libraries it was built with.
        let exe = std::env::current_exe().expect("where this test is");
        let installed =
            install(folder.path(), folder.path(), exe.parent().expect("a folder")).expect("the layer is installed");
        Some(Kit { installed, folder })
    });
    if kit.is_none() {
        crate::skipped(test, "no cc or no pkg-config");
    }
    kit.as_ref()
}

impl Kit {
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Reports of Valgrind that are not errors of the layer.
    pub(crate) fn suppressions(&self) -> PathBuf {
        self.installed.suppressions.clone()
    }

    pub(crate) fn shared_library(&self) -> PathBuf {
        self.installed.libraries.join("libportkeep_winsock.so")
    }

    fn flags(&self, what: &[&str]) -> Vec<String> {
        let output = Command::new("pkg-config")
            .args(what)
            .arg("portkeep-winsock")
            .env("PKG_CONFIG_PATH", &self.installed.pkg_config)
            .output()
            .expect("pkg-config runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").split_whitespace().map(str::to_owned).collect()
    }

    /// Compile, and give back the program's path. The compiler's message becomes the test's failure.
    #[track_caller]
    pub(crate) fn build(&self, compiler: &str, options: &[&str], source: &Path) -> PathBuf {
        let name = format!("{compiler} {} {}", options.join(" "), source.file_name().unwrap().to_string_lossy());
        let program = self.folder().join(name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_"));
        let output = Command::new(compiler)
            .args(options)
            .arg(source)
            .args(self.flags(&["--cflags", "--libs"]))
            .arg("-o")
            .arg(&program)
            .output()
            .expect("the compiler runs");
        assert!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
        program
    }

    /// As [`Kit::build`], with the archive in the program instead of the shared library beside it.
    #[track_caller]
    pub(crate) fn build_static(&self, compiler: &str, options: &[&str], source: &Path) -> PathBuf {
        let program = self.folder().join("static");
        let output = Command::new(compiler)
            .args(options)
            .arg(source)
            .args(self.flags(&["--cflags"]))
            .arg(self.installed.libraries.join("libportkeep_winsock.a"))
            .args(self.flags(&["--static", "--libs-only-l"]).iter().filter(|flag| *flag != "-lportkeep_winsock"))
            .arg("-o")
            .arg(&program)
            .output()
            .expect("the compiler runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program
    }

    /// Headers only: no object, no library.
    #[track_caller]
    pub(crate) fn check(&self, compiler: &str, options: &[&str], source: &Path) -> Output {
        Command::new(compiler)
            .args(options)
            .arg("-fsyntax-only")
            .arg(source)
            .args(self.flags(&["--cflags"]))
            .output()
            .expect("the compiler runs")
    }

    /// The folder of the agent of these tests: its socket and its store.
    pub(crate) fn agent_folder(&self) -> PathBuf {
        self.folder().join("agent")
    }

    /// A command to run a program that was built with the shared library.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", &self.installed.libraries).current_dir(self.folder());
        command.env(RUNTIME_DIR, self.agent_folder());
        command
    }
}

/// The agent, beside the programs, with an empty store.
pub(crate) fn start_agent(_world: &World) -> AgentProcess {
    let folder = kit("the agent").expect("a kit").agent_folder();
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder");
    AgentProcess::start(&folder)
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
