//! Laying out what a package holds. Packages for Debian, Fedora and others call this with `--destdir` and wrap up the result.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::tool::{cargo, repository, target_folder};

/// Where the files in `packaging/` take the program to be.
pub(crate) const PROGRAM: &str = "/usr/bin/portkeep";

/// Build everything and lay it out as a package would
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where programs, libraries, manual pages and units go
    #[arg(long, default_value = "/usr/local", value_parser = absolute)]
    prefix: PathBuf,
    /// The folder to take for `/`
    #[arg(long, default_value = "/")]
    destdir: PathBuf,
    /// Cargo profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
}

impl Options {
    /// As a distribution's package has it, below `destdir`.
    pub(crate) fn package(destdir: &Path, profile: &str) -> Self {
        Self { prefix: "/usr".into(), destdir: destdir.into(), profile: profile.into() }
    }
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("must begin with /") }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root =
        std::path::absolute(&options.destdir).with_context(|| format!("looking for {}", options.destdir.display()))?;
    let layout = Layout { root, prefix: options.prefix.clone() };
    layout.place_files()?;
    layout.place_built(&options.profile)?;
    println!("installed below {}", layout.below_prefix("").display());
    Ok(())
}

/// What needs no building, as a distribution's package has it.
pub(crate) fn stage_files(root: &Path) -> Result<()> {
    Layout { root: root.into(), prefix: "/usr".into() }.place_files()
}

struct Layout {
    root: PathBuf,
    prefix: PathBuf,
}

impl Layout {
    /// A path of the installed system, in this one.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn below_prefix(&self, path: &str) -> PathBuf {
        self.at(self.prefix.join(path))
    }

    /// What needs no building.
    fn place_files(&self) -> Result<()> {
        let repository = repository();
        let packaging = repository.join("packaging");
        for (from, to) in [
            ("systemd/portkeep.service", "lib/systemd/system"),
            ("sysusers.d/portkeep.conf", "lib/sysusers.d"),
            ("tmpfiles.d/portkeep.conf", "lib/tmpfiles.d"),
        ] {
            let text = read(&packaging.join(from))?;
            let name = Path::new(from).file_name().unwrap_or_default();
            let program = self.prefix.join("bin/portkeep");
            write(&self.below_prefix(to).join(name), &text.replace(PROGRAM, &program.display().to_string()))?;
        }
        // The agent looks here whatever the prefix is.
        make(&self.at("/usr/lib/portkeep/ports.d"))?;
        make(&self.at("/etc/portkeep/ports.d"))?;
        let configuration = self.at(portkeep_persist::config::PATH);
        if configuration.exists() {
            println!("{} is there and stays as it is", configuration.display());
        } else {
            write(&configuration, &read(&packaging.join("etc/portkeep.toml"))?)?;
        }
        let documents = self.below_prefix("share/doc/portkeep");
        for document in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            write(&documents.join(document), &read(&repository.join(document))?)?;
        }
        for page in files(&repository.join("docs"))? {
            copy(&page, &documents)?;
        }
        for example in files(&packaging.join("examples"))? {
            copy(&example, &documents.join("examples"))?;
        }
        for page in files(&repository.join("man"))? {
            let section = page.extension().and_then(OsStr::to_str).unwrap_or_default();
            copy(&page, &self.below_prefix(&format!("share/man/man{section}")))?;
        }
        for completion in files(&repository.join("completions"))? {
            self.place_completion(&completion)?;
        }
        Ok(())
    }

    /// Each shell looks for its own in a place and under a name of its own.
    fn place_completion(&self, file: &Path) -> Result<()> {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let to = match name {
            "portkeep.bash" => "share/bash-completion/completions/portkeep",
            "_portkeep" => "share/zsh/site-functions/_portkeep",
            "portkeep.fish" => "share/fish/vendor_completions.d/portkeep.fish",
            _ => bail!("no shell is known that looks for {}", file.display()),
        };
        write(&self.below_prefix(to), &read(file)?)
    }

    fn place_built(&self, profile: &str) -> Result<()> {
        let status = cargo()
            .args(["build", "--package=portkeep-cli", "--package=portkeep-winsock", "--profile", profile])
            .status()
            .context("starting cargo build")?;
        ensure!(status.success(), "building failed");
        // What cargo calls the folder of its default profile.
        let built = target_folder().join(if profile == "dev" { "debug" } else { profile });
        let program = self.below_prefix("bin/portkeep");
        replace(&built.join("portkeep"), &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", program.display()))?;
        self.place_winsock(&built)
    }

    /// With the prefix of the installed system in its pkg-config file, not that of the folder it is staged in.
    fn place_winsock(&self, built: &Path) -> Result<()> {
        let installed = portkeep_winsock::install::install(&self.at(&self.prefix), built)
            .context("installing libportkeep_winsock and its headers")?;
        let file = installed.pkg_config.join("portkeep-winsock.pc");
        let staged = self.at(&self.prefix).display().to_string();
        write(&file, &read(&file)?.replace(&staged, &self.prefix.display().to_string()))
    }
}

/// The files of a folder; none if there is no such folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
            files.push(entry?.path());
        }
    }
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    make(path.parent().unwrap_or(path))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    write(&folder.join(file.file_name().unwrap_or_default()), &read(file)?)
}

/// Beside and then over the old one: a program that is running stays as it was.
fn replace(from: &Path, to: &Path) -> Result<()> {
    make(to.parent().unwrap_or(to))?;
    let aside = to.with_extension("new");
    fs::copy(from, &aside).with_context(|| format!("copying {}", from.display()))?;
    fs::rename(&aside, to).with_context(|| format!("putting {} in place", to.display()))
}
