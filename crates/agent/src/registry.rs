//! The declarations, and their state in the BPF programs.
//!
//! Declarations come from drop-in files and, made by commands, from two stores.
//! Put together they say what shall be in force; the BPF programs say what is.
//! Everything here brings the second in line with the first: it can be
//! killed at any instant and done again. A change made by a command is in the
//! store before it is in force, and out of the store before it ends, so what was
//! reported holds whatever happens in between.
//!
//! Declarations that cannot be put in force (a port is in use, a user does not exist yet) wait, and are tried again.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use portkeep::{
    Align, BoundSocket, Info, PortList, PortRange, State, Token,
    persistent::{
        Audience, Declaration, Name, Origin, Others,
        protocol::{Block, Change, Kept, Proposal, Reason, Refused, Which},
    },
};
use portkeep_core::{Errno, ListMark, PortSet, Transport, Transports, wire};
use portkeep_kernel::{Claim, Claimed, CreateError, Maps, Wanted};
use portkeep_persist::{Declared, Diagnostic, Store, StoreError, Stored, dropin, merge};

use super::{accounts, keeper::Keeper, kernel_part::KernelPart, rightful::Judge, state::boot_id, usage};
use crate::vacancy::{Look, Prober};

/// The registry's tools: the BPF programs, and ways to look at the agent's network namespace.
pub(super) struct Desk<'a> {
    pub(super) kernel: &'a mut KernelPart,
    pub(super) keeper: &'a Keeper,
    pub(super) prober: &'a Prober,
    /// Cookie of the namespace that persistent reservations are for: the agent's own.
    pub(super) netns: u64,
}

#[derive(Debug)]
enum How {
    /// Its blocks in the kernel, in their order.
    Active(Vec<Claim>),
    Waiting(Obstacle),
}

/// Why something is not in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Obstacle {
    why: String,
    /// Sockets that have to go. While there are any, new automatic choices are kept out of the block.
    sockets: Vec<BoundSocket>,
    /// They are of its audience, so `around` would let them stay.
    rightful: bool,
}

impl From<String> for Obstacle {
    fn from(why: String) -> Self {
        Self { why, ..Self::default() }
    }
}

#[derive(Debug)]
struct Item {
    declared: Declared,
    how: How,
}

/// A store that may be out of order: then nothing it may hold is touched.
#[derive(Debug)]
enum Shelf {
    Open(Box<Store>),
    Closed {
        why: String,
        /// A full disk, say: it may open later. A damaged store will not.
        passing: bool,
    },
}

impl Shelf {
    fn of(opened: Result<Store, StoreError>) -> Self {
        match opened {
            Ok(store) => Self::Open(Box::new(store)),
            Err(error) => {
                let text = chain(&error);
                tracing::error!(reason = text, "what commands created cannot be read; it is left as it is");
                let passing =
                    matches!(error, StoreError::Full { .. } | StoreError::Io { .. } | StoreError::InUse { .. });
                Self::Closed { why: text, passing }
            }
        }
    }

    /// Try again what failed for a reason that passes. True if it is open now and was not before.
    fn open_again(&mut self, open: impl FnOnce() -> Result<Store, StoreError>) -> bool {
        let Self::Closed { passing: true, .. } = self else { return false };
        let Ok(store) = open() else { return false };
        tracing::info!("what commands created can be read again");
        *self = Self::Open(Box::new(store));
        true
    }

    fn list(&self) -> Vec<Stored> {
        match self {
            Self::Open(store) => store.list().into_iter().cloned().collect(),
            Self::Closed { .. } => Vec::new(),
        }
    }

    fn store(&mut self) -> Result<&mut Store, Refused> {
        match self {
            Self::Open(store) => Ok(store),
            Self::Closed { why, .. } => Err(refused(Reason::Store, why.clone())),
        }
    }
}

/// The result of bringing the BPF programs in line.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) added: usize,
    pub(super) changed: usize,
    pub(super) removed: usize,
    /// Those in conflict among them.
    pub(super) waiting: usize,
}

/// The declarations, and their state.
#[derive(Debug)]
pub(super) struct Registry {
    persistent: Shelf,
    active: Shelf,
    /// Where the two are.
    state: PathBuf,
    runtime: PathBuf,
    root: PathBuf,
    items: Vec<Item>,
    /// The declarations of files, as they were last read.
    files: Vec<Declared>,
    conflicts: Vec<portkeep_persist::Conflict>,
    by_id: HashMap<u32, usize>,
    told: HashMap<String, String>,
    version: u64,
}

/// The message, with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    anyhow::Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn refused(reason: Reason, message: impl Into<String>) -> Refused {
    Refused { reason, message: message.into() }
}

fn resolve(audience: &Audience) -> Result<Audience<u32>, String> {
    audience.try_map(accounts::uid, accounts::gid)
}

/// Each block of a declaration.
fn wanted(declaration: &Declaration, audience: &Audience<u32>) -> Vec<Wanted> {
    let (name, blocks) = (declaration.name.as_str(), declaration.ports.blocks());
    let label = ListMark::of_name(blocks.len(), name).map_or_else(|| name.to_owned(), |mark| mark.label(name));
    let of = |block: &PortRange| Wanted {
        start: block.start(),
        count: block.count(),
        align: Align::ANY,
        transports: declaration.transports,
        audience: audience.clone(),
        also: Others::default(),
        strict: declaration.strict,
        ephemeral: declaration.ephemeral,
        label: label.clone(),
    };
    blocks.iter().map(of).collect()
}

