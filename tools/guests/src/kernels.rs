//! Kernels, as Debian packages them for virtual machines. Everything that the kernel tests need is built into them; a whole
//! system needs some modules as well.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};

use portkeep_tool::{Missing, Tool};

const APT_GET: Tool = Tool { name: "apt-get", remedy: "kernels are fetched as Debian packages, so Debian is needed" };
const APT_CACHE: Tool = Tool { name: "apt-cache", remedy: APT_GET.remedy };
const DPKG_DEB: Tool = Tool { name: "dpkg-deb", remedy: "apt-get install dpkg" };
const TAR: Tool = Tool { name: "tar", remedy: "apt-get install tar" };

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Choice {
    #[value(name = "6.1")]
    Oldest,
    #[value(name = "6.12")]
    Newer,
    All,
}

impl Choice {
    pub(crate) fn releases(self) -> &'static [&'static str] {
        match self {
            Self::Oldest => &["6.1"],
            Self::Newer => &["6.12"],
            Self::All => &["6.1", "6.12"],
        }
    }
}

pub(crate) struct Kernel {
    pub(crate) release: &'static str,
    pub(crate) image: PathBuf,
    /// Its folder of modules, named for its version. [`MODULES`] are in there and no others.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    pub(crate) fn name(&self) -> String {
        self.image.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The newest kernel of a release: from the cache, or else from Debian.
pub(crate) fn get(release: &'static str, work: &Path) -> Result<Kernel> {
    let cache = work.join(format!("kernel-{release}"));
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    if let Some(kernel) = cached(release, &cache)? {
        return Ok(kernel);
    }
    let package = newest_package(release)?.ok_or_else(|| Missing {
        what: format!("a Debian kernel {release} (linux-image-{release}...-cloud-amd64)"),
        remedy: format!(
            "run `apt-get update` with the suites bookworm and bookworm-security among the sources, \
             or put a bzImage of that release at {0}/vmlinuz and its modules below {0}/{release}",
            cache.display()
        ),
    })?;
    println!("fetching {package}");
    APT_GET.run(APT_GET.command().current_dir(&cache).args(["--quiet=2", "download", &package]))?;
    let archive =
        find(&cache, &package)?.with_context(|| format!("apt-get left no {package} in {}", cache.display()))?;
    // An older one that is there in part would not go with the modules of this one.
    if let Some(image) = find(&cache, "vmlinuz")? {
        fs::remove_file(&image).with_context(|| format!("removing {}", image.display()))?;
    }
    extract(&archive, &cache)?;
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
    cached(release, &cache)?.with_context(|| format!("{package} holds no kernel, or no modules"))
}

fn cached(release: &'static str, cache: &Path) -> Result<Option<Kernel>> {
    let Some(image) = find(cache, "vmlinuz")? else { return Ok(None) };
    let Some(modules) = find(cache, release)? else { return Ok(None) };
    Ok(Some(Kernel { release, image, modules }))
}

fn find(folder: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn newest_package(release: &str) -> Result<Option<String>> {
    let names = APT_CACHE.output(APT_CACHE.command().args(["pkgnames", "linux-image-"]))?;
    let prefix = format!("linux-image-{release}.");
    let packages = names.lines().filter(|name| name.starts_with(&prefix) && name.ends_with("-cloud-amd64"));
    Ok(packages.max_by_key(|name| numbers(name)).map(str::to_owned))
}

/// The numbers in a name, in order: enough to compare versions of one package.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Those of sock_diag, of the NFS client, of nftables and of pairs of interfaces. All modules of a kernel would be a hundred
/// megabytes.
const MODULES: [&str; 9] = [
    "*/net/ipv4/*_diag.ko*",
    "*/net/sunrpc/*.ko*",
    "*/net/dns_resolver/*.ko*",
    "*/kernel/fs/[fln]*.ko*",
    "*/net/netfilter/nf*_*.ko*",
    "*/net/netfilter/nfnetlink.ko*",
    "*/netfilter/nf_defrag_*.ko*",
    "*/lib/libcrc32c.ko*",
    "*/drivers/net/veth.ko*",
];

fn extract(archive: &Path, folder: &Path) -> Result<()> {
    let mut unpack = DPKG_DEB.command();
    unpack.arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped());
    let mut unpack = DPKG_DEB.spawn(&mut unpack)?;
    let stream = unpack.stdout.take().context("the output of dpkg-deb is not a pipe")?;
    let mut tar = TAR.command();
    // ./boot/vmlinuz-VERSION becomes vmlinuz-VERSION, and ./lib/modules/VERSION/... becomes VERSION/...
    tar.arg("-C").arg(folder).args([
        "-x",
        "--transform=s,^\\./boot/,,;s,^\\./\\(usr/\\)*lib/modules/,,",
        "--wildcards",
    ]);
    tar.arg("./boot/vmlinuz-*").args(MODULES).stdin(stream);
    TAR.run(&mut tar)?;
    ensure!(unpack.wait().context("waiting for dpkg-deb")?.success(), "unpacking {} failed", archive.display());
    Ok(())
}
