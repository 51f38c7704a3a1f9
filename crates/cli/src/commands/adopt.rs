//! `adopt`: drop-ins for what listens now.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use portkeep::{
    BoundSocket, Info, PortList, PortRange, Time, Transport, Transports,
    persistent::{Account, Audience, Declaration, Name},
};
use portkeep_core::PortSet;
use portkeep_kernel::cgroup;
use portkeep_observe::{PortUse, Usage, process, sysctl, usage};

use crate::{
    DONE, Io, NOTHING,
    args::sources::Places,
    commands::{persist::view, status},
    survey, units,
};

const AFTER_HELP: &str = "\
Looks at the sockets that listen in this network namespace, and prints a drop-in file for each service: its ports, reserved for its unit, \
with `around` so that they come into force while the service runs. Ports that systemd itself has bound for a .socket unit are \
reserved for root. Sockets that are left out are named with the reason: ports that the kernel has chosen, programs that are not a service, \
and ports that are already reserved. Nothing is changed without --write. Only root can see which process a socket belongs to.

Examples:
  portkeep adopt
  portkeep adopt nginx.service redis-server.service
  portkeep adopt --write && portkeep reload

Exit status: 3 if there is nothing to adopt";

/// Print drop-ins for the services that listen now
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Only these [default: all services]
    #[arg(value_name = "UNIT")]
    units: Vec<String>,
    /// Write the files to /etc/portkeep/ports.d; existing files stay as they are
    #[arg(long)]
    write: bool,
    /// Write nothing, which is the default
    #[arg(short = 'n', long = "dry-run", conflicts_with = "write", hide = true)]
    _dry_run: bool,
    #[command(flatten)]
    places: Places,
}

/// The folder that the files are for.
const FOLDER: &str = "etc/portkeep/ports.d";

/// A drop-in file.
struct DropIn {
    /// Its name in the folder.
    file: String,
    text: String,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let Places { pins, sources } = &args.places;
    let reserved = survey::all(pins).unwrap_or_default();
    let declared = view::all(sources, &reserved);
    let enforced = status::of(pins, io)?.enforced_in;
    let usage = Usage::bound(&[(PortRange::ALL, Transports::Both)]).context("looking for sockets")?;
    if !usage.all {
        let root = process::lacks().unwrap_or("root");
        io.warning(format_args!("only {root} can see the processes of other users, and services are among them"));
    }
    let ephemeral = sysctl::local_port_range().ok().flatten();
    let sockets = units::enabled_sockets(sources.root());
    let place = Place { sockets, depth: enforced.map_or(0, |path| names(Path::new(&path)).len()), ephemeral };
    let mut found = Found::default();
    for one in usage.ports.values() {
        let known: Vec<&Info> = reserved.iter().chain(&declared).collect();
        found.add(one, &known, &place);
    }
    let units: BTreeSet<String> = args.units.iter().map(|unit| with_suffix(unit)).collect();
    if !units.is_empty() {
        found.services.retain(|owner, _| units.contains(&owner.unit));
        found.left_out.clear();
    }
    let files = found.drop_ins(SystemTime::now().into());
    let folder = sources.root().join(FOLDER);
    let mut written = 0;
    for DropIn { file, text } in &files {
        let path = folder.join(file);
        if !args.write {
            writeln!(io.out, "# {}\n{text}", path.display())?;
        } else if create(&path, text).with_context(|| format!("writing {}", path.display()))? {
            writeln!(io.out, "wrote {}", path.display())?;
            written += 1;
        } else {
            io.warning(format_args!("{} is there already, and left as it is", path.display()));
        }
    }
    for (ports, why) in &found.left_out {
        writeln!(io.out, "# left out: {ports}: {why}")?;
    }
    if files.is_empty() {
        io.note("no service listens on a port that is not reserved");
        return Ok(NOTHING);
    }
    if written > 0 {
        io.note("`portkeep check` finds mistakes; `portkeep reload` puts the files into force");
    } else if !args.write {
        io.note("nothing is changed; --write puts these files into place");
    }
    Ok(DONE)
}

/// Create a file. Returns false if it exists already.
fn create(path: &Path, text: &str) -> io::Result<bool> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // The agent may read the folder at any time, so the file appears complete or not at all.
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, text)?;
    let linked = fs::hard_link(&unfinished, path);
    fs::remove_file(&unfinished)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true),
    }
}

fn with_suffix(unit: &str) -> String {
    if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") }
}

fn names(path: &Path) -> Vec<String> {
    path.iter().filter_map(|part| part.to_str()).filter(|part| *part != "/").map(str::to_owned).collect()
}