/// Claim all blocks, or none of them.
fn claim_all(desk: &mut Desk<'_>, wanted: &[Wanted]) -> Result<Vec<Claim>, Refused> {
    let netns = desk.netns;
    let KernelPart { admin, maps, .. } = &mut *desk.kernel;
    let claimed = Claimed::claim(admin, maps, netns, wanted).map(Claimed::keep);
    claimed.map_err(|error| explain(maps, netns, &error, wanted))
}

/// Sockets in the namespace, looked at once for each transport.
struct Sockets<'a> {
    looks: [Look<'a>; 2],
    bound: [PortSet; 2],
    judge: Judge,
}

impl<'a> Sockets<'a> {
    /// Look for sockets on any port. They are candidates; [`Sockets::obstacle`] makes sure.
    fn look(prober: &'a Prober, judge: Judge) -> Result<Self, String> {
        let looks = Transport::ALL.map(|transport| prober.look(transport));
        let all = PortRange::inclusive(1, u16::MAX).expect("1 is at most 65535");
        let mut bound = [PortSet::default(), PortSet::default()];
        for (look, bound) in looks.iter().zip(&mut bound) {
            let candidates = look.candidates(all).map_err(|error| format!("cannot look for sockets: {error}"))?;
            for port in candidates {
                bound.insert(PortRange::single(port).expect("a bound port is not 0"));
            }
        }
        Ok(Self { looks, bound, judge })
    }

    /// Why the block cannot be had, if a socket is there that may not be.
    fn obstacle(&self, declaration: &Declaration, audience: &Audience<u32>) -> Option<Obstacle> {
        declaration.transports.iter().find_map(|transport| {
            let (look, bound) = (&self.looks[transport as usize], &self.bound[transport as usize]);
            declaration.ports.iter().filter(|port| bound.contains(*port)).find_map(|port| {
                if look.vacant(port).unwrap_or(false) {
                    return None;
                }
                let rightful = self.judge.all_rightful(transport, port, audience);
                if declaration.around && rightful {
                    return None;
                }
                let sockets = sockets_on(transport, port);
                let mut why = usage::sentence(transport, port, &sockets);
                // A connection has the port by chance.
                let serves = sockets.first().is_some_and(|s| matches!(s.state.as_deref(), Some("listening" | "bound")));
                if serves && !rightful && *audience != Audience::Administrators {
                    why += &format!("; the reservation is for {}, and this process is not", declaration.audience);
                }
                Some(Obstacle { why, sockets, rightful })
            })
        })
    }
}

impl Desk<'_> {
    fn judge(&self) -> Judge {
        Judge::new(&self.kernel.config)
    }

    /// Claim, look, and put in force. `keep` is called in between: what it cannot keep is not put in force.
    fn establish(
        &mut self,
        wanted: &[Wanted],
        audience: &Audience<u32>,
        declared: impl FnOnce(PortList) -> Declaration,
        keep: impl FnOnce(&Declaration) -> Result<(), Refused>,
    ) -> Result<(Declaration, Vec<Claim>), Refused> {
        let judge = self.judge();
        let claims = claim_all(self, wanted)?;
        let KernelPart { admin, maps, .. } = &mut *self.kernel;
        let claimed = Claimed::holding(admin, maps, claims);
        let blocks = claimed.blocks().iter().map(|(.., block)| *block);
        let declaration = declared(PortList::new(blocks).map_err(|error| refused(Reason::Failed, error.to_string()))?);
        let failed = |error: std::io::Error| refused(Reason::Failed, error.to_string());
        let block = (PortSet::from(&declaration.ports), declaration.force);
        if let Some((_, why)) = self.keeper.add_each_here(self.netns, &[block]).map_err(failed)?.pop() {
            return Err(refused(Reason::Exhausts, format!("{}: {why}; `force` overrides", declaration.ports)));
        }
        let sockets = Sockets::look(self.prober, judge).map_err(|why| refused(Reason::Failed, why))?;
        if let Some(Obstacle { mut why, rightful, .. }) = sockets.obstacle(&declaration, audience) {
            if rightful {
                why += "; if the reservation is for this process, add --around";
            }
            return Err(refused(Reason::InUse, why));
        }
        keep(&declaration)?;
        let claims = claimed.confirm().map_err(|error| match error.errno() {
            Some(Errno::EADDRINUSE) => refused(Reason::InUse, contested(&declaration)),
            _ => refused(Reason::Failed, chain(&error)),
        })?;
        Ok((declaration, claims))
    }
}

