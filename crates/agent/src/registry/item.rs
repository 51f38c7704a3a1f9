//! One declaration, and whether it is in force.

use portkeep::{
    BoundSocket, Info, PortList, State, Transports,
    persistent::{Declaration, Name},
};
use portkeep_kernel::Claim;
use portkeep_persist::Declared;

/// A declaration that is not in conflict.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) declared: Declared,
    pub(super) state: ItemState,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ItemState {
    /// Its blocks in the kernel, in their order.
    Active(Vec<Claim>),
    Waiting(Obstacle),
}

/// Why a declaration is not in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) why: String,
    /// Sockets that have to close. While there are any, the block is kept free of new automatic choices.
    pub(super) sockets: Vec<BoundSocket>,
    /// They belong to its audience, so `around` would allow them to stay.
    pub(super) in_audience: bool,
}

impl Obstacle {
    /// The reason and the next step, for a command that is refused.
    pub(super) fn refusal(&self) -> String {
        let next = match self.sockets.first() {
            _ if self.in_audience => "; if the reservation is for this process, add --around",
            Some(BoundSocket { process: Some(_), remaining: None, .. }) => "; stop it first",
            _ => "",
        };
        format!("{}{next}", self.why)
    }
}

impl From<String> for Obstacle {
    fn from(why: String) -> Self {
        Self { why, ..Self::default() }
    }
}

impl Item {
    pub(super) fn active(declared: Declared, blocks: Vec<Claim>) -> Self {
        Self { declared, state: ItemState::Active(blocks) }
    }

    pub(super) fn declaration(&self) -> &Declaration {
        &self.declared.declaration
    }

    pub(super) fn name(&self) -> &Name {
        &self.declaration().name
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.state, ItemState::Waiting(_))
    }

    /// Its blocks in the kernel, if it is in force.
    pub(super) fn blocks(&self) -> &[Claim] {
        match &self.state {
            ItemState::Active(blocks) => blocks,
            ItemState::Waiting(_) => &[],
        }
    }

    /// Its entry in listings.
    pub(super) fn info(&self) -> Info {
        match &self.state {
            ItemState::Active(blocks) => {
                let mut info = Info::declared(self.declaration(), &self.declared.origin, State::Active);
                info.set_tokens(blocks.iter().map(|(_, token, _)| Some(*token)));
                info
            }
            ItemState::Waiting(Obstacle { why, sockets, .. }) => {
                let mut info = not_in_force(&self.declared, State::Waiting, why.clone());
                info.waits_for.clone_from(sockets);
                info
            }
        }
    }
}

pub(super) fn not_in_force(Declared { declaration, origin }: &Declared, state: State, reason: String) -> Info {
    let mut info = Info::declared(declaration, origin, state);
    info.reason = Some(reason);
    info
}

/// The key of a reservation: in the kernel, ports belong to at most one.
pub(super) fn key_of(declaration: &Declaration) -> (PortList, Transports) {
    (declaration.ports.clone(), declaration.transports)
}
