//! The checked-in object, in the short form.

use portkeep_interleave::{SCENARIOS, explore};

#[test]
fn no_order_of_the_shipped_object_breaks_anything() {
    let object = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/kernel/bpf/portkeep.bpf.o"))
        .expect("the checked-in object can be read");
    // The search is as deep as a schedule is long.
    let search = std::thread::Builder::new().stack_size(1 << 30).spawn(move || {
        for (name, _) in SCENARIOS {
            let report = explore(&object, name, true).expect("the object and the scenario can be read");
            let figures = report.outcome.unwrap_or_else(|found| {
                panic!("{name}: {}\n  --scenario {name} --replay {}", found.fault, found.schedule)
            });
            assert!(figures.contended > 0, "{name}: the CPUs never meet");
            assert!(figures.schedules > 1.0, "{name}: there is only one order");
        }
    });
    search.expect("a thread can be started").join().expect("all scenarios are clean");
}
