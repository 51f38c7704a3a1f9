//! `persist import`.
//!
//! The agent creates one reservation at a time, so "all or nothing" requires three steps. First, everything that can be
//! known in advance is checked. Then the reservations are created or changed, one after the other. If one of them is
//! refused, the ones before it are undone.

use std::{
    fmt, fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use portkeep::{
    Info, PortList, PortRange, State,
    persistent::{Block, Change, Connection, Declaration, Lifetime, Name, Origin, Proposal, Which},
};
use portkeep_core::PortSet;
use portkeep_persist::services;
use serde::Serialize;

use super::agent::{INSTEAD, connect};
use crate::{
    DONE, FAILED, Io,
    agent::{ephemeral_ports, obstacle_to},
    args::pins::{Pins, Seen},
    reservations,
};

const AFTER_HELP: &str = "\
Creates the reservations of a file in the form that `portkeep persist export` writes, which is that of a drop-in. All or \
nothing: if one of them is wrong or in conflict with what is there, none is created. Those that are there already, the \
same in everything, are left as they are.

With --replace a reservation of the same name is changed to what the file has, if a command created it: as \
`portkeep persist set` does, without a gap. With --around the services may be running already. --dry-run shows what \
would be done; it fails where the import would, as far as that can be known before.

Examples:
  portkeep persist import reservations.toml
  ssh other portkeep persist export | portkeep persist import -
  portkeep persist import --replace --dry-run reservations.toml";

/// Create the reservations of a file, all or none
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The file, `-` for standard input
    file: PathBuf,
    /// Change reservations of the same names
    #[arg(long)]
    replace: bool,
    /// Sockets of their audiences may have the ports already
    #[arg(long = "around")]
    beside_services: bool,
    /// Show what would be done
    #[arg(short = 'n', long, conflicts_with = "json")]
    dry_run: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

/// The output of `--json`.
#[derive(Debug, Default, Serialize)]
struct Imported {
    created: Vec<Info>,
    /// They existed under this name, and were different.
    changed: Vec<Info>,
    /// They existed with the same content, and were not changed.
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
    let mut steps = Vec::new();
    let mut in_the_way = Vec::new();
    for mut declaration in declarations {
        let found = standing(&declaration, &declared);
        declaration.around |= args.beside_services;
        match found {
            Found::Same(info) => imported.there_already.push(*info),
            Found::Other(text) => in_the_way.push(text),
            Found::Former(former, _) if args.replace => steps.push(Step::Change(former, declaration)),
            Found::Former(_, text) => in_the_way.push(format!("{text}; --replace changes it")),
            Found::Nothing => steps.push(Step::Create(declaration)),
        }
    }
    if args.dry_run {
        in_the_way.extend(obstacles(&steps, &declared, &args.pins));
    }
    if !in_the_way.is_empty() {
        in_the_way.into_iter().for_each(|text| io.error(text));
        io.note(if args.dry_run { "nothing would be imported" } else { "nothing was imported" });
        return Ok(FAILED);
    }
    if args.dry_run {
        for step in &steps {
            writeln!(io.out, "{step}")?;
        }
    } else {
        carry_out(&mut agent, steps, &mut imported)?;
    }
    if args.json {
        io.json(&imported)?;
        return Ok(DONE);
    }
    let Imported { created, changed, there_already } = &imported;
    for (each_of, what) in [(created, "created"), (changed, "changed"), (there_already, "there already")] {
        for each in each_of {
            let (name, whom) = (each.name.as_deref().unwrap_or_default(), reservations::owner(each));
            writeln!(io.out, "{what}: {name} {}/{} for {whom}", each.ports, each.transports)?;
        }
    }
    Ok(DONE)
}

/// A sentence about the reservation that would be created, or why it would be refused.
pub(super) fn rehearse(declaration: Declaration, declared: &[Info], pins: &Pins) -> anyhow::Result<String> {
    match standing(&declaration, declared) {
        Found::Nothing => {
            let steps = [Step::Create(declaration)];
            obstacles(&steps, declared, pins).pop().map_or_else(|| Ok(steps[0].to_string()), |text| Err(anyhow!(text)))
        }
        Found::Same(_) => bail!("{} is there already, the same in everything", declaration.name),
        Found::Former(_, text) | Found::Other(text) => bail!(text),
    }
}

/// Sentences about what has to change first, as far as that can be known before.
fn obstacles(steps: &[Step], declared: &[Info], pins: &Pins) -> Vec<String> {
    let active: Vec<Declaration> =
        declared.iter().filter(|info| info.state == State::Active).filter_map(Info::declaration).collect();
    let mut reserved: PortSet = active.iter().flat_map(|one| one.ports.blocks().iter().copied()).collect();
    let ephemeral = ephemeral_ports(&reserved).ok().flatten();
    let config = match pins.look() {
        Seen::Up(instance) => Some(*instance.config()),
        Seen::NotUp | Seen::Hidden(_) | Seen::Unusable(_) => None,
    };
    let mut obstacle = |step: &Step| {
        let declaration = step.declaration();
        let ports = PortSet::from(&declaration.ports);
        let exhausted = ephemeral.as_ref().and_then(|ephemeral| ephemeral.check_more(&reserved, &ports).err());
        reserved = reserved.union(&ports);
        let why = step
            .refused(&active)
            .or_else(|| step.newly_reserved(&active).and_then(|new| obstacle_to(&new, config.as_ref()).ok().flatten()))
            .or_else(|| exhausted.filter(|_| !declaration.force).map(|why| why.to_string()))?;
        Some(format!("{}: {why}", declaration.name))
    };
    steps.iter().filter_map(&mut obstacle).collect()
}

/// A part of the import.
#[derive(Debug)]
enum Step {
    Create(Declaration),
    /// The first is the present declaration.
    Change(Box<Declaration>, Declaration),
}

impl Step {
    const fn declaration(&self) -> &Declaration {
        match self {
            Self::Create(declaration) | Self::Change(_, declaration) => declaration,
        }
    }

    /// The reservation in force that this changes.
    fn in_force<'a>(&self, active: &'a [Declaration]) -> Option<&'a Declaration> {
        match self {
            Self::Create(_) => None,
            Self::Change(former, _) => active.iter().find(|one| one.name == former.name),
        }
    }

    /// Why the agent would refuse it, whatever sockets there are.
    fn refused(&self, active: &[Declaration]) -> Option<String> {
        let declaration = self.declaration();
        let Declaration { ports, transports, audience, strict, .. } = declaration;
        let no_range = || Declaration::no_range(Some(ports), audience, *strict).filter(|_| declaration.ephemeral);
        let second_range = |one: &Declaration| {
            let both = one.ephemeral && declaration.ephemeral && one.name != declaration.name;
            both && one.audience == *audience && one.transports.overlaps(*transports)
        };
        self.in_force(active)
            .and_then(|former| former.cannot_move_to(declaration))
            .or_else(|| no_range().map(|why| format!("a private ephemeral range {why}")))
            .or_else(|| {
                let other = active.iter().find(|one| second_range(one))?;
                Some(format!("{audience} has the private ephemeral range `{}` already", other.name))
            })
    }

    /// The declaration, with the ports that are not reserved yet.
    fn newly_reserved(&self, active: &[Declaration]) -> Option<Declaration> {
        let declaration = self.declaration();
        let former = self.in_force(active).filter(|former| former.transports == declaration.transports);
        let is_new = |block: &&PortRange| !former.is_some_and(|former| former.ports.blocks().contains(block));
        let ports = PortList::new(declaration.ports.blocks().iter().filter(is_new).copied()).ok()?;
        Some(Declaration { ports, ..declaration.clone() })
    }
}

