//! One warning for each job, not for each process of it: a parallel test run starts `run` a hundred times, and all of
//! them would print the same warning.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

use nix::unistd::{Uid, getpgrp};
use rustix::fs::{FlockOperation, OFlags, flock};

/// The number of jobs that are remembered.
const JOBS: usize = 64;
/// The longest file that is read. The lines of so many jobs are shorter.
const LONGEST: u64 = 8192;

/// Whether this is the first call in this job (the process group: a command at a prompt, or a whole script). If the job
/// cannot be remembered, it is true, so that the warning is printed.
pub(crate) fn is_first_of_job() -> bool {
    job().and_then(|job| remember(&job)).unwrap_or(true)
}

/// The process group and the time when its first process began, because process numbers are used again.
fn job() -> Option<String> {
    // 0: its first process is outside the pid namespace.
    let group = Some(getpgrp().as_raw()).filter(|group| *group != 0)?;
    let stat = fs::read_to_string(format!("/proc/{group}/stat")).unwrap_or_default();
    // The command, which may have spaces and parentheses in it, is the second word.
    let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    Some(format!("{group} {}", began.unwrap_or("gone")))
}

fn path() -> PathBuf {
    let uid = Uid::effective();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("portkeep-warned"),
        None => std::env::temp_dir().join(format!("portkeep-warned-{uid}")),
    }
}

/// `None` if the file cannot be used, or is another user's.
fn remember(job: &str) -> Option<bool> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let mut file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path())
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.uid() != Uid::effective().as_raw() || meta.len() > LONGEST {
        return None;
    }
    flock(&file, FlockOperation::LockExclusive).ok()?;
    let mut text = String::new();
    (&mut file).take(LONGEST).read_to_string(&mut text).ok()?;
    let mut jobs: Vec<&str> = text.lines().collect();
    if jobs.contains(&job) {
        return Some(false);
    }
    jobs.push(job);
    let last = jobs.len().saturating_sub(JOBS);
    file.rewind().ok()?;
    file.set_len(0).ok()?;
    file.write_all((jobs[last..].join("\n") + "\n").as_bytes()).ok()?;
    Some(true)
}
