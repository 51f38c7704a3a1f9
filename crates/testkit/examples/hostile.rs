//! A program that tries to get ports of other programs, for the test that boots a machine.
//!
//! `hostile hammer FILE PORT...` tries each of the TCP ports with every option that might help, without end, and writes
//! the results to FILE. `hostile try PORT` tries once and reports what it got. `hostile serve PORT` is an ordinary
//! service without Portkeep: it binds its port and sends its name to each client.

use std::{
    env, fs, io,
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// The pause between two ports. The machine is emulated, and other programs on it need time, too.
const PAUSE: Duration = Duration::from_millis(25);
const REPORT: Duration = Duration::from_millis(200);

type Arm = fn(&Socket) -> io::Result<()>;

const ARMS: &[(&str, Arm)] = &[
    ("plain", |_| Ok(())),
    ("reuseaddr", |socket| socket.set_reuse_address(true)),
    ("reuseport", |socket| socket.set_reuse_port(true)),
    ("both", |socket| socket.set_reuse_address(true).and_then(|()| socket.set_reuse_port(true))),
    ("freebind", |socket| socket.set_freebind_v4(true)),
    ("transparent", |socket| socket.set_ip_transparent_v4(true)),
    ("device", |socket| socket.bind_device(Some(b"lo"))),
];

fn addresses(port: u16) -> [SocketAddr; 4] {
    [
        (Ipv4Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
    ]
}

/// One try; `None` if this way is not possible here, as with options that require a capability.
fn attempt(address: SocketAddr, arm: Arm, protocol: Protocol) -> Option<io::Result<()>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).ok()?;
    arm(&socket).ok()?;
    Some(socket.bind(&address.into()).and_then(|()| socket.listen(1)))
}

#[derive(Default)]
struct Tally {
    tries: u64,
    refused: u64,
    /// Ports it got, and refusals whose reason is not that the port is in use.
    odd: Vec<String>,
}

impl Tally {
    fn round(&mut self, port: u16) {
        for address in addresses(port) {
            for (name, arm) in ARMS {
                for protocol in [Protocol::TCP, Protocol::MPTCP] {
                    match attempt(address, *arm, protocol) {
                        None => continue,
                        Some(Err(error)) if error.kind() == io::ErrorKind::AddrInUse => self.refused += 1,
                        Some(other) => self.odd.push(format!("{address} {name} {protocol:?}: {other:?}")),
                    }
                    self.tries += 1;
                }
            }
        }
    }

    /// Write words and numbers for a shell script.
    fn write(&self, file: &Path) -> io::Result<()> {
        let aside = file.with_extension("new");
        let odd = self.odd.iter().take(10).map(|text| format!("{text}\n")).collect::<String>();
        fs::write(&aside, format!("{} {} {}\n{odd}", self.tries, self.refused, self.odd.len()))?;
        fs::rename(aside, file)
    }
}

fn hammer(file: &Path, ports: &[u16]) -> io::Result<()> {
    let mut tally = Tally::default();
    let mut shown = Instant::now();
    loop {
        for port in ports {
            tally.round(*port);
            thread::sleep(PAUSE);
        }
        if shown.elapsed() >= REPORT {
            shown = Instant::now();
            tally.write(file)?;
        }
    }
}

fn try_once(port: u16) -> io::Result<()> {
    let mut tally = Tally::default();
    tally.round(port);
    println!("tried {} refused {}", tally.tries, tally.refused);
    tally.odd.iter().for_each(|text| println!("{text}"));
    if tally.odd.is_empty() { Ok(()) } else { Err(io::Error::other("not refused")) }
}

fn serve(port: u16) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(("0.0.0.0", port))?;
    for stream in listener.incoming() {
        // If the client has gone already, it needs no answer.
        let _ = stream.and_then(|mut stream| stream.write_all(b"plain\n"));
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let port = |text: &str| text.parse::<u16>().map_err(io::Error::other);
    let result = match arguments.as_slice() {
        ["hammer", file, ports @ ..] if !ports.is_empty() => ports
            .iter()
            .map(|text| port(text))
            .collect::<io::Result<Vec<_>>>()
            .and_then(|ports| hammer(Path::new(file), &ports)),
        ["try", text] => port(text).and_then(try_once),
        ["serve", text] => port(text).and_then(serve),
        _ => Err(io::Error::other("usage: hostile hammer FILE PORT... | try PORT | serve PORT")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile: {error}");
            ExitCode::FAILURE
        }
    }
}
