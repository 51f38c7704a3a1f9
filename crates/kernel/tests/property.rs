//! Random histories, in the kernel and in the reference model: every answer must be the same, and the content of the
//! maps at the end, too.
//!
//! A history has several processes (spawned, forked, killed), in several cgroups and with several uids. They have
//! sockets of both transports and both families in two network namespaces; descriptors are duplicated and passed. One
//! call happens at a time; other tests make many at once. If an answer is random (tokens, automatic ports), the model
//! gets the kernel's choice and reports whether it was allowed.
//!
//! `PORTKEEP_PROPERTY_CASES` sets the number of histories. If a history fails, it is shrunk and printed, with each of
//! its calls and answers.

#![allow(unreachable_pub, reason = "a test has no outside; `pub` marks what a module offers the others")]

mod history;

use std::{cell::RefCell, panic::AssertUnwindSafe, path::PathBuf};

use history::history;
use portkeep_core::{Errno, PortRange};
use portkeep_kernel::{Admin, Loaded, Maps, Settings, cgroup};
use portkeep_model::Settings as ModelSettings;
use portkeep_testkit::{
    REQUIRE, TestCgroup,
    driven::{self, Process},
    outside_or_skip,
};
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};

/// Entry of the driven processes. As a test it does nothing.
#[test]
#[ignore = "not a test: the driven processes of the other tests start here"]
fn worker() {
    driven::entry();
}

/// Small, so that the reservations of a history often conflict: 96 ports that begin and end inside words of the port
/// table.
const POOL: (u16, u16) = (61000, 96);
const QUOTA: u32 = 60;

#[test]
fn every_answer_is_the_models() {
    let name = "every_answer_is_the_models";
    if !outside_or_skip(name) {
        return;
    }
    let lab = Lab::new().unwrap_or_else(|error| panic!("{REQUIRE}: no laboratory: {error}"));
    let cases = std::env::var("PORTKEEP_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        max_shrink_iters: 100_000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let lab = AssertUnwindSafe(RefCell::new(lab));
    let result = runner.run(&history::strategy(), |steps| {
        let mut lab = lab.borrow_mut();
        history(&mut lab, &steps).map_err(|failure| {
            // The next history must start without leftovers.
            if !lab.is_vacant() {
                *lab = Lab::new().expect("another laboratory");
            }
            TestCaseError::fail(failure.to_string())
        })
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// The parts that all histories share: the loaded BPF programs, cgroups, and the nurseries.
struct Lab {
    /// The processes that others are forked from, one for each of our cgroups: to fork in a cgroup is much faster than
    /// to move there. They are dropped first, because a cgroup can be removed only when no process is in it.
    nurseries: Vec<Process>,
    maps: Maps,
    admin: Admin,
    _loaded: Loaded,
    /// Folders and ids: the root, ours, and two below ours.
    cgroups: Vec<(PathBuf, u64)>,
    secret: [u64; 2],
    model: ModelSettings,
    histories: u32,
    _cgroup: TestCgroup,
}

impl Lab {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let pool = PortRange::new(POOL.0, POOL.1)?;
        let mut settings = Settings::default();
        settings.pool = Some(pool);
        settings.quota = QUOTA;
        let own = TestCgroup::new("property")?;
        let root = cgroup::root().ok_or("no cgroup v2")?;
        let mut cgroups = Vec::new();
        for path in [root, own.path().to_owned(), own.child("left")?, own.child("right")?] {
            let id = cgroup::id(&path)?;
            cgroups.push((path, id));
        }
        let mut loaded = Loaded::load()?;
        loaded.attach(&settings, own.path(), own.path())?;
        let mut nurseries = Vec::new();
        for (path, _) in &cgroups[1..] {
            let nursery = Process::nursery()?;
            std::fs::write(path.join("cgroup.procs"), nursery.pid().to_string())?;
            nurseries.push(nursery);
        }
        let maps = loaded.maps()?;
        let model = ModelSettings {
            pool: Some(pool),
            quota: QUOTA,
            deny: Errno::EADDRINUSE,
            unprivileged_start: 1024,
            home: None,
            admin_gid: 0,
        };
        Ok(Self {
            nurseries,
            secret: maps.config()?.secret,
            admin: loaded.admin()?,
            maps,
            _loaded: loaded,
            cgroups,
            model,
            histories: 0,
            _cgroup: own,
        })
    }
}
