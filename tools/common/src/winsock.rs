//! Putting the headers, the libraries and the pkg-config file of the Winsock layer where a C compiler finds them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::repository;

/// Other spellings of the headers' names. On systems that ignore case they are the same file. They are made here and
/// are not in the source tree: it must be possible to check out the tree on such a system, and on one where no name
/// ends in a dot, as it does in one much-copied sample program.
pub const SPELLINGS: &[(&str, &str)] = &[
    ("Windows.h", "windows.h"),
    ("Windows.h.", "windows.h"),
    ("WINDOWS.H", "windows.h"),
    ("WinSock2.h", "winsock2.h"),
    ("Winsock2.h", "winsock2.h"),
    ("WINSOCK2.H", "winsock2.h"),
    ("winsock.h", "winsock2.h"),
    ("WinSock.h", "winsock2.h"),
    ("Winsock.h", "winsock2.h"),
    ("WS2tcpip.h", "ws2tcpip.h"),
    ("Ws2tcpip.h", "ws2tcpip.h"),
    ("WS2TCPIP.H", "ws2tcpip.h"),
    ("Ws2def.h", "ws2def.h"),
    ("WS2def.h", "ws2def.h"),
    ("Ws2ipdef.h", "ws2ipdef.h"),
    ("WS2ipdef.h", "ws2ipdef.h"),
    ("Ws2spi.h", "ws2spi.h"),
    ("WS2spi.h", "ws2spi.h"),
    ("Mstcpip.h", "mstcpip.h"),
    ("MSTcpIP.h", "mstcpip.h"),
    ("MSTcpip.h", "mstcpip.h"),
    ("MsTcpIp.h", "mstcpip.h"),
    ("Iphlpapi.h", "iphlpapi.h"),
    ("IPHlpApi.h", "iphlpapi.h"),
    ("IpHlpApi.h", "iphlpapi.h"),
    ("Sal.h", "sal.h"),
    ("TCHAR.H", "tchar.h"),
    ("TChar.h", "tchar.h"),
    ("MSWSock.h", "mswsock.h"),
    ("Mswsock.h", "mswsock.h"),
    ("MswSock.h", "mswsock.h"),
];

/// The name that programs look for at run time, which `build.rs` writes into the library. Its number is raised when
/// programs that were built with an earlier version can no longer use it.
const SHARED_LIBRARY: &str = "libportkeep_winsock.so.0";

/// The installed files.
#[derive(Debug)]
pub struct Installed {
    /// For `PKG_CONFIG_PATH`, if the prefix is not one pkg-config knows.
    pub pkg_config: PathBuf,
    /// For `LD_LIBRARY_PATH`, if the prefix is not one the loader knows.
    pub libraries: PathBuf,
    /// For Valgrind's `--suppressions`.
    pub suppressions: PathBuf,
}

/// The folder with the crate of the layer.
fn source() -> PathBuf {
    repository().join("crates/winsock")
}

/// Every header with its text, in the order of their names.
pub fn headers() -> Result<Vec<(String, String)>> {
    let folder = source().join("include");
    let mut headers = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        headers.push((entry.file_name().to_string_lossy().into_owned(), read(&entry.path())?));
    }
    headers.sort();
    Ok(headers)
}

/// Write the headers below `folder/include/portkeep-winsock`, copy the two libraries from the folder `built` to
/// `folder/lib`, and write the pkg-config file, for `prefix` as the place of the folder in an installed system, and what
/// Valgrind has to know.
pub fn install(folder: &Path, prefix: &Path, built: &Path) -> Result<Installed> {
    let include = folder.join("include/portkeep-winsock");
    let libraries = folder.join("lib");
    let pkg_config = libraries.join("pkgconfig");
    let share = folder.join("share/portkeep-winsock");
    for folder in [&include, &pkg_config, &share] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    for (name, text) in headers()? {
        write(&include.join(name), &text)?;
    }
    for (spelling, name) in SPELLINGS {
        // On a file system that ignores case it is there already.
        if !include.join(spelling).exists() {
            write(&include.join(spelling), &format!("#include \"{name}\"\n"))?;
        }
    }
    for (library, name) in
        [("libportkeep_winsock.a", "libportkeep_winsock.a"), ("libportkeep_winsock.so", SHARED_LIBRARY)]
    {
        // Replaced, not overwritten: a program may be running from the old one.
        let _ = fs::remove_file(libraries.join(name));
        let built = built.join(library);
        fs::copy(&built, libraries.join(name)).with_context(|| format!("copying {}", built.display()))?;
    }
    let link = libraries.join("libportkeep_winsock.so");
    let _ = fs::remove_file(&link);
    symlink(SHARED_LIBRARY, &link).with_context(|| format!("making {}", link.display()))?;
    let text = read(&source().join("portkeep-winsock.pc.in"))?
        .replace("@prefix@", &prefix.display().to_string())
        .replace("@version@", env!("CARGO_PKG_VERSION"));
    write(&pkg_config.join("portkeep-winsock.pc"), &text)?;
    let suppressions = share.join("valgrind.supp");
    write(&suppressions, &read(&source().join("portkeep-winsock.supp"))?)?;
    Ok(Installed { pkg_config, libraries, suppressions })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
