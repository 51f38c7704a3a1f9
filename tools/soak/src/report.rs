//! Where a violation is written down, with what those involved did last.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::Ordering::SeqCst,
};

use super::shared::Shared;

#[derive(Debug)]
pub(super) struct Reporter {
    shared: Shared,
    folder: PathBuf,
    number: usize,
    incarnation: u64,
}

/// Folder of the violations of a run.
pub(super) fn folder(run: &Path) -> PathBuf {
    run.join("violations")
}

impl Reporter {
    pub(super) fn new(shared: Shared, run: &Path, number: usize, incarnation: u64) -> Self {
        Self { shared, folder: folder(run), number, incarnation }
    }

    /// Say what is wrong, and what this process and the others involved did last.
    pub(super) fn violation(&self, text: &str, involved: &[usize]) {
        let nth = self.shared.common.violations.fetch_add(1, SeqCst);
        let mut report = format!("process {} (start {}): {text}\n", self.number, self.incarnation);
        let others = involved.iter().copied().filter(|other| *other != self.number);
        for number in std::iter::once(self.number).chain(others) {
            let Some(crew) = self.shared.crew.get(number) else { continue };
            report.push_str(&format!("\nlast steps of process {number}:\n"));
            crew.last_steps().iter().for_each(|step| report.push_str(&format!("{step}\n")));
        }
        let path = self.folder.join(format!("{nth:04}-{}", self.number));
        if fs::write(path, &report).is_err() {
            let _ = std::io::stderr().write_all(report.as_bytes());
        }
    }
}
