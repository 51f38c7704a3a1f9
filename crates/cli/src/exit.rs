//! The exit status of commands. `run` exits as its command does, and has three of its own for its failures.

/// Done.
pub const DONE: u8 = 0;
/// Failed; the reason is on standard error.
pub const FAILED: u8 = 1;
/// The arguments make no sense.
pub const USAGE: u8 = 2;
/// Nothing there.
pub const NOTHING: u8 = 3;

/// The meaning of each status. Help texts and manual pages are made from this.
pub const TABLE: &[(u8, &str)] = &[
    (DONE, "done"),
    (FAILED, "failed, the reason is on standard error (of `check` and `reload`: a file is wrong)"),
    (USAGE, "wrong usage"),
    (NOTHING, "nothing there: not up (status), a free port (who), no such reservation (release, persist)"),
];
