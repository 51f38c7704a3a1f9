//! Where a wildcard request is placed.
//!
//! Next-fit over the pool: the search begins where the last block of the same
//! kind (TCP, UDP or both) in the same namespace ended, and comes round once.
//! So a block just given up is the last to be handed out again, and whoever
//! still sends to its ports does not reach a stranger.

use super::{Model, Namespace, Place};
use portkeep_core::{PortRange, Transports};

impl Model {
    pub(super) fn place(
        &mut self,
        namespace: Namespace,
        transports: Transports,
        count: u16,
        align: u16,
    ) -> Option<PortRange> {
        let pool = self.settings.pool?;
        let taken = self.taken();
        let free =
            |port: u16| transports.iter().all(|transport| !taken.contains(&Place { namespace, transport, port }));
        let fits = |start: &u16| {
            let block = PortRange::new(*start, count).ok();
            start.is_multiple_of(align)
                && block.is_some_and(|block| block.last() <= pool.last() && block.into_iter().all(free))
        };
        let cursor = self.cursors.entry((namespace, transports)).or_default();
        let from = u16::try_from(*cursor).ok().filter(|port| pool.contains(*port)).unwrap_or(pool.start());
        let start = (from..=pool.last()).chain(pool.start()..from).find(fits)?;
        *cursor = u32::from(start) + u32::from(count);
        PortRange::new(start, count).ok()
    }
}
