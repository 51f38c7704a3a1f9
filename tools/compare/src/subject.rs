//! The subjects that are compared.

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    Kernel,
    Held,
    Bind0,
    Hold,
    Portpicker,
    Portserver,
    PortkeepServer,
    GetPort,
    EphemeralPortReserve,
}

impl Subject {
    pub(super) const ALL: [Self; 9] = [
        Self::Kernel,
        Self::Held,
        Self::Bind0,
        Self::Hold,
        Self::Portpicker,
        Self::Portserver,
        Self::PortkeepServer,
        Self::GetPort,
        Self::EphemeralPortReserve,
    ];

    /// As tables name it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Kernel => "**Portkeep, kernel**",
            Self::Held => "**Portkeep, held**",
            Self::Bind0 => "`bind(0)`, then close",
            Self::Hold => "holding bound sockets",
            Self::Portpicker => "portpicker",
            Self::Portserver => "portpicker + portserver",
            Self::PortkeepServer => "**portpicker + `portkeep portserver`**",
            Self::GetPort => "get-port",
            Self::EphemeralPortReserve => "ephemeral-port-reserve",
        }
    }

    /// Its name on command lines.
    pub(super) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// All others are measured without kernel enforcement.
    pub(super) fn enforced(self) -> bool {
        matches!(self, Self::Kernel | Self::PortkeepServer)
    }

    /// Has a server that its clients ask.
    pub(super) fn has_server(self) -> bool {
        matches!(self, Self::Portserver | Self::PortkeepServer)
    }

    /// Its ports are for one user's processes, so outsiders are another user's.
    pub(super) fn is_for_a_user(self) -> bool {
        self == Self::PortkeepServer
    }

    /// A picker: it lets the kernel choose a port, lets it go, and returns its number.
    pub(super) fn picks(self) -> bool {
        matches!(self, Self::Bind0 | Self::Portpicker | Self::GetPort | Self::EphemeralPortReserve)
    }

    /// Measured so many times in a row. Those that leave something behind with each port must come to an end before
    /// they run out of ports.
    pub(super) fn iterations(self) -> u32 {
        match self {
            Self::Kernel | Self::Held | Self::Bind0 | Self::Hold => 500,
            // Its pool is the smaller one.
            Self::PortkeepServer => 20,
            _ => 40,
        }
    }
}
