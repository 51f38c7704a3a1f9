//! Programs and folders the tasks use.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result, ensure};

/// Something has to be installed first.
#[derive(Debug, thiserror::Error)]
#[error("{what} is missing: {remedy}")]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

/// A program of another package, and what to do if it is not there.
#[derive(Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) remedy: &'static str,
}

impl Tool {
    pub(crate) fn command(self) -> Command {
        Command::new(self.name)
    }

    /// Start it.
    pub(crate) fn spawn(self, command: &mut Command) -> Result<Child> {
        command.spawn().map_err(|error| self.explain(error))
    }

    /// Run it to its end, which must be a success.
    pub(crate) fn run(self, command: &mut Command) -> Result<()> {
        let status = command.status().map_err(|error| self.explain(error))?;
        ensure!(status.success(), "{} failed ({status})", self.name);
        Ok(())
    }

    /// Run it and give back what it prints.
    pub(crate) fn output(self, command: &mut Command) -> Result<String> {
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

/// The root folder of the repository.
pub(crate) fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").as_deref().unwrap_or(OsStr::new("cargo")));
    command.current_dir(repository());
    command
}

/// Where cargo builds.
pub(crate) fn target_folder() -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .context("starting cargo metadata in the repository")?;
    Ok(match serde_json::from_slice::<Metadata>(&output.stdout) {
        Ok(metadata) => metadata.target_directory,
        Err(_) => repository().join("target"),
    })
}
