//! An even UDP port for RTP and the odd one behind it for RTCP (RFC 3550, section 11), in one step.
//!
//!     cargo run -p portkeep --example rtp_pair

use std::{error::Error, net::Ipv4Addr};

use portkeep::Reservation;

fn main() -> Result<(), Box<dyn Error>> {
    let pair = Reservation::udp().ports(2).align(2).label("rtp").acquire()?;
    println!("ports {}, {}", pair.ports(), pair.enforcement());

    let rtp = pair.bind_udp_port(Ipv4Addr::LOCALHOST, pair.ports().start())?;
    let rtcp = pair.bind_udp_port(Ipv4Addr::LOCALHOST, pair.ports().last())?;

    let caller = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    caller.send_to(b"media", rtp.local_addr()?)?;
    caller.send_to(b"control", rtcp.local_addr()?)?;
    for (name, socket) in [("RTP", rtp), ("RTCP", rtcp)] {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        println!("{name} on {}: {}", socket.local_addr()?, String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(())
}
