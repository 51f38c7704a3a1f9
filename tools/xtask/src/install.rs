//! Laying out the files of a package. Packages for Debian, Fedora and others call this with `--destdir` and wrap up the
//! result.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use portkeep_tool::{cargo, repository, target_folder};

/// Configurations are read from here, whatever the prefix is.
const CONFIGURATION: &str = "/etc/portkeep";

/// The path of the program in the files of `packaging/`.
pub(crate) const PROGRAM: &str = "/usr/bin/portkeep";

/// Build everything and install it
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder of programs, libraries, manual pages and units
    #[arg(long, default_value = "/usr/local", value_parser = absolute)]
    prefix: PathBuf,
    /// Folder to install into, in place of `/`
    #[arg(long, default_value = "/")]
    destdir: PathBuf,
    /// Cargo profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("must begin with /") }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root =
        std::path::absolute(&options.destdir).with_context(|| format!("looking for {}", options.destdir.display()))?;
    let layout = Layout { root, prefix: options.prefix.clone() };
    let build = Build { profile: options.profile.clone(), rustflags: Vec::new(), linker: None };
    let built = build.make()?;
    layout.place_files()?;
    layout.place_web_files()?;
    layout.place_fleet_files()?;
    for name in ["portkeep", "portkeep-web", "portkeep-fleet"] {
        layout.place_program(&built, name)?;
    }
    layout.place_winsock(&built)?;
    println!("installed below {}", layout.below_prefix("").display());
    Ok(())
}

/// The files that need no building, as a distribution's package has them.
pub(crate) fn stage_files(root: &Path) -> Result<()> {
    let layout = Layout { root: root.into(), prefix: "/usr".into() };
    layout.place_files()?;
    layout.place_web_files()?;
    layout.place_fleet_files()
}

/// How the programs are built.
#[derive(Clone)]
pub(crate) struct Build {
    pub(crate) profile: String,
    /// None: those of the environment.
    pub(crate) rustflags: Vec<String>,
    /// None: the usual one.
    pub(crate) linker: Option<PathBuf>,
}

impl Build {
    /// Build everything that is installed; the folder with the results.
    pub(crate) fn make(&self) -> Result<PathBuf> {
        // Cargo calls the folder of its default profile `debug`.
        let dev = self.profile == "dev";
        let folder = target_folder().join(if dev { "debug" } else { &self.profile });
        if dev {
            // The tests have built it.
            let programs = ["--bin=portkeep", "--bin=portkeep-web", "--bin=portkeep-fleet", "--bin=portkeep-pages"];
            portkeep_tool::build(&[&["--lib"], &programs[..]].concat())?;
            return Ok(folder);
        }
        let mut run = cargo();
        // In one go, so that cargo compiles what they share once. The libraries of the layer have one name, whatever
        // they are built with: a second build with other features would put its own in their place.
        run.args(["build", "--profile", &self.profile]);
        let packages = ["portkeep-cli", "portkeep-web", "portkeep-fleet", "portkeep-pages", "portkeep-winsock"];
        run.args(packages.map(|name| format!("--package={name}")));
        if !self.rustflags.is_empty() {
            run.env("CARGO_ENCODED_RUSTFLAGS", self.rustflags.join("\x1f"));
        }
        if let Some(linker) = &self.linker {
            run.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", linker);
        }
        ensure!(run.status().context("starting cargo")?.success(), "cargo build failed");
        Ok(folder)
    }
}

/// Where the files of an installed system are.
pub(crate) struct Layout {
    /// The folder that stands for `/`.
    pub(crate) root: PathBuf,
    pub(crate) prefix: PathBuf,
}

