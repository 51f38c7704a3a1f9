//! The provider interface: `WSPStartup`'s table, and the way routines reach
//! their thread.
//!
//! On Windows the DLL above a provider gives it a table of upcalls. A program that calls [`WSPStartup`] itself may give
//! one here. Then completions go through the `WPUQueueApc` of this table. Otherwise they go through this layer's own.

use crate::{
    abi::{INVALID_SOCKET, SOCKET_ERROR, Socket, ThreadId, UserApc},
    error, memory, pending, provider_status as status, provider_value as value, result, select, socket, startup,
    upcall::{self, QueueApc},
    wait::{self, Apc},
};

/// `WPUQueueApc`.
#[unsafe(no_mangle)]
pub extern "C" fn WPUQueueApc(thread: usize, routine: usize, context: usize, error: usize) -> i32 {
    status(error, || {
        let id: ThreadId = memory::read(thread).map_err(|_| error::WSAEFAULT)?;
        memory::executable(routine).map_err(|_| error::WSAEFAULT)?;
        // SAFETY: a non-null address with code at it; the caller guarantees that such a routine is there.
        let routine = unsafe { std::mem::transmute::<usize, UserApc>(routine) };
        let thread = wait::thread_of(id).ok_or(error::WSAEFAULT)?;
        if wait::queue(thread, Apc::User(routine, context)) { Ok(()) } else { Err(error::WSAEFAULT) }
    })
}

/// `WPUOpenCurrentThread`.
#[unsafe(no_mangle)]
pub extern "C" fn WPUOpenCurrentThread(thread: usize, error: usize) -> i32 {
    status(error, || {
        memory::writable(thread, size_of::<ThreadId>()).map_err(|_| error::WSAEFAULT)?;
        memory::write(thread, wait::open_this_thread()).map_err(|_| error::WSAEFAULT)
    })
}

/// `WPUCloseThread`.
#[unsafe(no_mangle)]
pub extern "C" fn WPUCloseThread(thread: usize, error: usize) -> i32 {
    status(error, || {
        let id: ThreadId = memory::read(thread).map_err(|_| error::WSAEFAULT)?;
        wait::close(id.handle)
    })
}

type Pointer = usize;

extern "C" fn accept(s: Socket, name: Pointer, size: Pointer, condition: Pointer, _data: usize, e: Pointer) -> Socket {
    value(e, INVALID_SOCKET, || socket::accept_if(s, name, size, condition))
}

extern "C" fn bind(s: Socket, name: Pointer, size: i32, e: Pointer) -> i32 {
    status(e, || socket::bind(s, name, size))
}

extern "C" fn cleanup(e: Pointer) -> i32 {
    status(e, pending::cleanup)
}

extern "C" fn close_socket(s: Socket, e: Pointer) -> i32 {
    status(e, || socket::close(s))
}

extern "C" fn connect(
    s: Socket,
    name: Pointer,
    size: i32,
    _to: Pointer,
    _from: Pointer,
    _quality: Pointer,
    _group: Pointer,
    e: Pointer,
) -> i32 {
    status(e, || socket::connect(s, name, size))
}

extern "C" fn duplicate_socket(s: Socket, process: u32, info: Pointer, e: Pointer) -> i32 {
    status(e, || socket::duplicate(s, process, info))
}

extern "C" fn get_overlapped_result(s: Socket, at: Pointer, n: Pointer, wait: i32, flags: Pointer, e: Pointer) -> i32 {
    value(e, 0, || result::result(s, at, n, wait != 0, flags).map(|()| 1))
}

extern "C" fn get_peer_name(s: Socket, name: Pointer, size: Pointer, e: Pointer) -> i32 {
    status(e, || socket::getpeername(s, name, size))
}

extern "C" fn get_sock_name(s: Socket, name: Pointer, size: Pointer, e: Pointer) -> i32 {
    status(e, || socket::getsockname(s, name, size))
}

