//! How often each operation was done, and with which results.

use portkeep_core::Errno;

/// Each outcome of an operation, and how often it was.
pub(super) type Outcomes = Vec<(String, u64)>;

/// Outcomes: 0 is success, others are error numbers.
pub(super) const OUTCOMES: usize = 134;

macro_rules! operations {
    ($($name:ident = $text:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Operation { $($name,)* }

        impl Operation {
            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub(super) const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

operations! {
    AcquireWildcard = "ACQUIRE, any ports",
    AcquirePool = "ACQUIRE of particular ports in the pool",
    AcquireOutside = "ACQUIRE of particular ports outside the pool",
    Answer = "the agent's answer to it",
    AcquireMalformed = "ACQUIRE, malformed",
    Release = "RELEASE",
    ReleaseForeign = "RELEASE of somebody else's token",
    Associate = "ASSOCIATE",
    AssociateForeign = "ASSOCIATE with somebody else's token",
    Draw = "bind to port 0, associated",
    BindInside = "bind inside the block, associated",
    BindOutside = "bind outside the block, associated",
    BindOwn = "bind of a port of one's own, not associated",
    BindOutsider = "bind of a reserved port by an outsider",
    BindUnreserved = "bind of some port",
    BindAny = "bind to port 0",
    ConnectDraw = "connect, associated",
    Connect = "connect without bind",
    Send = "send without bind",
    Listen = "listen without bind",
    Traffic = "listen, connect, accept and close",
    Dup = "dup, and close of the original",
    Fork = "close of the owner while a forked child holds it",
    ForkOutsider = "bind of the parent's ports in a forked child",
    ForkUser = "bind of others' ports after setuid",
    Pass = "descriptor passed to another process",
    Take = "descriptor taken from another process",
    BindTaken = "bind of a socket that was passed",
    Close = "close",
    Move = "move to another cgroup",
    Query = "query",
    Unheard = "attack: ACQUIRE that is refused, and closed unheard",
    Privileged = "attack: a user's ACQUIRE of privileged ports",
    Rebind = "attack: bind while a thread takes the socket's port away",
    Refill = "attack: bind while the entry is filled anew",
    Leftover = "attack: connection without SO_REUSEADDR left behind",
    BindGranted = "bind of a port just granted, within a second",
    Flood = "attack: agent's socket flooded",
    Elsewhere = "attack: ACQUIRE on a socket of another namespace",
    Create = "persistent: create",
    Delete = "persistent: delete",
    DropIn = "persistent: drop-in written, changed or removed",
    Reload = "persistent: reload",
    List = "persistent: list",
}

pub(super) const OPERATIONS: usize = Operation::ALL.len();

/// The name of an outcome.
pub(super) fn name(number: i32) -> String {
    match number {
        0 => "done".into(),
        libc::EEXIST => "EEXIST".into(),
        libc::EAGAIN => "EAGAIN".into(),
        libc::ECONNREFUSED => "ECONNREFUSED".into(),
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL".into(),
        libc::EBUSY => "EBUSY".into(),
        libc::ETIMEDOUT => "ETIMEDOUT".into(),
        libc::EPIPE => "EPIPE".into(),
        libc::ENOTCONN => "ENOTCONN".into(),
        libc::ENOBUFS => "ENOBUFS".into(),
        number => Errno(number).to_string(),
    }
}
