//! Where the BPF programs are attached: below the root of the hierarchy, as anywhere, or to the root itself, as users
//! have it. The latter only in a machine that was booted for these tests: everybody on it is held to the reservations.

use std::{env, fs, sync::OnceLock};

use crate::note;

/// Set in a machine that was booted for the tests, which runs each test binary twice. `root`: attached to the root of
/// the hierarchy; tests that need somebody who is not held are left to the other run. `below`: as anywhere, these only.
pub const ATTACH: &str = "PORTKEEP_TEST_ATTACH";

/// The word on the kernel's command line without which [`ATTACH`] is refused: no workstation is booted with it.
pub const GUEST: &str = "portkeep.guest";

/// The tests that this process has to run, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// Everything, in a cgroup of its own.
    Anywhere,
    /// All that can be run there, at the root.
    Root,
    /// The tests that could not run at the root, in a cgroup of their own.
    Below,
}

/// The needs of a test besides the BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// A cgroup in which nothing is enforced.
    Outside,
}

fn run() -> Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    *RUN.get_or_init(|| {
        let Some(value) = env::var_os(ATTACH) else { return Run::Anywhere };
        let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        assert!(
            words.split_ascii_whitespace().any(|word| word == GUEST),
            "{ATTACH} is set, but this machine was not booted for the tests ({GUEST} is not on its command line)"
        );
        match value.to_str() {
            Some("root") => Run::Root,
            Some("below") => Run::Below,
            _ => panic!("{ATTACH} is neither root nor below: {value:?}"),
        }
    })
}

/// True if what a test attaches belongs at the root of the hierarchy.
///
/// # Panics
///
/// If that is asked for on a machine that was not booted for it.
pub fn at_root() -> bool {
    run() == Run::Root
}

/// True if a test with such needs is for this run. Tests that are left to the other run are reported, and so are
/// those that this run takes up: the report on the guests compares both.
pub(crate) fn mine(test: &str, needs: Needs) -> bool {
    match (run(), needs) {
        (Run::Anywhere, _) | (Run::Root, Needs::Nothing) => true,
        (Run::Root, Needs::Outside) => {
            note(&format!("LEFT {test}: needs an outside"));
            false
        }
        (Run::Below, Needs::Outside) => {
            note(&format!("TAKEN {test}: needs an outside"));
            true
        }
        (Run::Below, Needs::Nothing) => false,
    }
}
