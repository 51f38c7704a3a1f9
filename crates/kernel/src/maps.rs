//! The maps, read from outside. The layouts mirror `bpf/portkeep.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    os::fd::AsFd,
    path::Path,
};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap, Map, MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use portkeep_core::{PortRange, Token, Transport, Transports, cipher, persistent::Audience, wire};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::{
    admin::{Admin, AdminError},
    persistent::{PLACE_DEPTH, names},
    settings::Settings,
};

macro_rules! map_struct {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        // SAFETY: repr(C) without padding (IntoBytes proves it) and valid for every bit pattern (FromBytes proves it).
        unsafe impl Pod for $name {}
    };
}

map_struct! {
    /// The element of `config`.
    Config {
        /// [`wire::ABI`] of the loaded BPF programs.
        abi: u32,
        /// Round keys of the token cipher.
        round_keys: [u32; cipher::ROUNDS],
        /// The mark of the agent's sockets.
        secret: [u64; 2],
        /// When it was brought up, nanoseconds of `CLOCK_MONOTONIC`.
        since: u64,
        /// [`crate::BUILD`] of the loaded BPF programs.
        build: u64,
        /// Id of the cgroup whose sockets are held to the reservations.
        enforce: u64,
        /// Id of the cgroup whose sockets may use the control codes.
        serve: u64,
        /// The error of an outsider's bind.
        deny_errno: u32,
        /// Ports a uid may hold.
        quota: u32,
        /// First port of the pool.
        pool_first: u16,
        /// Last port of the pool, 0 = none.
        pool_last: u16,
        /// 1: goes with the last `run` that needs it.
        transient: u32,
        /// The administrators' group, 0 = root only.
        admin_gid: u32,
        /// 1: groups have quotas of their own.
        group_quotas: u32,
        /// Depth of `enforce` below the root.
        enforce_level: u32,
        /// Words of the port table that an account may take.
        share: u32,
        /// Cookie of the machine's own namespace, whose root has no quota; 0: not known, and root has none anywhere.
        home: u64,
        /// Ports that root of another namespace may hold.
        quota_elsewhere: u32,
        /// The lowest uid that belongs to somebody else's account; 0: there is none.
        accounts_from: u32,
        /// In `home`, ports below this one need a right to be acquired.
        unprivileged_start: u32,
        /// 1: users are named who have that right.
        privileged_users: u32,
        /// Groups that have it, 0 = none.
        privileged_gids: [u32; PRIVILEGED_GROUPS],
    }
}

map_struct! {
    /// The element of `counters`.
    Counters {
        /// Ports in reservations.
        ports: u64,
        /// Reservations.
        reservations: u32,
        /// Open beacons.
        agents: u32,
        /// Readers of the event ring.
        listeners: u32,
        /// Events that found the ring full.
        lost: u32,
        /// Binds of outsiders.
        refused: u64,
        /// Elements of the map of private ephemeral ranges by kind; the last one: all of them.
        ranges: [u32; 8],
    }
}

map_struct! {
    /// Key of a word of the port table.
    WordKey {
        /// Network namespace cookie.
        netns: u64,
        /// Port divided by 64.
        word: u16,
        /// Bit of [`Transport`].
        transport: u16,
        /// 0.
        zero: u32,
    }
}

map_struct! {
    /// Ports that were closed lately. Bits expire after one to two periods of 69 s.
    Expiring {
        /// Of the even periods, of the odd ones.
        ports: [u64; 2],
        /// The latest one written in.
        period: u64,
    }
}

