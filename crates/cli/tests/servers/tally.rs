//! The outsiders' work so far, in files: they write at any instant, are killed at any instant, and never wait.

use std::{
    cell::Cell,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const COUNTS: usize = 3;

/// Where the counts of one outsider are in their file.
fn at(number: usize) -> u64 {
    (8 * COUNTS * number) as u64
}

/// The files: counts of every outsider, and a line for everything that must not happen.
pub(crate) struct Board {
    counts: File,
    wrong: PathBuf,
    log: File,
}

/// Counts of one outsider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Binds that were tried, or connections that were made.
    pub(crate) tries: u64,
    /// Times that it went through all it has to try.
    pub(crate) sweeps: u64,
    /// Times that the kernel had no port left to choose.
    pub(crate) dry: u64,
}

impl Board {
    pub(crate) fn new(folder: &Path) -> Self {
        let open = |name: &str| {
            let path = folder.join(name);
            let file = OpenOptions::new().read(true).append(name == "wrong").write(true).create(true).open(&path);
            (file.unwrap(), path)
        };
        let (log, wrong) = open("wrong");
        Self { counts: open("counts").0, wrong, log }
    }

    pub(crate) fn read(&self, number: usize) -> Counts {
        let mut bytes = [0; 8 * COUNTS];
        // Before the first write the file is shorter. Then the counts are zero.
        let _ = self.counts.read_at(&mut bytes, at(number));
        let (words, _) = bytes.as_chunks::<8>();
        let [tries, sweeps, dry] = std::array::from_fn(|at| u64::from_ne_bytes(words[at]));
        Counts { tries, sweeps, dry }
    }

    /// For an outsider, in its process.
    pub(crate) fn slot(&self, number: usize) -> Slot<'_> {
        Slot { board: self, number, counts: Cell::default() }
    }

    /// Everything that must not happen and did.
    pub(crate) fn wrong(&self) -> String {
        fs::read_to_string(&self.wrong).unwrap()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.wrong().lines().take(10).for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Where one outsider writes.
pub(crate) struct Slot<'a> {
    board: &'a Board,
    number: usize,
    counts: Cell<Counts>,
}

impl Slot<'_> {
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    pub(crate) fn publish(&self) {
        let Counts { tries, sweeps, dry } = self.counts.get();
        let bytes = [tries, sweeps, dry].map(u64::to_ne_bytes).concat();
        self.board.counts.write_all_at(&bytes, at(self.number)).unwrap();
    }

    pub(crate) fn wrong(&self, what: &str) {
        let line = format!("outsider {}: {what}\n", self.number);
        (&self.board.log).write_all(line.as_bytes()).unwrap();
    }
}
