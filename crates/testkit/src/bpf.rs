//! Small BPF programs of others, assembled by hand: those that an outsider could attach.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const LINK_CREATE: libc::c_long = 28;

const SOCKMAP: u32 = 15;
const CGROUP_SOCK_ADDR: u32 = 18;
const SK_LOOKUP: u32 = 30;
const ATTACH_BIND4: u32 = 8;
const ATTACH_SK_LOOKUP: u32 = 36;

/// One instruction: code, destination and source register, offset, number.
fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    u64::from(code) | u64::from(from << 4 | to) << 8 | u64::from(offset as u16) << 16 | u64::from(number as u32) << 32
}

const SET: u8 = 0xb7; // to = number
const MOVE: u8 = 0xbf; // to = from
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD: u8 = 0x61; // to = *(u32 *)(from + offset)
const STORE: u8 = 0x63; // *(u32 *)(to + offset) = from
const WIDE: u8 = 0x18; // two instructions: a descriptor if `from` is 1
const IF_EQUAL: u8 = 0x15;
const IF_NOT: u8 = 0x55;

fn bpf(command: libc::c_long, attr: &[u64]) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attribute, of the size given. Pointers in it are those of slices that
    // outlive the call; the commands here write through none of them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}

fn made(descriptor: libc::c_long) -> OwnedFd {
    // SAFETY: called with what bpf(2) has just made for us.
    unsafe { OwnedFd::from_raw_fd(descriptor as i32) }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn load(kind: u32, attach: u32, program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = [0; 9];
    attr[0] = pair(kind, program.len() as u32);
    attr[1] = program.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    attr[8] = pair(0, attach); // expected_attach_type, at byte 68
    bpf(PROG_LOAD, &attr).map(made)
}

/// A program that an outsider attaches to a cgroup of its own.
#[derive(Clone, Copy, Debug)]
pub enum Trick {
    /// Every bind is redirected to this port.
    Rewrite(u16),
    /// Every refusal by an earlier program is undone.
    Forgive,
}

/// Attach to a cgroup, for IPv4 binds only: beside other programs (`multi`), or alone (`BPF_F_ALLOW_OVERRIDE`).
pub fn attach_to_cgroup(cgroup: &File, trick: Trick, multi: bool) -> io::Result<()> {
    const SET_RETVAL: i32 = 187;
    let program = match trick {
        Trick::Rewrite(port) => vec![
            op(SET, 2, 0, 0, i32::from(port.to_be())),
            op(STORE, 1, 2, 24 /* user_port */, 0),
            op(SET, 0, 0, 0, 1),
            op(EXIT, 0, 0, 0, 0),
        ],
        Trick::Forgive => {
            vec![op(SET, 1, 0, 0, 0), op(CALL, 0, 0, 0, SET_RETVAL), op(SET, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]
        }
    };
    let program = load(CGROUP_SOCK_ADDR, ATTACH_BIND4, &program)?;
    let flags = if multi { 2 } else { 1 };
    let attr = [pair(cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32), pair(ATTACH_BIND4, flags)];
    bpf(PROG_ATTACH, &attr).map(drop)
}

/// The action of another program on a cgroup; [`attach_other`] attaches it.
#[derive(Clone, Copy, Debug)]
pub enum Other {
    /// Sets every IP_TOS to 0x10.
    RewriteTos,
    /// Reports that SO_PRIORITY is set, and does nothing.
    SkipPriority,
    /// Answers every getsockopt of level 0x504c with success and four bytes, the first of them 42.
    AnswerOwn,
    /// Refuses every IPv4 bind once the kernel has done it.
    RefuseAfterBind,
    /// Allows every IPv4 bind, as without it.
    AllowBind,
    /// Binds every socket that connects to a port of 127.0.0.1.
    BindAtConnect(u16),
}

/// Attach to a cgroup, beside others.
pub fn attach_other(cgroup: &File, other: Other) -> io::Result<()> {
    const CGROUP_SOCK: u32 = 9;
    const CGROUP_SOCKOPT: u32 = 25;
    const CONNECT4: u32 = 10;
    const POST_BIND4: u32 = 12;
    const GETSOCKOPT: u32 = 21;
    const SETSOCKOPT: u32 = 22;
    const BIND: i32 = 64;
    const STORE_NUMBER: u8 = 0x62; // *(u32 *)(to + offset) = number
    const STORE_BYTE: u8 = 0x72; // *(u8 *)(to + offset) = number
    const LOAD_WIDE: u8 = 0x79;
    const STORE_WIDE: u8 = 0x7a;
    const IF_ABOVE: u8 = 0x2d; // if to > from
    const LEVEL: i16 = 24;
    const NAME: i16 = 28;
    const LENGTH: i16 = 32;
    const RESULT: i16 = 36;
    let pass = [op(SET, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)];
    let only = |level: i32, name: i32, then: &[u64]| {
        let over = then.len() as i16;
        let mut program = vec![
            op(LOAD, 2, 1, LEVEL, 0),
            op(IF_NOT, 2, 0, over + 2, level),
            op(LOAD, 2, 1, NAME, 0),
            op(IF_NOT, 2, 0, over, name),
        ];
        program.extend_from_slice(then);
        program.extend_from_slice(&pass);
        program
    };
    let (kind, attach, program) = match other {
        Other::RewriteTos => {
            let then = [
                op(LOAD_WIDE, 3, 1, 8 /* optval */, 0),
                op(LOAD_WIDE, 4, 1, 16 /* optval_end */, 0),
                op(MOVE, 5, 3, 0, 0),
                op(ADD, 5, 0, 0, 4),
                op(IF_ABOVE, 5, 4, 1, 0),
                op(STORE_BYTE, 3, 0, 0, 0x10),
            ];
            (CGROUP_SOCKOPT, SETSOCKOPT, only(libc::SOL_IP, libc::IP_TOS, &then))
        }
        Other::SkipPriority => {
            let then = [op(SET, 2, 0, 0, -1), op(STORE, 1, 2, LENGTH, 0)];
            (CGROUP_SOCKOPT, SETSOCKOPT, only(libc::SOL_SOCKET, libc::SO_PRIORITY, &then))
        }
        Other::AnswerOwn => {
            let then = [
                op(LOAD_WIDE, 3, 1, 8, 0),
                op(LOAD_WIDE, 4, 1, 16, 0),
                op(MOVE, 5, 3, 0, 0),
                op(ADD, 5, 0, 0, 4),
                op(IF_ABOVE, 5, 4, 5, 0),
                op(STORE_BYTE, 3, 0, 0, 42),
                op(SET, 2, 0, 0, 4),
                op(STORE, 1, 2, LENGTH, 0),
                op(SET, 2, 0, 0, 0),
                op(STORE, 1, 2, RESULT, 0),
            ];
            (CGROUP_SOCKOPT, GETSOCKOPT, only(0x504c, 7, &then))
        }
        Other::AllowBind => (CGROUP_SOCK_ADDR, ATTACH_BIND4, pass.to_vec()),
        Other::RefuseAfterBind => (CGROUP_SOCK, POST_BIND4, vec![op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]),
        Other::BindAtConnect(port) => {
            let family_and_port = i32::from(libc::AF_INET as u16) | i32::from(port.to_be()) << 16;
            let mut program = vec![
                op(STORE_NUMBER, 10, 0, -16, family_and_port),
                op(STORE_NUMBER, 10, 0, -12, i32::from_ne_bytes([127, 0, 0, 1])),
                op(STORE_WIDE, 10, 0, -8, 0),
                op(MOVE, 2, 10, 0, 0),
                op(ADD, 2, 0, 0, -16),
                op(SET, 3, 0, 0, 16),
                op(CALL, 0, 0, 0, BIND),
            ];
            program.extend_from_slice(&pass);
            (CGROUP_SOCK_ADDR, CONNECT4, program)
        }
    };
    let program = load(kind, attach, &program)?;
    let attr = [pair(cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32), pair(attach, 2)];
    bpf(PROG_ATTACH, &attr).map(drop)
}

/// While this value exists, traffic to a port of the namespace goes to another socket.
pub struct Steering(#[allow(dead_code)] [OwnedFd; 3]);

/// Steer the calling thread's namespace.
pub fn steer(to: impl AsFd, port: u16) -> io::Result<Steering> {
    const LOOKUP: i32 = 1;
    const RELEASE: i32 = 86;
    const ASSIGN: i32 = 124;
    let map = made(bpf(MAP_CREATE, &[pair(SOCKMAP, 4), pair(8, 1), 0])?);
    let (key, value) = ([0u32], [to.as_fd().as_raw_fd() as u64]);
    bpf(MAP_UPDATE, &[pair(map.as_raw_fd() as u32, 0), key.as_ptr() as u64, value.as_ptr() as u64, 0])?;
    // Both jumps go to "return 1", the last but one.
    let program = [
        op(MOVE, 6, 1, 0, 0),
        op(LOAD, 2, 1, 60 /* local_port, host order */, 0),
        op(IF_NOT, 2, 0, 15, i32::from(port)),
        op(SET, 3, 0, 0, 0),
        op(STORE, 10, 3, -4, 0),
        op(WIDE, 1, 1, 0, map.as_raw_fd()),
        0,
        op(MOVE, 2, 10, 0, 0),
        op(ADD, 2, 0, 0, -4),
        op(CALL, 0, 0, 0, LOOKUP),
        op(IF_EQUAL, 0, 0, 7, 0),
        op(MOVE, 7, 0, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 7, 0, 0),
        op(SET, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, ASSIGN),
        op(MOVE, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, RELEASE),
        op(SET, 0, 0, 0, 1),
        op(EXIT, 0, 0, 0, 0),
    ];
    let program = load(SK_LOOKUP, ATTACH_SK_LOOKUP, &program)?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let attr = [pair(program.as_raw_fd() as u32, namespace.as_raw_fd() as u32), pair(ATTACH_SK_LOOKUP, 0)];
    let link = made(bpf(LINK_CREATE, &attr)?);
    Ok(Steering([map, program, link]))
}
