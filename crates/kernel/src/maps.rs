//! The maps, read from outside.

use std::{os::fd::AsFd, path::Path};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, lpm_trie::LpmTrie},
};
use portkeep_core::{Token, cipher, wire};

use crate::layout::{
    Admitted, AdmittedKey, Config, Counters, Entries, Filter, Offender, Place, PlaceKey, Quota, RangeKey, Reservation,
    Space, Word, WordKey,
};

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

/// The same map through a descriptor of its own. To open it by its id would require CAP_SYS_ADMIN.
pub(crate) fn again(map: &MapData) -> Result<MapData, MapError> {
    MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)
}

/// Names of all maps, in the order they are pinned.
pub(crate) const NAMES: [&str; 19] = [
    "config",
    "counters",
    "blank",
    "words",
    "reservations",
    "entries",
    "admitted",
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

/// The state of the BPF programs. Reading several elements is not atomic: a change in the meantime may be seen only in
/// part.
pub struct Maps {
    config: Array<MapData, Config>,
    counters: Array<MapData, Counters>,
    pub(crate) words: HashMap<MapData, WordKey, Word>,
    reservations: Array<MapData, Reservation>,
    entries: Array<MapData, Entries>,
    admitted: HashMap<MapData, AdmittedKey, Admitted>,
    filter: Array<MapData, Filter>,
    pub(crate) spaces: HashMap<MapData, u64, Space>,
    pub(crate) quotas: HashMap<MapData, u64, Quota>,
    pub(crate) accounts: LpmTrie<MapData, u32, u32>,
    pub(crate) group_limits: HashMap<MapData, u32, u32>,
    pub(crate) privileged: HashMap<MapData, u32, u32>,
    pub(crate) places: HashMap<MapData, PlaceKey, Place>,
    ranges: HashMap<MapData, RangeKey, u32>,
    offenders: HashMap<MapData, u32, Offender>,
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
            T::try_from(map).map_err(call(name))
        }
        Ok(Self {
            config: typed("config", Map::Array(source("config")?))?,
            counters: typed("counters", Map::Array(source("counters")?))?,
            words: typed("words", Map::HashMap(source("words")?))?,
            reservations: typed("reservations", Map::Array(source("reservations")?))?,
            entries: typed("entries", Map::Array(source("entries")?))?,
            admitted: typed("admitted", Map::HashMap(source("admitted")?))?,
            filter: typed("filter", Map::Array(source("filter")?))?,
            spaces: typed("spaces", Map::HashMap(source("spaces")?))?,
            quotas: typed("quotas", Map::HashMap(source("quotas")?))?,
            accounts: typed("accounts", Map::LpmTrie(source("accounts")?))?,
            group_limits: typed("group_limits", Map::HashMap(source("group_limits")?))?,
            privileged: typed("privileged", Map::HashMap(source("privileged")?))?,
            places: typed("places", Map::HashMap(source("places")?))?,
            ranges: typed("ranges", Map::HashMap(source("ranges")?))?,
            offenders: typed("offenders", Map::LruHashMap(source("offenders")?))?,
        })
    }

    /// The maps of a loaded object, through descriptors of their own.
    pub(crate) fn from_ebpf(ebpf: &Ebpf) -> Result<Self, MapAccessError> {
        Self::from_source(|name| {
            let call = call(name);
            let map = ebpf.map(name).ok_or(MapAccessError::Missing(name))?;
            let (Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data)) = map else {
                return Err(MapAccessError::Missing(name));
            };
            again(data).map_err(call)
        })
    }

    /// The maps pinned in a folder.
    pub(crate) fn from_pins(folder: &Path) -> Result<Self, MapAccessError> {
        Self::from_source(|name| MapData::from_pin(folder.join(name)).map_err(call(name)))
    }

    /// The configuration from the pins in a folder, through one descriptor: the agent reads it every second.
    pub(crate) fn config_pinned(folder: &Path) -> Result<Config, MapAccessError> {
        let call = call("config");
        let data = MapData::from_pin(folder.join("config")).map_err(call)?;
        Array::<_, Config>::try_from(Map::Array(data)).and_then(|config| config.get(&0, 0)).map_err(call)
    }

    /// The configuration, with the secret and the cipher key.
    pub fn config(&self) -> Result<Config, MapAccessError> {
        self.config.get(&0, 0).map_err(call("config"))
    }

    pub(crate) fn set_config(&mut self, config: &Config) -> Result<(), MapAccessError> {
        self.config.set(0, config, 0).map_err(call("config"))
    }

    /// The counters.
    pub fn counters(&self) -> Result<Counters, MapAccessError> {
        self.counters.get(&0, 0).map_err(call("counters"))
    }

    /// All reservations with their ids, in no order.
    pub fn reservations(&self) -> impl Iterator<Item = Result<(u32, Reservation), MapAccessError>> {
        let entries = self.entries.get(&0, 0).map_err(call("entries"));
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

    /// How many entries of the array of reservations are in use: as many as there are reservations, unless a change is
    /// in progress.
    pub fn entries_taken(&self) -> Result<u32, MapAccessError> {
        let entries = self.entries.get(&0, 0).map_err(call("entries"))?;
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
        self.words.iter().map(|item| item.map_err(call("words")))
    }

    /// One word of the port table.
    pub fn word(&self, key: &WordKey) -> Result<Option<Word>, MapAccessError> {
        optional("words", self.words.get(key, 0))
    }

    /// The filter in front of the port table.
    pub fn filter(&self) -> Result<Filter, MapAccessError> {
        self.filter.get(&0, 0).map_err(call("filter"))
    }

    /// All namespaces that reservations were made in, by cookie.
    pub fn spaces(&self) -> impl Iterator<Item = Result<(u64, Space), MapAccessError>> {
        self.spaces.iter().map(|item| item.map_err(call("spaces")))
    }

    /// All accounts that hold or have held ports, or have had a share of the port table.
    pub fn quotas(&self) -> impl Iterator<Item = Result<(u64, Quota), MapAccessError>> {
        self.quotas.iter().map(|item| item.map_err(call("quotas")))
    }

    /// Users with a limit of their own.
    pub fn own_limits(&self) -> impl Iterator<Item = Result<u32, MapAccessError>> {
        self.quotas()
            .filter(|item| !matches!(item, Ok((_, quota)) if quota.limit == 0))
            .filter_map(|item| item.map(|(account, _)| u32::try_from(account).ok()).transpose())
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
            also: r.admitted().count() as u16,
            comm: r.comm,
            label: r.label,
            gid: r.gid,
            zero2: 0,
        })
    }

    /// The others that a reservation admits. If the reservation ends or changes in the meantime, some of them are
    /// missing.
    pub fn also(&self, r: &Reservation) -> Result<Vec<wire::Also>, MapAccessError> {
        let found = r.admitted().map(|key| optional("admitted", self.admitted.get(&key, 0)));
        found.filter_map(|found| found.map(|found| found.map(|found| found.also)).transpose()).collect()
    }

    /// The keys of the others that all reservations admit.
    pub fn admitted(&self) -> impl Iterator<Item = Result<AdmittedKey, MapAccessError>> {
        self.admitted.keys().map(|item| item.map_err(call("admitted")))
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
        self.places.iter().map(|item| item.map_err(call("places")))
    }

    /// The private ephemeral ranges: the audience of each, and the id of its reservation.
    pub fn ranges(&self) -> impl Iterator<Item = Result<(RangeKey, u32), MapAccessError>> {
        self.ranges.iter().map(|item| item.map_err(call("ranges")))
    }

    /// Processes that were refused lately, by their numbers. The kernel replaces elements, so a process may come twice.
    pub fn offenders(&self) -> impl Iterator<Item = Result<(u32, Offender), MapAccessError>> {
        self.offenders.iter().map(|item| item.map_err(call("offenders")))
    }
}

/// The error of a call on a map.
pub(crate) fn call(name: &'static str) -> impl Fn(MapError) -> MapAccessError + Copy {
    move |source| MapAccessError::Call { name, source }
}

/// An element that may be missing.
pub(crate) fn optional<T>(name: &'static str, result: Result<T, MapError>) -> Result<Option<T>, MapAccessError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(MapAccessError::Call { name, source }),
    }
}
