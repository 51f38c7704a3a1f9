//! The guest's file system.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};

use super::{binaries::Binaries, libraries};
use crate::kernels::Kernel;
use portkeep_tool::{Missing, Tool};

const CPIO: Tool = Tool { name: "cpio", remedy: "apt-get install cpio" };
const CP: Tool = Tool { name: "cp", remedy: "apt-get install coreutils" };
const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");
/// Mount points, and folders that programs expect.
const FOLDERS: [&str; 9] = ["bin", "dev", "etc", "lib", "proc", "run", "sys", "tmp", "root"];
/// Programs that tests start and that BusyBox lacks, or has with fewer options. Its shell prefers its own of everything.
const HOST: [Tool; 6] = [
    Tool { name: "/bin/dash", remedy: "apt-get install dash" },
    Tool { name: "/usr/bin/unshare", remedy: UTIL_LINUX },
    Tool { name: "/usr/bin/nsenter", remedy: UTIL_LINUX },
    Tool { name: "/usr/bin/setpriv", remedy: UTIL_LINUX },
    Tool { name: "/usr/bin/find", remedy: "apt-get install findutils" },
    Tool { name: "/usr/sbin/ip", remedy: "apt-get install iproute2" },
];
const UTIL_LINUX: &str = "apt-get install util-linux";
/// Accounts that tests name, and a file that nobody can execute.
const FILES: [(&str, &str); 4] = [
    ("etc/passwd", "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"),
    ("etc/group", "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\n"),
    ("etc/hostname", "guest\n"),
];

/// Found out before the long build.
pub(super) fn check() -> Result<()> {
    if !Path::new(BUSYBOX).exists() {
        return Err(Missing { what: BUSYBOX.into(), remedy: "apt-get install busybox-static".into() }.into());
    }
    for Tool { name, remedy } in HOST {
        if !Path::new(name).exists() {
            return Err(Missing { what: name.into(), remedy: remedy.into() }.into());
        }
    }
    CPIO.output(CPIO.command().arg("--version")).map(drop)
}

pub(super) fn pack(binaries: &Binaries, kernels: &[Kernel], short: bool, image: &Path) -> Result<()> {
    let stage = tempfile::tempdir().context("making a temporary folder")?;
    let root = stage.path();
    for folder in FOLDERS {
        fs::create_dir(root.join(folder)).with_context(|| format!("making {folder} for the guest"))?;
    }
    // Only this user can enter the temporary folder, but it becomes the root folder of all users.
    set_mode(root, 0o755)?;
    set_mode(&root.join("tmp"), 0o1777)?;
    let host = HOST.map(|tool| PathBuf::from(tool.name));
    let tests = binaries.tests.iter().map(|test| &test.path);
    let programs: Vec<PathBuf> = tests.chain(&binaries.programs).chain(&host).cloned().collect();
    let libraries = libraries::of(&programs)?;
    for path in programs.iter().chain(&libraries).map(PathBuf::as_path).chain([Path::new(BUSYBOX)]) {
        place(path, root)?;
    }
    std::os::unix::fs::symlink("dash", root.join("bin/sh")).context("making the guest's shell")?;
    for (path, text) in FILES {
        fs::write(root.join(path), text).with_context(|| format!("making {path} for the guest"))?;
    }
    let modules = root.join("lib/modules");
    fs::create_dir(&modules).context("making a folder for modules")?;
    for kernel in kernels {
        CP.run(CP.command().arg("-r").arg(&kernel.modules).arg(&modules))?;
    }
    write_script(&root.join("run-tests"), &run_tests(binaries, short)?)?;
    write_script(&root.join("init"), INIT)?;
    archive(root, image)
}

/// A file of this machine, in the guest under the same path: tests know where their programs were built.
fn place(path: &Path, root: &Path) -> Result<()> {
    let copy = root.join(path.strip_prefix("/").unwrap_or(path));
    if let Some(folder) = copy.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::copy(path, &copy).with_context(|| format!("copying {}", path.display()))?;
    Ok(())
}

fn run_tests(binaries: &Binaries, short: bool) -> Result<String> {
    // The guest exists for these tests only. If they cannot run, that is a failure.
    let mut script = String::from("export PORTKEEP_REQUIRE_KERNEL=1\n");
    if short {
        script += "export PORTKEEP_PROPERTY_CASES=20\n";
    }
    for test in &binaries.tests {
        writeln!(script, "run_test {} '{}'", test.name, test.path.display())?;
    }
    Ok(script)
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    set_mode(path, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

fn archive(root: &Path, image: &Path) -> Result<()> {
    let output = fs::File::create(image).with_context(|| format!("making {}", image.display()))?;
    let mut names = String::new();
    list(root, Path::new("."), &mut names)?;
    let mut cpio = CPIO.command();
    cpio.current_dir(root)
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(output);
    let mut cpio = CPIO.spawn(&mut cpio)?;
    let mut input = cpio.stdin.take().context("the input of cpio is not a pipe")?;
    input.write_all(names.as_bytes()).context("naming the files for cpio")?;
    drop(input);
    ensure!(cpio.wait().context("waiting for cpio")?.success(), "packing {} failed", image.display());
    Ok(())
}

/// Folders before what is in them, as the kernel unpacks in that order.
fn list(root: &Path, folder: &Path, names: &mut String) -> Result<()> {
    writeln!(names, "{}", folder.display())?;
    for entry in fs::read_dir(root.join(folder)).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, names)?;
        } else {
            writeln!(names, "{}", path.display())?;
        }
    }
    Ok(())
}
