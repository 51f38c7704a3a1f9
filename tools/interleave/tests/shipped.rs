//! The checked-in object, in the short form.

use portkeep_interleave::{SCENARIOS, explore, is_known_limit};

/// The close leaves the count as it is, so it touches nothing that the other CPU reads. The scenario shows exactly
/// that.
const APART: &str = "connection-orphan";

fn short_form() {
    let object = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/kernel/bpf/portkeep.bpf.o"))
        .expect("the checked-in object can be read");
    for (name, _) in SCENARIOS {
        let report = explore(&object, name, true).expect("the object and the scenario can be read");
        match report.outcome {
            Ok(figures) => {
                assert!(!is_known_limit(name), "{name} is clean: take it off the list of known limits");
                assert!(figures.contended > 0 || *name == APART, "{name}: the CPUs never meet");
                assert!(figures.schedules > 1.0, "{name}: there is only one order");
            }
            Err(found) => {
                assert!(
                    is_known_limit(name),
                    "{name}: {}\n  --scenario {name} --replay {}",
                    found.fault,
                    found.schedule
                )
            }
        }
    }
}

#[test]
fn no_order_of_the_shipped_object_breaks_anything() {
    // The search is as deep as a schedule is long.
    let search = std::thread::Builder::new().stack_size(1 << 30).spawn(short_form);
    search.expect("a thread can be started").join().expect("all scenarios are clean");
}
