//! ASSOCIATE, and what sockets with a right to a port do with it.

use std::{io, net::SocketAddr, time::Duration};

use portkeep::control;
use portkeep_core::Transport;
use portkeep_testkit::sockets::{bind, port};

use super::{Association, Held, Operation, Worker, outcome};
use crate::ledger::{Entry, Grant};

impl Worker {
    /// A transport that the grant is of.
    fn transport_of(&mut self, grant: &Grant) -> Transport {
        let transport = self.transport();
        if grant.of(transport) {
            return transport;
        }
        if transport == Transport::Tcp { Transport::Udp } else { Transport::Tcp }
    }

    fn port_in(&mut self, grant: &Grant) -> u16 {
        grant.start + self.random.below(grant.count.into()) as u16
    }

    /// A grant of one's own, more often than not of the process.
    fn own_grant(&mut self) -> Option<(Entry, Grant)> {
        self.pick_grant().map(|(i, j)| self.held[i].owns[j])
    }

    fn associate(&mut self, operation: Operation, i: usize, (entry, grant): (Entry, Grant)) {
        let Some(token) = grant.token() else { return };
        let result = control::associate(&self.held[i].socket, token);
        let in_scope = grant.may_associate(&self.person);
        // A reservation in force all the while must be found, and a process in its scope must succeed.
        let still = self.ledger.is_certain(entry);
        let possible: &[i32] = match (in_scope, still) {
            (true, true) => &[],
            (true, false) => &[libc::ENOENT],
            (false, _) => &[libc::EPERM, libc::ENOENT],
        };
        let done = self.expect(operation, &grant.describe(), &result, possible);
        if done && !in_scope && still {
            let text = format!("{:?} is not in scope and could associate with {}", self.person, grant.describe());
            self.violation(&text, &[entry.holder()]);
        }
        if done {
            self.held[i].association = Some(Association { entry, grant });
        }
    }

    pub(super) fn associate_own(&mut self) {
        let Some(found) = self.own_grant() else { return self.associate_foreign() };
        let transport = self.transport_of(&found.1);
        let i = self.socket_for(Some(transport), Held::is_plain);
        // Making room may have ended it.
        if self.ledger.is_certain(found.0) {
            self.associate(Operation::Associate, i, found);
        }
    }

    pub(super) fn associate_foreign(&mut self) {
        let Some(found) = self.pick_foreign() else { return };
        let transport = self.transport_of(&found.1);
        let i = self.socket_for(Some(transport), Held::is_plain);
        self.associate(Operation::AssociateForeign, i, found);
    }

    fn pick_associated(&mut self) -> Option<(usize, Association)> {
        let i = self.pick(|held| held.is_plain() && held.association.is_some())?;
        Some((i, self.held[i].association?))
    }

