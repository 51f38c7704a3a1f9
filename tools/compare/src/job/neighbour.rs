//! A hostile neighbour: it listens on ports that the kernel chooses, on ports it chooses itself, with SO_REUSEADDR and
//! without, and makes connections, all at random and without end. It keeps the last few dozen.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    thread,
    time::Duration,
};

use anyhow::Result;
use fastrand::Rng;
use socket2::{Domain, Socket, Type};

/// All ports that any of the subjects chooses from.
const PORTS: RangeInclusive<u16> = 15_000..=65_535;
const KEPT: usize = 48;
const PAUSE: Duration = Duration::from_micros(300);

pub(super) fn run(seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut kept: VecDeque<Vec<Socket>> = VecDeque::with_capacity(KEPT + 1);
    loop {
        let chosen = rng.u16(PORTS);
        let made = match rng.u8(0..4) {
            0 => listen(0, false),
            1 => listen(chosen, false),
            2 => listen(chosen, true),
            _ => connect(&sink),
        };
        // An attempt on a port of another program may fail. Go on with the next one.
        kept.extend(made);
        if kept.len() > KEPT {
            kept.pop_front();
        }
        thread::sleep(PAUSE);
    }
}

fn listen(port: u16, reuse: bool) -> io::Result<Vec<Socket>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(reuse)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1)?;
    Ok(vec![socket])
}

/// Both ends of a connection whose source port the kernel chooses.
fn connect(sink: &TcpListener) -> io::Result<Vec<Socket>> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Closes without TIME_WAIT. Otherwise no port would be left within a minute.
    client.set_linger(Some(Duration::ZERO))?;
    client.connect(&sink.local_addr()?.into())?;
    let (server, _) = sink.accept()?;
    Ok(vec![client, server.into()])
}
