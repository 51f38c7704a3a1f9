//! `who`: the holders of a port.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
    time::SystemTime,
};

use anyhow::Context;
use portkeep::{BoundSocket, Info, PortRange, State, Transport, Transports, persistent::protocol::Reason};
use portkeep_core::{PortSet, time};
use portkeep_kernel::netns;
use portkeep_observe::{Facts, PortFacts, PortUse, Usage, nat, process, usage};
use serde::Serialize;

use crate::{
    DONE, Io, NOTHING,
    args::{
        asked::Asked,
        pins::{Pins, Seen},
    },
    exit::refused,
    ran_out,
    render::{
        conflict,
        local_time::local,
        table::{self, Terminal},
    },
    reservations::{self, Blocks},
    survey, waiting,
};

const AFTER_HELP: &str = "\
Shows for each port: the reservation of this network namespace that has it or waits for it; the sockets that are bound to \
it, with their processes; its connections, also closed ones that the kernel still keeps (TIME-WAIT); and the settings that concern \
it: the pool, ip_local_port_range, ip_local_reserved_ports, privileges and NAT rules.

PORTS is a port, a range, a list of both with names of /etc/services, or the label or name of a reservation. The free \
ports of a range are left out.

Only root can see other users' processes and NAT rules. On a terminal command lines are cut to its width.

Examples:
  portkeep who 61004
  portkeep who 80,443 8000-8100/tcp web
  portkeep who 53/udp --json

Exit status: 0 if one of the ports is reserved or in use, 3 if all are free, 1 if that cannot be found out";

/// Connections of a server that are shown in a text.
const FEW: usize = 3;

/// Show who has a port
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// 61004, 53/udp, 80,443, 8000-8100, http, or the name of a reservation
    #[arg(value_name = "PORTS[/TRANSPORT]", required = true)]
    ports: Vec<Asked>,
    /// One JSON array, an element for each port and transport
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

/// One port of one transport.
#[derive(Debug, Serialize)]
struct Holders {
    /// The reservation that has it.
    reservation: Option<Info>,
    /// Persistent reservations of the port that are not in force.
    waiting: Vec<Info>,
    /// Reservations of the port in other network namespaces, if they can be seen.
    elsewhere: Vec<Info>,
    /// It is in the pool.
    pool: bool,
    #[serde(flatten)]
    sockets: PortUse,
    #[serde(flatten)]
    facts: PortFacts,
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    // nft and iptables-save run while this process looks at the rest.
    let rules = nat::Reading::start();
    let own = netns::current_cookie().context("finding out which network namespace this is")?;
    // Ports by number require only their own reservations: a machine can have ten thousand reservations.
    let by_number = args.ports.iter().all(Asked::is_by_number);
    let mut blocks: Vec<_> = args.ports.iter().filter(|_| by_number).flat_map(|asked| asked.blocks(&[])).collect();
    let mut found = reserved(&args.pins, by_number.then_some(&*blocks), io)?;
    let heard = waiting::ask();
    survey::name(&mut found, Some(&heard));
    let waiting: Vec<Info> = heard.waiting().cloned().collect();
    let (here, elsewhere): (Vec<Info>, Vec<Info>) =
        found.into_iter().partition(|info| reservations::is_here(info, own));
    if !by_number {
        let mut known: Vec<&Info> = here.iter().chain(&waiting).chain(&elsewhere).collect();
        // To find blocks that programs only hold, all sockets must be read.
        let held =
            if args.ports.iter().any(|asked| asked.blocks(&known).is_empty()) { survey::held() } else { Vec::new() };
        known.extend(&held);
        for asked in &args.ports {
            let named = asked.blocks(&known);
            if named.is_empty() {
                let why = format!("there is no reservation {asked}, and no service of this name in /etc/services");
                return Err(refused(Reason::NotFound, why));
            }
            blocks.extend(named);
        }
    }
    let look = Look::new(&blocks, here, waiting, elsewhere, rules)?;
    let holders = look.all(&blocks);
    let anybody = holders.iter().any(Holders::is_held);
    if args.json {
        io.json(&holders)?;
    } else {
        look.write(&holders, io)?;
        if !anybody {
            let names: Vec<String> = args.ports.iter().map(ToString::to_string).collect();
            let are = if matches!(blocks[..], [(ports, _)] if ports.count() == 1) { "is" } else { "are" };
            writeln!(io.out, "{} {are} free", names.join(", "))?;
        }
        look.write_free(&holders, &blocks, anybody, io)?;
        for waiting in &look.waiting.infos {
            if holders.iter().any(|each| waiting.has(each.sockets.transport, each.sockets.port)) {
                writeln!(io.out, "{}", waiting::sentence(waiting))?;
            }
        }
    }
    heard.silence().into_iter().for_each(|silence| io.warning(silence));
    let root = process::lacks().unwrap_or("root");
    let is_unseen = |socket: &BoundSocket| socket.process.is_none() && !socket.kernel && !usage::is_left(socket);
    let reserved = holders.iter().filter_map(|each| each.reservation.as_ref());
    if reserved.into_iter().any(|info| info.owner.is_none() && info.audience.is_none()) {
        io.note(format_args!("only {root} and the agent see the name of that service or cgroup"));
    }
    let unseen = holders.iter().flat_map(|each| each.sockets.sockets()).any(is_unseen);
    if unseen && !look.usage.all {
        io.note(format_args!("only {root} can see other users' processes"));
    }
    if !anybody && look.facts.redirects.is_none() {
        io.note(match rustix::process::geteuid().is_root() {
            true => "NAT rules could not be read: this requires CAP_NET_ADMIN and nft or iptables-save",
            false => "only root can see NAT rules, which can redirect a port",
        });
    }
    Ok(if anybody { DONE } else { NOTHING })
}