map_struct! {
    /// 64 ports of one transport in one network namespace; bit n is port 64 * word + n.
    Word {
        /// Claimed or lingering.
        reserved: u64,
        /// First ports of blocks.
        heads: u64,
        /// The block has ended, sockets are still bound.
        lingering: u64,
        /// Chosen by a bind that is under way.
        drawn: u64,
        /// In use by a socket that no program saw being bound, or whose close none will see.
        aside: u64,
        /// Closed lately: connections may be left behind.
        left: Expiring,
        /// Closed, and the kernel may need a while.
        closing: Expiring,
        /// Account whose share of the table it takes, [`NOBODY`] or root's if none.
        payer: u64,
        /// Id of the block that reaches in from the word before.
        lead: u32,
        /// Sockets bound to any of the ports.
        bound: u32,
        /// 1: about to be removed, no program touches it any more.
        sealed: u32,
        /// 0.
        zero: u32,
        /// Ids of the blocks that begin here, valid where `heads` says so.
        owner: [u32; 64],
        /// Bound sockets, 16 bits for each port.
        uses: [u32; 32],
    }
}

impl WordKey {
    /// The key of the word that `port` is in.
    pub fn of(netns: u64, transport: Transport, port: u16) -> Self {
        Self { netns, word: port / 64, transport: transport.bit().into(), zero: 0 }
    }
}

impl Word {
    /// Sockets bound to the port with this bit number (0 to 63).
    pub fn uses(&self, bit: usize) -> u16 {
        (self.uses[bit / 2] >> (16 * (bit % 2))) as u16
    }

    /// Nothing claimed and nothing in use: the word could as well not be there.
    pub fn is_vacant(&self) -> bool {
        self.reserved == 0 && self.aside == 0 && self.uses == [0; 32]
    }
}

map_struct! {
    /// A reservation as the kernel keeps it.
    Reservation {
        /// 0: ended; else the token with a state in its lowest bits, see `bpf/portkeep.h`.
        gate: u64,
        /// The token; 0: the entry is free.
        token: u64,
        /// How many reservations this entry has had.
        generation: u64,
        /// The token: refused, and the owner has not asked yet.
        refusal: u64,
        /// Network namespace cookie.
        netns: u64,
        /// Id of the scope's cgroup, or of the owner's. Of a persistent private ephemeral range: the hash of its names.
        cgroup: u64,
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        since: u64,
        /// Account that its ports are charged to; [`NOBODY`]: to none.
        payer: u64,
        /// Owner process.
        pid: u32,
        /// Its real uid; of a persistent reservation with [`wire::SCOPE_USER`] the uid it is for.
        uid: u32,
        /// First port, host byte order.
        start: u16,
        /// Number of ports.
        count: u16,
        /// Bits of [`Transports`].
        transports: u8,
        /// A `SCOPE_` constant of [`wire`].
        scope: u8,
        /// [`wire::STRICT`], [`wire::EPHEMERAL`] and [`wire::PERSISTENT`].
        flags: u8,
        /// Depth of the scope's cgroup below the root.
        level: u8,
        /// Offset of the next draw.
        next: u32,
        /// Slot in the owner socket's list.
        slot: u16,
        /// Why the agent refused it.
        error: u16,
        /// Command name of the owner process.
        comm: [u8; 16],
        /// The label.
        label: [u8; 24],
        /// The group it is for, with [`wire::SCOPE_GROUP`].
        gid: u32,
        /// When a private ephemeral range was last reported to be used up, in seconds.
        exhausted: u32,
    }
}

map_struct! {
    /// A private ephemeral range, by whom it is for. The value is the id of its reservation.
    RangeKey {
        /// Network namespace cookie.
        netns: u64,
        /// Pid, cgroup id, uid or gid; of names their hash.
        id: u64,
        /// A `SCOPE_` constant of [`wire`], or 5: a cgroup by its path.
        kind: u32,
        /// Bit of [`Transport`].
        transport: u16,
        /// Depth of a cgroup by its path.
        level: u16,
    }
}

impl Reservation {
    /// The token.
    pub fn token(&self) -> Option<Token> {
        Token::new(self.token)
    }

    /// The block. The BPF programs never enter an impossible one.
    pub fn ports(&self) -> Option<PortRange> {
        PortRange::new(self.start, self.count).ok()
    }