    /// Errors an associated socket's bind can have: as long as the reservation is in force only "in use".
    fn refusals(&self, entry: Entry) -> &'static [i32] {
        if self.ledger.is_certain(entry) { &[libc::EADDRINUSE] } else { &[libc::EADDRINUSE, libc::EACCES] }
    }

    /// An associated socket has drawn a port.
    fn has_drawn(&mut self, i: usize) {
        let held = &self.held[i];
        let (port, transport) = (port(&held.socket), held.transport);
        let Some(Association { grant, .. }) = held.association else { return };
        if !grant.contains(port) {
            return self.violation(&format!("drew {port}/{transport} out of {}", grant.describe()), &[]);
        }
        match self.ledger.draw(transport, port) {
            Ok(drawn) => self.held[i].drawn = Some(drawn),
            Err(other) => {
                self.violation(&format!("{port}/{transport} of {} is drawn twice", grant.describe()), &[other]);
            }
        }
    }

    pub(super) fn draw(&mut self) {
        let Some((i, Association { entry, grant })) = self.pick_associated() else { return self.associate_own() };
        let result = bind(&self.held[i].socket, 0);
        let possible = self.refusals(entry);
        if self.expect(
            Operation::Draw,
            &format!("{} of {}", self.held[i].transport, grant.describe()),
            &result,
            possible,
        ) {
            self.held[i].bound = true;
            self.has_drawn(i);
        }
    }

    pub(super) fn bind_inside(&mut self) {
        let Some((i, Association { entry, grant })) = self.pick_associated() else { return };
        let port = self.port_in(&grant);
        if self.random.one_in(3) {
            let _ = self.held[i].socket.set_reuse_port(true);
        }
        let result = bind(&self.held[i].socket, port);
        let possible = self.refusals(entry);
        let what = format!("{port}/{} of {}", self.held[i].transport, grant.describe());
        if self.expect(Operation::BindInside, &what, &result, possible) {
            self.held[i].bound = true;
        }
    }

    pub(super) fn bind_outside(&mut self) {
        let Some((i, Association { grant, .. })) = self.pick_associated() else { return };
        let port = 1024 + self.random.below(64000) as u16;
        if grant.contains(port) {
            return;
        }
        let result = bind(&self.held[i].socket, port);
        let what = format!("{port}/{} by an associate of {}", self.held[i].transport, grant.describe());
        if self.expect(Operation::BindOutside, &what, &result, &[libc::EACCES]) {
            self.held[i].bound = true;
            self.violation(&format!("bound {what}"), &[]);
        }
    }

    /// An unmodified server (A7).
    pub(super) fn bind_own(&mut self) {
        let Some((entry, grant)) = self.own_grant() else { return };
        let transport = self.transport_of(&grant);
        let i = self.socket_for(Some(transport), |held| held.is_plain() && held.association.is_none());
        let port = self.port_in(&grant);
        let result = bind(&self.held[i].socket, port);
        let what = format!("{port}/{transport} of {}", grant.describe());
        if !self.expect(Operation::BindOwn, &what, &result, &[libc::EADDRINUSE]) {
            return;
        }
        self.held[i].bound = true;
        if self.ledger.is_certain(entry) && !grant.may_bind(&self.person) {
            self.violation(&format!("bound {what} without a right to"), &[]);
        }
    }

    /// A6.
    pub(super) fn connect_drawn(&mut self) {
        let Some((i, Association { entry, grant })) = self.pick_associated() else { return };
        let held = &self.held[i];
        let _ = held.socket.set_nonblocking(true);
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let v6 = held.socket.domain().is_ok_and(|domain| domain == socket2::Domain::IPV6);
        let to = if v6 { SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 9)) } else { to };
        let result = held.socket.connect(&to.into());
        let what = format!("{} from {}", held.transport, grant.describe());
        let mut possible = self.refusals(entry).to_vec();
        // No program listens there. A block of privileged ports requires a capability (bpf_bind asks for it).
        possible.extend([libc::EINPROGRESS, libc::ECONNREFUSED]);
        if grant.start < 1024 && self.person.uid != 0 {
            possible.push(libc::EACCES);
        }
        self.expect(Operation::ConnectDraw, &what, &result, &possible);
        let drew = [0, libc::EINPROGRESS, libc::ECONNREFUSED].contains(&outcome(&result));
        self.held[i].bound = drew;
        // A refused TCP connection may have given its port up by now.
        if drew && self.held[i].transport == Transport::Udp {
            self.has_drawn(i);
        }
        if self.held[i].transport == Transport::Tcp {
            self.close_one(i);
        }
    }

    /// A server and a client exchange a few bytes. Then the ports can be used again (A9).
    pub(super) fn traffic(&mut self) {
        let Some(found) = self.own_grant() else { return };
        if !found.1.of(Transport::Tcp) || !found.1.may_associate(&self.person) {
            return;
        }
        let Some(token) = found.1.token() else { return };
        let listener = portkeep_testkit::sockets::tcp();
        let result = self.converse(&listener, token);
        let (port, outcome) = (port(&listener), outcome(&result));
        let possible = [libc::EADDRINUSE, libc::EADDRNOTAVAIL, libc::EAGAIN, libc::EINPROGRESS];
        self.expect(Operation::Traffic, &format!("{port} of {}", found.1.describe()), &result, &possible);
        let still = self.ledger.is_certain(found.0);
        if outcome == 0 && still && !found.1.contains(port) {
            self.violation(&format!("drew {port} out of {}", found.1.describe()), &[]);
        }
    }

    fn converse(&mut self, listener: &socket2::Socket, token: portkeep_core::Token) -> io::Result<()> {
        control::associate(listener, token)?;
        bind(listener, 0)?;
        listener.listen(4)?;
        let client = portkeep_testkit::sockets::tcp();
        client.set_write_timeout(Some(Duration::from_secs(1)))?;
        if self.random.one_in(2) {
            control::associate(&client, token)?;
        }
        client.connect(&SocketAddr::from(([127, 0, 0, 1], port(listener))).into())?;
        listener.set_nonblocking(true)?;
        let (server, _) = listener.accept()?;
        match self.random.below(3) {
            0 => drop(server),
            1 => drop(client),
            _ => server.shutdown(std::net::Shutdown::Both)?,
        }
        Ok(())
    }
}
