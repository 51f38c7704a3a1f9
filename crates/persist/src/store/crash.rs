//! The store on a disk that loses power.
//!
//! [`Sim`] is a disk that remembers every create, write, change of length, sync and rename. The store runs on it once.
//! Then the run is cut off after each of these events in turn. For each, the test makes the disks that a power cut may
//! leave. All of them have everything that was synced. Of the rest they have nothing, everything, some of the writes,
//! or some sectors of the writes. A seeded choice decides about each write or sector by itself, so a later write can be
//! there without an earlier one. The store is opened on each of these disks. It must have all changes that were
//! reported done. It may also have the one change that was under way. It must not have half of a change.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use fastrand::Rng;
use portkeep_core::{PortRange, Transports};
use redb::StorageBackend;

use super::{Engine, StoreError, Stored, disk::Disk};
use crate::{Audience, Declaration, Name};

/// A call that changes the disk or makes a change durable.
#[derive(Clone, Debug)]
enum Event {
    Create { name: String, file: usize },
    Write { file: usize, at: u64, data: Vec<u8> },
    SetLen { file: usize, len: u64 },
    Sync { file: usize },
    Rename { from: String, to: String },
    SyncNames,
}

/// The content of the disk.
#[derive(Clone, Debug, Default)]
struct Image {
    files: Vec<Vec<u8>>,
    names: BTreeMap<String, usize>,
}

impl Image {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Create { name, file } => {
                self.file(*file);
                self.names.insert(name.clone(), *file);
            }
            Event::Write { file, at, data } => self.write(*file, *at, data),
            Event::SetLen { file, len } => self.file(*file).resize(usize::try_from(*len).unwrap(), 0),
            Event::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Event::Sync { .. } | Event::SyncNames => {}
        }
    }

    fn file(&mut self, file: usize) -> &mut Vec<u8> {
        if self.files.len() <= file {
            self.files.resize(file + 1, Vec::new());
        }
        &mut self.files[file]
    }

    /// Data past the end is lost: the change of length was lost.
    fn write(&mut self, file: usize, at: u64, data: &[u8]) {
        let content = self.file(file);
        let begin = usize::try_from(at).unwrap().min(content.len());
        let end = (begin + data.len()).min(content.len());
        content[begin..end].copy_from_slice(&data[..end - begin]);
    }
}

/// Which calls fail from now on, and how.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// How many more calls that change something succeed.
    after: usize,
    kind: io::ErrorKind,
    /// Syncs do not fail, because they require no space.
    space_only: bool,
}

#[derive(Debug, Default)]
struct State {
    image: Image,
    log: Vec<Event>,
    fault: Option<Fault>,
    failed: usize,
}

impl State {
    fn happen(&mut self, event: Event) -> io::Result<()> {
        if let Some(fault) = &mut self.fault {
            let concerned = !fault.space_only || !matches!(event, Event::Sync { .. } | Event::SyncNames);
            if concerned && fault.after == 0 {
                self.failed += 1;
                return Err(fault.kind.into());
            }
            fault.after -= usize::from(concerned);
        }
        self.image.apply(&event);
        self.log.push(event);
        Ok(())
    }
}

/// A disk that can be cut off.
#[derive(Clone, Debug, Default)]
struct Sim(Arc<Mutex<State>>);

