//! Where a wildcard request is placed.
//!
//! Next-fit over the pool: the search begins where the last block of the same kind (TCP, UDP or both) in the same
//! namespace ended, and goes round once. Ports that were closed lately come later, because connections may remain
//! there. So a block that was just given up is handed out again after all others, and late packets to its ports do not
//! reach its next holder. Ports that automatic choices may give to anybody come last of all (N3).

use std::collections::BTreeSet;

use super::{Model, Namespace, Place, Socket, id::places_of};
use portkeep_core::{Align, PortRange, Transports};

impl Model {
    pub(super) fn find_block(
        &mut self,
        namespace: Namespace,
        transports: Transports,
        count: u16,
        align: Align,
    ) -> Option<PortRange> {
        let pool = self.settings.pool?;
        let occupied: BTreeSet<Place> =
            self.sockets.values().filter(|s| s.is_counted()).filter_map(Socket::place).collect();
        let reserved = self.reserved();
        let free = |at: &Place| !reserved.contains(at) && !occupied.contains(at) && !self.aside.contains(at);
        let avoided = self.avoided.get(&namespace);
        let fits = |start: u16, fresh: bool, avoiding: bool| {
            let block = PortRange::new(start, count).ok().filter(|block| block.last() <= pool.last());
            align.allows(start)
                && block.is_some_and(|block| {
                    !(avoiding && avoided.is_some_and(|avoided| avoided.overlaps(block)))
                        && places_of(namespace, transports, block)
                            .all(|at| free(&at) && !(fresh && self.closed_lately.contains(&at)))
                })
        };
        let cursor = self.cursors.get(&(namespace, transports)).copied().unwrap_or_default();
        let from = u16::try_from(cursor).ok().filter(|port| pool.contains(*port)).unwrap_or(pool.start());
        let round = || (from..=pool.last()).chain(pool.start()..from);
        let start = [(true, true), (false, true), (false, false)]
            .into_iter()
            .find_map(|(fresh, avoiding)| round().find(|start| fits(*start, fresh, avoiding)))?;
        self.cursors.insert((namespace, transports), u32::from(start) + u32::from(count));
        PortRange::new(start, count).ok()
    }
}