    /// The transports.
    pub fn transports(&self) -> Option<Transports> {
        Transports::from_bits(self.transports)
    }

    /// Whether an administrator made it, and no socket owns it.
    pub fn is_persistent(&self) -> bool {
        u32::from(self.flags) & wire::PERSISTENT != 0
    }

    /// [`wire::PENDING`], [`wire::ACTIVE`] or [`wire::REFUSED`]. A request that lost to a bind is pending until the
    /// agent refuses it.
    pub fn state(&self) -> u8 {
        match self.gate {
            0 => wire::REFUSED,
            gate if gate == self.token => wire::ACTIVE,
            _ => wire::PENDING,
        }
    }

    /// Whether a bind of one of its ports was quicker than the agent.
    pub fn is_contested(&self) -> bool {
        self.gate == self.token ^ GATE_CONTESTED
    }

    /// ACQUIRE has not returned yet: nothing is granted, and only ACQUIRE may change it.
    fn is_being_claimed(&self) -> bool {
        self.gate != 0 && self.gate ^ self.token > GATE_CONTESTED
    }
}

map_struct! {
    /// Which entries of the array of reservations are taken.
    Entries {
        /// Where to look first.
        hint: u32,
        /// 0.
        zero: u32,
        /// A bit for each.
        taken: [u64; 1024],
    }
}

map_struct! {
    /// How many namespaces have anything reserved in a word: 1024 words of TCP, then of UDP.
    Filter {
        /// The counts.
        words: [u32; 2048],
    }
}

map_struct! {
    /// The known facts about a network namespace.
    Space {
        /// Where wildcard searches begin: TCP, UDP, both.
        cursor: [u32; 3],
        /// Pool ports that automatic choices may take ...
        avoid_first: u16,
        /// ... inclusive, 0 = none. Wildcard searches come to them last.
        avoid_last: u16,
        /// As in [`Word`].
        payer: u64,
        /// Last ACQUIRE, nanoseconds of `CLOCK_MONOTONIC`.
        last: u64,
    }
}

map_struct! {
    /// Key of [`Place`].
    PlaceKey {
        /// Id of the reservation.
        id: u32,
        /// Depth below the root; 0: a unit.
        level: u32,
    }
}

map_struct! {
    /// Name of a unit or of one cgroup on the way to a scope's.
    Place {
        /// Padded with zeros, at least one.
        name: [u8; 128],
    }
}

map_struct! {
    /// The holdings of an account. An account is a uid; that of a subordinate uid is its user, see
    /// [`Maps::set_accounts`]; that of root in another network namespace than `home` is [`root_elsewhere`].
    Quota {
        /// Ports held.
        used: u32,
        /// Own limit, 0 = the default, `u32::MAX` = none.
        limit: u32,
        /// Words of the port table taken; each namespace counts as [`SPACE_WORDS`] more.
        words: u32,
        /// Requests that wait for the agent.
        pending: u32,
    }
}

/// No account.
pub const NOBODY: u64 = u64::MAX;
/// The part of a namespace in an account's share of the port table.
pub const SPACE_WORDS: u32 = 8;
/// So many groups can have the right to acquire privileged ports.
pub const PRIVILEGED_GROUPS: usize = 8;
const GATE_CONTESTED: u64 = 2;

/// The account of root in another network namespace than `home`.
pub fn root_elsewhere(netns: u64) -> u64 {
    1 << 63 | netns
}

/// Whether an account has a share of the port table. Root has all of it, and [`NOBODY`] none.
pub fn has_share(account: u64) -> bool {
    account != 0 && account != NOBODY
}

/// A map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapAccessError {
    /// The object or the pin folder has no map of this name.
    #[error("there is no map named {0}")]
    Missing(&'static str),
    /// The kernel refused.
    #[error("map {name}")]
    Call {
        /// Which map.
        name: &'static str,
        /// The kernel's error.
        source: MapError,
    },
}

