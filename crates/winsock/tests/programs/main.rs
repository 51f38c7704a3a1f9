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

/// Say where nobody overlooks it that something was not tested.
fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    // Past the harness, which swallows what a passing test prints.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
