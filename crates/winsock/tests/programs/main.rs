//! C programs, compiled with the documented line and run as processes in the
//! sandbox: the layer as its users meet it.

mod agent;
mod compiler;
mod layout;
mod manual;
mod rules;
mod sample;
mod symbols;

use portkeep_testkit::{kernel_or_skip, new_namespace};

/// Say where nobody overlooks it that something was not tested.
fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    // Past the harness, which swallows what a passing test prints.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// In a network namespace of its own, with an agent running; false if this machine cannot.
fn kernel(test: &str) -> bool {
    if !kernel_or_skip(test) {
        return false;
    }
    agent::start();
    new_namespace();
    true
}
