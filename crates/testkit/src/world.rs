use std::sync::{Mutex, MutexGuard, PoisonError};

use portkeep_kernel::Maps;

use crate::{Sandbox, attach::Needs, audit, new_namespace, possible};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A network namespace to experiment in. No other test of this binary has one at the same time: a child forked by one
/// test would keep the sockets of the other open.
#[derive(Debug)]
pub struct World {
    netns: u64,
    sandbox: &'static Sandbox,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    /// `None`, after a message to the user, where the kernel tests cannot run.
    #[track_caller]
    pub fn enter(test: &str) -> Option<Self> {
        Self::if_possible(test, Needs::Nothing)
    }

    /// The same, if there is a cgroup in which nothing is enforced, as for [`crate::outside_or_skip`].
    #[track_caller]
    pub fn with_outside(test: &str) -> Option<Self> {
        Self::if_possible(test, Needs::Outside)
    }

    #[track_caller]
    fn if_possible(test: &str, needs: Needs) -> Option<Self> {
        if !possible(test, needs) {
            return None;
        }
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Self { sandbox: Sandbox::get(), netns: new_namespace(), _alone: alone })
    }

    /// Cookie of the namespace.
    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// The sandbox this process lives in.
    pub fn sandbox(&self) -> &'static Sandbox {
        self.sandbox
    }

    /// The state.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn maps(&self) -> Maps {
        self.sandbox.loaded().maps().expect("the maps")
    }

    /// Everything in the maps explains everything else.
    ///
    /// # Panics
    ///
    /// If not.
    #[track_caller]
    pub fn assert_consistent(&self) {
        audit::assert_consistent(&self.maps());
    }

    /// The maps are consistent, and nothing is left of this test: no reservation, no claimed port, no bound socket.
    ///
    /// # Panics
    ///
    /// If not.
    #[track_caller]
    pub fn assert_empty(&self) {
        let maps = self.maps();
        audit::assert_consistent(&maps);
        audit::assert_empty(&maps, self.netns);
    }
}