/// Room for the name of a unit or cgroup, with a zero at its end.
pub(crate) const PLACE_NAME: usize = size_of::<Place>();

/// The same map through a descriptor of its own. Opened by its id it would take CAP_SYS_ADMIN.
pub(crate) fn again(map: &MapData) -> Result<MapData, MapError> {
    MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)
}

/// Names of all maps, in the order they are pinned.
pub(crate) const NAMES: [&str; 18] = [
    "config",
    "counters",
    "blank",
    "words",
    "reservations",
    "entries",
    "filter",
    "spaces",
    "quotas",
    "accounts",
    "group_limits",
    "privileged",
    "places",
    "ranges",
    "offenders",
    "sockets",
    "owners",
    "events",
];

/// The state of the BPF programs. Reading is not atomic over several elements: what
/// changes meanwhile may be seen half.
pub struct Maps {
    config: Array<MapData, Config>,
    counters: Array<MapData, Counters>,
    words: HashMap<MapData, WordKey, Word>,
    reservations: Array<MapData, Reservation>,
    entries: Array<MapData, Entries>,
    filter: Array<MapData, Filter>,
    spaces: HashMap<MapData, u64, Space>,
    quotas: HashMap<MapData, u64, Quota>,
    accounts: LpmTrie<MapData, u32, u32>,
    group_limits: HashMap<MapData, u32, u32>,
    privileged: HashMap<MapData, u32, u32>,
    places: HashMap<MapData, PlaceKey, Place>,
    ranges: HashMap<MapData, RangeKey, u32>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    fn from_source(
        mut source: impl FnMut(&'static str) -> Result<MapData, MapAccessError>,
    ) -> Result<Self, MapAccessError> {
        fn typed<T: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<T, MapAccessError> {
            T::try_from(map).map_err(|source| MapAccessError::Call { name, source })
        }
        Ok(Self {
            config: typed("config", Map::Array(source("config")?))?,
            counters: typed("counters", Map::Array(source("counters")?))?,
            words: typed("words", Map::HashMap(source("words")?))?,
            reservations: typed("reservations", Map::Array(source("reservations")?))?,
            entries: typed("entries", Map::Array(source("entries")?))?,
            filter: typed("filter", Map::Array(source("filter")?))?,
            spaces: typed("spaces", Map::HashMap(source("spaces")?))?,
            quotas: typed("quotas", Map::HashMap(source("quotas")?))?,
            accounts: typed("accounts", Map::LpmTrie(source("accounts")?))?,
            group_limits: typed("group_limits", Map::HashMap(source("group_limits")?))?,
            privileged: typed("privileged", Map::HashMap(source("privileged")?))?,
            places: typed("places", Map::HashMap(source("places")?))?,
            ranges: typed("ranges", Map::HashMap(source("ranges")?))?,
        })
    }

    /// The maps of a loaded object, through descriptors of their own.
    pub(crate) fn from_ebpf(ebpf: &Ebpf) -> Result<Self, MapAccessError> {
        Self::from_source(|name| {
            let call = |source| MapAccessError::Call { name, source };
            let map = ebpf.map(name).ok_or(MapAccessError::Missing(name))?;
            let (Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) = map else {
                return Err(MapAccessError::Missing(name));
            };
            again(data).map_err(call)
        })
    }

    /// The maps pinned in a folder.
    pub(crate) fn from_pins(folder: &Path) -> Result<Self, MapAccessError> {
        Self::from_source(|name| {
            MapData::from_pin(folder.join(name)).map_err(|source| MapAccessError::Call { name, source })
        })
    }

    /// The configuration of what is pinned in a folder, through one descriptor: the agent asks every second.
    pub(crate) fn config_pinned(folder: &Path) -> Result<Config, MapAccessError> {
        let call = |source| MapAccessError::Call { name: "config", source };
        let data = MapData::from_pin(folder.join("config")).map_err(call)?;
        Array::<_, Config>::try_from(Map::Array(data)).and_then(|config| config.get(&0, 0)).map_err(call)
    }

    /// The configuration, the secret and the cipher key with it.
    pub fn config(&self) -> Result<Config, MapAccessError> {
        self.config.get(&0, 0).map_err(|source| MapAccessError::Call { name: "config", source })
    }

    pub(crate) fn set_config(&mut self, config: &Config) -> Result<(), MapAccessError> {
        self.config.set(0, config, 0).map_err(|source| MapAccessError::Call { name: "config", source })
    }

    /// The counters.
    pub fn counters(&self) -> Result<Counters, MapAccessError> {
        self.counters.get(&0, 0).map_err(|source| MapAccessError::Call { name: "counters", source })
    }

    /// All reservations with their ids, in no order.
    pub fn reservations(&self) -> impl Iterator<Item = Result<(u32, Reservation), MapAccessError>> {
        let entries = self.entries.get(&0, 0).map_err(|source| MapAccessError::Call { name: "entries", source });
        let (taken, error) = match entries {
            Ok(entries) => (Some(entries.taken), None),
            Err(error) => (None, Some(Err(error))),
        };
        let ids =
            taken.into_iter().flatten().zip(0u32..).filter(|(word, _)| *word != 0).flat_map(|(word, index)| {
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
            });
        error.into_iter().chain(
            ids.filter_map(|id| {
                Some((id, self.reservation(id).transpose()?)).map(|(id, found)| found.map(|r| (id, r)))
            }),
        )
    }

    /// How many entries of the array of reservations are taken: as many as there are reservations, when nothing is
    /// under way.
    pub fn entries_taken(&self) -> Result<u32, MapAccessError> {
        let entries = self.entries.get(&0, 0).map_err(|source| MapAccessError::Call { name: "entries", source })?;
        Ok(entries.taken.iter().map(|word| word.count_ones()).sum())
    }

    /// One reservation by its id.
    pub fn reservation(&self, id: u32) -> Result<Option<Reservation>, MapAccessError> {
        let found = optional("reservations", self.reservations.get(&id, 0))?;
        Ok(found.filter(|reservation| reservation.token != 0 && !reservation.is_being_claimed()))
    }

    /// The id in a token.
    pub fn id_of(&self, token: Token) -> Result<u32, MapAccessError> {
        Ok(u32::from(cipher::decrypt(&self.config()?.round_keys, token.get()) as u16))
    }

    /// All words of the port table, in no order.
    pub fn words(&self) -> impl Iterator<Item = Result<(WordKey, Word), MapAccessError>> {
        self.words.iter().map(|item| item.map_err(|source| MapAccessError::Call { name: "words", source }))
    }

    /// One word of the port table.
    pub fn word(&self, key: &WordKey) -> Result<Option<Word>, MapAccessError> {
        optional("words", self.words.get(key, 0))
    }

    /// The filter in front of the port table.
    pub fn filter(&self) -> Result<Filter, MapAccessError> {
        self.filter.get(&0, 0).map_err(|source| MapAccessError::Call { name: "filter", source })
    }

    /// All namespaces that reservations were made in, by cookie.
    pub fn spaces(&self) -> impl Iterator<Item = Result<(u64, Space), MapAccessError>> {
        self.spaces.iter().map(|item| item.map_err(|source| MapAccessError::Call { name: "spaces", source }))
    }

    /// All accounts that hold or held ports or room.
    pub fn quotas(&self) -> impl Iterator<Item = Result<(u64, Quota), MapAccessError>> {
        self.quotas.iter().map(|item| item.map_err(|source| MapAccessError::Call { name: "quotas", source }))
    }

    /// Users with a limit of their own.
    pub fn own_limits(&self) -> impl Iterator<Item = Result<u32, MapAccessError>> {
        self.quotas()
            .filter(|item| !matches!(item, Ok((_, quota)) if quota.limit == 0))
            .filter_map(|item| item.map(|(account, _)| u32::try_from(account).ok()).transpose())
    }

    /// The limits of groups: ports that each of a group's users may hold, by gid; `u32::MAX` = none.
    pub fn set_group_limits(&mut self, limits: &BTreeMap<u32, u32>) -> Result<(), MapAccessError> {
        let call = |source| MapAccessError::Call { name: "group_limits", source };
        let stale: Vec<u32> = self.group_limits.keys().flatten().filter(|gid| !limits.contains_key(gid)).collect();
        for gid in stale {
            self.group_limits.remove(&gid).map_err(call)?;
        }
        for (gid, limit) in limits {
            self.group_limits.insert(gid, limit, 0).map_err(call)?;
        }
        Ok(())
    }

    /// Users who may acquire privileged ports, besides the groups of [`Settings::privileged_gids`].
    pub fn set_privileged_users(&mut self, uids: &BTreeSet<u32>) -> Result<(), MapAccessError> {
        let call = |source| MapAccessError::Call { name: "privileged", source };
        let stale: Vec<u32> = self.privileged.keys().flatten().filter(|uid| !uids.contains(uid)).collect();
        for uid in stale {
            self.privileged.remove(&uid).map_err(call)?;
        }
        for uid in uids {
            self.privileged.insert(uid, 1, 0).map_err(call)?;
        }
        let mut config = self.config()?;
        config.privileged_users = (!uids.is_empty()).into();
        self.set_config(&config)
    }

    /// Make the words that cover a range of ports in a namespace, so that no account has to pay for counting the
    /// sockets there.
    pub fn make_words(&mut self, netns: u64, ports: PortRange) -> Result<(), MapAccessError> {
        const NOEXIST: u64 = 1;
        let mut blank = Word::new_zeroed();
        blank.payer = NOBODY;
        for transport in Transport::ALL {
            for word in ports.start() / 64..=ports.last() / 64 {
                let key = WordKey::of(netns, transport, word * 64);
                // It may be there already.
                let _ = self.words.insert(key, blank, NOEXIST);
            }
        }
        Ok(())
    }

    /// Map subordinate uids to their users, whose quota they share. Of overlapping ranges one counts. Existing
    /// reservations stay charged to the same account.
    pub fn set_accounts(&mut self, ranges: &[(RangeInclusive<u32>, u32)]) -> Result<(), MapAccessError> {
        let call = |source| MapAccessError::Call { name: "accounts", source };
        let mut wanted: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for (range, user) in ranges {
            wanted.extend(prefixes(range).map(|prefix| (prefix, *user)));
        }
        let known: Vec<_> = self.accounts.keys().collect::<Result<_, _>>().map_err(call)?;
        for key in known.iter().filter(|key| !wanted.contains_key(&(key.prefix_len(), u32::from_be(key.data())))) {
            self.accounts.remove(key).map_err(call)?;
        }
        for ((length, first), user) in wanted {
            self.accounts.insert(&Key::new(length, first.to_be()), user, 0).map_err(call)?;
        }
        let mut config = self.config()?;
        // Root is never a subordinate uid.
        config.accounts_from = ranges.iter().map(|(range, _)| (*range.start()).max(1)).min().unwrap_or(0);
        self.set_config(&config)
    }

    /// Change the settings that can change while kernel enforcement is up.
    pub fn reconfigure(&mut self, settings: &Settings) -> Result<Config, MapAccessError> {
        let mut config = self.config()?;
        settings.change(&mut config);
        self.set_config(&config)?;
        Ok(config)
    }

    /// Say whom a reservation is for: the names on the way to a cgroup, or a unit.
    pub(crate) fn set_places(&mut self, id: u32, audience: &Audience<u32>) -> Result<(), MapAccessError> {
        for (level, name) in names(audience) {
            let mut padded = [0; PLACE_NAME];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            self.places
                .insert(PlaceKey { id, level }, Place { name: padded }, 0)
                .map_err(|source| MapAccessError::Call { name: "places", source })?;
        }
        Ok(())
    }

    /// The answer of a query for this reservation, to an administrator.
    pub fn state(&self, r: &Reservation) -> Result<wire::State, MapAccessError> {
        Ok(wire::State {
            token: r.token,
            netns: r.netns,
            cgroup: r.cgroup,
            since: r.since,
            pid: r.pid,
            uid: r.uid,
            start: r.start,
            count: r.count,
            transports: r.transports,
            state: r.state(),
            scope: r.scope,
            flags: r.flags,
            bound: self.bound(r)?,
            error: r.error,
            zero: 0,
            comm: r.comm,
            label: r.label,
            gid: r.gid,
            zero2: 0,
        })
    }

    fn bound(&self, r: &Reservation) -> Result<u32, MapAccessError> {
        let (Some(ports), Some(transports)) = (r.ports(), r.transports()) else { return Ok(0) };
        let mut bound = 0;
        for transport in transports.iter() {
            for base in ports.start() / 64..=ports.last() / 64 {
                let Some(word) = self.word(&WordKey::of(r.netns, transport, base * 64))? else { continue };
                let in_use = |bit: &u16| ports.contains(base * 64 + bit) && word.uses(usize::from(*bit)) > 0;
                bound += u32::try_from((0..64).filter(in_use).count()).unwrap_or(0);
            }
        }
        Ok(bound)
    }

    /// The places of all reservations.
    pub fn places(&self) -> impl Iterator<Item = Result<(PlaceKey, Place), MapAccessError>> {
        self.places.iter().map(|item| item.map_err(|source| MapAccessError::Call { name: "places", source }))
    }

    /// The private ephemeral ranges: whom each is for, and the id of its reservation.
    pub fn ranges(&self) -> impl Iterator<Item = Result<(RangeKey, u32), MapAccessError>> {
        self.ranges.iter().map(|item| item.map_err(|source| MapAccessError::Call { name: "ranges", source }))
    }

    /// The audience that [`Maps::set_places`] recorded.
    pub(crate) fn places_of(&self, id: u32, levels: std::ops::RangeInclusive<u32>) -> Option<Vec<String>> {
        levels.map(|level| self.places.get(&PlaceKey { id, level }, 0).ok().map(|p| wire::text(&p.name))).collect()
    }

    pub(crate) fn forget_places(&mut self, id: u32) -> Result<(), MapAccessError> {
        for level in 0..=PLACE_DEPTH {
            match self.places.remove(&PlaceKey { id, level }) {
                Ok(()) => {}
                Err(_) if level > 0 => break,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Forget words that hold nothing, of namespaces without reservations that
    /// have been quiet for `quiet_ns` nanoseconds. Returns how many went.
    ///
    /// Nothing else removes words: a program in the kernel could not, since another CPU may be using one. So what is to
    /// go is sealed first, which hides it from programs that begin later. Once those that ran then have ended, it is
    /// looked at again, and removed if it is still vacant.
    ///
    /// Goes through words and reservations once, however many namespaces there are: where containers come and go they are
    /// hundreds.
    pub fn forget_quiet_namespaces(&mut self, admin: &Admin, quiet_ns: u64) -> Result<usize, ForgetError> {
        let now = crate::sys::monotonic_ns();
        let mut quiet: BTreeMap<u64, Space> =
            self.spaces().flatten().filter(|(_, space)| now.saturating_sub(space.last) >= quiet_ns).collect();
        // The pool of the machine's own namespace keeps its words: see `make_words`.
        quiet.remove(&self.config()?.home);
        if quiet.is_empty() {
            return Ok(0);
        }
        for item in self.reservations() {
            quiet.remove(&item?.1.netns);
        }
        let mut sealed: BTreeSet<(u64, u16, u16)> = BTreeSet::new();
        for item in self.words() {
            let (key, word) = item?;
            // One that was sealed before: the last round was killed.
            let seal = || word.sealed == 1 || word.is_vacant() && admin.seal_word(&key).is_ok();
            if quiet.contains_key(&key.netns) && seal() {
                sealed.insert((key.netns, key.word, key.transport));
            }
        }
        crate::sys::wait_for_running_programs();
        let mut given_back: BTreeMap<u64, u32> = BTreeMap::new();
        let mut gone = 0;
        for (netns, word, transport) in sealed {
            let key = WordKey { netns, word, transport, zero: 0 };
            let Some(word) = self.word(&key)? else { continue };
            if word.bound == 0 && word.aside == 0 && self.words.remove(&key).is_ok() {
                gone += 1;
                *given_back.entry(word.payer).or_default() += 1;
            } else {
                admin.open_word(&key)?;
            }
        }
        let kept: BTreeSet<u64> = self.words().flatten().map(|(key, _)| key.netns).collect();
        let mut accounts = BTreeSet::new();
        for (netns, space) in quiet {
            let still = optional("spaces", self.spaces.get(&netns, 0))?.is_some_and(|now| now.last == space.last);
            if still && !kept.contains(&netns) && self.spaces.remove(&netns).is_ok() {
                *given_back.entry(space.payer).or_default() += SPACE_WORDS;
                accounts.insert(root_elsewhere(netns));
            }
        }
        for (account, words) in given_back.into_iter().filter(|(account, _)| has_share(*account)) {
            admin.give_back_share(account, words)?;
        }
        self.forget_accounts(admin, accounts)?;
        Ok(gone)
    }

    /// Namespaces come and go for ever, and each has an account of its own.
    fn forget_accounts(&mut self, admin: &Admin, mut accounts: BTreeSet<u64>) -> Result<(), ForgetError> {
        accounts.retain(|account| admin.seal_quota(*account).is_ok());
        if accounts.is_empty() {
            return Ok(());
        }
        crate::sys::wait_for_running_programs();
        for account in accounts {
            match optional("quotas", self.quotas.get(&account, 0))? {
                Some(quota) if (quota.words, quota.pending, quota.limit) == (0, 0, 0) => {
                    let _ = self.quotas.remove(&account);
                }
                Some(_) => admin.open_quota(account)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// Why a quiet namespace was not forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// A map could not be read or written.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// The room could not be given back to who had paid for it.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// The fewest prefixes that cover a range and nothing else, as with addresses: (bits that count, first number).
fn prefixes(range: &RangeInclusive<u32>) -> impl Iterator<Item = (u32, u32)> {
    let (mut next, last) = (u64::from(*range.start()), u64::from(*range.end()));
    std::iter::from_fn(move || {
        if next > last {
            return None;
        }
        let aligned = if next == 0 { 32 } else { next.trailing_zeros().min(32) };
        let fits = (last - next + 1).ilog2();
        let (bits, first) = (aligned.min(fits), next as u32);
        next += 1 << bits;
        Some((32 - bits, first))
    })
}

fn optional<T>(name: &'static str, result: Result<T, MapError>) -> Result<Option<T>, MapAccessError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(MapAccessError::Call { name, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::prefixes;

    #[test]
    fn prefixes_cover_a_range_and_nothing_else() {
        for range in [0..=0, 100_000..=165_535, 1..=6, 0..=u32::MAX, 5..=5, 4_294_967_290..=u32::MAX, 65_536..=131_071]
        {
            let mut next = u64::from(*range.start());
            for (length, first) in prefixes(&range) {
                assert_eq!(u64::from(first), next, "{range:?}");
                let size = 1u64 << (32 - length);
                assert_eq!(next % size, 0, "{range:?}");
                next += size;
            }
            assert_eq!(next, u64::from(*range.end()) + 1, "{range:?}");
        }
        assert_eq!(prefixes(&(65_536..=131_071)).collect::<Vec<_>>(), [(16, 65_536)]);
    }
}