/// The reservations. If they cannot be seen, this warns, and `who` still shows which process has the port bound.
fn reserved(pins: &Pins, blocks: Option<&Blocks>, io: &mut Io<'_>) -> anyhow::Result<Vec<Info>> {
    match reservations::in_force(pins, blocks) {
        Ok(found) => Ok(found),
        // Without descriptors, nothing else can be found out either.
        Err(error) if ran_out(&error) => Err(error),
        Err(error) => {
            if !matches!(pins.look(), Seen::NotUp) {
                io.warning(format_args!("{error:#}"));
            }
            Ok(Vec::new())
        }
    }
}

/// Reservations by their ports: there can be as many reservations as ports that are asked for.
struct ByPort {
    infos: Vec<Info>,
    places: HashMap<(u16, Transport), Vec<usize>>,
}

impl ByPort {
    fn new(infos: Vec<Info>) -> Self {
        let mut places: HashMap<_, Vec<usize>> = HashMap::new();
        for (place, info) in infos.iter().enumerate() {
            for port in info.ports.iter() {
                info.transports.iter().for_each(|transport| places.entry((port, transport)).or_default().push(place));
            }
        }
        Self { infos, places }
    }

    fn of(&self, transport: Transport, port: u16) -> Vec<Info> {
        let places = self.places.get(&(port, transport));
        places.into_iter().flatten().map(|place| self.infos[*place].clone()).collect()
    }
}

/// All that is known about the ports that are asked for.
struct Look {
    here: ByPort,
    waiting: ByPort,
    elsewhere: ByPort,
    usage: Usage,
    facts: Facts,
    pool: Option<PortRange>,
}

