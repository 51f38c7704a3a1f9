//! Which sockets are in the way of a reservation, and which processes have them.

use std::collections::BTreeSet;

use portkeep::BoundSocket;
use portkeep_core::{PortRange, Transport};

use crate::{process::by_inode, vacancy::holders};

/// So many are named.
const NAMED: usize = 8;

/// The first few sockets on one port, in the calling thread's network namespace.
pub(super) fn sockets(transport: Transport, port: u16) -> Vec<BoundSocket> {
    let block = PortRange::single(port).expect("a bound port is not 0");
    sockets_in(transport, block, NAMED)
}

/// The first sockets on the ports of a block, `most` of them, with their processes as far as these can be seen. In the
/// calling thread's network namespace.
pub fn sockets_in(transport: Transport, block: PortRange, most: usize) -> Vec<BoundSocket> {
    let mut holders = holders(transport, block).unwrap_or_default();
    holders.truncate(most);
    let inodes: BTreeSet<u64> = holders.iter().filter_map(|holder| holder.inode).collect();
    let processes = by_inode(&inodes);
    let named = holders.into_iter().map(|holder| {
        let process = holder.inode.and_then(|inode| processes.get(&inode));
        BoundSocket {
            port: holder.local.port(),
            transport,
            state: Some(holder.state.to_owned()),
            local: Some(holder.local.to_string()),
            peer: holder.peer.map(|peer| peer.to_string()),
            process: process.cloned(),
        }
    });
    named.collect()
}

/// Which port of a block is in use and by which socket, in a sentence; `None` if no socket is listed. In the calling
/// thread's network namespace.
pub fn in_use(transport: Transport, block: PortRange) -> Option<String> {
    let port = holders(transport, block).ok()?.first()?.local.port();
    Some(sentence(transport, port, &sockets(transport, port)))
}

/// "8443/tcp is in use by pid 812 (nginx): listening".
pub(super) fn sentence(transport: Transport, port: u16, sockets: &[BoundSocket]) -> String {
    let Some(first) = sockets.first() else { return format!("{port}/{transport} is in use") };
    let state = first.state.as_deref().unwrap_or_default();
    let by = match &first.process {
        Some(process) => format!(" by {process}"),
        None if state == "closing" || state == "TIME-WAIT" => " by a connection that no process has open".into(),
        None => " by a process that cannot be seen from here".into(),
    };
    let peer = first.peer.as_ref().map_or_else(String::new, |peer| format!(" with {peer}"));
    format!("{port}/{transport} is in use{by}: {state}{peer}")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_named_with_its_process_and_its_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let client = TcpStream::connect(there).unwrap();
        let port = client.local_addr().unwrap().port();
        let found = sockets(Transport::Tcp, port);
        let of_client = found.iter().find(|socket| socket.peer.as_deref() == Some(&there.to_string())).unwrap();
        assert_eq!(
            (of_client.process.as_ref().map(|process| process.pid), of_client.state.as_deref()),
            (Some(std::process::id()), Some("connected"))
        );
        let text = sentence(Transport::Tcp, port, std::slice::from_ref(of_client));
        assert!(
            text.contains(&format!("by pid {}", std::process::id())) && text.ends_with(&there.to_string()),
            "{text}"
        );
        assert_eq!(sockets(Transport::Tcp, there.port()).first().unwrap().state.as_deref(), Some("listening"));
    }
}
