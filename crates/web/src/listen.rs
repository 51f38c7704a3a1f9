//! Where the server listens.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err("the path behind unix: must begin with /".into()),
            };
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| "not an address with a port, such as 127.0.0.1:7676 or [::1]:7676, nor unix:PATH".into())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Remove),
}

impl Listener {
    /// Listen there. Returns the address with its port, if the kernel chose it.
    pub(crate) async fn open(listen: &Listen) -> anyhow::Result<(Self, Listen)> {
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| {
                    format!("cannot listen on {address} (`portkeep who {}` shows who has the port)", address.port())
                })?;
                let address = listener.local_addr().context("asking for the address")?;
                Ok((Self::Tcp(listener), Listen::Tcp(address)))
            }
            Listen::Unix(path) => {
                let listener = remove_stale(path).and_then(|()| UnixListener::bind(path));
                let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
                let remove = Remove(path.clone());
                // The group may connect; the folder decides about the others.
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))
                    .with_context(|| format!("setting the mode of {}", path.display()))?;
                Ok((Self::Unix(listener, remove), listen.clone()))
            }
        }
    }
}

/// Removes the socket when the server ends.
#[derive(Debug)]
pub(crate) struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Remove a socket that no process listens on any more. Anything else stays, and the bind fails.
fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_a_path_is_accepted() {
        assert_eq!("[::1]:80".parse(), Ok(Listen::Tcp("[::1]:80".parse().unwrap())));
        assert_eq!("unix:/run/web.sock".parse(), Ok(Listen::Unix("/run/web.sock".into())));
        for wrong in ["7676", "localhost:7676", "unix:web.sock", ""] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }
}