impl Sim {
    fn with(image: Image) -> Self {
        Self(Arc::new(Mutex::new(State { image, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn events(&self) -> usize {
        self.state().log.len()
    }
}

impl Disk for Sim {
    type File = SimFile;

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let state = self.state();
        Ok(state.image.names.get(name).map(|file| state.image.files[*file].clone()))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let file = self.state().image.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { sim: self.clone(), file })
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        let file = state.image.files.len();
        state.happen(Event::Create { name: name.to_owned(), file })?;
        drop(state);
        Ok(SimFile { sim: self.clone(), file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state().happen(Event::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    /// Not an event: a crash after it leaves the same disk as a crash just before it.
    fn remove(&self, _name: &str) {}

    fn sync(&self) -> io::Result<()> {
        self.state().happen(Event::SyncNames)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/sim").join(name)
    }
}

#[derive(Debug)]
struct SimFile {
    sim: Sim,
    file: usize,
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.sim.state().image.files[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.sim.state();
        let begin = usize::try_from(offset).unwrap();
        let source = state.image.files[self.file].get(begin..begin + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(source);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.sim.state().happen(Event::SetLen { file: self.file, len })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sim.state().happen(Event::Sync { file: self.file })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.sim.state().happen(Event::Write { file: self.file, at: offset, data: data.to_vec() })
    }
}

/// How much of what was not synced survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Nothing.
    All,
    /// Everything: the process died, not the machine.
    None,
    /// Each write by itself, whole.
    Writes,
    /// Each sector of each write by itself.
    Sectors,
}

const LOSSES: [Loss; 4] = [Loss::All, Loss::None, Loss::Writes, Loss::Sectors];
const SECTOR: usize = 512;

/// Walks along a log and knows what is durable.
#[derive(Clone, Default)]
struct Walk {
    durable: Image,
    pending: Vec<Event>,
}

impl Walk {
    fn step(&mut self, event: &Event) {
        let settled = |pending: &Event| match (event, pending) {
            (Event::Sync { file }, Event::Write { file: of, .. } | Event::SetLen { file: of, .. }) => file == of,
            (Event::SyncNames, Event::Create { .. } | Event::Rename { .. }) => true,
            _ => false,
        };
        match event {
            Event::Sync { .. } | Event::SyncNames => {
                let (now, later) = std::mem::take(&mut self.pending).into_iter().partition(settled);
                let now: Vec<Event> = now;
                now.iter().for_each(|event| self.durable.apply(event));
                self.pending = later;
            }
            other => self.pending.push(other.clone()),
        }
    }

    /// The disk as the machine finds it at the next boot.
    fn cut(&self, loss: Loss, dice: &mut Rng) -> Image {
        let mut image = self.durable.clone();
        let mut names_lost = false;
        for event in &self.pending {
            let kept = match loss {
                Loss::All => false,
                Loss::None => true,
                Loss::Writes | Loss::Sectors => dice.u64(..2) == 0,
            };
            match event {
                // Changes of names are journalled: those up to some point are kept, in their order.
                Event::Create { file, .. } => {
                    names_lost |= !kept;
                    image.file(*file);
                    if !names_lost {
                        image.apply(event);
                    }
                }
                Event::Rename { .. } => {
                    names_lost |= !kept;
                    if !names_lost {
                        image.apply(event);
                    }
                }
                Event::Write { file, at, data } if loss == Loss::Sectors => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if dice.u64(..2) == 0 {
                            image.write(*file, at + (number * SECTOR) as u64, sector);
                        }
                    }
                }
                _ if kept => image.apply(event),
                _ => {}
            }
        }
        image
    }
}

const NAME: &str = super::PERSISTENT;
fn stored(number: u64, dice: &mut Rng) -> Stored {
    let ports =
        PortRange::new(u16::try_from(1 + dice.u64(..60000)).unwrap(), 1 + u16::try_from(dice.u64(..100)).unwrap());
    let mut declaration = Declaration::new(format!("r{number}").parse().unwrap(), ports.unwrap(), Transports::Both);
    declaration.audience = Audience::Unit(format!("unit-{number}.service"));
    declaration.description = "d".repeat(usize::try_from(dice.u64(..250)).unwrap());
    Stored { declaration, by_uid: 0, created: number }
}

fn name(number: u64) -> Name {
    format!("r{number}").parse().unwrap()
}

fn content(engine: &Engine<Sim>) -> BTreeMap<Name, Stored> {
    engine.content.clone()
}

/// Open the store on the disk that is left.
fn recover(image: Image) -> Result<(Engine<Sim>, Sim), StoreError> {
    let sim = Sim::with(image);
    Ok((Engine::open(sim.clone(), NAME, None)?, sim))
}

/// `PORTKEEP_TEST_SEED` selects another run than the usual one.
fn seed() -> u64 {
    std::env::var("PORTKEEP_TEST_SEED").map_or(0x5eed, |seed| seed.parse().expect("a number"))
}

#[test]
fn no_power_cut_at_any_write_or_sync_loses_or_halves_anything() {
    const OPERATIONS: u64 = 120;
    let seed = seed();
    let mut dice = Rng::with_seed(seed);
    // Run once, and note the content after each change with the number of events until then.
    let sim = Sim::default();
    let mut engine = Engine::open(sim.clone(), NAME, None).unwrap();
    let mut states = vec![(0, BTreeMap::new()), (sim.events(), BTreeMap::new())];
    for operation in 0..OPERATIONS {
        let present: Vec<u64> = engine.content.values().map(|stored| stored.created).collect();
        let any = |dice: &mut Rng| present[usize::try_from(dice.u64(..present.len() as u64)).unwrap()];
        match dice.u64(..5) {
            0..3 => engine.create(&stored(operation, &mut dice)).unwrap(),
            _ if present.is_empty() => engine.create(&stored(operation, &mut dice)).unwrap(),
            3 => drop(engine.delete(&name(any(&mut dice))).unwrap()),
            // An entry with another name, or one with the same name and another content.
            _ if operation % 2 == 0 => engine.replace(&name(any(&mut dice)), &stored(operation, &mut dice)).unwrap(),
            _ => {
                let same = any(&mut dice);
                engine.replace(&name(same), &stored(same, &mut dice)).unwrap();
            }
        }
        states.push((sim.events(), content(&engine)));
    }
    drop(engine);
    let log = std::mem::take(&mut sim.state().log);
    states.push((log.len(), states.last().unwrap().1.clone()));

    let mut walk = Walk::default();
    let (mut kills, mut again, mut under_way) = (0u64, 0u64, 0u64);
    for position in 0..=log.len() {
        let after = states.iter().position(|(until, _)| *until >= position).unwrap();
        let before = states[after.saturating_sub(1)].1.clone();
        let allowed = [&before, &states[after].1];
        for loss in LOSSES {
            let mut dice = Rng::with_seed(seed ^ ((position * LOSSES.len() + loss as usize) as u64) << 16);
            let shown = || format!("cut off after event {position} of {}, losing {loss:?}", log.len());
            let (engine, sim) =
                recover(walk.cut(loss, &mut dice)).unwrap_or_else(|error| panic!("{}: {error}", shown()));
            assert!(allowed.contains(&&engine.content), "{}: {:?}", shown(), engine.content.keys());
            under_way += u64::from(engine.content != before);
            kills += 1;
            // Sometimes there is a second power cut, while the store is recovered or closed.
            if (position + loss as usize).is_multiple_of(37) {
                let first = content(&engine);
                let opened = sim.events();
                drop(engine);
                let second = std::mem::take(&mut sim.state().log);
                let mut walk = Walk {
                    durable: walk.cut(
                        loss,
                        &mut Rng::with_seed(seed ^ ((position * LOSSES.len() + loss as usize) as u64) << 16),
                    ),
                    pending: Vec::new(),
                };
                for (number, event) in second.iter().enumerate() {
                    walk.step(event);
                    let (engine, _) = recover(walk.cut(LOSSES[number % LOSSES.len()], &mut dice))
                        .unwrap_or_else(|error| panic!("{}, and again: {error}", shown()));
                    assert!(allowed.contains(&&engine.content), "{}, and again after {number}", shown());
                    // When the store has been opened with a content, it keeps that content.
                    assert!(number < opened || engine.content == first, "{}, and again after {number}", shown());
                    again += 1;
                }
            }
        }
        if let Some(event) = log.get(position) {
            walk.step(event);
        }
    }
    println!(
        "seed {seed}: {} kill points: {} places in {OPERATIONS} changes with 4 kinds of loss each, and {again} during recovery; \
         {under_way} times the change under way was kept",
        kills + again,
        log.len() + 1
    );
    assert!(kills + again >= 10_000, "only {kills} + {again} kill points");
    assert!(under_way > 0, "never was a change kept that was under way: are the kills where they should be?");
}

/// For every n, let the disk fail from the n-th call on, and then work again.
fn fail_everywhere(kind: io::ErrorKind, space_only: bool) -> (usize, usize) {
    let sim = Sim::default();
    let mut engine = Engine::open(sim.clone(), NAME, None).unwrap();
    let mut dice = Rng::with_seed(7);
    for number in 0..20 {
        engine.create(&stored(number, &mut dice)).unwrap();
    }
    let (mut refused, mut unsure, mut number) = (0, 0, 100);
    for create in [true, false] {
        for after in 0.. {
            let before = content(&engine);
            sim.state().fault = Some(Fault { after, kind, space_only });
            let subject = if create { stored(number, &mut dice) } else { before.values().next().unwrap().clone() };
            let result =
                if create { engine.create(&subject) } else { engine.delete(&subject.declaration.name).map(drop) };
            let touched = std::mem::take(&mut sim.state().failed) > 0;
            sim.state().fault = None;
            let mut expected = before.clone();
            if create {
                expected.insert(name(number), subject.clone())
            } else {
                expected.remove(&subject.declaration.name)
            };
            // The disk has the content that the result reports.
            let on_disk = content(&recover(sim.state().image.clone()).unwrap().0);
            match result {
                Ok(()) => assert_eq!(on_disk, expected, "reported done, {after}"),
                Err(StoreError::Unsure { .. }) => {
                    unsure += 1;
                    assert!(on_disk == expected || on_disk == before, "half, {after}");
                }
                Err(error) => {
                    refused += 1;
                    if kind == io::ErrorKind::StorageFull {
                        assert!(matches!(error, StoreError::Full { .. }), "{error}");
                        assert_eq!(error.to_string(), "no space is left for /sim/persistent.redb; nothing was changed");
                    }
                    assert_eq!(on_disk, before, "reported undone, {after}: {error}");
                    assert_eq!(content(&engine), before, "and listed as such, {after}");
                }
            }
            // When the disk works again, the same store works again.
            number += 1;
            engine.create(&stored(number, &mut dice)).unwrap();
            assert_eq!(content(&engine), content(&recover(sim.state().image.clone()).unwrap().0));
            number += 1;
            if !touched {
                break;
            }
        }
    }
    (refused, unsure)
}

#[test]
fn a_full_disk_changes_nothing_and_says_so() {
    let (refused, unsure) = fail_everywhere(io::ErrorKind::StorageFull, true);
    println!("full disk: {refused} changes refused, {unsure} unsure");
    assert!(refused > 4, "{refused}");
}

#[test]
fn a_failing_disk_never_makes_it_report_what_is_not_so() {
    let (refused, unsure) = fail_everywhere(io::ErrorKind::Other, false);
    println!("failing disk: {refused} changes refused, {unsure} unsure");
    assert!(refused > 4, "{refused}");
}

/// If the disk is full while the store is made, that is an error. When there is space again, an empty store is made.
#[test]
fn a_store_that_could_not_be_made_is_made_another_time() {
    for after in 0.. {
        let sim = Sim::default();
        sim.state().fault = Some(Fault { after, kind: io::ErrorKind::StorageFull, space_only: true });
        match Engine::open(sim.clone(), NAME, None) {
            Ok(_) => {
                assert!(after > 5, "there is more to making a store");
                break;
            }
            Err(error) => assert!(matches!(error, StoreError::Full { .. }), "{after}: {error}"),
        }
        sim.state().fault = None;
        Engine::open(sim, NAME, None).unwrap().create(&stored(1, &mut Rng::with_seed(1))).unwrap();
    }
}

/// If there is a power cut while entries of another boot are discarded, they are discarded at the next start.
#[test]
fn discarding_is_whole_too() {
    let sim = Sim::default();
    let mut engine = Engine::open(sim.clone(), NAME, Some("one")).unwrap();
    for number in 0..10 {
        engine.create(&stored(number, &mut Rng::with_seed(number))).unwrap();
    }
    let full = content(&engine);
    drop(engine);
    let mut walk = Walk { durable: sim.state().image.clone(), pending: Vec::new() };
    let second = Sim::with(walk.durable.clone());
    drop(Engine::open(second.clone(), NAME, Some("two")).unwrap());
    let log = std::mem::take(&mut second.state().log);
    let mut whole = 0;
    for position in 0..=log.len() {
        for loss in LOSSES {
            let image = walk.cut(loss, &mut Rng::with_seed((position * LOSSES.len() + loss as usize) as u64));
            assert!(Engine::open(Sim::with(image.clone()), NAME, Some("two")).unwrap().content.is_empty());
            // Opened for the first boot, the store has all entries or none.
            let engine = Engine::open(Sim::with(image), NAME, Some("one")).unwrap();
            assert!(engine.content.is_empty() || engine.content == full);
            whole += usize::from(!engine.content.is_empty());
        }
        if let Some(event) = log.get(position) {
            walk.step(event);
        }
    }
    assert!(whole > 0 && whole < (log.len() + 1) * LOSSES.len(), "{whole}");
}

/// A disk with a store. It was closed, or its process was killed.
fn example(closed: bool) -> (Image, BTreeMap<Name, Stored>) {
    let sim = Sim::default();
    let mut engine = Engine::open(sim.clone(), NAME, None).unwrap();
    let mut dice = Rng::with_seed(3);
    for number in 0..40 {
        engine.create(&stored(number, &mut dice)).unwrap();
    }
    engine.delete(&name(3)).unwrap();
    let content = content(&engine);
    let killed = sim.state().image.clone();
    drop(engine);
    let image = if closed { sim.state().image.clone() } else { killed };
    (image, content)
}

/// Damage is found, or it does not change the content. If it is found, the file is kept byte for byte. Nothing panics.
#[test]
fn damage_is_reported_or_harmless_and_the_file_is_kept() {
    for closed in [true, false] {
        damage(closed);
    }
}

fn damage(closed: bool) {
    let (image, content) = example(closed);
    let file = image.names[NAME];
    let bytes = image.files[file].clone();
    let mut dice = Rng::with_seed(11);
    let mut cases: Vec<Vec<u8>> = Vec::new();
    let used = bytes.len();
    for number in 0..1820 {
        // Every byte of the headers, and random bytes of the file.
        let at = if number < 320 { number } else { usize::try_from(dice.u64(..used as u64)).unwrap() };
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << dice.u64(..8);
        cases.push(damaged);
    }
    for _ in 0..100 {
        let mut damaged = bytes.clone();
        let from = usize::try_from(dice.u64(..used as u64)).unwrap();
        let until = (from + usize::try_from(1 + dice.u64(..8192)).unwrap()).min(used);
        damaged[from..until].iter_mut().for_each(|byte| *byte = u8::try_from(dice.u64(..256)).unwrap());
        cases.push(damaged);
        cases.push(bytes[..from].to_vec());
    }
    cases.push(b"[[reservation]]\nname = \"x\"\n".to_vec());
    cases.push(vec![0; 4096]);
    cases.push([bytes.as_slice(), &[0; 4096]].concat());

    let (mut found, mut harmless) = (0, 0);
    for damaged in cases {
        let mut image = image.clone();
        image.files[file] = damaged.clone();
        let sim = Sim::with(image);
        match Engine::open(sim.clone(), NAME, None) {
            Ok(engine) => {
                assert_eq!(engine.content, content);
                harmless += 1;
            }
            Err(StoreError::Damaged { .. } | StoreError::Newer { .. }) => {
                found += 1;
                assert!(sim.state().image.files[file] == damaged, "the file was touched");
                assert_eq!(sim.events(), 0);
            }
            Err(error) => panic!("{error}"),
        }
    }
    println!(
        "damage (closed: {closed}): {found} times found, {harmless} times in places without content; {used} bytes"
    );
    assert!(found > 200, "{found}");
}
