//! A server as tests start it: it gets its port, and binds it after its start, with SO_REUSEADDR as nearly all servers
//! do. Then it reports the result.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::Result;

pub(super) const BOUND: &str = "bound";

pub(super) fn run(port: u16, delay: u64) -> Result<()> {
    thread::sleep(Duration::from_micros(delay));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    println!("{}", listener.as_ref().map_or_else(|error| error.to_string(), |_| BOUND.into()));
    // Until the program that started it closes its input.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
