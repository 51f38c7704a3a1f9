//! The subjects that are written in Rust: Portkeep, and the methods that programs use without a library.
//!
//! The timed calls are those of the library. Ports for programs are reserved
//! with `portkeep acquire`, as a test suite in any language would.

use std::{
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use portkeep::{Require, Reservation};
use socket2::{Domain, Socket, Type};

use crate::{kit::Kit, subject::Subject};

pub(super) const NOBODY: u32 = 65534;

/// Ports in hand.
enum Hand {
    Empty,
    Sockets(#[expect(dead_code, reason = "kept open")] Vec<Socket>),
    Command(Child),
}

pub(super) fn run(subject: Subject, kit: &Path) -> Result<()> {
    let kit = Kit::at(kit);
    let mut hand = Hand::Empty;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let answer = match words[..] {
            ["get", count] => {
                let (holder, ports, now) = take(subject, &kit, count.parse()?)?;
                hand = now;
                ports.iter().fold(holder.to_string(), |line, port| format!("{line} {port}"))
            }
            ["hand"] => {
                // A holder of bound sockets must close them before others can bind the ports.
                if matches!(hand, Hand::Sockets(_)) {
                    hand = Hand::Empty;
                }
                "ok".into()
            }
            ["free"] => {
                if let Hand::Command(command) = std::mem::replace(&mut hand, Hand::Empty) {
                    end(command)?;
                }
                "ok".into()
            }
            ["time", iterations, count] => {
                let (iterations, count) = (iterations.parse::<u32>()?, count.parse()?);
                let begun = Instant::now();
                for _ in 0..iterations {
                    cycle(subject, count)?;
                }
                begun.elapsed().as_nanos().to_string()
            }
            _ => bail!("what is {line:?}?"),
        };
        println!("{answer}");
    }
    Ok(())
}

/// Take ports and give them back, once.
fn cycle(subject: Subject, count: u16) -> Result<()> {
    match subject {
        Subject::Kernel => Reservation::tcp().ports(count).require(Require::Kernel).acquire()?.release()?,
        Subject::Held => Reservation::tcp().ports(count).require(Require::Held).acquire()?.release()?,
        Subject::Bind0 => {
            for _ in 0..count {
                picked()?;
            }
        }
        _ => drop(bound(count)?),
    }
    Ok(())
}

fn take(subject: Subject, kit: &Kit, count: u16) -> Result<(u32, Vec<u16>, Hand)> {
    let own = std::process::id();
    match subject {
        Subject::Kernel | Subject::Held => {
            let (child, ports) = acquire(kit, count, subject == Subject::Kernel)?;
            Ok((child.id(), ports, Hand::Command(child)))
        }
        Subject::Bind0 => Ok((own, (0..count).map(|_| picked()).collect::<Result<_>>()?, Hand::Empty)),
        _ => {
            let sockets = bound(count)?;
            let ports = sockets.iter().map(port_of).collect::<Result<_>>()?;
            Ok((own, ports, Hand::Sockets(sockets)))
        }
    }
}

/// The port that the kernel chooses for a listener, which is closed at once.
fn picked() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port())
}

/// So many sockets on ports that the kernel chooses, without any option.
fn bound(count: u16) -> Result<Vec<Socket>> {
    let one = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
        Ok(socket)
    };
    (0..count).map(one).collect()
}

fn port_of(socket: &Socket) -> Result<u16> {
    Ok(socket.local_addr()?.as_socket().context("an internet address")?.port())
}

fn acquire(kit: &Kit, count: u16, kernel: bool) -> Result<(Child, Vec<u16>)> {
    let mut command = Command::new(kit.portkeep());
    command.args(["acquire", "--count", &count.to_string()]);
    // If kernel enforcement is not up, the command must not bring it up for the machine.
    command.env("PORTKEEP_PIN_DIR", kit.folder().join("no-pins")).env("PORTKEEP_ENFORCE", kit.folder());
    if kernel {
        command.args(["--scope", "cgroup"]);
    } else {
        // A user that may not bring kernel enforcement up gets held mode.
        command.uid(NOBODY).gid(NOBODY);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("starting portkeep")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    let [block, _, token] = words[..] else { bail!("portkeep acquire says {line:?}") };
    ensure!((token != "held") == kernel, "portkeep acquire says {line:?}, which is the wrong mode");
    let (first, last) = block.split_once('-').unwrap_or((block, block));
    let ports = (first.parse::<u16>()?..=last.parse()?).collect();
    Ok((child, ports))
}

/// Close its input, which ends it.
fn end(mut command: Child) -> Result<()> {
    drop(command.stdin.take());
    ensure!(command.wait()?.success(), "portkeep acquire failed");
    Ok(())
}
