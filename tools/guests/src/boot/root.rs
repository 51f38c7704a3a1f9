//! The machine's disk: the Debian of this machine with servers, the package of Portkeep,
//! and what is in `guest/`.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::{Context, Result, ensure};

use portkeep_tool::{Missing, Tool, cargo, debian};

use crate::kernels::Kernel;

const MKE2FS: Tool = Tool { name: "mke2fs", remedy: "apt-get install e2fsprogs" };
const TAR: Tool = Tool { name: "tar", remedy: "apt-get install tar" };
const CHROOT: Tool = Tool { name: "chroot", remedy: "apt-get install coreutils" };
const CP: Tool = Tool { name: "cp", remedy: CHROOT.remedy };
const TRUNCATE: Tool = Tool { name: "truncate", remedy: CHROOT.remedy };

macro_rules! guest {
    ($($name:literal => $to:literal)*) => { &[$(($to, include_str!(concat!("guest/", $name)))),*] };
}

/// Text files of the guest.
const FILES: &[(&str, &str)] = guest! {
    "check.sh" => "usr/lib/boot-test/check.sh"
    "firewall.sh" => "usr/lib/boot-test/firewall.sh"
    "firewall.nft" => "usr/lib/boot-test/firewall.nft"
    "ftpd.service" => "etc/systemd/system/ftpd.service"
    "media.toml" => "etc/portkeep/ports.d/media.toml"
    "check.service" => "etc/systemd/system/check.service"
    "early.service" => "etc/systemd/system/early.service"
    "outsider.service" => "etc/systemd/system/outsider.service"
    "squatter.socket" => "etc/systemd/system/squatter.socket"
    "squatter.service" => "etc/systemd/system/squatter.service"
    "listen.socket" => "etc/systemd/system/listen.socket"
    "listen@.service" => "etc/systemd/system/listen@.service"
    "listen.toml" => "usr/lib/portkeep/ports.d/listen.toml"
    "plain.service" => "etc/systemd/system/plain.service"
    "emulated.conf" => "etc/systemd/system.conf.d/emulated.conf"
    "portkeep.conf" => "etc/systemd/system/portkeep.service.d/emulated.conf"
    "accounts.conf" => "usr/lib/sysusers.d/boot-test.conf"
    "nginx.toml" => "usr/lib/portkeep/ports.d/nginx.toml"
    "alpha.toml" => "usr/lib/portkeep/ports.d/alpha.toml"
    "beta.toml" => "usr/lib/portkeep/ports.d/beta.toml"
    "redis.toml" => "etc/portkeep/ports.d/redis.toml"
    "plain.toml" => "etc/portkeep/ports.d/plain.toml"
};

/// Services that let the kernel choose ports, and programs for a firewall before them.
const FIREWALLED: &str = "inetutils-ftpd,nfs-common,rpcbind,nftables,iproute2";

/// Which units are started, and by which. The package enables its own.
const ENABLED: &[(&str, &str)] = &[
    ("basic.target.wants", "/etc/systemd/system/early.service"),
    ("sockets.target.wants", "/etc/systemd/system/squatter.socket"),
    ("sockets.target.wants", "/etc/systemd/system/listen.socket"),
    ("multi-user.target.wants", "/etc/systemd/system/outsider.service"),
    ("multi-user.target.wants", "/etc/systemd/system/plain.service"),
    ("multi-user.target.wants", "/etc/systemd/system/check.service"),
];

/// Servers that are started by a check.
const LATER: &[&str] = &["postgresql.service", "ssh.service", "chrony.service"];

/// Units that wait for a udev that is not there, or have nothing to do with this.
const MASKED: &[&str] = &[
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "console-getty.service",
    "systemd-logind.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "fstrim.timer",
    "nfs-client.target",
];

/// Found out before the long preparations.
pub(super) fn check() -> Result<()> {
    debian::check()?;
    MKE2FS.output(MKE2FS.command().arg("-V"))?;
    if !rustix::process::geteuid().is_root() {
        return Err(Missing { what: "root".into(), remedy: "files of several users are put on a disk".into() }.into());
    }
    Ok(())
}

