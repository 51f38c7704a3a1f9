//! The programs of a cgroup's hooks.

use std::fs::File;

use portkeep_kernel::hooks;
use portkeep_testkit::{
    World,
    bpf::{Other, attach_other},
};

#[test]
fn programs_of_a_cgroup_and_of_those_above_and_below_are_found() {
    let Some(world) = World::enter("hooks::programs") else { return };
    let cgroup = world.sandbox().cgroup();
    let below = cgroup.child("hooks").unwrap();
    attach_other(&File::open(&below).unwrap(), Other::AllowBind).unwrap();
    for folder in [cgroup.path(), &below] {
        let found = hooks::programs(folder).unwrap();
        let on = |cgroup| found.get(cgroup).unwrap_or_else(|| panic!("{found:?}"));
        for (name, hook) in
            [("portkeep_bind4", "bind4"), ("portkeep_set", "setsockopt"), ("portkeep_close", "sock_release")]
        {
            let own = on(cgroup.path()).iter().find(|program| program.name == name);
            assert!(own.is_some_and(|own| own.hook == hook && own.id > 0), "{name}: {found:?}");
        }
        let [foreign] = &on(&below)[..] else { panic!("{found:?}") };
        assert_eq!((&*foreign.name, foreign.hook), ("", "bind4"));
    }
    std::fs::remove_dir(below).unwrap();
    assert!(hooks::programs(std::path::Path::new("/no/such/cgroup")).is_err());
}