impl Desk<'_> {
    /// Change one in place, or leave it as it was.
    fn adjust_or_leave(
        &mut self,
        blocks: &[Claim],
        was: &Declaration,
        declaration: &Declaration,
    ) -> Result<How, Refused> {
        match adjust(self, blocks, declaration) {
            Ok(_) => Ok(How::Active(blocks.to_vec())),
            Err(refused) => {
                self.put_back(blocks, was);
                Err(refused)
            }
        }
    }

    /// Put the new block in force, then end the former one. `keep` is called in between.
    fn relocate(
        &mut self,
        former: &[Claim],
        was: &Declaration,
        declaration: &Declaration,
        audience: &Audience<u32>,
        keep: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<How, Refused> {
        // The kernel has each port once, and a port in use is not to be had again.
        if declaration.overlaps(was) {
            let (ports, transports) = key_of(declaration);
            let message = format!(
                "{ports}/{transports} overlaps {}/{}, which `{}` has now, and its ports would be free for an instant: reserve \
                 the other ports under another name, or delete it and add it again",
                was.ports, was.transports, was.name
            );
            return Err(refused(Reason::InUse, message));
        }
        // One audience has one range: the new block becomes it when the former one no longer is.
        let both_ranges = was.ephemeral && declaration.ephemeral;
        let mut wanted = wanted(declaration, audience);
        wanted.iter_mut().for_each(|block| block.ephemeral &= !both_ranges);
        let (_, blocks) = self.establish(&wanted, audience, |_| declaration.clone(), |_| keep())?;
        if both_ranges {
            let plain = Declaration { ephemeral: false, ..was.clone() };
            let handed = adjust(self, former, &plain).and_then(|_| adjust(self, &blocks, declaration));
            if let Err(refused) = handed {
                self.end(&blocks);
                self.put_back(former, was);
                return Err(refused);
            }
        }
        self.end(former);
        Ok(How::Active(blocks))
    }

    /// Make it again what it was.
    fn put_back(&mut self, blocks: &[Claim], was: &Declaration) {
        if let Err(refused) = adjust(self, blocks, was) {
            tracing::error!(name = %was.name, reason = refused.message, "neither changed nor as it was");
        }
    }

    fn end(&mut self, blocks: &[Claim]) {
        let KernelPart { admin, maps, .. } = &mut *self.kernel;
        for (id, token, _) in blocks {
            if let Err(error) = maps.end_persistent(admin, *id, *token) {
                tracing::error!(id, reason = chain(&error), "no longer declared, but not ended");
            }
        }
    }
}

/// The sockets that keep a port from being reserved: the first few.
fn sockets_on(transport: Transport, port: u16) -> Vec<BoundSocket> {
    const NAMED: usize = 8;
    let block = PortRange::single(port).expect("a bound port is not 0");
    let usage = usage::Usage::of(&[(block, transport.into())]).unwrap_or_default();
    usage.port(transport, port).sockets().take(NAMED).cloned().collect()
}

/// A bind came between the look and the confirmation.
fn contested(declaration: &Declaration) -> String {
    format!("another process bound a port of {}/{} at this moment", declaration.ports, declaration.transports)
}

/// The meaning of the answer to a claim that failed.
fn explain(maps: &Maps, netns: u64, error: &CreateError, wanted: &[Wanted]) -> Refused {
    let CreateError::Admin(admin) = error else { return refused(Reason::Malformed, chain(error)) };
    let count: u32 = wanted.iter().map(|block| u32::from(block.count)).sum();
    match admin.errno() {
        Some(Errno::EADDRINUSE) => {
            let held = wanted.iter().find_map(|block| holder(maps, netns, block));
            let ended = "a port of the block is still in use by a socket of a reservation that has ended";
            refused(Reason::InUse, held.unwrap_or_else(|| ended.into()))
        }
        Some(Errno::EEXIST) => refused(
            Reason::InUse,
            "those it is for have a private ephemeral range for this transport already; a second one would never be used",
        ),
        Some(Errno::ENOSPC) => refused(Reason::NoRoom, format!("the pool has no block of {count} ports left")),
        Some(Errno::EINVAL) => refused(Reason::Malformed, "there is no such block"),
        Some(Errno::ENOMEM) => refused(Reason::Failed, "the reservation table is full"),
        _ => refused(Reason::Failed, chain(admin)),
    }
}

/// The owner of a reserved port of the block.
fn holder(maps: &Maps, netns: u64, wanted: &Wanted) -> Option<String> {
    let ports = PortRange::new(wanted.start, wanted.count).ok()?;
    let transports = wanted.transports;
    let overlapping = maps.reservations().flatten().map(|(_, reservation)| reservation).find(|r| {
        r.netns == netns
            && r.state() != wire::REFUSED
            && r.ports().is_some_and(|theirs| theirs.overlaps(ports))
            && r.transports & transports.bits() != 0
    });
    let r = overlapping?;
    Some(match r.is_persistent() {
        true => format!("{ports}/{transports} is reserved as {:?}", wire::text(&r.label)),
        false => format!("{ports}/{transports} is reserved by pid {} ({})", r.pid, wire::text(&r.comm)),
    })
}

impl Registry {
    /// Open the stores. One that cannot be read stays closed, and what it may hold stays in force.
    pub(super) fn open(state: &Path, runtime: &Path, root: PathBuf) -> Self {
        Self {
            persistent: Shelf::of(Store::open(state)),
            active: Shelf::of(Store::open_runtime(runtime, &boot_id())),
            state: state.to_owned(),
            runtime: runtime.to_owned(),
            root,
            items: Vec::new(),
            files: Vec::new(),
            version: 0,
            conflicts: Vec::new(),
            by_id: HashMap::new(),
            told: HashMap::new(),
        }
    }

