//! A server with four ports in a row. Each connection is sent the port that it came to.
//!
//!     cargo run -p portkeep --example four_ports            # four ports of the pool
//!     cargo run -p portkeep --example four_ports -- 7000    # 7000 to 7003 or none

use std::{error::Error, io::Write, net::Ipv6Addr, thread};

use portkeep::Reservation;

fn main() -> Result<(), Box<dyn Error>> {
    let mut request = Reservation::tcp().ports(4).label("four_ports");
    if let Some(start) = std::env::args().nth(1) {
        request = request.at(start.parse()?);
    }
    let reservation = request.acquire()?;
    println!("ports {}, {}", reservation.ports(), reservation.enforcement());

    // Until the last bind, no outsider can bind one of them, however long that is.
    let listeners: Result<Vec<_>, _> =
        reservation.ports().iter().map(|port| reservation.bind_tcp_port(Ipv6Addr::UNSPECIFIED, port)).collect();

    thread::scope(|scope| {
        for listener in listeners? {
            scope.spawn(move || {
                let port = listener.local_addr().map_or(0, |address| address.port());
                for connection in listener.incoming() {
                    // If a client has disconnected already, serve the next one.
                    let _ = connection.and_then(|mut connection| writeln!(connection, "this is port {port}"));
                }
            });
        }
        Ok(())
    })
}