/// "would create: web 8443/tcp for unit web.service".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Create(_) => "create",
            Self::Change(..) => "change",
        };
        let Declaration { name, ports, transports, audience, .. } = self.declaration();
        write!(f, "would {what}: {name} {ports}/{transports} for {audience}")
    }
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
    /// A declaration with the same content exists.
    Same(Box<Info>),
    /// A command created this one under the same name, as the sentence says.
    Former(Box<Declaration>, String),
    /// It cannot be created, as the sentence says.
    Other(String),
}

/// The declaration that is in its way.
fn standing(wanted: &Declaration, declared: &[Info]) -> Found {
    let mut former = None;
    for info in declared.iter().filter(|info| info.state != State::Conflict) {
        let (Some(declaration), Some(origin)) = (info.declaration(), &info.origin) else { continue };
        // An earlier import with --around has added it, and it says nothing about a reservation in force.
        if declaration == (Declaration { around: wanted.around || declaration.around, ..wanted.clone() }) {
            return Found::Same(Box::new(info.clone()));
        }
        if declaration.name == wanted.name {
            let text = format!("the name `{}` is used by {origin}", wanted.name);
            match origin {
                Origin::Command { .. } => former = Some((declaration, text)),
                Origin::File { .. } => return Found::Other(text),
            }
        } else if declaration.overlaps(wanted) {
            let (ports, transports) = (&wanted.ports, wanted.transports);
            return Found::Other(format!(
                "{ports}/{transports} of `{}` is reserved as `{}` ({}/{}) by {origin}",
                wanted.name, declaration.name, declaration.ports, declaration.transports
            ));
        }
    }
    former.map_or(Found::Nothing, |(former, text)| Found::Former(Box::new(former), text))
}