    fn commands(&self) -> impl Iterator<Item = Declared> + use<> {
        let persistent = self.persistent.list().into_iter().map(Stored::persistent);
        persistent.chain(self.active.list().into_iter().map(Stored::active))
    }

    /// Whether all that commands created is known. If not, what is in force and not declared may be theirs.
    fn is_complete(&self) -> bool {
        matches!((&self.persistent, &self.active), (Shelf::Open(_), Shelf::Open(_)))
    }

    /// If a store can be opened that could not be before, put in force what is in it.
    fn open_again(&mut self, desk: &mut Desk<'_>) -> anyhow::Result<Option<Changes>> {
        let persistent = self.persistent.open_again(|| Store::open(&self.state));
        let active = self.active.open_again(|| Store::open_runtime(&self.runtime, &boot_id()));
        // Errors in files were reported when the files were read.
        if persistent || active { self.load(desk).map(|(changes, _)| Some(changes)) } else { Ok(None) }
    }

    /// Read the files again and bring the BPF programs in line. Mistakes in files are returned too.
    pub(super) fn load(&mut self, desk: &mut Desk<'_>) -> anyhow::Result<(Changes, Vec<Diagnostic>)> {
        self.persistent.open_again(|| Store::open(&self.state));
        self.active.open_again(|| Store::open_runtime(&self.runtime, &boot_id()));
        let loaded = dropin::load(&self.root);
        self.files = loaded.declared;
        Ok((self.merge(desk)?, loaded.diagnostics))
    }

    /// Decide again which declarations are in force, and bring the BPF programs in line.
    fn merge(&mut self, desk: &mut Desk<'_>) -> anyhow::Result<Changes> {
        let merged = merge(self.commands(), self.files.clone());
        self.conflicts = merged.conflicts;
        self.bring_in_line(desk, merged.in_force)
    }

    /// Look again at what conflicted with a declaration that is new or gone, and at what waited for its ports.
    fn look_again(&mut self, desk: &mut Desk<'_>) {
        let looked = match self.conflicts.is_empty() {
            true => self.retry(desk).map(drop),
            false => self.merge(desk).map(drop),
        };
        if let Err(error) = looked {
            tracing::error!(error = format!("{error:#}"), "cannot look again at what is not in force");
        }
    }

    /// Files that lost against another declaration. Each may be right by itself.
    pub(super) fn conflicts(&self) -> Vec<Diagnostic> {
        self.conflicts.iter().filter_map(portkeep_persist::Conflict::diagnostic).collect()
    }

    /// Make what is in force what is `declared`: keep what is the same, change what is for somebody else now, end what
    /// is not declared, and put the rest in force.
    fn bring_in_line(&mut self, desk: &mut Desk<'_>, declared: Vec<Declared>) -> anyhow::Result<Changes> {
        let mut changes = Changes::default();
        desk.kernel.maps.sweep_persistent(&desk.kernel.admin)?;
        let mut standing: HashMap<(PortRange, Transports), Standing> = HashMap::new();
        let mut elsewhere = Vec::new();
        for item in desk.kernel.maps.reservations() {
            let (id, r) = item?;
            let (Some(token), Some(ports), Some(transports)) = (r.token(), r.ports(), r.transports()) else { continue };
            if !r.is_persistent() || r.state() != wire::ACTIVE {
                continue;
            }
            if r.netns == desk.netns {
                standing.insert((ports, transports), (id, token, ListMark::of(&r.label)));
            } else {
                elsewhere.push((id, token));
            }
        }

        let before: HashMap<_, Declaration> = std::mem::take(&mut self.items)
            .into_iter()
            .filter(|item| matches!(item.how, How::Active(_)))
            .map(|item| (key_of(&item.declared.declaration), item.declared.declaration))
            .collect();
        // The name that each block had, and the names that lose one.
        let names: HashMap<_, Name> = before.values().flat_map(blocks_of).collect();
        let mut ended: HashSet<Name> = HashSet::new();
        for declared in declared {
            let key = key_of(&declared.declaration);
            let how = match take_all(&mut standing, &declared.declaration) {
                Some(blocks) => {
                    let was = before.get(&key);
                    match adjust(desk, &blocks, &declared.declaration) {
                        Ok(adjusted) => {
                            let differs = was.is_some_and(|was| *was != declared.declaration);
                            changes.changed += usize::from(adjusted || differs);
                        }
                        // In force for its former audience: better than for nobody.
                        Err(refused) => self.tell(&declared, &refused.message),
                    }
                    How::Active(blocks)
                }
                None => How::Waiting(Obstacle::default()),
            };
            self.items.push(Item { declared, how });
        }
        // Ended before others are begun: they may want the ports.
        if self.is_complete() {
            let mut lists = HashSet::new();
            for (key, (id, token, mark)) in standing {
                desk.kernel.maps.end_persistent(&desk.kernel.admin, id, token)?;
                match names.get(&key) {
                    Some(name) => _ = ended.insert(name.clone()),
                    // The blocks of a list were one reservation.
                    None => changes.removed += usize::from(mark.is_none_or(|mark| lists.insert(mark))),
                }
            }
            for (id, token) in elsewhere {
                desk.kernel.maps.end_persistent(&desk.kernel.admin, id, token)?;
                changes.removed += 1;
            }
        }
        let begins: Vec<bool> = self.items.iter().map(|item| matches!(item.how, How::Waiting(_))).collect();
        self.begin_waiting(desk)?;
        for (item, began) in self.items.iter().zip(begins) {
            match item.how {
                // Other ports of the same name are a change.
                How::Active(_) if ended.remove(&item.declared.declaration.name) => {
                    changes.changed += usize::from(began);
                }
                How::Active(_) => changes.added += usize::from(began),
                How::Waiting(_) => changes.waiting += 1,
            }
        }
        changes.removed += ended.len();
        changes.waiting += self.conflicts.len();
        self.index();
        Ok(changes)
    }