extern "C" fn get_sock_opt(s: Socket, level: i32, name: i32, value: Pointer, size: Pointer, e: Pointer) -> i32 {
    status(e, || socket::getsockopt(s, level, name, value, size))
}

extern "C" fn listen(s: Socket, backlog: i32, e: Pointer) -> i32 {
    status(e, || socket::listen(s, backlog))
}

extern "C" fn receive(
    s: Socket,
    buffers: Pointer,
    count: u32,
    moved: Pointer,
    flags: Pointer,
    overlapped: Pointer,
    _routine: Pointer,
    _thread: Pointer,
    e: Pointer,
) -> i32 {
    status(e, || socket::Transfer { s, buffers, count, moved, overlapped }.receive(flags, 0, 0))
}

extern "C" fn receive_from(
    s: Socket,
    buffers: Pointer,
    count: u32,
    moved: Pointer,
    flags: Pointer,
    from: Pointer,
    from_size: Pointer,
    overlapped: Pointer,
    _routine: Pointer,
    _thread: Pointer,
    e: Pointer,
) -> i32 {
    status(e, || socket::Transfer { s, buffers, count, moved, overlapped }.receive(flags, from, from_size))
}

extern "C" fn select(n: i32, read: Pointer, write: Pointer, except: Pointer, timeout: Pointer, e: Pointer) -> i32 {
    let _ = n;
    value(e, SOCKET_ERROR, || select::select(read, write, except, timeout))
}

extern "C" fn send(
    s: Socket,
    buffers: Pointer,
    count: u32,
    moved: Pointer,
    flags: u32,
    overlapped: Pointer,
    _routine: Pointer,
    _thread: Pointer,
    e: Pointer,
) -> i32 {
    status(e, || socket::Transfer { s, buffers, count, moved, overlapped }.send(flags, 0, 0))
}

extern "C" fn send_to(
    s: Socket,
    buffers: Pointer,
    count: u32,
    moved: Pointer,
    flags: u32,
    to: Pointer,
    to_size: i32,
    overlapped: Pointer,
    _routine: Pointer,
    _thread: Pointer,
    e: Pointer,
) -> i32 {
    status(e, || socket::Transfer { s, buffers, count, moved, overlapped }.send(flags, to, to_size))
}

extern "C" fn set_sock_opt(s: Socket, level: i32, name: i32, value: Pointer, size: i32, e: Pointer) -> i32 {
    status(e, || socket::setsockopt(s, level, name, value, size))
}

extern "C" fn shutdown(s: Socket, how: i32, e: Pointer) -> i32 {
    status(e, || socket::shutdown(s, how))
}

extern "C" fn new_socket(
    family: i32,
    kind: i32,
    protocol: i32,
    info: Pointer,
    _group: u32,
    flags: u32,
    e: Pointer,
) -> Socket {
    value(e, INVALID_SOCKET, || socket::wsa_socket(family, kind, protocol, info, flags))
}

/// Functions of Windows that this layer lacks. Each reports that at its own `lpErrno`.
mod missing {
    use super::{Pointer, Socket, error, status, value};