fn carry_out(agent: &mut Connection, steps: Vec<Step>, imported: &mut Imported) -> anyhow::Result<()> {
    let mut undo: Vec<Undo> = Vec::new();
    for step in steps {
        let declaration = step.declaration();
        let done = match &step {
            Step::Create(_) => agent.create(&proposal(declaration), Lifetime::UntilDeleted).map(|created| {
                imported.created.push(created);
                Undo::Delete(declaration.name.clone())
            }),
            Step::Change(former, _) => agent.change(&declaration.name, &Change::to(declaration)).map(|changed| {
                imported.changed.push(changed);
                Undo::Change(former.clone())
            }),
        };
        let error = match done {
            Ok(done) => {
                undo.push(done);
                continue;
            }
            Err(error) => error,
        };
        let left = undo.drain(..).rev().filter_map(|undo| undo.carry_out(agent)).collect::<Vec<_>>();
        let outcome = if left.is_empty() {
            "nothing was imported".to_owned()
        } else {
            format!("what was done before could not be taken back: {}", left.join(", "))
        };
        let context = format!("{} {}/{}", declaration.name, declaration.ports, declaration.transports);
        return Err(anyhow::Error::from(error).context(context).context(outcome));
    }
    Ok(())
}

/// How to undo a step.
enum Undo {
    Delete(Name),
    Change(Box<Declaration>),
}

impl Undo {
    /// Undo the step. Returns the name if that failed.
    fn carry_out(self, agent: &mut Connection) -> Option<String> {
        let (name, done) = match self {
            Self::Delete(name) => (name.clone(), agent.delete(&Which::Name(name))),
            Self::Change(former) => (former.name.clone(), agent.change(&former.name, &Change::to(&former))),
        };
        done.is_err().then(|| name.to_string())
    }
}

fn proposal(declaration: &Declaration) -> Proposal {
    let Declaration { name, ports, transports, audience, strict, ephemeral, around, force, description } =
        declaration.clone();
    let block = Block::Ports(ports);
    Proposal { name, block, transports, audience, strict, ephemeral, around, force, description }
}

#[cfg(test)]
mod tests {
    use portkeep::Transports;

    use super::*;

    fn declaration(name: &str, ports: &str, transports: Transports) -> Declaration {
        Declaration::new(name.parse().unwrap(), ports.parse::<PortList>().unwrap(), transports)
    }

    #[test]
    fn an_import_names_the_declaration_in_conflict() {
        let origin = Origin::File { path: "/etc/portkeep/ports.d/web.toml".into(), line: 3 };
        let web = declaration("web", "80-90", Transports::Both);
        let declared = [Info::declared(&web, &origin, State::Active)];
        assert!(matches!(standing(&web, &declared), Found::Same(_)));
        let reason = |wanted: &Declaration| match standing(wanted, &declared) {
            Found::Other(text) => text,
            _ => String::new(),
        };
        let other = reason(&declaration("web", "443", Transports::Tcp));
        assert_eq!(other, "the name `web` is used by /etc/portkeep/ports.d/web.toml:3");
        let other = reason(&declaration("c", "85-200", Transports::Udp));
        assert_eq!(other, "85-200/udp of `c` is reserved as `web` (80-90/tcp+udp) by /etc/portkeep/ports.d/web.toml:3");
        assert!(matches!(standing(&declaration("d", "91", Transports::Udp), &declared), Found::Nothing));
    }
}
