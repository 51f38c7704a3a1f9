//! The layouts of the maps' elements. They mirror `bpf/portkeep.h`.

use aya::Pod;
use portkeep_core::{PortRange, Token, Transport, Transports, cipher, wire};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
        /// Id of the cgroup in which reservations are enforced.
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
        /// 1: ends with the last `run` that needs it.
        transient: u32,
        /// The administrators' group, 0 = root only.
        admin_gid: u32,
        /// 1: groups have quotas of their own.
        group_quotas: u32,
        /// Depth of `enforce` below the root.
        enforce_level: u32,
        /// Words of the port table that an account may have.
        share: u32,
        /// Cookie of the machine's own namespace, whose root has no quota; 0: it is not known, and root has no quota
        /// anywhere.
        home: u64,
        /// Ports that root of another namespace may hold.
        quota_elsewhere: u32,
        /// The lowest uid that is charged to another account; 0: there is none.
        accounts_from: u32,
        /// In `home`, acquiring ports below this one requires a right.
        unprivileged_start: u32,
        /// 1: the map of users with that right has entries.
        privileged_users: u32,
        /// Groups with that right, 0 = none.
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
        /// Ports of the even periods, ports of the odd periods.
        ports: [u64; 2],
        /// The latest period that was written.
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
        /// The block has ended, but sockets are still bound.
        lingering: u64,
        /// Chosen by a bind that is in progress.
        drawn: u64,
        /// In use by a socket whose bind no program saw, or whose close no program will see.
        aside: u64,
        /// Closed lately: connections may remain.
        left: Expiring,
        /// Closed, but the kernel may need some time.
        closing: Expiring,
        /// The account whose share of the table it uses; [`NOBODY`] or root's if there is none.
        payer: u64,
        /// Id of the block that begins in an earlier word and continues in this one.
        lead: u32,
        /// Sockets bound to any of the ports.
        bound: u32,
        /// 1: it is about to be removed, and no program touches it any more.
        sealed: u32,
        /// 0.
        zero: u32,
        /// Ids of the blocks that begin here, valid where `heads` has a bit.
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

    /// Nothing is claimed and nothing is in use: the word is not needed.
    pub fn is_vacant(&self) -> bool {
        self.reserved == 0 && self.aside == 0 && self.uses == [0; 32]
    }
}

map_struct! {
    /// A reservation as the kernel keeps it.
    Reservation {
        /// 0: ended; otherwise the token with a state in its lowest bits, see `bpf/portkeep.h`.
        gate: u64,
        /// The token; 0: the entry is free.
        token: u64,
        /// How many reservations this entry has had so far.
        generation: u64,
        /// The token, if the request was refused and the owner has not asked yet.
        refusal: u64,
        /// Network namespace cookie.
        netns: u64,
        /// Id of the scope's cgroup, or of the owner's. For a persistent private ephemeral range: the hash of its
        /// names.
        cgroup: u64,
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        since: u64,
        /// Account that its ports are charged to; [`NOBODY`]: none.
        payer: u64,
        /// Owner process.
        pid: u32,
        /// Its real uid; for a persistent reservation with [`wire::SCOPE_USER`], the uid of its audience.
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
        /// Others that are admitted: their number, plus 8 for each change of them.
        also: u32,
        /// Command name of the owner process.
        comm: [u8; 16],
        /// The label.
        label: [u8; 24],
        /// The group of its audience, with [`wire::SCOPE_GROUP`].
        gid: u32,
        /// When a private ephemeral range was last reported to be used up, in seconds.
        exhausted: u32,
        /// Slot in the owner socket's list.
        slot: u16,
        /// Why the agent refused it.
        error: u16,
        /// 0.
        zero: u32,
    }
}

map_struct! {
    /// Key of [`Admitted`].
    AdmittedKey {
        /// The reservation's token.
        token: u64,
        /// [`Reservation::also`].
        also: u32,
        /// The index, from 0.
        n: u32,
    }
}

map_struct! {
    /// One of the others that a reservation admits.
    Admitted {
        /// As in a request.
        also: wire::Also,
    }
}

