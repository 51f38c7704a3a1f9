//! Portkeep on small machines: without rights, in containers, without cgroup v2, with a read-only `/sys`, without an
//! agent, with few descriptors, with a full disk. The real command runs in each of these environments, and so does the
//! library if it behaves differently there.
//!
//! Each requires: a message that names the thing and what to do, the documented exit status, and nothing half-done left
//! behind. Held mode is required if it is a sensible fallback, and must not be used if enforcement was asked for.
//! `docs/guides/small-machines.md` is the table of it.

mod cgroup1;
mod container;
mod descriptors;
mod disk;
mod docs;
mod helper;
mod no_agent;
mod sys;
mod user;

use portkeep_testkit::machine::Machine;

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// A machine, or leave the test where the kernel tests cannot run.
macro_rules! machine {
    ($name:literal) => {
        $crate::machine!($name, $crate::Machine::new($crate::PORTKEEP, $name))
    };
    ($name:literal, $machine:expr) => {
        match portkeep_testkit::kernel_or_skip(concat!("small::", $name)) {
            true => $machine,
            false => return,
        }
    };
}
pub(crate) use machine;

/// An earlier failure has done no lasting harm.
#[track_caller]
fn works(machine: &Machine) {
    machine.portkeep(&["up"]).ok();
    let said = machine.portkeep(&["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]).ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("kernel\n", ""));
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Started by the other tests as an outsider.
#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    portkeep_testkit::machine::help();
}
