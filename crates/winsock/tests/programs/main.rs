//! C programs, compiled with the documented line and run as processes in the
//! sandbox: the layer as its users meet it.

mod compiler;
mod conformance;
mod declarations;
mod layout;
mod manual;
mod ported;
mod rules;
mod symbols;

/// Report where it is seen that something was not tested.
fn skipped(test: &str, why: &str) {
    portkeep_testkit::note(&format!("SKIPPED {test}: {why}"));
}