    pub(super) extern "C" fn three_or_so(_: Pointer, _: Pointer, _: Pointer, _: Pointer, e: Pointer) -> i32 {
        status(e, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn address_to_string(
        _: Pointer,
        _: u32,
        _: Pointer,
        _: Pointer,
        _: Pointer,
        e: Pointer,
    ) -> i32 {
        status(e, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn string_to_address(
        _: Pointer,
        _: i32,
        _: Pointer,
        _: Pointer,
        _: Pointer,
        e: Pointer,
    ) -> i32 {
        status(e, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn one(e: Pointer) -> i32 {
        status(e, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn two(_: Socket, _: Pointer, e: Pointer) -> i32 {
        status(e, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn three(_: Socket, _: Pointer, _: Pointer, e: Pointer) -> i32 {
        status(e, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn truth_of_three(_: Socket, _: Pointer, _: Pointer, e: Pointer) -> i32 {
        value(e, 0, || Err(error::WSAEOPNOTSUPP))
    }

    pub(super) extern "C" fn join_leaf(
        _: Socket,
        _: Pointer,
        _: i32,
        _: Pointer,
        _: Pointer,
        _: Pointer,
        _: Pointer,
        _: u32,
        e: Pointer,
    ) -> Socket {
        value(e, super::INVALID_SOCKET, || Err(error::WSAEOPNOTSUPP))
    }
}

/// `WSPPROC_TABLE`: thirty functions, in Microsoft's order.
fn table() -> [Pointer; 30] {
    [
        accept as *const () as Pointer,
        missing::address_to_string as *const () as Pointer,
        // WSPAsyncSelect
        missing::three_or_so as *const () as Pointer,
        bind as *const () as Pointer,
        // WSPCancelBlockingCall
        missing::one as *const () as Pointer,
        cleanup as *const () as Pointer,
        close_socket as *const () as Pointer,
        connect as *const () as Pointer,
        duplicate_socket as *const () as Pointer,
        // WSPEnumNetworkEvents, WSPEventSelect
        missing::three as *const () as Pointer,
        missing::three as *const () as Pointer,
        get_overlapped_result as *const () as Pointer,
        get_peer_name as *const () as Pointer,
        get_sock_name as *const () as Pointer,
        get_sock_opt as *const () as Pointer,
        // WSPGetQOSByName
        missing::truth_of_three as *const () as Pointer,
        crate::ioctl::WSPIoctl as *const () as Pointer,
        missing::join_leaf as *const () as Pointer,
        listen as *const () as Pointer,
        receive as *const () as Pointer,
        // WSPRecvDisconnect
        missing::two as *const () as Pointer,
        receive_from as *const () as Pointer,
        select as *const () as Pointer,
        send as *const () as Pointer,
        // WSPSendDisconnect
        missing::two as *const () as Pointer,
        send_to as *const () as Pointer,
        set_sock_opt as *const () as Pointer,
        shutdown as *const () as Pointer,
        new_socket as *const () as Pointer,
        missing::string_to_address as *const () as Pointer,
    ]
}

/// `WSPUPCALLTABLE`, passed by value as Microsoft has it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UpcallTable {
    before: [usize; 10],
    queue_apc: Option<QueueApc>,
    after: [usize; 4],
}

/// `WSPStartup`: the table of this provider. The error is the return value. Counts as a WSAStartup.
#[unsafe(no_mangle)]
pub extern "C" fn WSPStartup(wanted: u16, data: usize, _info: usize, upcalls: UpcallTable, procs: usize) -> i32 {
    /// WSPDATA: two versions and a text of 256 WCHARs.
    const DATA: usize = 4 + 256 * 4;
    crate::boundary(error::WSASYSNOTREADY, || {
        let table = table();
        if memory::writable(procs, size_of_val(&table)).is_err() || memory::writable(data, DATA).is_err() {
            return error::WSAEFAULT;
        }
        if upcalls.queue_apc.is_some_and(|upcall| memory::executable(upcall as *const () as usize).is_err()) {
            return error::WSAEFAULT;
        }
        let text: Vec<u32> = "Portkeep, port reservations for Linux\0".chars().map(u32::from).collect();
        let memory = memory::Memory::default();
        let written = memory
            .write(data, 0x0202_0202u32)
            .and_then(|()| memory.write_list(data + 4, &text))
            .and_then(|()| memory.write_list(procs, &table));
        if written.is_err() {
            return error::WSAEFAULT;
        }
        if wanted & 0xff != 2 {
            return error::WSAVERNOTSUPPORTED;
        }
        // If the table has this layer's own function, it is treated as none: queueing directly is shorter.
        let own = WPUQueueApc as *const () as usize;
        upcall::set(upcalls.queue_apc.filter(|upcall| *upcall as *const () as usize != own));
        startup::count();
        0
    })
}
