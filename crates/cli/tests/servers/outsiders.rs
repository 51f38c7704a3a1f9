//! The outsiders that try to get the declared ports. Each is a process of its own, in a cgroup that nothing is declared
//! for.

use std::{fs, path::PathBuf};

use portkeep_core::Transport;
use portkeep_testkit::{
    eventually_or,
    process::{Child, become_user},
};

use crate::{
    Declared, hostile, outgoing,
    tally::{Board, Counts},
};

/// An ordinary user.
pub(crate) const OUTSIDER: u32 = 65533;

/// Their attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trade {
    Binds,
    Takes(Transport),
}

#[derive(Clone, Copy, Debug)]
struct Outsider {
    root: bool,
    trade: Trade,
    /// Below the sandbox's.
    cgroup: &'static str,
}

const ALL: [Outsider; 5] = [
    Outsider { root: true, trade: Trade::Binds, cgroup: "system.slice/nginx2.service" },
    // A name of their own choice below a unit of their own.
    Outsider {
        root: false,
        trade: Trade::Binds,
        cgroup: "user.slice/user-65533.slice/user@65533.service/nginx.service",
    },
    Outsider { root: true, trade: Trade::Takes(Transport::Tcp), cgroup: "system.slice/fetch.service" },
    Outsider { root: false, trade: Trade::Takes(Transport::Tcp), cgroup: "database.slice/pg2" },
    Outsider { root: false, trade: Trade::Takes(Transport::Udp), cgroup: "database.slice" },
];

impl Outsider {
    fn be(self, cgroup: &PathBuf) {
        fs::create_dir_all(cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        if !self.root {
            become_user(OUTSIDER);
        }
    }
}

/// They work until this is dropped.
pub(crate) struct Outsiders<'a> {
    board: &'a Board,
    children: Vec<Child>,
}

impl<'a> Outsiders<'a> {
    pub(crate) fn start(board: &'a Board, declared: &[Declared], sandbox: &std::path::Path) -> Self {
        let listener = outgoing::listener();
        let listening = Child::fork(|_| outgoing::listen(listener.try_clone().unwrap()));
        let mut children = vec![listening];
        children.extend(ALL.into_iter().enumerate().map(|(number, outsider)| {
            Child::fork(|_| {
                outsider.be(&sandbox.join(outsider.cgroup));
                let slot = board.slot(number);
                match outsider.trade {
                    Trade::Binds => hostile::hammer(&slot, outsider.root, declared),
                    Trade::Takes(transport) => outgoing::exhaust(&slot, transport, declared),
                }
            })
        }));
        Self { board, children }
    }

    fn counts() -> impl Iterator<Item = (usize, Outsider)> {
        ALL.into_iter().enumerate()
    }

    /// Returns when each of them has tried everything since the call.
    pub(crate) fn have_their_chance(&self) {
        let before: Vec<Counts> = Self::counts().map(|(number, _)| self.board.read(number)).collect();
        for (number, outsider) in Self::counts() {
            let done = || {
                let (before, now) = (before[number], self.board.read(number));
                match outsider.trade {
                    // Two sweeps, because the first one may have begun before the call.
                    Trade::Binds => now.sweeps >= before.sweeps + 2,
                    Trade::Takes(_) => now.tries >= before.tries + 100,
                }
            };
            eventually_or(|| format!("a turn of {outsider:?}: {:?}", self.board.read(number)), done);
        }
    }

    /// End them. Returns what they did, in words.
    pub(crate) fn stop(self) -> String {
        drop(self.children);
        let line = |(number, Outsider { root, trade, .. })| {
            let Counts { tries, sweeps, dry } = self.board.read(number);
            let who = if root { "root" } else { "a user" };
            match trade {
                Trade::Binds => format!("{who}: {tries} binds tried, {sweeps} times in every way\n"),
                Trade::Takes(transport) => {
                    assert!(dry > 0, "{who} never came to the end of the {transport} ports");
                    format!("{who}: {tries} {transport} ports chosen by the kernel, {dry} times none was left\n")
                }
            }
        };
        Self::counts().map(line).collect()
    }
}

/// Do `work` as an outsider, in a cgroup that nothing is declared for.
pub(crate) fn as_outsider(root: bool, sandbox: &std::path::Path, work: impl FnOnce()) {
    let outsider = Outsider { root, trade: Trade::Binds, cgroup: "system.slice/other.service" };
    portkeep_testkit::process::in_child(|| {
        outsider.be(&sandbox.join(outsider.cgroup));
        work();
    });
}