/// The known facts about the machine.
struct Place {
    /// How deep the enforced cgroup is below the root of the hierarchy.
    depth: usize,
    ephemeral: Option<PortRange>,
    /// The ports of .socket units.
    sockets: Vec<(String, Transport, u16)>,
}

/// The audience that a port is to be reserved for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    /// The unit that the file is named for.
    unit: String,
    /// systemd itself has the port bound, for that unit.
    by_systemd: bool,
}

/// The sockets that listen, sorted.
#[derive(Default)]
struct Found {
    services: BTreeMap<Owner, Vec<PortUse>>,
    /// Ports, and why they are left out.
    left_out: Vec<(String, String)>,
}

impl Found {
    /// Add one port to its owner, or to the ports that are left out.
    fn add(&mut self, one: &PortUse, known: &[&Info], place: &Place) {
        let name = format!("{}/{}", one.port, one.transport);
        let bound: Vec<&BoundSocket> = one.bound_by.iter().filter(|socket| socket.peer.is_none()).collect();
        let Some(first) = bound.first() else { return };
        let mut leave = |why: String| self.left_out.push((name.clone(), format!("{}: {why}", usage::holder(first))));
        if let Some(info) = known.iter().find(|info| info.has(one.transport, one.port)) {
            let name = info.name.as_ref().map_or_else(|| info.to_string(), |name| format!("as {name}"));
            return leave(format!("it is reserved already, {name}"));
        }
        let owners: Result<BTreeSet<Owner>, String> = bound.iter().map(|socket| owner(socket, place)).collect();
        let owner = match owners {
            Err(why) => return leave(why),
            Ok(owners) => match Vec::from_iter(owners).as_slice() {
                [one] => one.clone(),
                several => {
                    let units: Vec<&str> = several.iter().map(|owner| owner.unit.as_str()).collect();
                    return leave(format!(
                        "several units share it ({}), and a reservation is for one",
                        units.join(", ")
                    ));
                }
            },
        };
        if place.ephemeral.is_some_and(|range| range.contains(one.port)) {
            return leave(format!(
                "the kernel has probably chosen it (ip_local_port_range), so {} may have another next time; `ephemeral = true` \
                 gives a service a range of its own",
                owner.unit
            ));
        }
        self.services
            .entry(owner)
            .or_default()
            .push(PortUse { bound_by: bound.into_iter().cloned().collect(), ..one.clone() });
    }

    fn drop_ins(&self, now: Time) -> Vec<DropIn> {
        self.services.iter().map(|(owner, ports)| drop_in(owner, ports, now)).collect()
    }
}

/// The audience for the ports of a socket. If there is none, the error is a sentence that says why.
fn owner(socket: &BoundSocket, place: &Place) -> Result<Owner, String> {
    if socket.kernel {
        return Err("a reservation does not concern it while it is bound; declare it for root if it comes late".into());
    }
    let Some(process) = &socket.process else {
        let root = process::lacks().unwrap_or("root");
        return Err(format!("only {root} can see which service it belongs to"));
    };
    if process.pid == 1 {
        let mut units = place.sockets.iter().filter(|(_, of, port)| (*of, *port) == (socket.transport, socket.port));
        let unit = units.next().map_or_else(|| format!("socket-{}.socket", socket.port), |(name, ..)| name.clone());
        return Ok(Owner { unit, by_systemd: true });
    }
    let below = cgroup::of_process(process.pid).and_then(|path| cgroup::below_root(&path));
    let below = below.as_deref().map(names).unwrap_or_default();
    match process::unit_in(&below, place.depth) {
        Some(unit) if unit.ends_with(".service") && !unit.starts_with("user@") => {
            Ok(Owner { unit: unit.to_owned(), by_systemd: false })
        }
        Some(unit) => {
            Err(format!("{unit} is no service of the system; start it with `portkeep run`, or declare it for a user"))
        }
        None => Err("it is in no unit; start it with `portkeep run`, or declare it for a user".into()),
    }
}

