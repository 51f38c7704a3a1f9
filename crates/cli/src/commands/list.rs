//! `list`: all reservations.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fmt,
    io::{IsTerminal, Write, stdout},
    str::FromStr,
    thread,
    time::Duration,
};

use clap::ValueEnum;
use portkeep::{Enforcement, Info, Process, State, persistent::protocol::Reason};
use portkeep_core::time;
use portkeep_observe::Usage;

use crate::{
    DONE, Exit, Io,
    args::{filter::Filter, pins::Pins},
    ran_out,
    render::table::{self, Look, Terminal},
    reservations, survey,
    waiting::{self, Heard},
};

const AFTER_HELP: &str = "\
Root sees all network namespaces and every process; other users see only their own. A token is shown only to processes that \
may use it. BOUND counts the ports of the block that have a socket, TCP and UDP apart. Reservations that programs only \
hold, without kernel enforcement, are among them: ENFORCED is `held`.

For a persistent reservation, OWNER shows its audience: the unit, cgroup, user or group. The last column shows the file or command that declared it \
and the processes that have its ports bound. If the owner process of another reservation has ended, it shows the processes in its cgroup. Declarations that are not in force are reported on standard error; `portkeep \
persist list` shows them too.

On a narrow terminal some columns are left out and the last one is cut; --columns chooses them. There, reservations that are \
only held or still being checked have a colour, unless NO_COLOR is set. NETNS is left out if all reservations are in this \
namespace. --watch shows the list again whenever it changes.

Examples:
  portkeep list
  portkeep list 8000-8999 --unit nginx.service
  portkeep list --columns ports,label,owner --sort -since --no-header
  portkeep list --json | jq -r '.[] | select(.owner.uid == 1000) | .ports'";

/// List reservations and who holds them
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Order by this column; -COLUMN is the reverse
    #[arg(long, value_name = "COLUMN", default_value = "ports", hide_default_value = true, allow_hyphen_values = true)]
    #[arg(value_hint = clap::ValueHint::Other)]
    sort: Order,
    /// Show these columns, separated by commas
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', hide_possible_values = true)]
    columns: Vec<Column>,
    /// Leave the header out
    #[arg(long)]
    no_header: bool,
    /// Show it again whenever it changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Column {
    Ports,
    Proto,
    Owner,
    Uid,
    Scope,
    Bound,
    Since,
    Netns,
    Label,
    Enforced,
    Token,
    Command,
}

/// The columns without `--columns`, and those that a narrow terminal leaves out, the least useful first.
const USUAL: [Column; 11] = [
    Column::Ports,
    Column::Proto,
    Column::Owner,
    Column::Uid,
    Column::Scope,
    Column::Bound,
    Column::Since,
    Column::Netns,
    Column::Label,
    Column::Token,
    Column::Command,
];
const DISPENSABLE: [Column; 5] = [Column::Token, Column::Scope, Column::Uid, Column::Bound, Column::Netns];
/// If the last column would be narrower than this, other columns are left out.
const LAST: usize = 12;

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value().map(|value| value.get_name().to_uppercase()).unwrap_or_default();
        f.write_str(&name)
    }
}

/// The column to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    column: Column,
    reverse: bool,
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (reverse, name) = text.strip_prefix('-').map_or((false, text), |name| (true, name));
        match Column::from_str(name, true) {
            Ok(column) => Ok(Self { column, reverse }),
            Err(_) => Err(format!("{name:?} is no column; they are {}", names().join(", "))),
        }
    }
}

fn names() -> Vec<String> {
    Column::value_variants().iter().map(|column| column.to_string().to_lowercase()).collect()
}

pub(crate) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    if !args.watch {
        let (found, heard) = match with_held(&args.pins) {
            // Programs get an empty array as the answer. Scripts see the exit status.
            Err(error) if args.json && Exit::reason(&error) == Reason::NotUp => {
                io.json(&[(); 0])?;
                return Err(error);
            }
            found => found?,
        };
        args.show(&args.select(found)?, io)?;
        for waiting in heard.waiting() {
            io.warning(waiting::sentence(waiting));
        }
        heard.silence().into_iter().for_each(|silence| io.warning(silence));
        return Ok(DONE);
    }
    let mut before: Option<Vec<Info>> = None;
    let mut failed = String::new();
    let mut complain = |text: String, io: &mut Io<'_>| {
        if text != failed && !text.is_empty() {
            io.warning(&text);
        }
        failed = text;
    };
    loop {
        match with_held(&args.pins) {
            Ok((found, heard)) => {
                let found = args.select(found)?;
                complain(heard.silence().unwrap_or_default(), io);
                if before.as_ref() != Some(&found) {
                    if stdout().is_terminal() && !args.json {
                        // Move the cursor to the first line, and clear everything below it.
                        write!(io.out, "\x1b[H\x1b[J")?;
                    } else if before.is_some() && !args.json {
                        writeln!(io.out)?;
                    }
                    args.show(&found, io)?;
                    io.out.flush()?;
                    before = Some(found);
                }
            }
            // It may be up in a moment.
            Err(error) => complain(format!("{error:#}"), io),
        }
        thread::sleep(AGAIN);
    }
}

