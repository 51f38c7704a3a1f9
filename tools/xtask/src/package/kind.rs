//! The packages: names, descriptions, scripts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use portkeep_tool::{Tool, repository};

use super::licences;
use crate::install::{Layout, read, write};

const STRIP: Tool = Tool { name: "strip", remedy: "apt-get install binutils" };

/// One package.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
    pub(super) fn place_built(self, built: &Path, root: &Path) -> Result<PathBuf> {
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

    pub(super) const ALL: [Self; 4] = [Self::Portkeep, Self::Web, Self::Fleet, Self::Winsock];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Portkeep => "portkeep",
            Self::Web => "portkeep-web",
            Self::Fleet => "portkeep-fleet",
            Self::Winsock => "portkeep-winsock",
        }
    }

    /// The maintainer scripts: the names in the .deb, and the folder in `packaging/debian`.
    pub(super) const fn scripts(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Portkeep => (&["preinst", "postinst", "prerm", "postrm"], "debian"),
            Self::Web | Self::Fleet => (&["postinst", "prerm", "postrm"], "debian/service"),
            Self::Winsock => (&[], ""),
        }
    }

    /// The crate that it is built from.
    pub(super) const fn package(self) -> &'static str {
        match self {
            Self::Portkeep => "portkeep-cli",
            Self::Web | Self::Fleet | Self::Winsock => self.name(),
        }
    }

    pub(super) const fn summary(self) -> &'static str {
        match self {
            Self::Portkeep => "Port reservations that the kernel enforces",
            Self::Web => "Map of reserved ports in the browser, and metrics",
            Self::Fleet => "Same reserved ports on every host of a job",
            Self::Winsock => "Windows port reservations for C programs on Linux",
        }
    }

    pub(super) const fn description(self) -> &'static [&'static str] {
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
pub(super) struct Edition {
    pub(super) version: String,
    pub(super) abi: String,
}

impl Edition {
    pub(super) fn new() -> Result<Self> {
        let header = read(&repository().join("crates/kernel/bpf/portkeep.h"))?;
        let abi = header.lines().find_map(|line| line.strip_prefix("#define PORTKEEP_ABI "));
        let abi = abi.context("portkeep.h has no PORTKEEP_ABI")?;
        Ok(Self { version: env!("CARGO_PKG_VERSION").into(), abi: abi.into() })
    }
}

/// A script of `packaging/`, complete.
pub(super) fn script(path: &str, kind: Kind, edition: &Edition) -> Result<String> {
    let packaging = repository().join("packaging");
    let functions = read(&packaging.join("functions.sh"))?;
    let text = read(&packaging.join(path))?.replace("@PACKAGE@", kind.name());
    Ok(text.replace("@functions.sh@", functions.trim_end()).replace("@ABI@", &edition.abi))
}
