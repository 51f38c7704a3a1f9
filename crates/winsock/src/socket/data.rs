//! Sending, receiving and polling.

use std::mem;

use crate::{
    abi::{Buffer, PollFd, Socket},
    descriptor::{check, check_count, count, descriptor, is_overlapped, length},
    error,
    memory::{self, Memory},
    startup,
};

/// Programs for Windows do not handle SIGPIPE.
const QUIET: i32 = libc::MSG_NOSIGNAL;

/// `send`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_send(s: Socket, data: usize, size: i32, flags: i32) -> i32 {
    portkeep_ws_sendto(s, data, size, flags, 0, 0)
}

/// `sendto`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_sendto(s: Socket, data: usize, size: i32, flags: i32, to: usize, to_size: i32) -> i32 {
    crate::value(-1, || {
        startup::check()?;
        let (fd, size, to_size) = (descriptor(s)?, count(size)?, length(to_size)?);
        // SAFETY: the kernel checks both addresses.
        check_count(unsafe { libc::sendto(fd, data as *const _, size, flags | QUIET, to as *const _, to_size) })
    })
}

/// `recv`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_recv(s: Socket, data: usize, size: i32, flags: i32) -> i32 {
    portkeep_ws_recvfrom(s, data, size, flags, 0, 0)
}

/// `recvfrom`.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_recvfrom(
    s: Socket,
    data: usize,
    size: i32,
    flags: i32,
    from: usize,
    from_size: usize,
) -> i32 {
    crate::value(-1, || {
        startup::check()?;
        let (fd, size) = (descriptor(s)?, count(size)?);
        // SAFETY: the kernel checks all addresses.
        check_count(unsafe { libc::recvfrom(fd, data as *mut _, size, flags, from as *mut _, from_size as *mut _) })
    })
}

/// The buffers of WSASend and WSARecv in the kernel's form.
fn vectors(buffers: usize, count: u32) -> Result<Vec<libc::iovec>, i32> {
    if count > 1024 {
        return Err(error::WSAEINVAL);
    }
    let buffers = Memory::default().read_list::<Buffer>(buffers, count as usize).map_err(|_| error::WSAEFAULT)?;
    let vector = |buffer: &Buffer| libc::iovec { iov_base: buffer.data as *mut _, iov_len: buffer.len as usize };
    Ok(buffers.iter().map(vector).collect())
}

/// The common part of WSASend and its three siblings.
pub(crate) struct Transfer {
    pub(crate) s: Socket,
    pub(crate) buffers: usize,
    pub(crate) count: u32,
    pub(crate) moved: usize,
    pub(crate) overlapped: usize,
}

impl Transfer {
    fn run(&self, act: impl FnOnce(i32, &mut libc::msghdr) -> isize) -> Result<(), i32> {
        startup::check()?;
        if self.overlapped != 0 && is_overlapped(self.s) {
            // Only the control codes are overlapped in this layer.
            return Err(error::WSAEOPNOTSUPP);
        }
        memory::writable(self.moved, 4).map_err(|_| error::WSAEFAULT)?;
        let mut vectors = vectors(self.buffers, self.count)?;
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len() as _;
        let moved = check_count(act(descriptor(self.s)?, &mut message))?;
        memory::write(self.moved, moved as u32).map_err(|_| error::WSAEFAULT)
    }

    pub(crate) fn send(&self, flags: u32, to: usize, to_size: i32) -> Result<(), i32> {
        let to_size = length(to_size)?;
        self.run(|fd, message| {
            message.msg_name = to as *mut _;
            message.msg_namelen = if to == 0 { 0 } else { to_size };
            // SAFETY: the kernel checks every address in the message, which lives until the call returns.
            unsafe { libc::sendmsg(fd, message, flags as i32 | QUIET) }
        })
    }

    pub(crate) fn receive(&self, flags: usize, from: usize, from_size: usize) -> Result<(), i32> {
        let asked: u32 = memory::read(flags).map_err(|_| error::WSAEFAULT)?;
        let size: i32 = if from == 0 { 0 } else { memory::read(from_size).map_err(|_| error::WSAEFAULT)? };
        let size = length(size)?;
        let mut said = (0, 0);
        self.run(|fd, message| {
            message.msg_name = from as *mut _;
            message.msg_namelen = size;
            // SAFETY: the kernel checks every address in the message, which lives until the call returns.
            let result = unsafe { libc::recvmsg(fd, message, asked as i32) };
            said = (message.msg_namelen, message.msg_flags);
            result
        })?;
        if from != 0 {
            memory::write(from_size, said.0).map_err(|_| error::WSAEFAULT)?;
        }
        memory::write(flags, said.1 as u32 & libc::MSG_OOB as u32).map_err(|_| error::WSAEFAULT)?;
        if said.1 & libc::MSG_TRUNC != 0 { Err(error::WSAEMSGSIZE) } else { Ok(()) }
    }
}

/// `WSASend`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSASend(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: u32,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.send(flags, 0, 0))
}

/// `WSASendTo`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSASendTo(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: u32,
    to: usize,
    to_size: i32,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.send(flags, to, to_size))
}

/// `WSARecv`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSARecv(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: usize,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.receive(flags, 0, 0))
}

/// `WSARecvFrom`, not overlapped.
#[unsafe(no_mangle)]
pub extern "C" fn WSARecvFrom(
    s: Socket,
    buffers: usize,
    count: u32,
    moved: usize,
    flags: usize,
    from: usize,
    from_size: usize,
    overlapped: usize,
    _routine: usize,
) -> i32 {
    crate::status(|| Transfer { s, buffers, count, moved, overlapped }.receive(flags, from, from_size))
}

/// `WSAPoll`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAPoll(list: usize, count: u32, timeout: i32) -> i32 {
    crate::value(-1, || {
        startup::check()?;
        let fault = |_| error::WSAEFAULT;
        if count == 0 || count > 65536 {
            return Err(error::WSAEINVAL);
        }
        let memory = Memory::default();
        memory.writable(list, count as usize * size_of::<PollFd>()).map_err(fault)?;
        let mut entries: Vec<PollFd> = memory.read_list(list, count as usize).map_err(fault)?;
        let mut polled: Vec<_> = entries
            .iter()
            .map(|entry| libc::pollfd { fd: descriptor(entry.socket).unwrap_or(-1), events: entry.events, revents: 0 })
            .collect();
        // SAFETY: the vector has `count` entries.
        let ready = check(unsafe { libc::poll(polled.as_mut_ptr(), count.into(), timeout) })?;
        for (entry, seen) in entries.iter_mut().zip(&polled) {
            entry.revents = seen.revents;
        }
        Memory::default().write_list(list, &entries).map_err(fault)?;
        Ok(ready)
    })
}