/// The file for a unit.
fn drop_in(owner: &Owner, ports: &[PortUse], now: Time) -> DropIn {
    let stem = owner.unit.rsplit_once('.').map_or(owner.unit.as_str(), |(stem, _)| stem);
    let stem: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || "._@:+-".contains(c) { c } else { '-' }).collect();
    let set = |transport| -> PortSet {
        let of = ports.iter().filter(|one| one.transport == transport);
        of.filter_map(|one| PortRange::single(one.port).ok()).collect()
    };
    let (tcp, udp) = (set(Transport::Tcp), set(Transport::Udp));
    let both = tcp.intersection(&udp);
    let date = now.to_string();
    let mut text =
        format!("# Written by `portkeep adopt` on {}, for what listened then:\n", date.get(..10).unwrap_or(&date));
    for one in ports {
        let mut seen = BTreeSet::new();
        for socket in &one.bound_by {
            let local = socket.local.as_deref().unwrap_or_default();
            if seen.insert(local) {
                let _ = writeln!(text, "# {}/{} {}, on {local}", one.port, one.transport, usage::holder(socket));
            }
        }
    }
    if owner.by_systemd {
        text += "# systemd binds this port for a .socket unit, as root and outside of every service.\n";
    }
    let audience = match owner.by_systemd {
        true => Audience::User(Account::Name("root".into())),
        false => Audience::Unit(owner.unit.clone()),
    };
    let parts =
        [(Transports::Both, both.clone()), (Transports::Tcp, tcp.minus(&both)), (Transports::Udp, udp.minus(&both))];
    // One stanza for each transport; more if one list has no room for all blocks.
    let lists = parts.iter().flat_map(|(transports, set)| {
        let blocks = Vec::from_iter(blocks(set));
        let lists = blocks.chunks(PortList::MOST_BLOCKS).map(|blocks| PortList::new(blocks.iter().copied()));
        Vec::from_iter(lists.flatten().enumerate().map(|(number, list)| (*transports, number, list)))
    });
    for (index, (transports, number, ports)) in lists.enumerate() {
        let end = match (index, number) {
            (0, _) => String::new(),
            (_, 0) => format!("-{transports}"),
            _ => format!("-{}", index + 1),
        };
        let start = &stem[..stem.len().min(Name::MAX - end.len())];
        let name = format!("{start}{end}");
        let declaration = Declaration {
            name: name.parse().unwrap_or_else(|_| format!("unit-{name}").parse().expect("it begins with a letter")),
            ports,
            transports,
            audience: audience.clone(),
            strict: false,
            ephemeral: false,
            around: true,
            force: false,
            description: String::new(),
        };
        let stanza = portkeep_persist::export([&declaration]);
        // Leave out the text that `export` writes before the first stanza.
        text += stanza.find("[[").map_or(&*stanza, |at| &stanza[at..]);
        text += "\n";
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    DropIn { file: format!("{}.toml", PathBuf::from(stem).display()), text }
}

fn blocks(set: &PortSet) -> impl Iterator<Item = PortRange> {
    set.spans().filter_map(|(first, last)| PortRange::inclusive(first, last).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u16, transport: Transport) -> PortUse {
        let mut socket = usage::unlisted(transport, port);
        socket.local = Some(format!("0.0.0.0:{port}"));
        PortUse { bound_by: vec![socket], ..PortUse::none(port, transport) }
    }

    #[test]
    fn a_file_reads_as_what_it_is_for() {
        let ports = [
            port(25, Transport::Tcp),
            port(80, Transport::Tcp),
            port(81, Transport::Tcp),
            port(443, Transport::Tcp),
            port(443, Transport::Udp),
            port(5353, Transport::Udp),
        ];
        let owner = Owner { unit: "nginx.service".into(), by_systemd: false };
        let DropIn { file, text } = drop_in(&owner, &ports, Time::from_unix(1_764_063_000));
        assert_eq!(file, "nginx.toml");
        assert!(text.starts_with("# Written by `portkeep adopt` on 2025-11-25, for what listened then:\n"), "{text}");
        let declarations = portkeep_persist::import(Path::new("nginx.toml"), &text, &Default::default()).unwrap();
        let all: Vec<String> = declarations
            .iter()
            .map(|each| format!("{} {}/{} {} {}", each.name, each.ports, each.transports, each.audience, each.around))
            .collect();
        let of = |rest: &str| format!("{rest} unit nginx.service true");
        assert_eq!(all, [of("nginx 443/tcp+udp"), of("nginx-tcp 25,80-81/tcp"), of("nginx-udp 5353/udp")]);
    }

    #[test]
    fn a_socket_of_systemd_is_reserved_for_root() {
        let owner = Owner { unit: "socket-22.socket".into(), by_systemd: true };
        let DropIn { file, text } = drop_in(&owner, &[port(22, Transport::Tcp)], Time::from_unix(0));
        assert!(
            file == "socket-22.toml" && text.contains("user = \"root\"") && text.contains("around = true"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_is_there_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/x.toml");
        assert!(create(&path, "one").unwrap());
        assert!(!create(&path, "two").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
