//! Where the BPF programs are attached: below the root of the hierarchy, as on any machine, or to the root itself, as
//! users have it. The latter is done only in a machine that was booted for these tests, since the reservations are then
//! enforced for every process on it.

use std::{env, fs, sync::OnceLock};

use crate::note;

/// Set in a machine that was booted for the tests; it runs each test binary twice. `root`: attached to the root of the
/// hierarchy. Tests that need a process without enforcement are left to the other run. `below`: attached as on any
/// machine, for these tests only.
pub const ATTACH: &str = "PORTKEEP_TEST_ATTACH";

/// The word that the kernel's command line must have, otherwise [`ATTACH`] is refused: no workstation is booted with
/// it.
pub const GUEST: &str = "portkeep.guest";

/// The tests that this process has to run, and where the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// Everything, in a cgroup of its own.
    Anywhere,
    /// All tests that are possible there, at the root.
    Root,
    /// The tests that were not possible at the root, in a cgroup of their own.
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

/// True if a test attaches to the root of the hierarchy.
///
/// # Panics
///
/// If this is requested on a machine that was not booted for it.
pub fn at_root() -> bool {
    run() == Run::Root
}

/// True if a test with such needs belongs to this run. Both runs report the tests that the first leaves to the second:
/// the report on the guests compares them.
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
