//! The scenarios in `scenarios/*.txt`.
//!
//! ```text
//! title An entry is refilled while a bind looks at it
//! process thief uid 1000
//! process owner uid 1001
//! socket a thief tcp
//! socket b owner tcp
//! before                      # one after the other, before any CPU starts
//!   acquire a 61000 1 = R1
//! cpu                         # what this CPU does
//!   bind b 61000
//! cpu
//!   release a R1
//! ```
//!
//! `socket m owner mptcp` is an MPTCP socket. `accept c from l`: a connection to the listener `l` is established, and `c` is
//! its socket. `over c`: the connection of `c` is over.
//!
//! A call that must succeed in every schedule begins with `must`, one that must fail with `never`. A call in another process than its socket's
//! begins with `by PROCESS`.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use crate::kernel::Transport;

/// Flags and scopes of a request, as the programs number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Terms {
    pub(crate) strict: bool,
    /// A private ephemeral range.
    pub(crate) ephemeral: bool,
    pub(crate) both: bool,
    pub(crate) user: bool,
    /// Only of `create`: for this uid.
    pub(crate) uid: u32,
    /// A uid that is admitted beside the scope, 0: none.
    pub(crate) also: u32,
}

/// The hooks where another program also refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Others {
    pub(crate) bind: bool,
    /// It is in a cgroup below, so it runs before ours.
    pub(crate) post_bind_before: bool,
    pub(crate) post_bind_after: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Acquire {
        start: u16,
        count: u16,
        terms: Terms,
        reservation: usize,
    },
    Release {
        reservation: usize,
    },
    Associate {
        reservation: usize,
    },
    Granted,
    /// The socket becomes the agent's beacon.
    Beacon,
    /// `automatic`: what the kernel chooses if `port` is 0 and stays so.
    Bind {
        port: u16,
        address: u32,
        automatic: u16,
        others: Others,
    },
    Connect,
    Disconnect,
    /// A connection to the listener is established; the call's socket is the new one.
    Accept {
        listener: usize,
    },
    /// The connection is over: reset by the peer, or ended by both.
    Over,
    Listen,
    ReuseAddress,
    ReusePort,
    Close,
    Create {
        start: u16,
        count: u16,
        terms: Terms,
        reservation: usize,
    },
    Confirm {
        reservation: usize,
    },
    Refuse {
        reservation: usize,
    },
    End {
        reservation: usize,
    },
    /// For another uid, with another uid admitted.
    Change {
        reservation: usize,
        uid: u32,
        also: u32,
    },
    /// User space removes the words of a quiet namespace.
    Forget {
        port: u16,
    },
    /// User space removes the quota of an account.
    ForgetQuota {
        account: u64,
    },
    /// The agent has found out that a TCP port which was set aside is vacant. Only after the scenario.
    Vacate {
        netns: u64,
        port: u16,
    },
}

impl Call {
    /// Whether it is made through a socket; else it is the administrator's.
    pub(crate) const fn is_on_socket(&self) -> bool {
        !matches!(
            self,
            Self::Create { .. }
                | Self::Confirm { .. }
                | Self::Refuse { .. }
                | Self::End { .. }
                | Self::Change { .. }
                | Self::Forget { .. }
                | Self::ForgetQuota { .. }
                | Self::Vacate { .. }
        )
    }

    /// Whether it holds a descriptor of the socket, which is not closed for the last time meanwhile. Packets need none.
    pub(crate) const fn holds_descriptor(&self) -> bool {
        self.is_on_socket() && !matches!(self, Self::Accept { .. } | Self::Over)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) call: Call,
    pub(crate) process: usize,
    pub(crate) socket: usize,
    pub(crate) must: bool,
    pub(crate) never: bool,
    pub(crate) text: String,
}

/// The fixed properties of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminology {
    pub(crate) name: String,
    pub(crate) process: usize,
    pub(crate) socket: usize,
    pub(crate) transports: u8,
    pub(crate) netns: u64,
    pub(crate) terms: Terms,
    pub(crate) persistent: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct SocketPlan {
    pub(crate) name: String,
    pub(crate) process: usize,
    pub(crate) transport: Transport,
    pub(crate) netns: u64,
    pub(crate) mptcp: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) title: String,
    /// Names and uids.
    pub(crate) processes: Vec<(String, u32)>,
    pub(crate) sockets: Vec<SocketPlan>,
    pub(crate) reservations: Vec<Terminology>,
    pub(crate) before: Vec<Line>,
    pub(crate) cpus: Vec<Vec<Line>>,
    /// Preemptions in the short form.
    pub(crate) short: u32,
    /// In the long form.
    pub(crate) long: u32,
    /// Ports an account may hold.
    pub(crate) quota: u64,
}

