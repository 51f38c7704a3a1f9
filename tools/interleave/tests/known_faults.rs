//! The object of commit 9edba43 had races that took ten thousand rounds on real CPUs to be seen. All are found here.

use portkeep_interleave::{explore, replay};

const OLD: &[u8] = include_bytes!("objects/portkeep-9edba43.bpf.o");

/// The scenario breaks, as it should, and the schedule found breaks it again.
#[track_caller]
fn breaks(scenario: &str, how: &str) {
    let report = explore(OLD, scenario, true).expect("the object and the scenario can be read");
    let found = report.outcome.expect_err("the old object has this fault");
    assert!(found.fault.contains(how), "{scenario} breaks in another way: {}", found.fault);
    let (trace, again) = replay(OLD, scenario, &found.schedule).expect("the schedule can be read");
    assert_eq!(again.as_deref(), Some(found.fault.as_str()), "the schedule leads to something else");
    assert!(trace.iter().any(|line| line.contains(".h:")), "the trace has no source lines");
}

#[test]
fn an_outsider_binds_a_reserved_port_by_an_entry_that_was_refilled() {
    breaks("refilled-entry", "which R3 has reserved");
}

#[test]
fn or_refilled_for_the_other_transport() {
    breaks("refilled-transport", "which R3 has reserved");
}

#[test]
fn or_refilled_in_another_namespace() {
    breaks("refilled-namespace", "which R3 has reserved");
}

#[test]
fn a_refused_request_whose_socket_closes_loses_its_entry() {
    breaks("refuse-close", "after everything has ended");
}

#[test]
fn a_reserved_port_is_held_for_an_instant_by_a_socket_that_is_disconnected() {
    breaks("disconnect-bind", "has held since before the bind began");
}

#[test]
fn a_use_is_counted_twice_after_another_program_has_refused() {
    breaks("bind-twice", "after everything has ended");
    breaks("bind-twice-after", "after everything has ended");
}

#[test]
fn two_draws_take_one_port() {
    breaks("draw-draw", "has to succeed");
}

#[test]
fn a_word_is_removed_while_somebody_acquires_in_it() {
    breaks("forget-acquire", "");
}
