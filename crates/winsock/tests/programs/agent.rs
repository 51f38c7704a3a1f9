//! An agent for tests: it confirms every request, but some of them late and some never.

use std::{net::UdpSocket, sync::OnceLock, thread, time::Duration};

use portkeep::control;
use portkeep_core::wire::{AGENT_BEACON, AgentMark};
use portkeep_kernel::EventKind;
use portkeep_testkit::Sandbox;

/// Requests that start here are never confirmed.
const NEVER: std::ops::Range<u16> = 40000..41000;
/// Requests that start here are confirmed after [`LATE`].
const LATER: std::ops::Range<u16> = 41000..42000;
const LATE: Duration = Duration::from_millis(200);

/// Start it, once for all tests of this process.
pub(crate) fn start() {
    static BEACON: OnceLock<UdpSocket> = OnceLock::new();
    BEACON.get_or_init(|| {
        let sandbox = Sandbox::get();
        let maps = sandbox.loaded().maps().expect("the maps");
        let admin = sandbox.loaded().admin().expect("the administrator's door");
        let mut events = sandbox.loaded().events().expect("the events");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let secret = maps.config().expect("the configuration").secret;
        control::agent_mark(&socket, &AgentMark { secret, role: AGENT_BEACON, zero: 0 }).expect("a beacon");
        thread::spawn(move || {
            let mut late = Vec::new();
            loop {
                while let Some(event) = events.next_event() {
                    if event.kind != EventKind::Pending || NEVER.contains(&event.ports.start()) {
                        continue;
                    }
                    let pause = if LATER.contains(&event.ports.start()) { LATE } else { Duration::ZERO };
                    late.push((std::time::Instant::now() + pause, event.id));
                }
                late.retain(|(due, id)| {
                    if *due > std::time::Instant::now() {
                        return true;
                    }
                    if let Some(token) = maps.reservation(*id).ok().flatten().and_then(|r| r.token()) {
                        // Given back in the meantime, perhaps.
                        let _ = admin.confirm(*id, token);
                    }
                    false
                });
                thread::sleep(Duration::from_micros(200));
            }
        });
        socket
    });
}