    /// Try again what waits. Returns how many came into force.
    pub(super) fn retry(&mut self, desk: &mut Desk<'_>) -> anyhow::Result<usize> {
        if let Some(changes) = self.open_again(desk)? {
            return Ok(changes.added);
        }
        if !self.items.iter().any(|item| matches!(item.how, How::Waiting(_))) {
            return Ok(0);
        }
        let begun = self.begin_waiting(desk)?;
        if begun > 0 {
            self.index();
        }
        Ok(begun)
    }

    /// All at once, because looking at a namespace costs the same for one as for ten thousand: claim every block, enter
    /// them into the sysctl, look who is there, confirm or end each.
    fn begin_waiting(&mut self, desk: &mut Desk<'_>) -> anyhow::Result<usize> {
        let mut reasons: Vec<(usize, Obstacle)> = Vec::new();
        let waiting = self.enter_waiting(desk, &mut reasons);
        let mut claims = Vec::new();
        for index in waiting {
            let declaration = &self.items[index].declared.declaration;
            let claimed = resolve(&declaration.audience).and_then(|audience| {
                match claim_all(desk, &wanted(declaration, &audience)) {
                    Ok(blocks) => Ok((index, blocks, audience)),
                    Err(refused) => Err(refused.message),
                }
            });
            match claimed {
                Ok(claim) => claims.push(claim),
                Err(why) => reasons.push((index, why.into())),
            }
        }
        let mut begun = 0;
        if !claims.is_empty() {
            let sockets = Sockets::look(desk.prober, desk.judge());
            for (index, blocks, audience) in claims {
                let declaration = &self.items[index].declared.declaration;
                let mut obstacle = match &sockets {
                    Ok(sockets) => sockets.obstacle(declaration, &audience),
                    Err(why) => Some(why.clone().into()),
                };
                let KernelPart { admin, maps, .. } = &mut *desk.kernel;
                // Dropped, it ends the blocks.
                let claimed = Claimed::holding(admin, maps, blocks);
                if obstacle.is_none() {
                    match claimed.confirm() {
                        Ok(blocks) => {
                            self.items[index].how = How::Active(blocks);
                            begun += 1;
                            continue;
                        }
                        Err(error) if error.errno() == Some(Errno::EADDRINUSE) => {
                            obstacle = Some(contested(declaration).into());
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                if let Some(mut obstacle) = obstacle {
                    // Without a service that it is for, a socket of root is nothing to go by.
                    if obstacle.rightful && audience != Audience::Administrators {
                        obstacle.why += "; the reservation is for this process: add `around = true`";
                    }
                    reasons.push((index, obstacle));
                }
            }
        }
        for (index, obstacle) in reasons {
            let declared = self.items[index].declared.clone();
            self.tell(&declared, &obstacle.why);
            let how = How::Waiting(obstacle);
            if !same(&self.items[index].how, &how) {
                self.items[index].how = how;
                self.version += 1;
            }
        }
        Ok(begun)
    }

    /// Enter what waits into `ip_local_reserved_ports`. Returned is what could be, by index; why the rest could not is
    /// added to the reasons.
    fn enter_waiting(&self, desk: &Desk<'_>, reasons: &mut Vec<(usize, Obstacle)>) -> Vec<usize> {
        let waiting = (0..self.items.len()).filter(|index| matches!(self.items[*index].how, How::Waiting(_)));
        let mut waiting: Vec<usize> = waiting.collect();
        let block = |index: &usize| {
            let declaration = &self.items[*index].declared.declaration;
            (PortSet::from(&declaration.ports), declaration.force)
        };
        let blocks: Vec<_> = waiting.iter().map(block).collect();
        if blocks.is_empty() {
            return waiting;
        }
        match desk.keeper.add_each_here(desk.netns, &blocks) {
            Ok(refused) => {
                for (place, why) in refused.into_iter().rev() {
                    let why = format!("{why}; `force = true` overrides");
                    reasons.push((waiting.remove(place), why.into()));
                }
                waiting
            }
            Err(error) => {
                reasons.extend(waiting.into_iter().map(|index| (index, error.to_string().into())));
                Vec::new()
            }
        }
    }

    /// Ports of declarations that wait for sockets to go.
    pub(super) fn draining(&self) -> PortSet {
        let draining = self.items.iter().filter(|item| match &item.how {
            How::Active(_) => false,
            How::Waiting(obstacle) => !obstacle.sockets.is_empty(),
        });
        draining.flat_map(|item| item.declared.declaration.ports.blocks().iter().copied()).collect()
    }

    /// Changes with what [`Registry::list`] gives.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many are in force.
    pub(super) fn in_force(&self) -> usize {
        self.items.iter().filter(|item| matches!(item.how, How::Active(_))).count()
    }

    /// Say once why something is not in force.
    fn tell(&mut self, declared: &Declared, why: &str) {
        let name = declared.declaration.name.to_string();
        if self.told.get(&name).is_some_and(|told| told == why) {
            return;
        }
        let Declaration { ports, transports, .. } = &declared.declaration;
        tracing::warn!(name, %ports, %transports, from = %declared.origin, reason = why, "declared, but not in force");
        self.told.insert(name, why.to_owned());
    }

    fn index(&mut self) {
        self.version += 1;
        let blocks = |item: &Item| match &item.how {
            How::Active(blocks) => blocks.clone(),
            How::Waiting(_) => Vec::new(),
        };
        let ids = self.items.iter().enumerate();
        self.by_id = ids.flat_map(|(index, item)| blocks(item).into_iter().map(move |(id, ..)| (id, index))).collect();
        let waits: Vec<String> =
            self.items.iter().filter(|item| matches!(item.how, How::Waiting(_))).map(name_of).collect();
        self.told.retain(|name, _| waits.contains(name));
    }

    /// The declaration of the reservation with this id, if it is persistent.
    pub(super) fn declared(&self, id: u32) -> Option<&Declared> {
        self.by_id.get(&id).map(|index| &self.items[*index].declared)
    }

    /// Create one, for an administrator with this uid.
    pub(super) fn create(
        &mut self,
        desk: &mut Desk<'_>,
        proposal: &Proposal,
        kept: Kept,
        by_uid: u32,
    ) -> Result<Info, Refused> {
        self.open_again(desk).map_err(|error| refused(Reason::Failed, format!("{error:#}")))?;
        self.name_is_free(&proposal.name, None)?;
        let ports = match &proposal.block {
            Block::Ports(ports) => Some(ports),
            Block::Any { .. } => None,
        };
        if let Some(ports) = ports {
            self.ports_are_free(&proposal.declaration(ports.clone()), None)?;
        }
        can_be_range(ports, &proposal.audience, proposal.strict, proposal.ephemeral)?;
        let audience = resolve(&proposal.audience).map_err(|why| refused(Reason::Malformed, why))?;
        let wanted = match proposal.block {
            Block::Ports(ref ports) => wanted(&proposal.declaration(ports.clone()), &audience),
            Block::Any { count, align } => vec![Wanted {
                start: 0,
                count,
                align,
                transports: proposal.transports,
                audience: audience.clone(),
                also: Others::default(),
                strict: proposal.strict,
                ephemeral: proposal.ephemeral,
                label: proposal.name.to_string(),
            }],
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let store = match kept {
            Kept::Persistent => &mut self.persistent,
            Kept::Active => &mut self.active,
        }
        .store()?;
        let mut is_kept = false;
        let keep = |declaration: &Declaration| {
            let stored = Stored { declaration: declaration.clone(), by_uid, created };
            store.create(&stored).map_err(|error| refused(Reason::Store, chain(&error)))?;
            is_kept = true;
            Ok(())
        };
        let established = desk.establish(&wanted, &audience, |ports| proposal.declaration(ports), keep);
        if established.is_err()
            && is_kept
            && let Err(error) = store.delete(&proposal.name)
        {
            // A bind came between. A refused reservation must not come into force later.
            tracing::error!(name = %proposal.name, reason = chain(&error), "refused, but still in the store");
        }
        let (declaration, blocks) = established?;
        let stored = Stored { declaration: declaration.clone(), by_uid, created };
        let declared = match kept {
            Kept::Persistent => stored.persistent(),
            Kept::Active => stored.active(),
        };
        let created = active(&declared, &blocks);
        self.version += 1;
        self.by_id.extend(blocks.iter().map(|(id, ..)| (*id, self.items.len())));
        self.items.push(Item { declared, how: How::Active(blocks) });
        if !self.conflicts.is_empty() {
            self.look_again(desk);
        }
        Ok(created)
    }

    /// Delete one that a command created.
    pub(super) fn delete(&mut self, desk: &mut Desk<'_>, which: &Which) -> Result<Info, Refused> {
        self.open_again(desk).map_err(|error| refused(Reason::Failed, format!("{error:#}")))?;
        let meant = |declaration: &Declaration| match which {
            Which::Name(name) => declaration.name == *name,
            Which::Block { ports, transports } => declaration.ports == *ports && declaration.transports == *transports,
        };
        // One that lost against another is in no list of items, but in its store.
        let item = self.items.iter().position(|item| meant(&item.declared.declaration));
        let declared = match item {
            Some(index) => self.items[index].declared.clone(),
            None => match self.conflicts.iter().find(|conflict| meant(&conflict.loser.declaration)) {
                Some(conflict) => conflict.loser.clone(),
                None => return Err(self.missing()),
            },
        };
        let store = store_of(&mut self.persistent, &mut self.active, &declared)?;
        let name = &declared.declaration.name;
        store.delete(name).map_err(|error| refused(Reason::Store, chain(&error)))?;
        if let Some(index) = item {
            let item = self.items.remove(index);
            if let How::Active(blocks) = item.how {
                desk.end(&blocks);
            }
        }
        self.conflicts.retain(|conflict| conflict.loser != declared);
        self.index();
        self.look_again(desk);
        Ok(Info::declared(&declared.declaration, &declared.origin, State::Ended))
    }

    /// No other declaration than `except` has this name.
    fn name_is_free(&self, name: &Name, except: Option<usize>) -> Result<(), Refused> {
        match self.others(except).find(|item| item.declared.declaration.name == *name) {
            Some(item) => {
                let origin = &item.declared.origin;
                Err(refused(Reason::NameTaken, format!("the name `{name}` is used by {origin}")))
            }
            None => Ok(()),
        }
    }

    /// No other declaration than `except` has these ports, or waits for them.
    fn ports_are_free(&self, declaration: &Declaration, except: Option<usize>) -> Result<(), Refused> {
        match self.others(except).find(|item| item.declared.declaration.overlaps(declaration)) {
            Some(item) => {
                let Declared { declaration: theirs, origin } = &item.declared;
                let (ports, transports) = (&theirs.ports, theirs.transports);
                let message = format!("{ports}/{transports} is reserved as `{}` by {origin}", theirs.name);
                Err(refused(Reason::InUse, message))
            }
            None => Ok(()),
        }
    }

    fn others(&self, except: Option<usize>) -> impl Iterator<Item = &Item> {
        self.items.iter().enumerate().filter(move |(index, _)| Some(*index) != except).map(|(_, item)| item)
    }

    /// Change one that a command created. Outsiders cannot bind its ports meanwhile: it is changed in place, or the new block
    /// is in force before the former one ends. If it is refused, nothing has changed.
    pub(super) fn change(&mut self, desk: &mut Desk<'_>, name: &Name, change: &Change) -> Result<Info, Refused> {
        self.open_again(desk).map_err(|error| refused(Reason::Failed, format!("{error:#}")))?;
        let Some(index) = self.items.iter().position(|item| item.declared.declaration.name == *name) else {
            let lost = self.conflicts.iter().find(|conflict| conflict.loser.declaration.name == *name);
            return Err(lost.map_or_else(|| self.missing(), |conflict| refused(Reason::InUse, conflict.to_string())));
        };
        let was = self.items[index].declared.clone();
        let declaration = change.of(&was.declaration);
        self.name_is_free(&declaration.name, Some(index))?;
        self.ports_are_free(&declaration, Some(index))?;
        let (audience, strict) = (&declaration.audience, declaration.strict);
        can_be_range(Some(&declaration.ports), audience, strict, declaration.ephemeral)?;
        let audience = resolve(&declaration.audience).map_err(|why| refused(Reason::Malformed, why))?;

        let store = store_of(&mut self.persistent, &mut self.active, &was)?;
        let stored = store.get(name).cloned().ok_or_else(|| refused(Reason::Store, "it is not in the store"))?;
        let changed = Stored { declaration: declaration.clone(), ..stored.clone() };
        let mut is_kept = false;
        let mut keep = || {
            store.replace(name, &changed).map_err(|error| refused(Reason::Store, chain(&error)))?;
            is_kept = true;
            Ok(())
        };
        let done = match &self.items[index].how {
            How::Waiting(_) => keep().map(|()| How::Waiting(Obstacle::default())),
            How::Active(blocks) if key_of(&declaration) == key_of(&was.declaration) => {
                keep().and_then(|()| desk.adjust_or_leave(blocks, &was.declaration, &declaration))
            }
            How::Active(blocks) => desk.relocate(blocks, &was.declaration, &declaration, &audience, keep),
        };
        if done.is_err()
            && is_kept
            && let Err(error) = store.replace(&declaration.name, &stored)
        {
            tracing::error!(%name, reason = chain(&error), "not changed, but changed in the store");
        }
        let item = &mut self.items[index];
        item.how = done?;
        item.declared.declaration = declaration;
        tracing::info!(%name, now = %item.declared.declaration.name, ports = %item.declared.declaration.ports, "changed");
        if matches!(item.how, How::Waiting(_)) {
            self.begin_waiting(desk).map_err(|error| refused(Reason::Failed, format!("{error:#}")))?;
        }
        let info = info(&self.items[index]);
        self.index();
        self.look_again(desk);
        Ok(info)
    }

    /// "There is none", or that this is unknown.
    fn missing(&self) -> Refused {
        match (&self.persistent, &self.active) {
            (Shelf::Closed { why, .. }, _) | (_, Shelf::Closed { why, .. }) => refused(Reason::Store, why.clone()),
            _ => refused(Reason::NotFound, "there is no such persistent reservation"),
        }
    }

    /// All that is declared.
    pub(super) fn list(&self) -> Vec<Info> {
        let items = self.items.iter().map(info);
        let conflicts =
            self.conflicts.iter().map(|conflict| not_in_force(&conflict.loser, State::Conflict, conflict.to_string()));
        items.chain(conflicts).collect()
    }

    /// Stores that cannot be read, one sentence each.
    pub(super) fn complaints(&self) -> Vec<String> {
        [&self.persistent, &self.active]
            .into_iter()
            .filter_map(|shelf| match shelf {
                Shelf::Closed { why, .. } => Some(why.clone()),
                Shelf::Open(_) => None,
            })
            .collect()
    }
}

/// An item as it is listed.
fn info(Item { declared, how }: &Item) -> Info {
    match how {
        How::Active(blocks) => active(declared, blocks),
        How::Waiting(Obstacle { why, sockets, .. }) => {
            let mut info = not_in_force(declared, State::Waiting, why.clone());
            info.waits_for.clone_from(sockets);
            info
        }
    }
}

/// Ports in the kernel: one reservation has them at most.
fn key_of(declaration: &Declaration) -> (PortList, Transports) {
    (declaration.ports.clone(), declaration.transports)
}

/// A private ephemeral range has an audience, and is not strict.
fn can_be_range(ports: Option<&PortList>, audience: &Audience, strict: bool, ephemeral: bool) -> Result<(), Refused> {
    match Declaration::no_range(ports, audience, strict) {
        Some(why) if ephemeral => Err(refused(Reason::Malformed, format!("a private ephemeral range {why}"))),
        _ => Ok(()),
    }
}

/// The store that has a reservation. Declarations of files are in none.
fn store_of<'a>(
    persistent: &'a mut Shelf,
    active: &'a mut Shelf,
    declared: &Declared,
) -> Result<&'a mut Store, Refused> {
    match &declared.origin {
        Origin::Command { until_reboot: false, .. } => persistent.store(),
        Origin::Command { until_reboot: true, .. } => active.store(),
        Origin::File { path, line } => {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(refused(
                Reason::FromFile,
                format!(
                    "`{}` is declared by {}:{line}; change or remove that file, or mask it with a link from \
                     /etc/portkeep/ports.d/{file} to /dev/null, and `portkeep reload`",
                    declared.declaration.name,
                    path.display()
                ),
            ))
        }
    }
}

/// Whether nothing has changed that a list shows.
fn same(one: &How, other: &How) -> bool {
    match (one, other) {
        (How::Waiting(one), How::Waiting(other)) => one == other,
        (How::Active(one), How::Active(other)) => one == other,
        (How::Active(_), How::Waiting(_)) | (How::Waiting(_), How::Active(_)) => false,
    }
}

fn name_of(item: &Item) -> String {
    item.declared.declaration.name.to_string()
}

fn active(Declared { declaration, origin }: &Declared, blocks: &[Claim]) -> Info {
    let mut info = Info::declared(declaration, origin, State::Active);
    info.set_tokens(blocks.iter().map(|(_, token, _)| Some(*token)));
    info
}

fn not_in_force(Declared { declaration, origin }: &Declared, state: State, reason: String) -> Info {
    let mut info = Info::declared(declaration, origin, state);
    info.reason = Some(reason);
    info
}

/// A block in force: its id, its token, and the mark of its list.
type Standing = (u32, Token, Option<ListMark>);

fn blocks_of(declaration: &Declaration) -> impl Iterator<Item = ((PortRange, Transports), Name)> {
    let of = |block: &PortRange| ((*block, declaration.transports), declaration.name.clone());
    declaration.ports.blocks().iter().map(of)
}

/// Take the blocks of a declaration out of those in force, if all of them are.
fn take_all(
    standing: &mut HashMap<(PortRange, Transports), Standing>,
    declaration: &Declaration,
) -> Option<Vec<Claim>> {
    let keys: Vec<_> = declaration.ports.blocks().iter().map(|block| (*block, declaration.transports)).collect();
    if !keys.iter().all(|key| standing.contains_key(key)) {
        return None;
    }
    keys.iter().map(|key| standing.remove(key).map(|(id, token, _)| (id, token, key.0))).collect()
}

/// Give a reservation in force the audience that is declared now. False if there was nothing to change.
fn adjust(desk: &mut Desk<'_>, blocks: &[Claim], declaration: &Declaration) -> Result<bool, Refused> {
    let audience = resolve(&declaration.audience).map_err(|why| refused(Reason::Malformed, why))?;
    let mut adjusted = false;
    for ((id, token, _), wanted) in blocks.iter().zip(wanted(declaration, &audience)) {
        adjusted |= adjust_block(desk, (*id, *token), &wanted)?;
    }
    Ok(adjusted)
}

fn adjust_block(desk: &mut Desk<'_>, (id, token): (u32, Token), wanted: &Wanted) -> Result<bool, Refused> {
    let KernelPart { admin, maps, .. } = &mut *desk.kernel;
    let reservation = maps.reservation(id).map_err(|error| refused(Reason::Failed, chain(&error)))?;
    let same = reservation.is_some_and(|r| {
        let flag = |flag| u32::from(r.flags) & flag != 0;
        maps.audience(id, &r).as_ref() == Some(&wanted.audience)
            && flag(wire::STRICT) == wanted.strict
            && flag(wire::EPHEMERAL) == wanted.ephemeral
            && r.label == wire::label(&wanted.label)
    });
    if !same {
        let changed = maps.change_persistent(admin, (id, token), wanted);
        changed.map_err(|error| explain(maps, desk.netns, &error, std::slice::from_ref(wanted)))?;
    }
    Ok(!same)
}
