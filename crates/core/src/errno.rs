//! Error numbers by name, so that code without I/O can use them without libc.

use std::fmt;

/// An error number as the control codes and `bind(2)` return it.
///
/// The values are those of Linux on x86-64 and every other architecture the
/// BPF programs are built for (`include/uapi/asm-generic/errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $meaning:literal;)*) => {
        impl Errno {
            $(#[doc = $meaning] pub const $name: Self = Self($number);)*

            /// The symbolic name, if it is one that Portkeep uses.
            pub const fn name(self) -> Option<&'static str> {
                match self { $(Self::$name => Some(stringify!($name)),)* _ => None }
            }

            /// The error number with this symbolic name, if Portkeep uses it.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)* _ => None }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Token of another process, or not in its scope.";
    ENOENT = 2, "Unknown, already released or zero token.";
    EINTR = 4, "Interrupted by a signal before anything was granted.";
    EBADF = 9, "Bad descriptor.";
    ENOMEM = 12, "The kernel could not allocate.";
    EACCES = 13, "Privileged ports without the right; an associated bind outside its block.";
    EFAULT = 14, "Pointer outside the address space.";
    EINVAL = 22, "Malformed request.";
    ENOSPC = 28, "No free run of that length in the pool.";
    ENOTSOCK = 88, "Not a socket.";
    ENOPROTOOPT = 92, "The control codes are not served here.";
    EOPNOTSUPP = 95, "The socket is neither TCP nor UDP.";
    EEXIST = 17, "There is one already.";
    EADDRINUSE = 98, "A port is in use or reserved.";
    ENETDOWN = 100, "The confirming agent is needed and not running.";
    EINPROGRESS = 115, "Claimed; the agent is checking whether the ports are vacant.";
    EDQUOT = 122, "Over the caller's quota.";
    ECANCELED = 125, "Cancelled, or the socket was closed under it.";
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}
