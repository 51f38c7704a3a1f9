//! `persist import`.
//!
//! The agent creates one reservation at a time, so all or nothing is made of three steps: everything that can be known
//! before is looked at first, then one after the other is created, and if one is refused after all, those before it
//! are deleted again.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use portkeep::{
    Info, State,
    persistent::{Block, Connection, Declaration, Kept, Proposal, Which},
};
use portkeep_persist::services;
use serde::Serialize;

use super::{INSTEAD, connect};
use crate::{DONE, FAILED, Io, reservations};

const AFTER_HELP: &str = "\
Creates the reservations of a file in the form that `portkeep persist export` writes, which is that of a drop-in. All or \
nothing: if one of them is wrong or in conflict with what is there, none is created. Those that are there already, the \
same in everything, are left as they are.

Examples:
  portkeep persist import reservations.toml
  ssh other portkeep persist export | portkeep persist import -";

/// Create the reservations of a file, all or none
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The file, `-` for standard input
    file: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Debug, Default, Serialize)]
struct Imported {
    created: Vec<Info>,
    /// The same in everything, and not touched.
    there_already: Vec<Info>,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let (name, text) = read(&args.file)?;
    let declarations = match portkeep_persist::import(&name, &text, &services()) {
        Ok(declarations) => declarations,
        Err(wrong) => {
            for each in wrong {
                io.error(each);
            }
            io.note("nothing was imported");
            return Ok(FAILED);
        }
    };
    let mut agent = connect(Some(INSTEAD))?;
    let declared = agent.list()?;
    let mut imported = Imported::default();
    let mut wanted = Vec::new();
    let mut in_the_way = 0;
    for declaration in declarations {
        match standing(&declaration, &declared) {
            Found::Same(info) => imported.there_already.push(*info),
            Found::Other(text) => {
                io.error(text);
                in_the_way += 1;
            }
            Found::Nothing => wanted.push(declaration),
        }
    }
    if in_the_way > 0 {
        io.note("nothing was imported");
        return Ok(FAILED);
    }
    create(&mut agent, wanted, &mut imported)?;
    if args.json {
        io.json(&imported)?;
        return Ok(DONE);
    }
    for (each_of, what) in [(&imported.created, "created"), (&imported.there_already, "there already")] {
        for each in each_of {
            let (name, whom) = (each.name.as_deref().unwrap_or_default(), reservations::owner(each));
            writeln!(io.out, "{what}: {name} {}/{} for {whom}", each.ports, each.transports)?;
        }
    }
    Ok(DONE)
}

fn read(file: &Path) -> anyhow::Result<(PathBuf, String)> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        return Ok(("standard input".into(), text));
    }
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Ok((file.to_owned(), text))
}

enum Found {
    Nothing,
    /// The same in everything.
    Same(Box<Info>),
    /// It cannot be created, as the sentence says.
    Other(String),
}

/// The declaration that is in its way.
fn standing(wanted: &Declaration, declared: &[Info]) -> Found {
    for info in declared.iter().filter(|info| info.state != State::Conflict) {
        let (Some(declaration), Some(origin)) = (info.declaration(), &info.origin) else { continue };
        if declaration == *wanted {
            return Found::Same(Box::new(info.clone()));
        }
        if declaration.name == wanted.name {
            return Found::Other(format!("the name {} is used by {origin}", wanted.name));
        }
        if declaration.overlaps(wanted) {
            let (ports, transports) = (&wanted.ports, wanted.transports);
            return Found::Other(format!(
                "{ports}/{transports} of {} is reserved as {} ({}/{}) by {origin}",
                wanted.name, declaration.name, declaration.ports, declaration.transports
            ));
        }
    }
    Found::Nothing
}

fn create(agent: &mut Connection, wanted: Vec<Declaration>, imported: &mut Imported) -> anyhow::Result<()> {
    for declaration in wanted {
        let proposal = Proposal {
            name: declaration.name.clone(),
            block: Block::Ports(declaration.ports.clone()),
            transports: declaration.transports,
            audience: declaration.audience.clone(),
            strict: declaration.strict,
            ephemeral: declaration.ephemeral,
            around: declaration.around,
            force: declaration.force,
            description: declaration.description.clone(),
        };
        let error = match agent.create(&proposal, Kept::Persistent) {
            Ok(created) => {
                imported.created.push(created);
                continue;
            }
            Err(error) => error,
        };
        let mut left = Vec::new();
        for created in imported.created.drain(..).rev() {
            let Some(declaration) = created.declaration() else { continue };
            if agent.delete(&Which::Name(declaration.name.clone())).is_err() {
                left.push(declaration.name.to_string());
            }
        }
        let outcome = if left.is_empty() {
            "nothing was imported".to_owned()
        } else {
            format!("what was created before could not be taken back: {}", left.join(", "))
        };
        let context = format!("{} {}/{}", declaration.name, declaration.ports, declaration.transports);
        return Err(anyhow::Error::from(error).context(context).context(outcome));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use portkeep::{PortList, Transports, persistent::Origin};

    use super::*;

    fn declaration(name: &str, ports: &str, transports: Transports) -> Declaration {
        Declaration::new(name.parse().unwrap(), ports.parse::<PortList>().unwrap(), transports)
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let origin = Origin::File { path: "/etc/portkeep/ports.d/web.toml".into(), line: 3 };
        let web = declaration("web", "80-90", Transports::Both);
        let declared = [Info::declared(&web, &origin, State::Active)];
        assert!(matches!(standing(&web, &declared), Found::Same(_)));
        let told = |wanted: &Declaration| match standing(wanted, &declared) {
            Found::Other(text) => text,
            _ => String::new(),
        };
        let other = told(&declaration("web", "443", Transports::Tcp));
        assert_eq!(other, "the name web is used by /etc/portkeep/ports.d/web.toml:3");
        let other = told(&declaration("c", "85-200", Transports::Udp));
        assert_eq!(other, "85-200/udp of c is reserved as web (80-90/tcp+udp) by /etc/portkeep/ports.d/web.toml:3");
        assert!(matches!(standing(&declaration("d", "91", Transports::Udp), &declared), Found::Nothing));
    }
}
