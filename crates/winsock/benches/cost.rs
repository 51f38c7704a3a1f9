//! What WSAIoctl adds to the control code it stands on: both in turns, so that
//! whatever else the machine does falls on both.

use std::{hint::black_box, os::fd::AsRawFd, time::Instant};

use portkeep::control;
use portkeep_core::{Token, wire::AcquireRequest};
use portkeep_testkit::{Sandbox, kernel_or_skip, new_namespace};
use portkeep_winsock::{
    abi::{Instance, PortRange},
    ioctl::WSAIoctl,
    startup::{WSACleanup, WSAStartup},
};
use socket2::{Domain, Socket, Type};

const ROUNDS: usize = 60;
const CALLS: u32 = 2000;

const ACQUIRE: u32 = 0x9800_0064;
const RELEASE: u32 = 0x9800_0065;
const ASSOCIATE: u32 = 0x9800_0066;

fn address<T>(value: &T) -> usize {
    black_box(std::ptr::from_ref(value)) as usize
}

fn winsock(socket: &Socket, code: u32, input: usize, input_size: u32, output: usize, output_size: u32) {
    let mut returned = 0u32;
    let s = socket.as_raw_fd() as usize;
    let returned = black_box(&raw mut returned) as usize;
    let result = WSAIoctl(s, code, input, input_size, output, output_size, returned, 0, 0);
    assert_eq!(result, 0);
}

/// Nanoseconds for one call, on average.
fn time(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(name: &str, mut native: impl FnMut(), mut winsock: impl FnMut()) {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(time(&mut native));
        other.push(time(&mut winsock));
    }
    let (native, winsock) = (median(one), median(other));
    println!("{name:<42} native {native:7.0} ns   WSAIoctl {winsock:7.0} ns   added {:6.0} ns", winsock - native);
}

fn main() {
    if !kernel_or_skip("cost") {
        return;
    }
    Sandbox::get();
    new_namespace();
    let mut data = [0u64; 64];
    assert_eq!(WSAStartup(0x0202, data.as_mut_ptr() as usize), 0);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let keeper = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    control::acquire(&keeper, &AcquireRequest { count: 4, ..Default::default() }).expect("a reservation");
    let token = Token::new(control::granted(&keeper).expect("a grant").token).expect("a token");

    let on_stack = token.get();
    let on_heap = Box::new(token.get());
    compare(
        "associate, arguments on the stack",
        || control::associate(&socket, token).expect("associated"),
        || winsock(&socket, ASSOCIATE, address(&on_stack), 8, 0, 0),
    );
    compare(
        "associate, token on the heap",
        || control::associate(&socket, token).expect("associated"),
        || winsock(&socket, ASSOCIATE, address(&*on_heap), 8, 0, 0),
    );
    let range = PortRange { start: 0, count: 4 };
    compare(
        "acquire and release, on the stack",
        || {
            control::acquire(&socket, &AcquireRequest { count: 4, ..Default::default() }).expect("a reservation");
            let grant = control::granted(&socket).expect("a grant");
            control::release(&socket, Token::new(grant.token).expect("a token")).expect("released");
        },
        || {
            let mut instance = Instance::default();
            let instance = black_box(&raw mut instance) as usize;
            winsock(&socket, ACQUIRE, address(&range), 4, instance, 16);
            winsock(&socket, RELEASE, instance + 8, 8, 0, 0);
        },
    );
    WSACleanup();
}
