//! The memory that CPUs share: map values and socket storage. A state is copied thousands of times a second, so values
//! are copied only when one of the copies changes, and the hash of the whole is kept up to date with every store.

use std::{collections::HashMap, rc::Rc};

/// Pseudo maps: what the kernel itself keeps, so that its accesses have names as well.
pub(crate) const SOCKETS: u16 = 0xfff0;
pub(crate) const PORTS: u16 = 0xfff1;

/// Gives every element of every map a number that is the same in all schedules.
#[derive(Debug, Default)]
pub(crate) struct Names {
    numbers: HashMap<(u16, Vec<u8>), u32>,
    pub(crate) list: Vec<(u16, Vec<u8>)>,
}

impl Names {
    pub(crate) fn number(&mut self, map: u16, key: &[u8]) -> u32 {
        if let Some(known) = self.numbers.get(&(map, key.to_vec())) {
            return *known;
        }
        let number = self.list.len() as u32;
        self.numbers.insert((map, key.to_vec()), number);
        self.list.push((map, key.to_vec()));
        number
    }

    /// The elements of a map that were named so far.
    pub(crate) fn of(&self, map: u16) -> impl Iterator<Item = u32> {
        self.list.iter().zip(0..).filter(move |((of, _), _)| *of == map).map(|(_, number)| number)
    }
}

/// The effect of an access. Two accesses of the same kind to one cell commute, unless they are stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Load,
    /// A store, or an atomic operation whose result is used.
    Store,
    Add,
    Or,
    And,
}

/// Which CPUs have done what to eight bytes, in any schedule so far.
#[derive(Debug, Default, Clone, Copy)]
struct Cell {
    by: [u8; 5],
    /// Two CPUs meet here, and the order of their accesses matters.
    contended: bool,
}

/// The accesses seen so far. A switch of CPUs is only worth a try before an access to a contended cell.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    cells: Vec<Vec<Cell>>,
    /// A cell became contended since this was last reset.
    pub(crate) grown: bool,
}

impl Watch {
    pub(crate) fn contended(&self, object: u32, cell: usize) -> bool {
        self.cells.get(object as usize).and_then(|o| o.get(cell)).is_some_and(|c| c.contended)
    }

    pub(crate) fn note(&mut self, object: u32, cell: usize, access: Access, cpu: usize) {
        let object = object as usize;
        if self.cells.len() <= object {
            self.cells.resize(object + 1, Vec::new());
        }
        let cells = &mut self.cells[object];
        if cells.len() <= cell {
            cells.resize(cell + 1, Cell::default());
        }
        let cell = &mut cells[cell];
        let bit = 1 << cpu;
        if cell.by[access as usize] & bit != 0 {
            return;
        }
        cell.by[access as usize] |= bit;
        if cell.contended {
            return;
        }
        let others_commute = (0..5).all(|k| k == access as usize || cell.by[k] & !bit == 0);
        let same_commutes = access != Access::Store || cell.by[Access::Store as usize] == bit;
        if !(others_commute && same_commutes) {
            cell.contended = true;
            self.grown = true;
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.cells.iter().flatten().filter(|c| c.contended).count()
    }
}

#[derive(Debug, Clone)]
struct Object {
    words: Vec<u64>,
    /// False: removed from its map; a CPU that still holds a pointer must not write any more.
    present: bool,
    /// Its presence is part of the state; elements of arrays are always there.
    counted: bool,
}

/// The values of all objects, by their numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    objects: Vec<Option<Rc<Object>>>,
    pub(crate) hash: u64,
}

pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd1b5_4a32_d192_ed03);
    let folded = (product as u64) ^ (product >> 64) as u64;
    folded.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ folded >> 29
}

fn cell_hash(object: u32, cell: usize, value: u64) -> u64 {
    if value == 0 { 0 } else { mix(value, mix(u64::from(object) << 32 | cell as u64, 0x1234_5678_9abc)) }
}

impl Shared {
    pub(crate) fn present(&self, object: u32) -> bool {
        self.get(object).is_some_and(|o| o.present)
    }

    /// Whether it was there once.
    pub(crate) fn removed(&self, object: u32) -> bool {
        self.get(object).is_some_and(|o| !o.present)
    }

    fn get(&self, object: u32) -> Option<&Object> {
        self.objects.get(object as usize)?.as_deref()
    }

    /// Enters an element of zeros.
    pub(crate) fn create(&mut self, object: u32, size: u32, counted: bool) {
        if self.objects.len() <= object as usize {
            self.objects.resize(object as usize + 1, None);
        }
        if let Some(old) = self.objects[object as usize].take() {
            for (n, value) in old.words.iter().enumerate() {
                self.hash ^= cell_hash(object, n, *value);
            }
            if old.present && old.counted {
                self.hash ^= cell_hash(object, usize::MAX, 1);
            }
        }
        if counted {
            self.hash ^= cell_hash(object, usize::MAX, 1);
        }
        let words = vec![0; size.div_ceil(8) as usize];
        self.objects[object as usize] = Some(Rc::new(Object { words, present: true, counted }));
    }

    pub(crate) fn remove(&mut self, object: u32) {
        if let Some(Some(old)) = self.objects.get_mut(object as usize)
            && old.present
        {
            Rc::make_mut(old).present = false;
            self.hash ^= cell_hash(object, usize::MAX, 1);
        }
    }

    pub(crate) fn cell(&self, object: u32, cell: usize) -> Option<u64> {
        self.get(object)?.words.get(cell).copied()
    }

    pub(crate) fn set_cell(&mut self, object: u32, cell: usize, value: u64) -> bool {
        let Some(Some(rc)) = self.objects.get_mut(object as usize) else { return false };
        let Some(old) = rc.words.get(cell).copied() else { return false };
        if old != value {
            self.hash ^= cell_hash(object, cell, old) ^ cell_hash(object, cell, value);
            Rc::make_mut(rc).words[cell] = value;
        }
        true
    }

    /// Reads 1 to 8 bytes; `None` outside the value.
    pub(crate) fn load(&self, object: u32, at: usize, size: usize) -> Option<u64> {
        let low = self.cell(object, at / 8)?;
        let shift = at % 8;
        if shift + size <= 8 {
            return Some(low >> (8 * shift) & ones(size));
        }
        let high = self.cell(object, at / 8 + 1)?;
        Some((low >> (8 * shift) | high << (64 - 8 * shift)) & ones(size))
    }

    /// Writes 1 to 8 bytes; false outside the value.
    pub(crate) fn store(&mut self, object: u32, at: usize, size: usize, value: u64) -> bool {
        let shift = at % 8;
        if shift + size <= 8 {
            let Some(old) = self.cell(object, at / 8) else { return false };
            let mask = ones(size) << (8 * shift);
            return self.set_cell(object, at / 8, old & !mask | (value << (8 * shift)) & mask);
        }
        (0..size).all(|n| self.store(object, at + n, 1, value >> (8 * n)))
    }
}

const fn ones(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}
