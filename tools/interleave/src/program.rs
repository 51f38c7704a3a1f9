//! The object file: instructions with their references resolved, maps, read-only data.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionIndex, SectionKind,
};

use crate::{
    address,
    btf::{self, Btf, Line, Type},
};

/// One instruction of eight bytes; of one of sixteen the second half follows as code 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) to: u8,
    pub(crate) from: u8,
    pub(crate) offset: i16,
    /// Sign-extended; all 64 bits of a `ld_imm64`.
    pub(crate) immediate: i64,
}

/// The kernel's structures lie where the object's own BTF has them, so their relocations change nothing. But one socket
/// is looked at as two structures: reads of `struct inet_sock` are moved by this, to distinguish the two.
pub(crate) const INET_SOCK: u32 = 0x800;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapKind {
    Hash,
    LruHash,
    Array,
    PrefixTree,
    SocketStorage,
    Ring,
}

#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) name: String,
    pub(crate) kind: MapKind,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    /// The value's type in the object's BTF.
    pub(crate) value: u32,
    pub(crate) max_entries: u32,
}

/// The object, ready to be run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) code: Vec<Instruction>,
    pub(crate) maps: Vec<Map>,
    pub(crate) read_only: Vec<u8>,
    pub(crate) btf: Btf,
    entries: HashMap<String, usize>,
    constants: HashMap<String, usize>,
    functions: Vec<(usize, String)>,
    lines: Vec<(usize, Line)>,
}

impl Program {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("this is not an ELF object")?;
        let data = |name: &str| -> Result<Vec<u8>> {
            Ok(file
                .section_by_name(name)
                .with_context(|| format!("the object has no section {name}"))?
                .data()?
                .to_vec())
        };
        let btf = Btf::parse(&data(".BTF")?)?;
        let mut code = Vec::new();
        let mut bases = HashMap::new();
        let mut section_names = HashMap::new();
        for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
            bases.insert(section.index(), code.len());
            section_names.insert(section.name()?.to_owned(), code.len());
            decode(section.data()?, &mut code)?;
        }
        let (maps, map_at) = maps(&btf, &file)?;
        let mut parsed = Self {
            code,
            maps,
            read_only: data(".rodata")?,
            entries: HashMap::new(),
            constants: HashMap::new(),
            functions: Vec::new(),
            lines: Vec::new(),
            btf,
        };
        for symbol in file.symbols() {
            let (Some(section), Ok(name)) = (symbol.section_index(), symbol.name()) else { continue };
            let address = symbol.address() as usize;
            match bases.get(&section) {
                Some(base) if !name.is_empty() && symbol.size() > 0 => {
                    parsed.entries.insert(name.to_owned(), base + address / 8);
                    parsed.functions.push((base + address / 8, name.to_owned()));
                }
                None if file.section_by_index(section)?.name()? == ".rodata" => {
                    parsed.constants.insert(name.to_owned(), address);
                }
                Some(_) | None => {}
            }
        }
        parsed.functions.sort();
        parsed.relocate(&file, &bases, &map_at)?;
        if let Ok(ext) = data(".BTF.ext") {
            for (section, offset, line) in btf::lines(&parsed.btf, &ext)? {
                if let Some(base) = section_names.get(&section) {
                    parsed.lines.push((base + offset as usize / 8, line));
                }
            }
            for (section, offset, structure) in btf::field_relocations(&parsed.btf, &ext)? {
                let Some(base) = section_names.get(&section).filter(|_| structure == "inet_sock") else { continue };
                let instruction = &mut parsed.code[base + offset as usize / 8];
                match instruction.code & 7 {
                    4 | 7 => instruction.immediate += i64::from(INET_SOCK),
                    _ => instruction.offset += INET_SOCK as i16,
                }
            }
            parsed.lines.sort_by_key(|(at, _)| *at);
        }
        Ok(parsed)
    }

    fn relocate(
        &mut self,
        file: &object::File<'_>,
        bases: &HashMap<SectionIndex, usize>,
        map_at: &HashMap<u64, usize>,
    ) -> Result<()> {
        for section in file.sections() {
            let Some(base) = bases.get(&section.index()).copied() else { continue };
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(symbol) = relocation.target() else { bail!("a relocation has no symbol") };
                let symbol = file.symbol_by_index(symbol)?;
                let target = symbol.section_index().context("a relocation points outside the object")?;
                let at = base + offset as usize / 8;
                let RelocationFlags::Elf { r_type } = relocation.flags() else { bail!("a relocation is not ELF's") };
                let instruction = &mut self.code[at];
                match r_type {
                    1 => {
                        ensure!(instruction.code == 0x18, "a 64-bit relocation meets another instruction");
                        let addend = instruction.immediate;
                        let name = file.section_by_index(target)?.name()?.to_owned();
                        instruction.immediate = if let Some(function) = bases.get(&target) {
                            let byte = symbol.address() as i64 + addend;
                            address::FUNCTION | (*function as i64 + byte / 8) as u64
                        } else if name == ".maps" {
                            let map = map_at.get(&symbol.address()).context("a relocation points between the maps")?;
                            address::MAP | *map as u64
                        } else if name == ".rodata" {
                            address::READ_ONLY | (symbol.address() as i64 + addend) as u64
                        } else {
                            bail!("a relocation points into section {name}, which this tool does not know")
                        } as i64;
                    }
                    10 => {
                        let function = bases.get(&target).context("a call leaves the code")?;
                        let byte = symbol.address() as i64 + (instruction.immediate + 1) * 8;
                        instruction.immediate = *function as i64 + byte / 8 - at as i64 - 1;
                    }
                    other => bail!("unknown relocation {other}"),
                }
            }
        }
        Ok(())
    }

    /// Where a function begins.
    pub(crate) fn entry(&self, name: &str) -> Result<usize> {
        self.entries.get(name).copied().with_context(|| format!("the object has no function {name}"))
    }

    pub(crate) fn map(&self, name: &str) -> Result<usize> {
        self.maps.iter().position(|m| m.name == name).with_context(|| format!("the object has no map {name}"))
    }

    /// Sets a one-byte constant that the loader would set, if the object has it.
    pub(crate) fn set_constant(&mut self, name: &str, value: u8) {
        if let Some(at) = self.constants.get(name) {
            self.read_only[*at] = value;
        }
    }

    pub(crate) fn function_at(&self, at: usize) -> &str {
        let n = self.functions.partition_point(|(start, _)| *start <= at);
        n.checked_sub(1).map_or("?", |n| &self.functions[n].1)
    }

    pub(crate) fn line_at(&self, at: usize) -> Option<&Line> {
        let n = self.lines.partition_point(|(start, _)| *start <= at);
        Some(&self.lines[n.checked_sub(1)?].1)
    }
}

