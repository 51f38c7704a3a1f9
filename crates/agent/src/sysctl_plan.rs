//! Changes to `ip_local_reserved_ports`, and the record of them.
//!
//! Others write there too, so an entry is removed only if we added it. Two steps around the change record this. The
//! record is right even if the agent is killed at any moment: before the change it contains what is about to be added,
//! and after the change only what is still needed. A record of too much is harmless for a moment, since the next round
//! removes entries that are not needed. A record of too little would leave an entry behind for ever.

use portkeep_core::PortSet;

/// The steps, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Remember as ours before anything is changed.
    pub(super) remember: PortSet,
    /// To be added.
    pub(super) add: PortSet,
    /// To be removed.
    pub(super) remove: PortSet,
    /// Remember as ours afterwards.
    pub(super) settled: PortSet,
}

/// `current` is in the sysctl, `ours` is remembered, and `wanted` has to be in it.
pub(super) fn plan(current: &PortSet, ours: &PortSet, wanted: &PortSet) -> Plan {
    let add = wanted.minus(current);
    let remember = ours.union(&add);
    Plan { remove: ours.minus(wanted).intersection(current), settled: remember.intersection(wanted), remember, add }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use portkeep_core::PortRange;

    use super::*;

    /// Few distinct ports, so that sets often overlap.
    fn any_set() -> impl Strategy<Value = PortSet> {
        let span = (1u16..40, 0u16..6).prop_map(|(first, more)| PortRange::inclusive(first, first + more).unwrap());
        prop::collection::vec(span, 0..8).prop_map(|spans| spans.into_iter().collect())
    }

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    /// A namespace's sysctl and our memory of it.
    #[derive(Clone)]
    struct World {
        sysctl: PortSet,
        ours: PortSet,
    }

    impl World {
        /// One round, killed before the given step.
        fn round(&mut self, wanted: &PortSet, killed_before: usize) {
            let plan = plan(&self.sysctl, &self.ours, wanted);
            let steps: [&dyn Fn(&mut Self); 4] = [
                &|world| world.ours = plan.remember.clone(),
                &|world| world.sysctl = world.sysctl.union(&plan.add),
                &|world| world.sysctl = world.sysctl.minus(&plan.remove),
                &|world| world.ours = plan.settled.clone(),
            ];
            steps.iter().take(killed_before).for_each(|step| step(self));
        }
    }

    #[test]
    fn entries_of_others_stay_when_ours_are_removed() {
        let mut world = World { sysctl: set("100,200-209"), ours: set("") };
        world.round(&set("205-214"), 4);
        assert_eq!((world.sysctl.to_string(), world.ours.to_string()), ("100,200-214".into(), "210-214".into()));
        world.round(&set(""), 4);
        assert_eq!((world.sysctl, world.ours), (set("100,200-209"), set("")));
    }

    #[test]
    fn an_entry_that_others_removed_is_entered_again() {
        let mut world = World { sysctl: set(""), ours: set("") };
        world.round(&set("50"), 4);
        world.sysctl = set("60");
        world.round(&set("50"), 4);
        assert_eq!(world.sysctl, set("50,60"));
    }

    proptest! {
        #[test]
        fn killed_at_any_step_the_next_round_puts_it_right(
            foreign in any_set(),
            rounds in prop::collection::vec((any_set(), 0usize..=4), 1..8),
            last in any_set(),
        ) {
            let mut world = World { sysctl: foreign.clone(), ours: PortSet::default() };
            for (wanted, killed_before) in rounds {
                world.round(&wanted, killed_before);
                prop_assert_eq!(world.sysctl.intersection(&foreign), foreign.clone());
            }
            world.round(&last, 4);
            prop_assert_eq!(&world.sysctl, &foreign.union(&last));
            world.round(&PortSet::default(), 4);
            prop_assert_eq!(world.sysctl, foreign);
            prop_assert!(world.ours.is_empty());
        }

        #[test]
        fn whatever_others_do_in_between_what_is_wanted_is_in_it(
            steps in prop::collection::vec((any_set(), any_set()), 1..8),
        ) {
            let mut world = World { sysctl: PortSet::default(), ours: PortSet::default() };
            for (foreign, wanted) in steps {
                world.sysctl = foreign;
                world.round(&wanted, 4);
                prop_assert!(wanted.minus(&world.sysctl).is_empty());
            }
        }
    }
}
