//! Network namespaces by their cookie.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// The cookie of the calling thread's network namespace, as `SO_NETNS_COOKIE` reports it.
pub fn current_cookie() -> io::Result<u64> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    crate::sys::netns_cookie(socket)
}

/// Cookie of the network namespace a socket is in.
pub fn cookie_of(socket: impl AsFd) -> io::Result<u64> {
    crate::sys::netns_cookie(socket)
}

/// The namespace behind a path such as `/proc/1/ns/net` or `/run/netns/blue`.
pub fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Run `work` on a thread of its own inside the namespace: a thread that has changed its namespace cannot be used for
/// anything else. Requires CAP_SYS_ADMIN.
pub fn within<T: Send>(netns: impl AsFd, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let netns = netns.as_fd();
    thread::scope(|scope| {
        scope
            .spawn(move || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
