//! The steps of `up` that the BPF programs cannot do themselves.

use std::path::Path;

use anyhow::Context;
use portkeep_kernel::Instance;

use super::{overlap, policy::share_quotas, set_aside::set_aside_used_pool_ports};

/// The steps of `up` once the programs are attached. If one fails, the programs are removed again: if nobody knows
/// which pool ports are in use, no pool is better. Returns other problems.
pub fn after_up(instance: &Instance) -> anyhow::Result<Vec<String>> {
    let settled = steps(instance);
    if settled.is_err() {
        // Report the first error. A failure of these matters less.
        let _ = Instance::down(instance.folder());
        let _ = overlap::leave_overlap();
    }
    settled
}

fn steps(instance: &Instance) -> anyhow::Result<Vec<String>> {
    let complaints = share_quotas(&mut instance.maps()?, Path::new("/")).context("sharing quotas")?;
    overlap::enter_overlap(instance).context("keeping automatic choices off the pool")?;
    // The programs count the sockets that are bound from now on. Earlier sockets have to be looked for.
    set_aside_used_pool_ports(instance).context("looking for pool ports in use")?;
    Ok(complaints)
}
