//! Which declarations are in force if several have the same port or the same name.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use portkeep_core::{PortRange, Transport};
use serde::{Deserialize, Serialize};

use crate::{Declaration, Diagnostic, Name, Origin};

/// A declaration and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// The declaration.
    pub declaration: Declaration,
    /// The file or command that it comes from.
    pub origin: Origin,
}

/// The declarations in force, and those in conflict with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// In force, in the order given. No two have the same name. No two have the same port of the same transport.
    pub in_force: Vec<Declared>,
    /// The others, in the order given.
    pub conflicts: Vec<Conflict>,
}

/// A declaration that is not in force, and the declaration that is in force instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Not in force, with none of its ports.
    pub loser: Declared,
    /// In force.
    pub winner: Declared,
    /// The name or ports that both have.
    pub reason: Reason,
}

/// The name or ports that two declarations have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The same name.
    Name,
    /// These ports of this transport.
    Ports {
        /// The first transport with ports in common.
        transport: Transport,
        /// The ports that both have.
        ports: PortRange,
    },
}

impl fmt::Display for Conflict {
    /// "8443/tcp of `tomcat` (/etc/...) is reserved by `nginx` (/usr/lib/...)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (loser, winner) = (&self.loser, &self.winner);
        match self.reason {
            Reason::Name => {
                write!(f, "the name `{}` ({}) is used by {}", loser.declaration.name, loser.origin, winner.origin)
            }
            Reason::Ports { transport, ports } => write!(
                f,
                "{ports}/{transport} of `{}` ({}) is reserved as `{}` by {}",
                loser.declaration.name, loser.origin, winner.declaration.name, winner.origin
            ),
        }
    }
}

impl Conflict {
    /// The same as a complaint about the loser's file; `None` if the loser comes from a command.
    pub fn diagnostic(&self) -> Option<Diagnostic> {
        let Origin::File { path, line } = &self.loser.origin else { return None };
        let (loser, winner) = (&self.loser.declaration, &self.winner);
        let message = match self.reason {
            Reason::Name => format!("the name `{}` is used by {}", loser.name, winner.origin),
            Reason::Ports { transport, ports } => format!(
                "{ports}/{transport} of `{}` is reserved as `{}` by {}",
                loser.name, winner.declaration.name, winner.origin
            ),
        };
        let help = match winner.origin {
            Origin::File { .. } => {
                "change one of the two; a file can be masked by a link to /dev/null of the same name in /etc/portkeep/ports.d"
            }
            Origin::Command { .. } => "change this file, or delete the other with `portkeep persist delete`",
        };
        Some(Diagnostic {
            file: path.clone(),
            line: Some(*line),
            column: Some(1),
            message,
            help: Some(help.to_owned()),
        })
    }
}

/// Merge the declarations of commands and files, one after the other. If a declaration has the name or a port of one
/// that is in force already, it is not in force, with none of its ports. Commands come before files. Within each, the
/// order is the one given: [`crate::Store::list`] and [`crate::dropin::load`] return the right order.
pub fn merge(commands: impl IntoIterator<Item = Declared>, files: impl IntoIterator<Item = Declared>) -> Merged {
    let mut merged = Merged::default();
    let mut names: HashMap<Name, usize> = HashMap::new();
    // The blocks in force, for each transport, by first port. No two overlap, so checking the neighbours is enough.
    let mut taken: [BTreeMap<u16, (PortRange, usize)>; 2] = [BTreeMap::new(), BTreeMap::new()];

    for declared in commands.into_iter().chain(files) {
        let wanted = &declared.declaration;
        let in_the_way = names.get(&wanted.name).map(|winner| (*winner, Reason::Name)).or_else(|| {
            let each = wanted.transports.iter();
            let mut blocks =
                each.flat_map(|transport| wanted.ports.blocks().iter().map(move |ours| (transport, *ours)));
            blocks.find_map(|(transport, ours)| {
                let taken = &taken[transport as usize];
                // The block that begins at or before ours, else the first that begins within ours.
                let before = taken.range(..=ours.start()).next_back();
                let (_, (theirs, winner)) = before
                    .filter(|(_, (theirs, _))| theirs.overlaps(ours))
                    .or_else(|| taken.range(ours.start()..=ours.last()).next())?;
                let ports = theirs.common(ours)?;
                Some((*winner, Reason::Ports { transport, ports }))
            })
        });
        if let Some((winner, reason)) = in_the_way {
            let winner = merged.in_force[winner].clone();
            merged.conflicts.push(Conflict { loser: declared, winner, reason });
            continue;
        }
        let index = merged.in_force.len();
        names.insert(wanted.name.clone(), index);
        for transport in wanted.transports.iter() {
            let blocks = wanted.ports.blocks().iter().map(|block| (block.start(), (*block, index)));
            taken[transport as usize].extend(blocks);
        }
        merged.in_force.push(declared);
    }
    merged
}

