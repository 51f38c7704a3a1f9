//! Two ways to let others have a port: the token for a thread, and a socket for another process.
//!
//! An associated socket has the right itself, so the child does not need the token, and does not have to be in the
//! scope. Without kernel enforcement there is no association, and the child gets a socket that is already bound.
//!
//!     cargo run -p portkeep --example hand_over

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    thread,
};

use portkeep::{Enforcement, PortkeepSocket, Reservation, Token};
use socket2::{Domain, Protocol, Socket, Type};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn tcp() -> std::io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("child") {
        return child();
    }
    let reservation = Reservation::tcp().ports(2).label("hand_over").acquire()?;
    println!("ports {}, {}", reservation.ports(), reservation.enforcement());

    let token = reservation.token();
    thread::spawn(move || in_thread(token)).join().expect("the thread does not panic")?;

    let socket = tcp()?;
    match reservation.enforcement() {
        Enforcement::Kernel => reservation.associate(&socket)?,
        _ => drop(reservation.bind(&socket, ANY)?),
    }
    // Standard input is the simplest descriptor to inherit; SCM_RIGHTS works too.
    let status =
        Command::new(std::env::current_exe()?).arg("child").stdin(Stdio::from(OwnedFd::from(socket))).status()?;
    if status.success() { Ok(()) } else { Err(format!("the child: {status}").into()) }
}

fn in_thread(token: Token) -> std::io::Result<()> {
    let port = tcp()?.bind_from(token, ANY)?;
    println!("thread: bound to {port}");
    Ok(())
}

fn child() -> Result<(), Box<dyn Error>> {
    let socket = Socket::from(std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?);
    if socket.local_addr()?.as_socket().is_none_or(|address| address.port() == 0) {
        socket.bind(&ANY.into())?;
    }
    socket.listen(16)?;
    let listener = TcpListener::from(socket);
    println!("child {}: listening on {}", std::process::id(), listener.local_addr()?);
    Ok(())
}