impl Look {
    fn new(
        blocks: &[(PortRange, Transports)],
        mut here: Vec<Info>,
        waiting: Vec<Info>,
        elsewhere: Vec<Info>,
        rules: nat::Reading,
    ) -> anyhow::Result<Self> {
        // The other ports of these reservations are shown with their sockets, too.
        here.retain(|info| {
            blocks.iter().any(|(ports, of)| info.transports.overlaps(*of) && info.ports.overlaps(&(*ports).into()))
        });
        let wanted = [blocks, &survey::in_use(&here)?].concat();
        let usage = Usage::of(&wanted).context("looking for sockets")?;
        survey::enter_sockets(&mut here, &usage)?;
        let held = usage.held.iter().filter(|held| !here.iter().any(|info| info.ports.overlaps(&held.ports)));
        here.extend(held.cloned().collect::<Vec<_>>());
        let pool = portkeep::version().ok().and_then(|version| version.pool);
        let [here, waiting, elsewhere] = [here, waiting, elsewhere].map(ByPort::new);
        Ok(Self { here, waiting, elsewhere, usage, facts: Facts::with(rules), pool })
    }

    /// In the order of the ports. The free ports of a range are left out.
    fn all(&self, blocks: &[(PortRange, Transports)]) -> Vec<Holders> {
        let mut found = BTreeMap::new();
        for (ports, transports) in blocks {
            for port in ports.iter() {
                for transport in transports.iter() {
                    let holders = self.one(transport, port, ports.count() == 1);
                    if ports.count() == 1 || holders.is_held() || !holders.waiting.is_empty() {
                        found.insert((port, transport), holders);
                    }
                }
            }
        }
        found.into_values().collect()
    }

    fn one(&self, transport: Transport, port: u16, singly: bool) -> Holders {
        let mut sockets = self.usage.port(transport, port);
        let waiting = self.waiting.of(transport, port);
        let reservation = self.here.of(transport, port).into_iter().next();
        if sockets.is_free() && !self.usage.complete && reservation.is_none() && singly {
            // The agent knows the sockets that it waits for. Others are found by trying.
            let known = waiting.iter().flat_map(|info| &info.waits_for);
            sockets.bound_by = known.filter(|one| (one.port, one.transport) == (port, transport)).cloned().collect();
            if sockets.bound_by.is_empty() && conflict::cannot_be_bound(transport, port) {
                sockets.bound_by.push(usage::unlisted(transport, port));
            }
        }
        Holders {
            reservation,
            waiting,
            elsewhere: self.elsewhere.of(transport, port),
            pool: self.pool.is_some_and(|pool| pool.contains(port)),
            sockets,
            facts: self.facts.of(transport, port),
        }
    }

    /// Each port that a process or a reservation has. A reservation is described once, at its first port.
    fn write(&self, holders: &[Holders], io: &mut Io<'_>) -> anyhow::Result<()> {
        // Command lines are cut to the terminal: a whole shell script can be an argument.
        let width = Terminal::of_output().map_or(usize::MAX, |terminal| terminal.width);
        let mut before: Option<&Info> = None;
        for each in holders.iter().filter(|holders| holders.is_held()) {
            let out = &mut io.out;
            match &each.reservation {
                Some(info) if before == Some(info) => {
                    if each.sockets.is_free() {
                        continue;
                    }
                    writeln!(out, "{} is of the same reservation", each.name())?;
                }
                Some(info) => describe(&each.name(), info, width, out)?,
                None => writeln!(out, "{} is not reserved", each.name())?,
            }
            before = each.reservation.as_ref();
            each.write_sockets(width, out)?;
            self.write_facts(each, "", out)?;
        }
        Ok(())
    }

