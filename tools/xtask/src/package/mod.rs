//! Packages: `.deb`, `.rpm` and a tar archive, for the program, for portkeep-web, portkeep-fleet and the Winsock layer. Their content is that of
//! `cargo xtask install`. Two builds of one commit have the same bytes: the times are the commit's, and no path of
//! the building machine is in a program.

mod archive;
mod check;
mod deb;
mod files;
mod licences;
mod old_glibc;
mod readme;
mod rpm;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
};

use anyhow::{Context, Result, bail, ensure};
use portkeep_tool::{Tool, cargo, repository, target_folder};
use tempfile::TempDir;

use crate::install::{Build, Layout, read, write};

const SHA256SUM: Tool = Tool { name: "sha256sum", remedy: "apt-get install coreutils" };
const CP: Tool = Tool { name: "cp", remedy: SHA256SUM.remedy };
const STRIP: Tool = Tool { name: "strip", remedy: "apt-get install binutils" };

/// Build the packages: .deb, .rpm and tar.gz
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder for the packages [default: `dist` in cargo's target folder]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Check the packages: lintian, installing, upgrading, removing, purging (as root)
    #[arg(long)]
    check: bool,
    /// Run the README's examples on a fresh Debian, with the .deb and the wheel (as root)
    #[arg(long)]
    readme: bool,
    /// Build twice, in two folders, and compare
    #[arg(long)]
    twice: bool,
    /// Build with the profile of the tests and this machine's glibc: quick, and for checks only
    #[arg(long)]
    short: bool,
    /// Make only the .deb, and that of portkeep-web if it is this very version; claim to be this version, and another layout in the kernel: for tests of upgrades
    #[arg(long, value_name = "VERSION[:ABI]")]
    only_deb: Vec<String>,
}

/// One package.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The program and what belongs to it.
    Portkeep,
    /// The port map and metrics.
    Web,
    /// The same ports on several hosts.
    Fleet,
    /// The library and headers for programs that come from Windows.
    Winsock,
}

impl Kind {
    /// Copy what was built for the package, stripped; the program that is linked to glibc.
    fn place_built(self, built: &Path, root: &Path) -> Result<PathBuf> {
        let layout = Layout { root: root.into(), prefix: "/usr".into() };
        let program = match self {
            Self::Portkeep | Self::Web | Self::Fleet => layout.place_program(built, self.name())?,
            Self::Winsock => {
                layout.place_winsock(built)?;
                let libraries = layout.below_prefix("lib");
                // Cargo strips no archives.
                STRIP.run(
                    STRIP
                        .command()
                        .args(["--strip-debug", "--enable-deterministic-archives"])
                        .arg(libraries.join("libportkeep_winsock.a")),
                )?;
                libraries.join("libportkeep_winsock.so.0")
            }
        };
        STRIP.run(STRIP.command().arg("--strip-unneeded").arg(&program))?;
        let documents = layout.below_prefix("share/doc").join(self.name());
        write(&documents.join("THIRD-PARTY.txt"), &licences::text(self.package())?)?;
        Ok(program)
    }

    const ALL: [Self; 4] = [Self::Portkeep, Self::Web, Self::Fleet, Self::Winsock];

    const fn name(self) -> &'static str {
        match self {
            Self::Portkeep => "portkeep",
            Self::Web => "portkeep-web",
            Self::Fleet => "portkeep-fleet",
            Self::Winsock => "portkeep-winsock",
        }
    }

    /// The maintainer scripts: the names in the .deb, and the folder in `packaging/debian`.
    const fn scripts(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Portkeep => (&["preinst", "postinst", "prerm", "postrm"], "debian"),
            Self::Web | Self::Fleet => (&["postinst", "prerm", "postrm"], "debian/service"),
            Self::Winsock => (&[], ""),
        }
    }

    /// The crate that it is built from.
    const fn package(self) -> &'static str {
        match self {
            Self::Portkeep => "portkeep-cli",
            Self::Web | Self::Fleet | Self::Winsock => self.name(),
        }
    }

    const fn summary(self) -> &'static str {
        match self {
            Self::Portkeep => "Port reservations that the kernel enforces",
            Self::Web => "Map of reserved ports in the browser, and metrics",
            Self::Fleet => "Same reserved ports on every host of a job",
            Self::Winsock => "Windows port reservations for C programs on Linux",
        }
    }

    const fn description(self) -> &'static [&'static str] {
        match self {
            Self::Portkeep => &[
                "A program reserves a block of TCP or UDP ports. Until the reservation",
                "ends, no other program can bind one of them, and the kernel gives none",
                "of them to outgoing connections. Linux 6.1 or newer and cgroup v2 are",
                "required.",
            ],
            Self::Web => &[
                "All ports of a machine in one picture: which are reserved and for whom,",
                "which are in use, and each refused bind at the moment it happens; and",
                "metrics for Prometheus. It only reads. The service is off by default.",
            ],
            Self::Fleet => &[
                "A job gets the same block of ports on all of its hosts, or on none. etcd",
                "decides which block, and the kernel of each host keeps all other programs",
                "off it. The service is off by default, because it requires etcd.",
            ],
            Self::Winsock => &[
                "WSAIoctl with SIO_ACQUIRE_PORT_RESERVATION and its sisters over Portkeep,",
                "with the declarations that Windows programs include: headers, a shared",
                "and a static library.",
            ],
        }
    }
}

