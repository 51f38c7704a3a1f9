//! TCP, UDP, or both.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A transport with ports that can be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// `IPPROTO_TCP` on a stream socket (not MPTCP).
    Tcp,
    /// `IPPROTO_UDP` on a datagram socket (not UDP-Lite).
    Udp,
}

impl Transport {
    /// Both, TCP first.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// Its bit on the wire (`PORTKEEP_TCP`, `PORTKEEP_UDP`).
    pub const fn bit(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Transport {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err("a transport is tcp or udp"),
        }
    }
}

/// The transports of a reservation: one, or with `both` the two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transports {
    /// TCP only.
    Tcp,
    /// UDP only.
    Udp,
    /// The same port numbers for TCP and UDP.
    Both,
}

impl Transports {
    /// The set of bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
            Self::Both => 3,
        }
    }

    /// The set with these bits.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(Self::Tcp),
            2 => Some(Self::Udp),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    /// Whether `transport` is one of them.
    pub const fn contains(self, transport: Transport) -> bool {
        self.bits() & transport.bit() != 0
    }

    /// Whether a transport is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.bits() & other.bits() != 0
    }

    /// The single transports, TCP first.
    pub fn iter(self) -> impl Iterator<Item = Transport> {
        Transport::ALL.into_iter().filter(move |transport| self.contains(*transport))
    }
}

impl From<Transport> for Transports {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "tcp+udp",
        })
    }
}

impl FromStr for Transports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "tcp+udp" => Ok(Self::Both),
            _ => Err("a transport is tcp, udp or tcp+udp"),
        }
    }
}