    /// The free ports, if others have a holder, and what concerns those that are asked for singly.
    fn write_free(
        &self,
        holders: &[Holders],
        blocks: &[(PortRange, Transports)],
        anybody: bool,
        io: &mut Io<'_>,
    ) -> anyhow::Result<()> {
        let singles: BTreeSet<u16> =
            blocks.iter().filter(|(ports, _)| ports.count() == 1).map(|(ports, _)| ports.start()).collect();
        let alone = singles.len() == 1 && blocks.iter().all(|(ports, _)| ports.count() == 1);
        for port in &singles {
            let all: Vec<&Holders> = holders.iter().filter(|each| each.sockets.port == *port).collect();
            let free: Vec<&Holders> = all.iter().copied().filter(|each| !each.is_held()).collect();
            let Some(first) = free.first() else { continue };
            let is_whole = free.len() == all.len();
            if !is_whole && free.iter().all(|each| each.has_no_own_facts()) {
                // The notes of the other transport are the same.
                continue;
            }
            // A fact of one transport names it.
            let same = free.iter().all(|each| each.facts == first.facts && each.elsewhere == first.elsewhere);
            let name = if is_whole && all.len() > 1 { port.to_string() } else { first.name() };
            if anybody {
                writeln!(io.out, "{name} is free")?;
            }
            if same {
                let subject = if anybody || alone { String::new() } else { format!("{name}: ") };
                self.write_facts(first, &subject, &mut io.out)?;
            } else {
                for each in free {
                    self.write_facts(each, &format!("{}: ", each.name()), &mut io.out)?;
                }
            }
        }
        let mut ports = PortSet::default();
        blocks.iter().filter(|(of, _)| of.count() > 1).for_each(|(of, _)| ports.insert(*of));
        let has_holder = |port: &u16| {
            let of_port = holders.iter().filter(|each| each.sockets.port == *port);
            of_port.into_iter().any(Holders::is_held) || singles.contains(port)
        };
        let more = ports.spans().flat_map(|(first, last)| first..=last).filter(|port| !has_holder(port)).count();
        if anybody && more > 0 {
            let (s, are) = if more == 1 { ("", "is") } else { ("s", "are") };
            writeln!(io.out, "{more} more port{s} {are} free")?;
        }
        Ok(())
    }

    /// Other facts about the port, a line for each.
    fn write_facts(&self, each: &Holders, subject: &str, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut note = |text: String| writeln!(out, "  {:<9} {subject}{text}", "note");
        if let Some(pool) = self.pool.filter(|_| each.pool) {
            note(format!("it is in the pool ({pool}), which requests without a port are served from"))?;
        }
        if let Some(range) = self.facts.ephemeral.filter(|_| each.facts.ephemeral) {
            note(match each.facts.excluded {
                true => format!("it is in ip_local_port_range ({range}), and ip_local_reserved_ports keeps it out"),
                false => format!("it is in ip_local_port_range ({range}): outgoing connections may use it"),
            })?;
        } else if each.facts.excluded {
            note("it is in ip_local_reserved_ports: the kernel never chooses it".into())?;
        }
        if each.facts.privileged {
            let start = self.facts.unprivileged_start;
            note(format!("it is privileged (below {start}): binding it requires root or a reservation"))?;
        }
        for rule in each.facts.redirects.iter().flatten() {
            note(format!("a NAT rule redirects it, so that another program answers: {rule}"))?;
        }
        for info in &each.elsewhere {
            let name = info.netns_name.clone().or_else(|| Some(info.netns?.to_string())).unwrap_or_default();
            note(format!("in the network namespace {name}, {} has it", reservations::owner(info)))?;
        }
        Ok(())
    }
}