/// How often `--watch` looks.
const AGAIN: Duration = Duration::from_secs(1);

/// The same as [`survey::all`], and what programs only hold; with the agent's answer.
fn with_held(pins: &Pins) -> anyhow::Result<(Vec<Info>, Heard)> {
    let found = reservations::in_force(pins, None);
    let blocks = found.as_deref().map_or_else(|_| Ok(Vec::new()), survey::in_use)?;
    // One pass through all sockets and processes finds both.
    let usage = Usage::bound_and_held(&blocks).unwrap_or_default();
    let mut found = match found {
        Err(error) if ran_out(&error) || usage.held.is_empty() => return Err(error),
        Err(_) => Vec::new(),
        Ok(found) => found,
    };
    let heard = waiting::ask();
    survey::name(&mut found, Some(&heard));
    survey::enter_sockets(&mut found, &usage)?;
    found.extend(usage.held);
    found.sort_by_key(|info| (info.netns, info.ports.start(), info.transports));
    Ok((found, heard))
}

impl Args {
    fn select(&self, mut found: Vec<Info>) -> anyhow::Result<Vec<Info>> {
        let selection = self.filter.resolve(&found)?;
        found.retain(|info| selection.has(info));
        let Order { column, reverse } = self.sort;
        // Equal rows stay in the order of the ports.
        match reverse {
            true => found.sort_by_key(|info| Reverse(key(info, column))),
            false => found.sort_by_key(|info| key(info, column)),
        }
        Ok(found)
    }

    fn show(&self, found: &[Info], io: &mut Io<'_>) -> anyhow::Result<()> {
        if self.json { io.json(&found) } else { self.write(found, &mut io.out, Terminal::of_output()) }
    }

    fn write(&self, found: &[Info], out: &mut dyn Write, terminal: Option<Terminal>) -> anyhow::Result<()> {
        let mut columns = self.columns.clone();
        if columns.is_empty() {
            columns = USUAL.into();
            if found.iter().all(|info| info.netns_name.as_deref().is_none_or(|name| name == "this")) {
                columns.retain(|column| *column != Column::Netns);
            }
        }
        let rows = |columns: &[Column]| {
            let header = (!self.no_header).then(|| columns.iter().map(ToString::to_string).collect::<Vec<_>>());
            let cells = |info| columns.iter().map(|column| cell(info, *column)).collect();
            header.into_iter().chain(found.iter().map(cells)).collect::<Vec<Vec<String>>>()
        };
        let mut table = rows(&columns);
        if let Some(Terminal { width, .. }) = terminal {
            for column in DISPENSABLE.into_iter().filter(|_| self.columns.is_empty()) {
                let widths = table::widths(&table);
                let Some((last, others)) = widths.split_last() else { break };
                if table::total(others) + 2 + (*last).min(LAST) <= width {
                    break;
                }
                columns.retain(|each| *each != column);
                table = rows(&columns);
            }
            for cell in table.iter_mut().flatten() {
                *cell = table::cut(cell, width);
            }
            let widths = table::widths(&table);
            if let Some(last) = widths.last() {
                let rest = (width + last).saturating_sub(table::total(&widths)).max(LAST);
                for last in table.iter_mut().filter_map(|row| row.last_mut()) {
                    *last = table::cut(last, rest);
                }
            }
        }
        let headers = usize::from(!self.no_header);
        let colour = terminal.is_some_and(|terminal| terminal.colour);
        let is_special = |info: &Info| info.state != State::Active || info.enforcement == Some(Enforcement::Held);
        table::write_with(&table, out, |index| match index.checked_sub(headers) {
            None => Look::Header.if_colour(colour),
            Some(index) if is_special(&found[index]) => Look::Special.if_colour(colour),
            Some(_) => Look::Plain,
        })
    }
}

/// The key of the order: numbers as numbers, the rest as text.
fn key(info: &Info, column: Column) -> (u64, String) {
    let uid = info.owner.as_ref().and_then(|owner| owner.uid);
    let number = match column {
        Column::Ports => u64::from(info.ports.start()),
        Column::Owner => info.owner.as_ref().map_or(u64::MAX, |owner| owner.pid.into()),
        Column::Uid => uid.map_or(u64::MAX, u64::from),
        Column::Bound => info.bound.unwrap_or_default().into(),
        Column::Since => info.since.map_or(0, |since| since.unix()),
        Column::Proto
        | Column::Scope
        | Column::Netns
        | Column::Label
        | Column::Enforced
        | Column::Token
        | Column::Command => {
            return (0, cell(info, column));
        }
    };
    (number, String::new())
}

