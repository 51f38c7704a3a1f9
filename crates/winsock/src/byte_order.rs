//! `WSAHtons` and similar functions. In Winsock the protocol of a socket decides the byte order. Every protocol here
//! has network byte order.

use crate::{abi::Socket, descriptor::is_socket, error, memory, startup};

fn put<T: memory::Plain>(s: Socket, value: T, at: usize) -> i32 {
    crate::status(|| {
        startup::check()?;
        if !is_socket(s) {
            return Err(error::WSAENOTSOCK);
        }
        memory::write(at, value).map_err(|_| error::WSAEFAULT)
    })
}

fn swapped(long: usize) -> usize {
    (long as u32).to_be() as usize
}

/// `WSAHtonl`. A `u_long` is the system's.
#[unsafe(no_mangle)]
pub extern "C" fn WSAHtonl(s: Socket, host: usize, at: usize) -> i32 {
    put(s, swapped(host), at)
}

/// `WSAHtons`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAHtons(s: Socket, host: u16, at: usize) -> i32 {
    put(s, host.to_be(), at)
}

/// `WSANtohl`.
#[unsafe(no_mangle)]
pub extern "C" fn WSANtohl(s: Socket, network: usize, at: usize) -> i32 {
    put(s, swapped(network), at)
}

/// `WSANtohs`.
#[unsafe(no_mangle)]
pub extern "C" fn WSANtohs(s: Socket, network: u16, at: usize) -> i32 {
    put(s, network.to_be(), at)
}