struct Parser {
    scenario: Scenario,
    processes: HashMap<String, usize>,
    sockets: HashMap<String, usize>,
    reservations: HashMap<String, usize>,
}

pub(crate) fn parse(name: &str, text: &str) -> Result<Scenario> {
    let scenario = Scenario {
        title: String::new(),
        processes: Vec::new(),
        sockets: Vec::new(),
        reservations: Vec::new(),
        before: Vec::new(),
        cpus: Vec::new(),
        short: 2,
        long: 3,
        quota: 1024,
    };
    let mut parser =
        Parser { scenario, processes: HashMap::new(), sockets: HashMap::new(), reservations: HashMap::new() };
    let mut before = true;
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        parser.line(line, &words, &mut before).with_context(|| format!("{name}.txt, line {}: {line}", n + 1))?;
    }
    ensure!((1..=4).contains(&parser.scenario.cpus.len()), "{name}.txt: one to four CPUs, please");
    Ok(parser.scenario)
}

impl Parser {
    fn line(&mut self, line: &str, words: &[&str], before: &mut bool) -> Result<()> {
        match *words {
            ["title", ..] => self.scenario.title = line["title".len()..].trim().to_owned(),
            ["preemptions", short, long] => (self.scenario.short, self.scenario.long) = (short.parse()?, long.parse()?),
            ["quota", ports] => self.scenario.quota = ports.parse()?,
            ["process", name, "uid", uid] => {
                self.processes.insert(name.to_owned(), self.scenario.processes.len());
                self.scenario.processes.push((name.to_owned(), uid.parse()?));
            }
            ["socket", name, process, transport, ref rest @ ..] => {
                let process = *self.processes.get(process).context("there is no such process")?;
                let mptcp = transport == "mptcp";
                let transport = match transport {
                    "tcp" | "mptcp" => Transport::Tcp,
                    "udp" => Transport::Udp,
                    other => bail!("`{other}` is neither tcp nor udp nor mptcp"),
                };
                let netns = match rest {
                    [] => crate::world::HOME,
                    ["elsewhere"] => 2,
                    other => bail!("a socket is not {other:?}"),
                };
                self.sockets.insert(name.to_owned(), self.scenario.sockets.len());
                self.scenario.sockets.push(SocketPlan { name: name.to_owned(), process, transport, netns, mptcp });
            }
            ["before"] => *before = true,
            ["cpu"] => {
                *before = false;
                self.scenario.cpus.push(Vec::new());
            }
            _ => {
                let call = self.call(words, line)?;
                if *before {
                    self.scenario.before.push(call);
                } else {
                    self.scenario.cpus.last_mut().context("no CPU yet")?.push(call);
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, words: &[&str], text: &str) -> Result<Line> {
        let (must, never, words) = match words {
            ["must", rest @ ..] => (true, false, rest),
            ["never", rest @ ..] => (false, true, rest),
            _ => (false, false, words),
        };
        let (process, words) = match words {
            ["by", process, rest @ ..] => {
                (Some(*self.processes.get(*process).context("there is no such process")?), rest)
            }
            _ => (None, words),
        };
        let socket = words.get(1).and_then(|name| self.sockets.get(*name)).copied();
        let of = || socket.context("there is no such socket");
        let known = |name: &str| self.reservations.get(name).copied().context("there is no such reservation");
        let call = match *words {
            ["acquire", _, start, count, ref rest @ ..] => {
                let (terms, name) = terms(rest)?;
                let owner = of()?;
                let transport = self.scenario.sockets[owner].transport.bit();
                let transports = if terms.both { 3 } else { transport };
                let by = process.unwrap_or(self.scenario.sockets[owner].process);
                let netns = self.scenario.sockets[owner].netns;
                let reservation = self.reservation(name, by, owner, transports, netns, terms, false);
                Call::Acquire { start: start.parse()?, count: count.parse()?, terms, reservation }
            }
            ["create", transport, start, count, ref rest @ ..] => {
                let (terms, name) = terms(rest)?;
                let transports = if transport == "udp" { 2 } else { 1 };
                let reservation = self.reservation(name, 0, 0, transports, crate::world::HOME, terms, true);
                Call::Create { start: start.parse()?, count: count.parse()?, terms, reservation }
            }
            ["release", _, name] => Call::Release { reservation: known(name)? },
            ["associate", _, name] => Call::Associate { reservation: known(name)? },
            ["granted", _] => Call::Granted,
            ["beacon", _] => Call::Beacon,
            ["bind", _, port, ref rest @ ..] => bind(port, rest)?,
            ["connect", _] => Call::Connect,
            ["disconnect", _] => Call::Disconnect,
            ["accept", _, "from", listener] => {
                Call::Accept { listener: *self.sockets.get(listener).context("there is no such listener")? }
            }
            ["over", _] => Call::Over,
            ["listen", _] => Call::Listen,
            ["reuseaddr", _] => Call::ReuseAddress,
            ["reuseport", _] => Call::ReusePort,
            ["close", _] => Call::Close,
            ["confirm", name] => Call::Confirm { reservation: known(name)? },
            ["refuse", name] => Call::Refuse { reservation: known(name)? },
            ["end", name] => Call::End { reservation: known(name)? },
            ["change", name, "uid", uid] => Call::Change { reservation: known(name)?, uid: uid.parse()?, also: 0 },
            ["change", name, "uid", uid, "also", also] => {
                Call::Change { reservation: known(name)?, uid: uid.parse()?, also: also.parse()? }
            }
            ["forget", port] => Call::Forget { port: port.parse()? },
            ["forget-quota", account] => Call::ForgetQuota { account: account.parse()? },
            _ => bail!("this is no call that the scenarios know"),
        };
        let socket = if call.is_on_socket() { of()? } else { 0 };
        let process = process.unwrap_or(self.scenario.sockets[socket].process);
        Ok(Line { call, process, socket, must, never, text: text.to_owned() })
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one structure")]
    fn reservation(
        &mut self,
        name: &str,
        process: usize,
        socket: usize,
        transports: u8,
        netns: u64,
        terms: Terms,
        persistent: bool,
    ) -> usize {
        let number = self.scenario.reservations.len();
        self.reservations.insert(name.to_owned(), number);
        let name = name.to_owned();
        self.scenario.reservations.push(Terminology { name, process, socket, transports, netns, terms, persistent });
        number
    }
}

/// `[strict] [ephemeral] [both] [user] [uid N] [also N] = NAME`
fn terms<'a>(words: &[&'a str]) -> Result<(Terms, &'a str)> {
    let mut terms = Terms::default();
    let mut words = words;
    loop {
        words = match words {
            ["=", name] => return Ok((terms, name)),
            ["strict", rest @ ..] => {
                terms.strict = true;
                rest
            }
            ["ephemeral", rest @ ..] => {
                terms.ephemeral = true;
                rest
            }
            ["both", rest @ ..] => {
                terms.both = true;
                rest
            }
            ["user", rest @ ..] => {
                terms.user = true;
                rest
            }
            ["uid", uid, rest @ ..] => {
                terms.user = true;
                terms.uid = uid.parse()?;
                rest
            }
            ["also", uid, rest @ ..] => {
                terms.also = uid.parse()?;
                rest
            }
            other => bail!("terms of a request are not {other:?}"),
        };
    }
}

/// `PORT [at ADDRESS] [gets PORT] [OTHER-refuses ...]`
fn bind(port: &str, words: &[&str]) -> Result<Call> {
    let (mut address, mut automatic, mut others) = (0, 0, Others::default());
    let mut words = words;
    loop {
        words = match words {
            [] => return Ok(Call::Bind { port: port.parse()?, address, automatic, others }),
            ["at", number, rest @ ..] => {
                address = number.parse()?;
                rest
            }
            ["gets", number, rest @ ..] => {
                automatic = number.parse()?;
                rest
            }
            ["bind-refused-before", rest @ ..] => {
                others.bind = true;
                rest
            }
            ["post-bind-refused-before", rest @ ..] => {
                others.post_bind_before = true;
                rest
            }
            ["post-bind-refused-after", rest @ ..] => {
                others.post_bind_after = true;
                rest
            }
            other => bail!("a bind is not {other:?}"),
        };
    }
}
