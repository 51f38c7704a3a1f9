//! Many sockets, processes and reservations.

use std::{
    io::Read,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
};

use portkeep::Reservation;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    machine::Running,
    process::{Child, Talk},
};

/// The number of processes that hold the sockets: one process has at most some 20,000 descriptors.
const HOLDERS: usize = 4;

/// Bind `count` UDP sockets in a few processes, each on another local address. Call it before reservations are made:
/// the processes would have copies of their sockets.
///
/// # Panics
///
/// If it does not work; this applies to the other functions here, too.
pub fn sockets(count: usize) -> Vec<Child> {
    more_files();
    let mut holders =
        Vec::from_iter((0..HOLDERS).map(|holder| Child::fork(move |talk| hold(holder as u8, count, talk))));
    holders.iter_mut().for_each(|holder| assert_eq!(holder.talk.hear(), 1));
    holders
}

fn hold(holder: u8, count: usize, talk: &mut Talk) {
    let address = Ipv4Addr::new(127, 0, 1 + holder, 1);
    let sockets = (0..count / HOLDERS).map(|number| UdpSocket::bind((address, 35_000 + number as u16)).unwrap());
    let sockets = Vec::from_iter(sockets);
    talk.say(1);
    talk.try_hear();
    drop(sockets);
}

/// `count` reservations from the pool, of both transports and one to three ports.
pub fn reservations(count: usize) -> Vec<Reservation> {
    more_files();
    let label = |number: usize| format!("service-{}", number % 97);
    let reservation = |number: usize| {
        let request = if number.is_multiple_of(3) { Reservation::udp() } else { Reservation::tcp() };
        request.ports(1 + (number % 3) as u16).label(label(number)).acquire().unwrap()
    };
    (0..count).map(reservation).collect()
}

/// `count` workers of a server that share a listener on `port` (host byte order); one of them has `connections` to it.
/// Call it before other processes are forked: each process has copies of the earlier descriptors.
pub fn workers(count: usize, port: u16, connections: usize) -> Vec<Child> {
    more_files();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut all = Vec::from_iter((0..count).map(|number| {
        Child::fork(|talk| {
            let connect = |_| (TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap(), listener.accept().unwrap());
            let connected = Vec::from_iter((0..connections).filter(|_| number == 0).map(connect));
            talk.say(1);
            talk.try_hear();
            drop(connected);
        })
    }));
    all.iter_mut().for_each(|child| assert_eq!(child.talk.hear(), 1));
    all
}

/// `count` processes that have ten files open and do nothing.
pub fn processes(count: usize) -> Vec<Running> {
    let files = (3..10).map(|number| format!("exec {number}</dev/null; ")).collect::<String>();
    let script = format!("{files} echo; read -r end");
    let start = |_| {
        let mut command = Command::new("sh");
        Running(command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    };
    let mut all = Vec::from_iter((0..count).map(start));
    for process in &mut all {
        let output = process.0.stdout.as_mut().unwrap();
        assert_eq!(output.read(&mut [0]).unwrap(), 1, "it has its files");
    }
    all
}

fn more_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
