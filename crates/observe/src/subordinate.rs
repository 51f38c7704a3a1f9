//! The owners of the subordinate uids: `/etc/subuid`, see subuid(5).
//!
//! A user with a line there may use 65,536 uids. Without this module each uid would have a quota of its own.

use std::{fs, io, ops::RangeInclusive, path::Path};

use portkeep_core::persistent::Account;

use crate::accounts;

/// The file, below the system's root.
pub const PATH: &str = "etc/subuid";

/// Ranges of uids with their users' uids.
pub type Ranges = Vec<(RangeInclusive<u32>, u32)>;

/// The accounts of uids. The account of a subordinate uid is its user's. They are the same accounts as those of the
/// quotas in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Owners(Ranges);

impl Owners {
    /// Root has no quota that its subordinate uids could share: each of them has an account of its own.
    pub fn new(mut ranges: Ranges) -> Self {
        ranges.retain(|(_, user)| *user != 0);
        Self(ranges)
    }

    /// The ranges that have an account.
    pub fn ranges(&self) -> &[(RangeInclusive<u32>, u32)] {
        &self.0
    }

    /// The account of a uid.
    pub fn account(&self, uid: u32) -> u32 {
        self.0.iter().find(|(range, _)| range.contains(&uid)).map_or(uid, |(_, user)| *user)
    }
}

/// The content of the file, and its errors. Without the file, no user has subordinate uids.
pub fn read(root: &Path) -> (Ranges, Vec<String>) {
    let path = root.join(PATH);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
        Err(error) => (Vec::new(), vec![format!("{}: {error}", path.display())]),
    }
}

/// The same from the file's text.
pub fn parse(path: &Path, text: &str) -> (Ranges, Vec<String>) {
    let (mut ranges, mut complaints) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match range(line) {
            Ok(range) => ranges.push(range),
            Err(why) => complaints.push(format!("{}:{number}: {why}", path.display())),
        }
    }
    (ranges, complaints)
}

/// `user:first:count`, the user by name or number.
fn range(line: &str) -> Result<(RangeInclusive<u32>, u32), String> {
    let fields: Vec<&str> = line.trim().split(':').collect();
    let &[user, first, count] = fields.as_slice() else {
        return Err("a line is USER:FIRST:COUNT".into());
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text:?} is no uid and no number of uids"));
    let (first, count) = (number(first)?, number(count)?);
    let last = count.checked_sub(1).and_then(|more| first.checked_add(more)).ok_or("there are no such uids")?;
    let account: Account = user.parse().map_err(|error| format!("{error}"))?;
    Ok((first..=last, accounts::uid(&account)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_newuidmap_reads_them() {
        let text = "root:100000:65536\n\n# those of a number\n1000:165536:65536\n";
        let (ranges, complaints) = parse(Path::new("s"), text);
        assert_eq!(ranges, [(100_000..=165_535, 0), (165_536..=231_071, 1000)]);
        assert!(complaints.is_empty());
    }

    #[test]
    fn subordinate_uids_are_their_users() {
        let owners = Owners::new(vec![(100_000..=165_535, 0), (165_536..=231_071, 1000)]);
        let accounts = [0, 7, 100_001, 165_535, 165_536, 231_071, 231_072].map(|uid| owners.account(uid));
        assert_eq!(accounts, [0, 7, 100_001, 165_535, 1000, 1000, 231_072]);
    }

    #[test]
    fn an_error_is_reported_with_its_line_and_the_rest_counts() {
        for bad in
            ["root:1", "root:1:2:3", "root:x:1", "root:1:0", "root:4294967295:2", "nobody-has-this-name:1:2", "::"]
        {
            let (ranges, complaints) = parse(Path::new("s"), &format!("{bad}\n7:8:9"));
            assert_eq!(ranges, [(8..=16, 7)], "{bad}");
            assert!(complaints.len() == 1 && complaints[0].starts_with("s:1: "), "{bad}: {complaints:?}");
        }
    }
}
