//! Putting the headers, the libraries and the pkg-config file where a C
//! compiler finds them. `cargo run -p portkeep-winsock --example install -- PREFIX`.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

macro_rules! headers {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../include/", $name)))),*] };
}

/// Every header, with its text.
pub const HEADERS: &[(&str, &str)] = headers! {
    "portkeep_text.h" "portkeep_types.h" "sal.h" "tchar.h" "iphlpapi.h" "mstcpip.h" "mswsock.h" "windows.h" "winsock2.h"
    "ws2def.h" "ws2ipdef.h" "ws2spi.h" "ws2tcpip.h"
};

/// How programs also spell them, on systems where that makes no difference.
/// They are made here and are not in the source tree, which must be possible
/// to check out on just those systems (and none of them has a name that ends
/// in a dot, as in one much-copied sample program).
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

const PKG_CONFIG: &str = include_str!("../portkeep-winsock.pc.in");
const SUPPRESSIONS: &str = include_str!("../portkeep-winsock.supp");

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

/// Write the headers below `prefix/include/portkeep-winsock`, copy the two
/// libraries from the folder `built` to `prefix/lib`, and write the pkg-config
/// file and what Valgrind has to know.
pub fn install(prefix: &Path, built: &Path) -> io::Result<Installed> {
    let include = prefix.join("include/portkeep-winsock");
    let libraries = prefix.join("lib");
    let pkg_config = libraries.join("pkgconfig");
    fs::create_dir_all(&include)?;
    let share = prefix.join("share/portkeep-winsock");
    fs::create_dir_all(&pkg_config)?;
    fs::create_dir_all(&share)?;
    for (name, text) in HEADERS {
        fs::write(include.join(name), text)?;
    }
    for (spelling, name) in SPELLINGS {
        // On a file system that ignores case it is there already.
        if !include.join(spelling).exists() {
            fs::write(include.join(spelling), format!("#include \"{name}\"\n"))?;
        }
    }
    for (library, name) in
        [("libportkeep_winsock.a", "libportkeep_winsock.a"), ("libportkeep_winsock.so", SHARED_LIBRARY)]
    {
        // Replaced, not overwritten: a program may be running from the old one.
        let _ = fs::remove_file(libraries.join(name));
        fs::copy(built.join(library), libraries.join(name))?;
    }
    let link = libraries.join("libportkeep_winsock.so");
    let _ = fs::remove_file(&link);
    symlink(SHARED_LIBRARY, link)?;
    let text =
        PKG_CONFIG.replace("@prefix@", &prefix.display().to_string()).replace("@version@", env!("CARGO_PKG_VERSION"));
    fs::write(pkg_config.join("portkeep-winsock.pc"), text)?;
    let suppressions = share.join("valgrind.supp");
    fs::write(&suppressions, SUPPRESSIONS)?;
    Ok(Installed { pkg_config, libraries, suppressions })
}
