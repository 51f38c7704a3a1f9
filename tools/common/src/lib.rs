//! The common parts of the maintainers' tools: the programs of other packages that they start, the folders of the
//! repository, and their exit status.

pub mod debian;
pub mod winsock;

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
};

use anyhow::{Context, Result, ensure};

/// A program or a right that the tool requires is missing.
#[derive(Debug, thiserror::Error)]
#[error("{what} is missing: {remedy}")]
pub struct Missing {
    /// The missing thing.
    pub what: String,
    /// How to get it.
    pub remedy: String,
}

/// A program of another package, and how to install it.
#[derive(Clone, Copy)]
pub struct Tool {
    /// Its name, looked up in `PATH`, or its path.
    pub name: &'static str,
    /// How to install it.
    pub remedy: &'static str,
}

impl Tool {
    /// A command that starts it.
    pub fn command(self) -> Command {
        Command::new(self.name)
    }

    /// Start it without waiting for its end.
    pub fn spawn(self, command: &mut Command) -> Result<Child> {
        command.spawn().map_err(|error| self.explain(error))
    }

    /// Run it to its end, which must be a success.
    pub fn run(self, command: &mut Command) -> Result<()> {
        let status = command.status().map_err(|error| self.explain(error))?;
        ensure!(status.success(), "{} failed ({status})", self.name);
        Ok(())
    }

    /// Run it and give back what it prints.
    pub fn output(self, command: &mut Command) -> Result<String> {
        let output = command.stderr(std::process::Stdio::inherit()).output().map_err(|error| self.explain(error))?;
        ensure!(output.status.success(), "{} failed ({})", self.name, output.status);
        String::from_utf8(output.stdout).with_context(|| format!("reading what {} printed", self.name))
    }

    fn explain(self, error: io::Error) -> anyhow::Error {
        match error.kind() {
            io::ErrorKind::NotFound => Missing { what: self.name.into(), remedy: self.remedy.into() }.into(),
            _ => anyhow::Error::new(error).context(format!("starting {}", self.name)),
        }
    }
}

/// The root folder of the repository that cargo runs the tool from, or that the working directory is in.
///
/// Cargo names the folder of the tool's package in the environment. A path from compile time would be that of another
/// checkout if both share a target folder.
///
/// # Panics
///
/// If the tool was started outside of a repository, and not by cargo.
pub fn repository() -> PathBuf {
    let from = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
    let from = Path::new(&from).canonicalize().expect("the folder exists");
    let root = from.ancestors().find(|folder| folder.join("Cargo.lock").exists());
    root.expect("start the tools with cargo (cargo xtask NAME), or in the repository").to_owned()
}

/// The cargo that started the tool, in the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").as_deref().unwrap_or(OsStr::new("cargo")));
    command.current_dir(repository());
    command
}

/// Build programs or libraries of the workspace, with the features that its dependencies get in `cargo test --workspace`.
///
/// With `--package` each choice of packages asks for other features, and cargo compiles most of Portkeep once more for it.
pub fn build(targets: &[&str]) -> Result<()> {
    let status = cargo().args(["build", "--quiet", "--workspace"]).args(targets).status().context("starting cargo")?;
    ensure!(status.success(), "building {} failed", targets.join(" "));
    Ok(())
}

/// The folder that cargo builds in.
pub fn target_folder() -> PathBuf {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let output = cargo().args(["metadata", "--no-deps", "--format-version=1"]).output();
    let metadata = output.ok().and_then(|output| serde_json::from_slice::<Metadata>(&output.stdout).ok());
    metadata.map_or_else(|| repository().join("target"), |metadata| metadata.target_directory)
}

/// The exit status of a tool: 0 success, 1 failure, 3 a program or a right is missing (clap exits with 2 on wrong usage).
pub fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.downcast_ref::<Missing>().is_some() { 3 } else { 1 })
        }
    }
}