impl Layout {
    /// A path of the installed system, in this one.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn below_prefix(&self, path: &str) -> PathBuf {
        self.at(self.prefix.join(path))
    }

    /// The files that need no building.
    pub(crate) fn place_files(&self) -> Result<()> {
        let repository = repository();
        let packaging = repository.join("packaging");
        for (file, to) in [
            ("systemd/portkeep.service", "lib/systemd/system"),
            ("systemd/portkeep-portserver.service", "lib/systemd/system"),
            ("systemd/portkeep-portserver.socket", "lib/systemd/system"),
            ("sysusers.d/portkeep.conf", "lib/sysusers.d"),
            ("tmpfiles.d/portkeep.conf", "lib/tmpfiles.d"),
        ] {
            self.place_packaging(file, to)?;
        }
        // The agent reads these folders whatever the prefix is.
        make(&self.at("/usr/lib/portkeep/ports.d"))?;
        make(&self.at("/etc/portkeep/ports.d"))?;
        self.place_configuration("portkeep.toml")?;
        let library = repository.join("crates/portkeep");
        copy(&library.join("include/portkeep.h"), &self.below_prefix("include"))?;
        let package = read(&library.join("portkeep.pc.in"))?
            .replace("@prefix@", &self.prefix.display().to_string())
            .replace("@version@", env!("CARGO_PKG_VERSION"));
        write(&self.below_prefix("share/pkgconfig/portkeep.pc"), &package)?;
        let documents = self.below_prefix("share/doc/portkeep");
        for document in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            write(&documents.join(document), &read(&repository.join(document))?)?;
        }
        for folder in ["guides", "reference", "internals"] {
            let pages = repository.join("docs").join(folder);
            for page in files(&pages)? {
                copy(&page, &documents.join("docs").join(folder))?;
            }
        }
        for example in files(&packaging.join("examples"))? {
            copy(&example, &documents.join("examples"))?;
        }
        for engine in ["ansible", "kubernetes", "nomad", "slurm"] {
            for recipe in files(&packaging.join(engine))? {
                copy(&recipe, &documents.join("examples").join(engine))?;
            }
        }
        copy(&repository.join("examples/server.c"), &documents.join("examples"))?;
        Ok(())
    }

    /// A configuration, unless there is one.
    fn place_configuration(&self, name: &str) -> Result<()> {
        let configuration = self.at(CONFIGURATION).join(name);
        if configuration.exists() {
            println!("note: {} exists and is left as it is", configuration.display());
            return Ok(());
        }
        write(&configuration, &read(&repository().join("packaging/etc").join(name))?)
    }

    /// A file of `packaging/`, with the path that the program has here.
    fn place_packaging(&self, file: &str, to: &str) -> Result<()> {
        let file = repository().join("packaging").join(file);
        let program = self.prefix.join("bin/portkeep");
        let text = read(&file)?.replace(PROGRAM, &program.display().to_string());
        write(&self.below_prefix(to).join(file.file_name().unwrap_or_default()), &text)
    }

    /// The files of portkeep-web that need no building.
    pub(crate) fn place_web_files(&self) -> Result<()> {
        self.place_packaging("systemd/portkeep-web.service", "lib/systemd/system")?;
        let monitoring = repository().join("packaging/monitoring");
        for name in ["alerts.yml", "dashboard.json"] {
            copy(&monitoring.join(name), &self.below_prefix("share/doc/portkeep-web/examples"))?;
        }
        Ok(())
    }

    /// The files of portkeep-fleet that need no building.
    pub(crate) fn place_fleet_files(&self) -> Result<()> {
        self.place_packaging("systemd/portkeep-fleet.service", "lib/systemd/system")?;
        self.place_configuration("fleet.toml")?;
        copy(&repository().join("crates/fleet/README.md"), &self.below_prefix("share/doc/portkeep-fleet"))
    }

    /// A program, its manual pages and completions. Its path.
    pub(crate) fn place_program(&self, built: &Path, name: &str) -> Result<PathBuf> {
        let program = self.below_prefix("bin").join(name);
        replace(&built.join(name), &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", program.display()))?;
        let mut pages = Command::new(built.join("portkeep-pages"));
        let pages = pages.arg(self.at(&self.prefix)).args(["--of", name]).status();
        ensure!(pages.context("starting portkeep-pages")?.success(), "portkeep-pages failed");
        Ok(program)
    }

    /// The Winsock layer.
    pub(crate) fn place_winsock(&self, built: &Path) -> Result<()> {
        portkeep_tool::winsock::install(&self.at(&self.prefix), &self.prefix, built).map(drop)
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

pub(crate) fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    make(path.parent().unwrap_or(path))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

pub(crate) fn copy(file: &Path, folder: &Path) -> Result<()> {
    make(folder)?;
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let to = folder.join(file.file_name().unwrap_or_default());
    fs::write(&to, bytes).with_context(|| format!("writing {}", to.display()))
}

/// Beside and then over the old one: a program that is running stays as it was.
fn replace(from: &Path, to: &Path) -> Result<()> {
    make(to.parent().unwrap_or(to))?;
    let aside = to.with_extension("new");
    fs::copy(from, &aside).with_context(|| format!("copying {}", from.display()))?;
    fs::rename(&aside, to).with_context(|| format!("putting {} in place", to.display()))
}