#[cfg(test)]
mod tests {
    use portkeep_core::{PortList, Time, Transports};
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, line: usize, name: &str, ports: &str, transports: Transports) -> Declared {
        Declared {
            declaration: Declaration::new(name.parse().unwrap(), ports.parse::<PortList>().unwrap(), transports),
            origin: Origin::File { path: path.into(), line },
        }
    }

    #[test]
    fn the_first_declaration_is_in_force_and_the_conflict_names_both() {
        let command = Declared {
            origin: Origin::Command { uid: 0, created: Time::from_unix(1), until_reboot: false },
            ..file("", 0, "db", "5432", Transports::Tcp)
        };
        let merged = merge(
            [command],
            [
                file("/usr/lib/a", 1, "web", "8080,80-90", Transports::Both),
                file("/etc/b", 2, "web", "99", Transports::Tcp),
                file("/etc/b", 5, "c", "85-200", Transports::Udp),
                file("/etc/b", 9, "d", "5000-6000", Transports::Tcp),
                file("/etc/b", 12, "e", "5432", Transports::Udp),
            ],
        );
        let names: Vec<&str> = merged.in_force.iter().map(|d| d.declaration.name.as_str()).collect();
        assert_eq!(names, ["db", "web", "e"]);
        let shown: Vec<String> = merged.conflicts.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "the name `web` (/etc/b:2) is used by /usr/lib/a:1",
                "85-90/udp of `c` (/etc/b:5) is reserved as `web` by /usr/lib/a:1",
                "5432/tcp of `d` (/etc/b:9) is reserved as `db` by `portkeep persist add`, by root",
            ]
        );
        assert_eq!(merged.conflicts[0].diagnostic().unwrap().line, Some(2));
    }

    proptest! {
        /// The plain method compares each declaration in turn with all that are in force already.
        #[test]
        fn it_is_what_comparing_each_with_each_gives(
            blocks in prop::collection::vec((1u16..60, 1u16..12, 0u16..12, 1u8..4, 0u8..20), 0..30)
        ) {
            let all: Vec<Declared> = blocks.iter().enumerate().map(|(line, (start, count, second, bits, name))| Declared {
                declaration: Declaration::new(
                    format!("n{name}").parse().unwrap(),
                    // Two blocks, if the second is not empty.
                    PortList::new(
                        [(*start, *count), (start + count + 3, *second)]
                            .into_iter()
                            .filter_map(|(start, count)| PortRange::new(start, count).ok()),
                    )
                    .unwrap(),
                    Transports::from_bits(*bits).unwrap(),
                ),
                origin: Origin::File { path: "/f".into(), line },
            }).collect();
            let mut standing: Vec<Declared> = Vec::new();
            for one in &all {
                let free = standing.iter().all(|other| {
                    other.declaration.name != one.declaration.name && !other.declaration.overlaps(&one.declaration)
                });
                if free {
                    standing.push(one.clone());
                }
            }
            let merged = merge([], all.clone());
            prop_assert_eq!(&merged.in_force, &standing);
            prop_assert_eq!(merged.in_force.len() + merged.conflicts.len(), all.len());
            for conflict in merged.conflicts {
                prop_assert!(standing.contains(&conflict.winner));
                match conflict.reason {
                    Reason::Name => prop_assert_eq!(conflict.loser.declaration.name, conflict.winner.declaration.name),
                    Reason::Ports { transport, ports } => for side in [conflict.loser, conflict.winner] {
                        prop_assert!(side.declaration.transports.contains(transport));
                        prop_assert!(ports.iter().all(|port| side.declaration.ports.contains(port)));
                    }
                }
            }
        }
    }
}