fn cell(info: &Info, column: Column) -> String {
    let dash = || "-".to_owned();
    match column {
        Column::Ports => info.ports.to_string(),
        Column::Proto => info.transports.to_string(),
        Column::Owner => match &info.owner {
            Some(owner) => format!("{} ({})", owner.pid, owner.comm),
            None => reservations::owner(info),
        },
        Column::Uid => info.owner.as_ref().and_then(|owner| owner.uid).map_or_else(dash, |uid| uid.to_string()),
        Column::Scope => {
            let scope = info.scope.map_or_else(|| "persistent".into(), |scope| scope.to_string());
            format!("{scope}{}", reservations::terms(info))
        }
        Column::Bound => info.bound.unwrap_or_default().to_string(),
        Column::Since => info.age().map_or_else(dash, time::ago),
        Column::Netns => info.netns_name.clone().or_else(|| Some(info.netns?.to_string())).unwrap_or_else(dash),
        Column::Label => info.name.clone().unwrap_or_else(dash),
        // The word that JSON has.
        Column::Enforced => {
            let word = info.enforcement.and_then(|enforcement| serde_json::to_value(enforcement).ok());
            word.as_ref().and_then(|word| word.as_str()).map_or_else(dash, str::to_owned)
        }
        Column::Token => info.token.map_or_else(dash, |token| token.to_string()),
        Column::Command => last(info).unwrap_or_else(dash),
    }
}

/// The command of the owner process or, if it has ended, the processes in its cgroup. For a persistent reservation: its
/// origin, and the processes that have its ports bound.
fn last(info: &Info) -> Option<String> {
    if let Some(owner) = &info.owner {
        let names = |members: &Vec<Process>| members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let members = || info.members.as_ref().map(|members| format!("in its cgroup: {}", names(members)));
        return owner.command.clone().or_else(members);
    }
    let origin = info.origin.as_ref().map(|origin| format!("from {origin}"));
    let bound = info.bound_by.iter().flatten().filter_map(|socket| socket.process.as_ref());
    let bound: BTreeSet<String> = bound.map(ToString::to_string).collect();
    let bound = (!bound.is_empty()).then(|| format!("bound by {}", Vec::from_iter(bound).join(", ")));
    let parts: Vec<String> = origin.into_iter().chain(bound).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use portkeep::{PortRange, Transports};

    use super::*;

    fn args(words: &[&str]) -> Args {
        use clap::FromArgMatches;
        let matches = <Args as clap::Args>::augment_args(clap::Command::new("list"))
            .try_get_matches_from([&["list"], words].concat())
            .unwrap();
        Args::from_arg_matches(&matches).unwrap()
    }

    fn some() -> Vec<Info> {
        let info = |start: u16, name: &str, pid: u32| {
            let ports = PortRange::new(start, 2).unwrap();
            let mut info = Info::of_ports(ports, Transports::Tcp, State::Active);
            info.name = Some(name.to_owned());
            let command = Some("a command that is longer than the terminal is wide".to_owned());
            info.owner = Some(Process { pid, comm: "server".into(), command, uid: Some(pid), ..Process::default() });
            info.netns_name = Some("this".into());
            info
        };
        vec![info(61000, "one", 20), info(61002, "two", 3), info(61004, "three", 100)]
    }

    fn text(words: &[&str], terminal: Option<usize>) -> Vec<String> {
        let args = args(words);
        let mut out = Vec::new();
        let terminal = terminal.map(|width| Terminal { width, colour: false });
        args.write(&args.select(some()).unwrap(), &mut out, terminal).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn filters_select_what_all_of_them_do() {
        let labels = |words: &[&str]| text(&[&["--columns", "label", "--no-header"], words].concat(), None);
        assert_eq!(labels(&[]), ["one", "two", "three"]);
        assert_eq!(labels(&["61001-61002"]), ["one", "two"]);
        assert_eq!(labels(&["61001-61002/udp"]), [""; 0]);
        assert_eq!(labels(&["--label", "two"]), ["two"]);
        assert_eq!(labels(&["two"]), ["two"]);
        assert_eq!(labels(&["--uid", "100"]), ["three"]);
        assert_eq!(labels(&["--uid", "100", "--label", "two"]), [""; 0]);
        assert_eq!(labels(&["--unit", "no.service"]), [""; 0]);
    }

    #[test]
    fn numbers_are_sorted_as_numbers_and_the_other_way_round() {
        let labels = |sort: &str| text(&["--columns", "label", "--no-header", "--sort", sort], None);
        assert_eq!(labels("uid"), ["two", "one", "three"]);
        assert_eq!(labels("-owner"), ["three", "one", "two"]);
        assert_eq!(labels("label"), ["one", "three", "two"]);
        assert!("size".parse::<Order>().unwrap_err().contains("ports, proto, owner"));
    }

    #[test]
    fn a_terminal_is_never_too_narrow() {
        let wide = text(&[], Some(200));
        assert_eq!(wide, text(&[], None));
        assert!(wide[0].contains("TOKEN") && !wide[0].contains("NETNS"), "{}", wide[0]);
        for width in [80, 100, 120] {
            let narrow = text(&[], Some(width));
            assert!(narrow.iter().all(|line| line.chars().count() <= width), "{width}: {narrow:#?}");
            assert!(narrow[0].contains("PORTS") && narrow[0].contains("OWNER") && narrow[0].contains("LABEL"));
        }
        assert!(text(&["--columns", "token"], Some(10))[0].contains("TOKEN"), "as asked for");
    }
}
