//! The namespaces that the agent keeps open.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use portkeep_observe::namespaces::hinted;
pub(crate) use portkeep_observe::namespaces::{Namespace, find, visible};

/// A namespace that was not found is not looked for again for this long: each search reads all processes.
const MISSED: Duration = Duration::from_secs(1);

/// Namespaces that are kept open, and those that were not found a moment ago.
#[derive(Debug, Default)]
pub(super) struct OpenNamespaces {
    open: HashMap<u64, Namespace>,
    missed: HashMap<u64, Instant>,
}

impl OpenNamespaces {
    /// The namespace with this cookie. It is looked for if necessary, and kept from now on. `hints` are ids of
    /// processes or threads that are probably in it.
    pub(super) fn get(&mut self, cookie: u64, hints: &[u32]) -> io::Result<&Namespace> {
        if !self.contains(cookie) && !self.keep_hinted(cookie, hints)? {
            self.missed.retain(|_, when| when.elapsed() < MISSED);
            if self.missed.contains_key(&cookie) {
                return Err(io::ErrorKind::NotFound.into());
            }
            match find(cookie)? {
                Some(namespace) => self.keep(namespace),
                None => drop(self.missed.insert(cookie, Instant::now())),
            }
        }
        self.open.get(&cookie).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Keep the namespace with this cookie, if one of the hints is in it. True if it is kept now.
    pub(super) fn keep_hinted(&mut self, cookie: u64, hints: &[u32]) -> io::Result<bool> {
        if !self.contains(cookie) {
            let Some(namespace) = hinted(cookie, hints)? else { return Ok(false) };
            self.keep(namespace);
        }
        Ok(true)
    }

    pub(super) fn contains(&self, cookie: u64) -> bool {
        self.open.contains_key(&cookie)
    }

    pub(super) fn keep(&mut self, namespace: Namespace) {
        self.open.entry(namespace.cookie).or_insert(namespace);
    }

    pub(super) fn let_go(&mut self, cookie: u64) {
        self.open.remove(&cookie);
    }

    pub(super) fn cookies(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use portkeep_kernel::netns::current_cookie;
    use portkeep_testkit::kernel_or_skip;

    use super::*;

    /// A search reads all processes, and users can cause any number of events about a namespace that is gone.
    #[test]
    fn a_namespace_that_was_not_found_is_not_looked_for_again_at_once() {
        // Root is required to enter a namespace.
        if !kernel_or_skip("a_namespace_that_was_not_found") {
            return;
        }
        const GONE: u64 = u64::MAX;
        let mut namespaces = OpenNamespaces::default();
        assert!(namespaces.get(GONE, &[]).is_err());
        assert!(namespaces.missed.contains_key(&GONE));
        // A search would find this namespace. The miss does not become old while the test runs.
        let own = current_cookie().unwrap();
        namespaces.missed.insert(own, Instant::now() + Duration::from_secs(3600));
        assert!(namespaces.get(own, &[]).is_err());
        // A hint costs no search.
        assert_eq!(namespaces.get(own, &[std::process::id()]).unwrap().cookie, own);
        namespaces.let_go(own);
        namespaces.missed.remove(&own);
        assert_eq!(namespaces.get(own, &[]).unwrap().cookie, own);
    }
}
