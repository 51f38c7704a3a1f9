//! The signals of a port server.

use std::{io, os::unix::net::UnixStream};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

/// SIGTERM, SIGINT and SIGUSR1 as bytes that can be waited for together with everything else.
pub(super) struct SignalPipe {
    pub(super) end: UnixStream,
    pub(super) statistics: UnixStream,
}

impl SignalPipe {
    pub(super) fn new() -> io::Result<Self> {
        let (end, writer) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGTERM, writer.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGINT, writer)?;
        let (statistics, writer) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGUSR1, writer)?;
        statistics.set_nonblocking(true)?;
        Ok(Self { end, statistics })
    }
}
