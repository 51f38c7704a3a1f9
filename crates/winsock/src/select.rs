//! `select`, with Winsock's sets: a count and an array of sockets, of whatever
//! length the program was compiled with, and any socket in them.

use crate::{
    abi::Socket,
    descriptor::descriptor,
    error,
    memory::{self, Memory},
    startup,
};

/// Where the array begins: behind the count, aligned.
const ARRAY: usize = size_of::<Socket>();
const MOST: u32 = 65536;

struct Set {
    at: usize,
    sockets: Vec<Socket>,
}

impl Set {
    fn read(at: usize) -> Result<Self, i32> {
        if at == 0 {
            return Ok(Self { at, sockets: Vec::new() });
        }
        let count: u32 = memory::read(at).map_err(|_| error::WSAEFAULT)?;
        if count > MOST {
            return Err(error::WSAEINVAL);
        }
        let array = at.checked_add(ARRAY).ok_or(error::WSAEFAULT)?;
        let sockets = Memory::default().read_list(array, count as usize).map_err(|_| error::WSAEFAULT)?;
        Ok(Self { at, sockets })
    }

    /// Leave only the ready sockets in the set; returns how many there are.
    fn write(&self, ready: impl Fn(Socket) -> bool) -> Result<i32, i32> {
        if self.at == 0 {
            return Ok(0);
        }
        let left: Vec<Socket> = self.sockets.iter().copied().filter(|socket| ready(*socket)).collect();
        let memory = Memory::default();
        memory.write_list(self.at + ARRAY, &left).map_err(|_| error::WSAEFAULT)?;
        memory.write(self.at, left.len() as u32).map_err(|_| error::WSAEFAULT)?;
        Ok(left.len() as i32)
    }
}

fn milliseconds(timeout: usize) -> Result<i32, i32> {
    if timeout == 0 {
        return Ok(-1);
    }
    let time: libc::timeval = memory::read(timeout).map_err(|_| error::WSAEFAULT)?;
    if time.tv_sec < 0 || time.tv_usec < 0 {
        return Err(error::WSAEINVAL);
    }
    let up = time.tv_usec.saturating_add(999) / 1000;
    Ok(time.tv_sec.saturating_mul(1000).saturating_add(up).clamp(0, i32::MAX.into()) as i32)
}

pub(crate) fn select(read: usize, write: usize, except: usize, timeout: usize) -> Result<i32, i32> {
    startup::check()?;
    let wanted = [
        (Set::read(read)?, libc::POLLIN, libc::POLLIN | libc::POLLHUP | libc::POLLERR),
        (Set::read(write)?, libc::POLLOUT, libc::POLLOUT),
        // A failed connection is reported here.
        (Set::read(except)?, libc::POLLPRI, libc::POLLPRI | libc::POLLERR),
    ];
    let mut polled: Vec<libc::pollfd> = Vec::new();
    for (set, events, _) in &wanted {
        for s in &set.sockets {
            let fd = descriptor(*s)?;
            match polled.iter_mut().find(|entry| entry.fd == fd) {
                Some(entry) => entry.events |= events,
                None => polled.push(libc::pollfd { fd, events: *events, revents: 0 }),
            }
        }
    }
    if polled.is_empty() {
        return Err(error::WSAEINVAL);
    }
    let timeout = milliseconds(timeout)?;
    // SAFETY: the vector has as many entries as the call is passed.
    if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, timeout) } < 0 {
        return Err(error::of_last_errno());
    }
    if polled.iter().any(|entry| entry.revents & libc::POLLNVAL != 0) {
        return Err(error::WSAENOTSOCK);
    }
    let mut total = 0;
    for (set, _, counts) in &wanted {
        total += set.write(|s| polled.iter().any(|e| e.fd as Socket == s && e.revents & counts != 0))?;
    }
    Ok(total)
}

/// `select`. The first argument is ignored, as on Windows.
#[unsafe(no_mangle)]
pub extern "C" fn portkeep_ws_select(_count: i32, read: usize, write: usize, except: usize, timeout: usize) -> i32 {
    crate::value(-1, || select(read, write, except, timeout))
}

/// `FD_ISSET`.
#[unsafe(no_mangle)]
pub extern "C" fn __WSAFDIsSet(s: Socket, set: usize) -> i32 {
    crate::boundary(0, || Set::read(set).is_ok_and(|set| set.sockets.contains(&s)).into())
}