/// The reservation of a port.
fn describe(name: &str, info: &Info, width: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let owner = reservations::owner(info);
    match info.age().filter(|_| !info.persistent) {
        Some(age) if info.state == State::Pending => {
            writeln!(out, "{name} is being requested by {owner}; the request came {}", time::ago(age))?;
        }
        Some(age) => writeln!(out, "{name} belongs to {owner}, reserved {}", time::ago(age))?,
        None => writeln!(out, "{name} is reserved for {owner}")?,
    }
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<9} {value}");
    line("block", &format!("{}/{}", info.ports, info.transports))?;
    if let Some(label) = &info.name {
        line(if info.persistent { "name" } else { "label" }, label)?;
    }
    if let Some(command) = info.owner.as_ref().and_then(|owner| owner.command.as_ref()) {
        line("command", &table::cut(command, width.saturating_sub(12)))?;
    }
    for (index, process) in info.members.iter().flatten().enumerate() {
        let text = format!("{process} {}", process.command.as_deref().unwrap_or_default());
        line(if index == 0 { "members" } else { "" }, &table::cut(text.trim_end(), width.saturating_sub(12)))?;
    }
    if let Some(unit) = info.owner.as_ref().and_then(|owner| owner.unit.as_ref()) {
        line("unit", unit)?;
    }
    if let Some(description) = &info.description {
        line("what", description)?;
    }
    if let Some(origin) = &info.origin {
        line("from", &origin.to_string())?;
    }
    if let Some(uid) = info.owner.as_ref().and_then(|owner| owner.uid) {
        line("uid", &uid.to_string())?;
    }
    let terms = match (info.strict, info.ephemeral) {
        (true, _) => ", associated sockets only",
        (_, true) => ", its private ephemeral range",
        _ => "",
    };
    let scope = info.scope.map_or_else(|| "persistent".into(), |scope| scope.to_string());
    let cgroup = info.cgroup.as_deref().unwrap_or_default();
    line("scope", &format!("{}{terms}", format!("{scope} {cgroup}").trim_end()))?;
    if !info.also.is_empty() {
        line("also", &info.also.to_string())?;
    }
    if info.enforcement == Some(portkeep::Enforcement::Held) {
        line("held", "by sockets of this process, not enforced by the kernel")?;
    }
    if let Some(since) = info.since {
        line("since", &local(since))?;
    }
    Ok(())
}

impl Holders {
    fn name(&self) -> String {
        format!("{}/{}", self.sockets.port, self.sockets.transport)
    }

    fn is_held(&self) -> bool {
        self.reservation.is_some() || !self.sockets.is_free()
    }

    /// Whether nothing concerns this transport alone.
    fn has_no_own_facts(&self) -> bool {
        self.elsewhere.is_empty() && self.facts.redirects.iter().all(Vec::is_empty)
    }

    fn write_sockets(&self, width: usize, out: &mut dyn Write) -> anyhow::Result<()> {
        let PortUse { bound_by, connections, connection_count, .. } = &self.sockets;
        if bound_by.is_empty() && self.reservation.is_some() {
            writeln!(out, "  {:<9} no process", "bound by")?;
        }
        write_each("bound by", bound_by, width, out)?;
        // All connections of a server would fill a screen.
        let most = if bound_by.is_empty() { connections.len() } else { FEW };
        let shown = &connections[..connections.len().min(most)];
        write_each("used by", shown, width, out)?;
        let rest = connection_count - shown.len().min(*connection_count);
        if rest > 0 {
            writeln!(out, "  {:<9} and {rest} more connection{}", "", if rest == 1 { "" } else { "s" })?;
        }
        Ok(())
    }
}

fn write_each(name: &str, sockets: &[BoundSocket], width: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut before = None;
    for (index, socket) in sockets.iter().enumerate() {
        writeln!(out, "  {:<9} {}", if index == 0 { name } else { "" }, about(socket))?;
        let process = socket.process.as_ref();
        if let Some(command) = process.filter(|_| before != process).and_then(|process| process.command.as_ref()) {
            writeln!(out, "{}", table::cut(&format!("  {:<9}   {command}", ""), width))?;
        }
        before = process;
    }
    Ok(())
}

/// "pid 812 (nginx), user www-data, nginx.service, started 3h ago: listening on 0.0.0.0:80".
fn about(socket: &BoundSocket) -> String {
    let mut text = usage::holder(socket);
    if let Some(process) = &socket.process {
        let uid = process.uid.map(|uid| uid.to_string());
        for part in
            [process.user.clone().or(uid).map(|user| format!("user {user}")), socket.unit.clone()].into_iter().flatten()
        {
            text += ", ";
            text += &part;
        }
        if let Some(started) = process.started {
            text += &format!(", started {}", time::ago(started.age_at(SystemTime::now())));
        }
    }
    format!("{text}: {}", usage::state(socket))
}
