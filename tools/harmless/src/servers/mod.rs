//! Servers from Debian's packages that bind ports of the pool, by default or at random. None of these is reserved.

mod activemq;
mod dns;
mod ftp;
mod mumble;
mod scenario;

use super::{server::installed, suite::Unit};

pub(super) fn units() -> Vec<Box<dyn Unit>> {
    let scenarios = [ftp::PROFTPD, dns::UNBOUND, dns::DNSMASQ, activemq::ACTIVEMQ, mumble::MUMBLE];
    let possible = scenarios.into_iter().filter(|it| installed(it.name, it.programs, it.packages));
    possible.map(|scenario| Box::new(scenario) as Box<dyn Unit>).collect()
}