fn decode(bytes: &[u8], code: &mut Vec<Instruction>) -> Result<()> {
    ensure!(bytes.len().is_multiple_of(8), "a section of code is cut short");
    let mut wide = false;
    for eight in bytes.chunks_exact(8) {
        let immediate = i32::from_le_bytes(eight[4..8].try_into().expect("four bytes"));
        if wide {
            let first: &mut Instruction = code.last_mut().expect("the first half");
            first.immediate = (first.immediate & 0xffff_ffff) | i64::from(immediate) << 32;
            wide = false;
        } else {
            wide = eight[0] == 0x18;
        }
        code.push(Instruction {
            code: eight[0],
            to: eight[1] & 15,
            from: eight[1] >> 4,
            offset: i16::from_le_bytes([eight[2], eight[3]]),
            immediate: i64::from(immediate),
        });
    }
    Ok(())
}

/// The maps that `.maps` defines, and which of them lies at which offset of that section.
fn maps(btf: &Btf, file: &object::File<'_>) -> Result<(Vec<Map>, HashMap<u64, usize>)> {
    let mut maps = Vec::new();
    let mut map_at = HashMap::new();
    let section = btf.types.iter().find_map(|t| match t {
        Type::Section { name, variables } if name == ".maps" => Some(variables),
        _ => None,
    });
    for variable in section.context("the object has no maps")? {
        let Type::Variable { name, of } = &btf.types[*variable as usize] else { bail!(".maps holds no variable") };
        let symbol =
            file.symbols().find(|s| s.name() == Ok(name)).with_context(|| format!("map {name} has no symbol"))?;
        map_at.insert(symbol.address(), maps.len());
        maps.push(map(btf, name, *of)?);
    }
    Ok((maps, map_at))
}

fn map(btf: &Btf, name: &str, definition: u32) -> Result<Map> {
    let Type::Composite { members, .. } = &btf.types[btf.bare(definition) as usize] else {
        bail!("map {name} is not defined by a structure")
    };
    let pointed = |field: &str| {
        members.iter().find(|m| m.name == field).and_then(|m| match &btf.types[btf.bare(m.of) as usize] {
            Type::Pointer { to } => Some(*to),
            _ => None,
        })
    };
    let number = |field: &str| {
        pointed(field).and_then(|to| match &btf.types[btf.bare(to) as usize] {
            Type::Array { count, .. } => Some(*count),
            _ => None,
        })
    };
    let kind = match number("type").with_context(|| format!("map {name} has no type"))? {
        1 => MapKind::Hash,
        2 => MapKind::Array,
        9 => MapKind::LruHash,
        11 => MapKind::PrefixTree,
        24 => MapKind::SocketStorage,
        27 => MapKind::Ring,
        other => bail!("map {name} is of kind {other}, which this tool does not know"),
    };
    let value = pointed("value").unwrap_or(0);
    Ok(Map {
        name: name.to_owned(),
        kind,
        key_size: pointed("key").map_or(0, |key| btf.size(key)),
        value_size: btf.size(value),
        value,
        max_entries: number("max_entries").unwrap_or(0),
    })
}
