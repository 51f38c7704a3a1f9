//! Lines of /etc/subuid: each is a range of uids, or it is complained about with its number.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use portkeep_observe::subordinate::{Owners, parse};

fuzz_target!(|text: &str| {
    let (ranges, complaints) = parse(Path::new("subuid"), text);
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
    assert_eq!(ranges.len() + complaints.len(), lines);
    assert!(complaints.iter().all(|complaint| complaint.starts_with("subuid:")));
    let owners = Owners::new(ranges.clone());
    for (range, user) in ranges {
        assert!(range.start() <= range.end());
        // Of several ranges the first counts, and those of root share no account.
        let account = owners.account(*range.start());
        assert!(user == 0 || owners.ranges().iter().any(|(_, user)| *user == account));
    }
});