map_struct! {
    /// A private ephemeral range, by its audience. The value is the id of its reservation.
    RangeKey {
        /// Network namespace cookie.
        netns: u64,
        /// Pid, cgroup id, uid or gid; for names, their hash.
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

    /// The block. The BPF programs never write an invalid one.
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

    /// [`wire::PENDING`], [`wire::ACTIVE`] or [`wire::REFUSED`]. If a bind came before the confirmation, the request
    /// stays pending until the agent refuses it.
    pub fn state(&self) -> u8 {
        match self.gate {
            0 => wire::REFUSED,
            gate if gate == self.token => wire::ACTIVE,
            _ => wire::PENDING,
        }
    }

    /// The keys of the others that it admits.
    pub fn admitted(&self) -> impl Iterator<Item = AdmittedKey> {
        let (token, also) = (self.token, self.also);
        (0..also & ALSO_COUNT).map(move |n| AdmittedKey { token, also, n })
    }

    /// Whether a bind of one of its ports came before the agent's confirmation.
    pub fn is_contested(&self) -> bool {
        self.gate == self.token ^ GATE_CONTESTED
    }

    /// ACQUIRE has not returned yet: nothing is granted, and only ACQUIRE may change the entry.
    pub(crate) fn is_being_claimed(&self) -> bool {
        self.gate != 0 && self.gate ^ self.token > GATE_CONTESTED
    }
}

map_struct! {
    /// Which entries of the array of reservations are in use.
    Entries {
        /// Where the search starts.
        hint: u32,
        /// 0.
        zero: u32,
        /// A bit for each entry.
        taken: [u64; 1024],
    }
}

map_struct! {
    /// In how many namespaces each word has reservations: 1024 words of TCP, then of UDP.
    Filter {
        /// The counts.
        words: [u32; 2048],
    }
}

map_struct! {
    /// The recent refusals of a process.
    Offender {
        /// When the second began in which `told` were reported, nanoseconds of `CLOCK_MONOTONIC`.
        second: u64,
        /// How many were reported in it.
        told: u32,
        /// How many were not reported since.
        untold: u32,
    }
}

impl Offender {
    /// Refusals of this second that were not reported. When a second begins, the number of the one before is still
    /// there for an instant.
    pub fn unreported(&self) -> u32 {
        if self.told > 1 { self.untold } else { 0 }
    }
}

map_struct! {
    /// The data of a network namespace.
    Space {
        /// Where wildcard searches start: TCP, UDP, both.
        cursor: [u32; 3],
        /// First pool port that automatic choices may use.
        avoid_first: u16,
        /// Last one, 0 = none. Wildcard searches use these ports last.
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
    /// Name of a unit, or of one cgroup on the path to the scope's cgroup.
    Place {
        /// Padded with at least one zero.
        name: [u8; 128],
    }
}

map_struct! {
    /// The holdings of an account. An account is a uid. A subordinate uid has the account of its user, see
    /// [`crate::Maps::set_accounts`]. Root in another network namespace than `home` has the account [`root_elsewhere`].
    Quota {
        /// Ports held.
        used: u32,
        /// Own limit, 0 = the default, `u32::MAX` = none.
        limit: u32,
        /// Words of the port table in use; each namespace counts as [`SPACE_WORDS`] more.
        words: u32,
        /// Requests that wait for the agent.
        pending: u32,
    }
}

/// Room for the name of a unit or cgroup, with a zero at its end.
pub(crate) const PLACE_NAME: usize = size_of::<Place>();

/// No account.
pub const NOBODY: u64 = u64::MAX;
/// How much a namespace adds to an account's share of the port table.
pub const SPACE_WORDS: u32 = 8;
/// At most this many groups can have the right to acquire privileged ports.
pub const PRIVILEGED_GROUPS: usize = 8;
const GATE_CONTESTED: u64 = 2;
/// The bits of [`Reservation::also`] that contain the number of others.
const ALSO_COUNT: u32 = 7;

/// The account of root in another network namespace than `home`.
pub fn root_elsewhere(netns: u64) -> u64 {
    1 << 63 | netns
}

/// Whether an account has a share of the port table. Root may use all of it, and [`NOBODY`] none.
pub fn has_share(account: u64) -> bool {
    account != 0 && account != NOBODY
}