/// The facts that the checks vary.
#[derive(Clone)]
struct Edition {
    version: String,
    abi: String,
}

impl Edition {
    fn new() -> Result<Self> {
        let header = read(&repository().join("crates/kernel/bpf/portkeep.h"))?;
        let abi = header.lines().find_map(|line| line.strip_prefix("#define PORTKEEP_ABI "));
        let abi = abi.context("portkeep.h has no PORTKEEP_ABI")?;
        Ok(Self { version: env!("CARGO_PKG_VERSION").into(), abi: abi.into() })
    }
}

/// All that the formats share.
#[derive(Clone)]
struct Job {
    /// Everything that had to be built, stripped: a folder `usr` for each package.
    built: Rc<TempDir>,
    out: PathBuf,
    /// Seconds since 1970: the time of everything in the packages.
    epoch: String,
    /// The newest version of glibc that the programs require.
    glibc: String,
    /// For checks: the packages are large, and are made quickly.
    short: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| target_folder().join("dist"));
    let out = std::path::absolute(&out).with_context(|| format!("looking for {}", out.display()))?;
    let job = Job::new(options.short, out)?;
    let edition = Edition::new()?;
    if !options.only_deb.is_empty() {
        return options.only_deb.iter().try_for_each(|name| {
            let (version, abi) = name.split_once(':').unwrap_or((name, &edition.abi));
            let edition = Edition { version: version.into(), abi: abi.into() };
            deb::make(&job, Kind::Portkeep, &edition)?;
            if edition.version == env!("CARGO_PKG_VERSION") {
                deb::make(&job, Kind::Web, &edition)?;
            }
            Ok(())
        });
    }
    let made = job.packages(&edition)?;
    job.list(&made)?;
    if options.twice {
        let other = tempfile::tempdir().context("making a temporary folder")?;
        job.again(other.path(), options.short)?;
    }
    if options.check {
        check::run(&job, &edition, &made)?;
    }
    if options.readme {
        readme::run(&made)?;
    }
    Ok(())
}

impl Job {
    fn new(short: bool, out: PathBuf) -> Result<Self> {
        let build = if short {
            Build { profile: "dev".into(), rustflags: Vec::new(), linker: None }
        } else {
            Build { profile: "dist".into(), rustflags: without_paths()?, linker: Some(old_glibc::linker()?) }
        };
        let epoch = epoch()?;
        fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
        let built = tempfile::tempdir().context("making a temporary folder")?;
        let folder = build.make()?;
        let mut glibc = String::new();
        for kind in Kind::ALL {
            let program = kind.place_built(&folder, &built.path().join(kind.name()))?;
            glibc = old_glibc::newer(&glibc, &old_glibc::required(&program)?);
        }
        println!("the programs require glibc {glibc}");
        if !short && old_glibc::newer(&glibc, old_glibc::OLDEST) != old_glibc::OLDEST {
            bail!("the programs require glibc {glibc} and must run with {}", old_glibc::OLDEST);
        }
        Ok(Self { built: Rc::new(built), out, epoch, glibc, short })
    }

    fn in_folder(&self, out: &Path) -> Self {
        Self { out: out.into(), ..self.clone() }
    }

