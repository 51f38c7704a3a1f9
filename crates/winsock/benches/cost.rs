//! The additional cost of WSAIoctl over its control code. Both run in turns, in many short rounds, and the quickest
//! round counts. So other work of the machine affects neither of them.

use std::{hint::black_box, os::fd::AsRawFd, time::Instant};

use portkeep::control;
use portkeep_core::{Token, wire::AcquireRequest};
use portkeep_testkit::{Sandbox, kernel_or_skip, new_namespace};
use portkeep_winsock::{
    abi::{Instance, PortRange},
    ioctl::WSAIoctl,
    pending::WSACleanup,
    startup::WSAStartup,
};
use socket2::{Domain, Socket, Type};

const ROUNDS: usize = 400;
const CALLS: u32 = 300;

const ACQUIRE: u32 = 0x9800_0064;
const RELEASE: u32 = 0x9800_0065;
const ASSOCIATE: u32 = 0x9800_0066;

fn address<T: ?Sized>(value: &T) -> usize {
    black_box(std::ptr::from_ref(value)) as *const u8 as usize
}

fn winsock(socket: &Socket, code: u32, input: usize, input_size: u32, output: usize, output_size: u32) {
    let mut returned = 0u32;
    let returned = black_box(&raw mut returned) as usize;
    winsock_with(socket, code, input, input_size, output, output_size, returned);
}

fn winsock_with(
    socket: &Socket,
    code: u32,
    input: usize,
    input_size: u32,
    output: usize,
    output_size: u32,
    returned: usize,
) {
    let s = socket.as_raw_fd() as usize;
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

fn quickest(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

fn compare(name: &str, calls: f64, mut native: impl FnMut(), mut winsock: impl FnMut()) {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(time(&mut native));
        other.push(time(&mut winsock));
    }
    let (native, winsock) = (quickest(one), quickest(other));
    let (added, ratio) = ((winsock - native) / calls, winsock / native);
    println!(
        "{name:<46} native {native:5.0} ns  WSAIoctl {winsock:5.0} ns  {ratio:.2}  added to a call {added:4.0} ns"
    );
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
        "associate: all on the stack",
        1.0,
        || control::associate(&socket, token).expect("associated"),
        || winsock(&socket, ASSOCIATE, address(&on_stack), 8, 0, 0),
    );
    compare(
        "associate: token on the heap",
        1.0,
        || control::associate(&socket, token).expect("associated"),
        || winsock(&socket, ASSOCIATE, address(&*on_heap), 8, 0, 0),
    );
    let returned_on_heap = Box::new(0u32);
    compare(
        "associate: token, bytes returned on the heap",
        1.0,
        || control::associate(&socket, token).expect("associated"),
        || winsock_with(&socket, ASSOCIATE, address(&*on_heap), 8, 0, 0, address(&*returned_on_heap)),
    );
    let range = PortRange { start: 0, count: 4 };
    let native = || {
        control::acquire(&socket, &AcquireRequest { count: 4, ..Default::default() }).expect("a reservation");
        let grant = control::granted(&socket).expect("a grant");
        control::release(&socket, Token::new(grant.token).expect("a token")).expect("released");
    };
    compare("acquire, release: all on the stack", 2.0, native, || {
        let mut instance = Instance::default();
        let instance = black_box(&raw mut instance) as usize;
        winsock(&socket, ACQUIRE, address(&range), 4, instance, 16);
        winsock(&socket, RELEASE, instance + 8, 8, 0, 0);
    });
    // Each is on a page of its own, as far apart as possible.
    let pages: Vec<Box<[u64; 1024]>> = (0..3).map(|_| Box::new([0; 1024])).collect();
    let [range_at, instance, returned] = [0, 1, 2].map(|page| address(&pages[page][..]) + 4096);
    let one_page = address(&pages[0][..]) + 4096;
    // SAFETY: in the middle of an array of this program's own, and aligned to its words.
    unsafe { (range_at as *mut PortRange).write(range) };
    compare("acquire, release: all on one page of the heap", 2.0, native, || {
        winsock_with(&socket, ACQUIRE, one_page, 4, one_page + 64, 16, one_page + 128);
        winsock_with(&socket, RELEASE, one_page + 64 + 8, 8, 0, 0, one_page + 128);
    });
    compare("acquire, release: on three pages of the heap", 2.0, native, || {
        winsock_with(&socket, ACQUIRE, range_at, 4, instance, 16, returned);
        winsock_with(&socket, RELEASE, instance + 8, 8, 0, 0, returned);
    });
    WSACleanup();
}
