//! The programs of a cgroup's hooks.

use portkeep_kernel::hooks;
use portkeep_testkit::World;

#[test]
fn programs_of_a_cgroup_and_of_those_above_it_are_found() {
    let Some(world) = World::enter("hooks::programs") else { return };
    let cgroup = world.sandbox().cgroup();
    let below = cgroup.child("hooks").unwrap();
    for folder in [cgroup.path(), &below] {
        let found = hooks::programs(folder).unwrap();
        for (name, hook) in
            [("portkeep_bind4", "bind4"), ("portkeep_set", "setsockopt"), ("portkeep_close", "sock_release")]
        {
            let own = found.iter().find(|program| program.name == name).unwrap_or_else(|| panic!("{name}: {found:?}"));
            assert!(own.hook == hook && own.id > 0, "{own:?}");
        }
    }
    std::fs::remove_dir(below).unwrap();
    assert!(hooks::programs(std::path::Path::new("/no/such/cgroup")).is_err());
}
