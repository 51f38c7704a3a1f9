//! ActiveMQ on its default ports, which lie in the pool.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::scenario::{Scenario, Surroundings, outcome};
use crate::suite::Outcomes;

const JAR: &str = "/usr/share/activemq/bin/activemq.jar";

pub(super) const ACTIVEMQ: Scenario =
    Scenario { name: "ActiveMQ on 61613, 61614 and 61616", programs: &["java", JAR], packages: "activemq", play };

fn play(surroundings: &Surroundings) -> Result<Outcomes> {
    let configuration = surroundings.configure("activemq.xml", include_str!("activemq.xml"))?;
    let mut java = surroundings.command("java");
    java.args(["-Xmx64m", "-Dactivemq.home=/usr/share/activemq"]);
    for property in ["base", "conf", "data"] {
        java.arg(format!("-Dactivemq.{property}={}", surroundings.path(property).display()));
        fs::create_dir(surroundings.path(property))?;
    }
    java.args(["-jar", JAR, "start", &format!("xbean:file:{}", configuration.display())]);
    // It opens them in the order of the file.
    let _server = surroundings.serve(java, 61614)?;
    Ok([(61616, outcome(openwire())), (61613, outcome(stomp(61613))), (61614, outcome(stomp(61614)))]
        .map(|(port, outcome)| (format!("port {port}"), outcome))
        .into())
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// The broker introduces itself.
fn openwire() -> Result<()> {
    let mut greeting = [0; 13];
    connect(61616)?.read_exact(&mut greeting)?;
    ensure!(greeting.ends_with(b"ActiveMQ"), "the greeting is {greeting:?}");
    Ok(())
}

/// A message to a queue and back.
fn stomp(port: u16) -> Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(b"CONNECT\naccept-version:1.2\nhost:localhost\n\n\0")?;
    expect(&mut stream, "CONNECTED\n", "")?;
    stream.write_all(b"SUBSCRIBE\nid:0\ndestination:/queue/harmless\nack:auto\n\n\0")?;
    stream.write_all(b"SEND\ndestination:/queue/harmless\n\na message\0")?;
    expect(&mut stream, "MESSAGE\n", "\na message")
}

/// A frame ends with a zero byte; line feeds may follow.
fn expect(stream: &mut TcpStream, begin: &str, end: &str) -> Result<()> {
    let mut frame = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match byte[0] {
            0 => break,
            b'\n' if frame.is_empty() => {}
            other => frame.push(other),
        }
    }
    let frame = String::from_utf8_lossy(&frame);
    ensure!(frame.starts_with(begin) && frame.ends_with(end), "the frame is {frame:?}");
    Ok(())
}