pub(super) fn make(folder: &Path, kernels: &[Kernel], image: &Path) -> Result<()> {
    let base = debian::base(&format!("{},{FIREWALLED}", debian::SERVERS))?;
    let stage = tempfile::tempdir_in(folder).context("making a temporary folder")?;
    let root = stage.path();
    TAR.run(TAR.command().arg("-C").arg(root).args(["--numeric-owner", "-xpf"]).arg(&base))?;
    install(root)?;
    debian::place_hostile(root)?;
    place_guest(root)?;
    kernels.iter().try_for_each(|kernel| place_modules(kernel, root))?;
    // Only this user can enter the temporary folder, but it becomes the root folder of all users.
    set_mode(root, 0o755)?;
    let _ = fs::remove_file(image);
    TRUNCATE.run(TRUNCATE.command().arg("--size=1500M").arg(image))?;
    MKE2FS.run(MKE2FS.command().args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", "-d"]).arg(root).arg(image))
}

/// An earlier version of the package, installed; this one and one with another layout in the kernel, to be installed in
/// the guest.
fn install(root: &Path) -> Result<()> {
    let packages = root.join("usr/lib/boot-test");
    let mut package = cargo();
    package.args(["run", "--quiet", "--package=xtask", "--", "package", "--short"]);
    package.args(["--only-deb", "0.0.1", "--only-deb", env!("CARGO_PKG_VERSION"), "--only-deb", "9.0.0:999"]);
    let status = package.arg("--out").arg(&packages).status();
    ensure!(status.context("starting cargo xtask package")?.success(), "packaging failed");
    let own = env!("CARGO_PKG_VERSION");
    let all = [
        ("portkeep", "0.0.1", "old"),
        ("portkeep", own, "new"),
        ("portkeep", "9.0.0", "other"),
        ("portkeep-web", own, "web"),
    ];
    for (package, version, name) in all {
        let package = packages.join(format!("{package}_{version}_amd64.deb"));
        fs::rename(&package, packages.join(format!("{name}.deb")))
            .with_context(|| format!("moving {}", package.display()))?;
    }
    CHROOT.run(CHROOT.command().arg(root).args(["dpkg", "--install", "/usr/lib/boot-test/old.deb"]))?;
    CHROOT.run(CHROOT.command().arg(root).args(["systemctl", "--quiet", "disable"]).args(LATER))
}

/// Where the guest's own tools find them.
fn place_modules(kernel: &Kernel, root: &Path) -> Result<()> {
    let modules = root.join("usr/lib/modules");
    fs::create_dir_all(&modules).with_context(|| format!("making {}", modules.display()))?;
    CP.run(CP.command().arg("-r").arg(&kernel.modules).arg(&modules))?;
    CHROOT.run(CHROOT.command().arg(root).arg("depmod").arg(kernel.modules.file_name().unwrap_or_default()))
}

fn place_guest(root: &Path) -> Result<()> {
    for (to, text) in FILES {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap_or(root)).with_context(|| format!("making {}", to.display()))?;
        fs::write(&to, text).with_context(|| format!("writing {}", to.display()))?;
    }
    for (target, unit) in ENABLED {
        let folder = root.join("etc/systemd/system").join(target);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let link = folder.join(Path::new(unit).file_name().unwrap_or_default());
        symlink(unit, &link).with_context(|| format!("making {}", link.display()))?;
    }
    for unit in MASKED {
        let link = root.join("etc/systemd/system").join(unit);
        let _ = fs::remove_file(&link);
        symlink("/dev/null", &link).with_context(|| format!("making {}", link.display()))?;
    }
    // A machine with an id is not booted for the first time: units are enabled as they are here.
    let mut id = String::new();
    writeln!(id, "{:032x}", 0x706f_7274_6b65_6570_u128)?;
    fs::write(root.join("etc/machine-id"), id).context("writing the machine's id")
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}