    /// Lay out the files of a package.
    fn stage(&self, kind: Kind, root: &Path, prefix: &str) -> Result<()> {
        let layout = Layout { root: root.into(), prefix: prefix.into() };
        let documents = layout.below_prefix("share/doc").join(kind.name());
        match kind {
            Kind::Portkeep => layout.place_files()?,
            Kind::Web => layout.place_web_files()?,
            Kind::Fleet => layout.place_fleet_files()?,
            Kind::Winsock => {}
        }
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            write(&documents.join(licence), &read(&repository().join(licence))?)?;
        }
        let built = self.built.path().join(kind.name()).join("usr");
        CP.run(CP.command().args(["--archive", "--no-target-directory"]).arg(built).arg(layout.below_prefix("")))?;
        if kind == Kind::Winsock {
            let file = layout.below_prefix("lib/pkgconfig/portkeep-winsock.pc");
            write(&file, &read(&file)?.replace("prefix=/usr\n", &format!("prefix={prefix}\n")))?;
        }
        Ok(())
    }

    /// Every format of every package.
    fn packages(&self, edition: &Edition) -> Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        for kind in Kind::ALL {
            made.push(deb::make(self, kind, edition)?);
            made.push(rpm::make(self, kind, edition)?);
            made.push(archive::make(self, kind, edition)?);
        }
        Ok(made)
    }

    /// `SHA256SUMS` and `CONTENTS` beside the packages.
    fn list(&self, made: &[PathBuf]) -> Result<()> {
        let mut contents = String::new();
        let mut sum = SHA256SUM.command();
        sum.current_dir(&self.out);
        for path in made {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sum.arg(&name);
            let listing = match path.extension().and_then(|extension| extension.to_str()) {
                Some("deb") => deb::DPKG_DEB.output(deb::DPKG_DEB.command().arg("--contents").arg(path))?,
                Some("rpm") => rpm::RPM.output(rpm::RPM.command().args(["-qplv"]).arg(path))?,
                _ => archive::TAR.output(archive::TAR.command().args(["-tvf"]).arg(path))?,
            };
            contents.push_str(&format!("{name}\n\n{listing}\n"));
            let size = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
            println!("{} ({:.1} MB)", path.display(), size as f64 / 1e6);
        }
        write(&self.out.join("CONTENTS"), &contents)?;
        let sums = SHA256SUM.output(&mut sum)?;
        write(&self.out.join("SHA256SUMS"), &sums)
    }

    /// The same, built from a copy of the sources in another folder, has the same bytes.
    fn again(&self, folder: &Path, short: bool) -> Result<()> {
        let copy = folder.join("sources/of/the/second/build");
        fs::create_dir_all(&copy).with_context(|| format!("making {}", copy.display()))?;
        let archive = folder.join("sources.tar");
        let listed = folder.join("list");
        let tracked = Command::new("git")
            .current_dir(repository())
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("starting git")?;
        ensure!(tracked.status.success(), "git ls-files failed");
        fs::write(&listed, tracked.stdout).with_context(|| format!("writing {}", listed.display()))?;
        let tar = archive::TAR;
        tar.run(tar.command().current_dir(repository()).args(["--null", "-T"]).arg(&listed).arg("-cf").arg(&archive))?;
        tar.run(tar.command().arg("-C").arg(&copy).arg("-xf").arg(&archive))?;
        let out = folder.join("dist");
        let mut run = cargo();
        run.current_dir(&copy)
            .env("SOURCE_DATE_EPOCH", &self.epoch)
            .env("CARGO_TARGET_DIR", folder.join("target"))
            .args(["run", "--quiet", "--package=xtask", "--", "package", "--out"])
            .arg(&out)
            .args(short.then_some("--short"));
        ensure!(run.status().context("starting cargo")?.success(), "the second build failed");
        let sums = ["SHA256SUMS", "CONTENTS"];
        for name in sums {
            let (first, second) = (read(&self.out.join(name))?, read(&out.join(name))?);
            ensure!(first == second, "two builds differ in {name}:\n{first}\nand\n{second}");
        }
        println!("a second build has the same checksums");
        Ok(())
    }
}

/// Paths of this machine stay out of the programs.
fn without_paths() -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).context("HOME is not set")?;
    // The last one that fits counts: the target folder is often in the repository.
    let names = [(repository(), "/portkeep"), (home, "/cargo"), (target_folder(), "/target")];
    Ok(names.map(|(folder, name)| format!("--remap-path-prefix={}={name}", folder.display())).into())
}

/// `SOURCE_DATE_EPOCH`, or the time of the commit.
fn epoch() -> Result<String> {
    if let Ok(epoch) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    let log = Command::new("git").current_dir(repository()).args(["log", "-1", "--format=%ct"]).output();
    match log {
        Ok(log) if log.status.success() => Ok(String::from_utf8_lossy(&log.stdout).trim().to_owned()),
        _ => bail!("there is no commit to date the packages by: set SOURCE_DATE_EPOCH"),
    }
}

/// A script of `packaging/`, complete.
fn script(path: &str, kind: Kind, edition: &Edition) -> Result<String> {
    let packaging = repository().join("packaging");
    let functions = read(&packaging.join("functions.sh"))?;
    let text = read(&packaging.join(path))?.replace("@PACKAGE@", kind.name());
    Ok(text.replace("@functions.sh@", functions.trim_end()).replace("@ABI@", &edition.abi))
}
