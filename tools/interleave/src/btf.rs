//! The type information (BTF) that the object carries: where fields are, what the maps hold, and which source line an
//! instruction comes from. Nothing in this tool knows an offset of Portkeep's own structures.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

/// One type of the object.
#[derive(Debug, Clone)]
pub(crate) enum Type {
    Number {
        size: u32,
    },
    Pointer {
        to: u32,
    },
    Array {
        of: u32,
        count: u32,
    },
    Composite {
        name: String,
        size: u32,
        members: Vec<Member>,
    },
    /// Another name for a type, or a qualifier of it.
    Alias {
        to: u32,
    },
    Variable {
        name: String,
        of: u32,
    },
    Section {
        name: String,
        variables: Vec<u32>,
    },
    /// Functions and other things that have no size in memory.
    Other,
}

/// One field of a structure or a union.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) of: u32,
    /// In bytes.
    pub(crate) at: u32,
}

/// Where a field lies in its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) at: u32,
    pub(crate) size: u32,
}

#[derive(Debug)]
pub(crate) struct Btf {
    pub(crate) types: Vec<Type>,
    strings: Vec<u8>,
    structures: HashMap<String, u32>,
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..at + 4).context("the type information is cut short")?;
    Ok(u32::from_le_bytes(four.try_into().expect("four bytes")))
}

impl Btf {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(u32_at(bytes, 0)? & 0xffff == 0xeb9f, ".BTF has an unknown magic number");
        let header = u32_at(bytes, 4)? as usize;
        let (types_at, types_len) = (u32_at(bytes, 8)? as usize, u32_at(bytes, 12)? as usize);
        let (strings_at, strings_len) = (u32_at(bytes, 16)? as usize, u32_at(bytes, 20)? as usize);
        let part = |at: usize, len: usize| bytes.get(header + at..header + at + len).context(".BTF is cut short");
        let mut btf = Self {
            types: vec![Type::Other],
            strings: part(strings_at, strings_len)?.to_vec(),
            structures: HashMap::new(),
        };
        let types = part(types_at, types_len)?;
        let mut at = 0;
        while at < types.len() {
            let (kind, len) = btf.parse_type(types, at)?;
            if let Type::Composite { name, .. } = &kind {
                let id = btf.types.len() as u32;
                btf.structures.entry(name.clone()).or_insert(id);
            }
            btf.types.push(kind);
            at += len;
        }
        Ok(btf)
    }

    fn parse_type(&self, bytes: &[u8], at: usize) -> Result<(Type, usize)> {
        let word = |n: usize| u32_at(bytes, at + 4 * n);
        let name = self.string(word(0)?)?;
        let info = word(1)?;
        let size = word(2)?;
        let count = (info & 0xffff) as usize;
        let bit_fields = info >> 31 != 0;
        Ok(match info >> 24 & 0x1f {
            1 => (Type::Number { size }, 16),
            2 => (Type::Pointer { to: size }, 12),
            3 => (Type::Array { of: word(3)?, count: word(5)? }, 24),
            4 | 5 => {
                let mut members = Vec::with_capacity(count);
                for n in 0..count {
                    let at = word(5 + 3 * n)?;
                    let at = if bit_fields { at & 0xff_ffff } else { at } / 8;
                    members.push(Member { name: self.string(word(3 + 3 * n)?)?, of: word(4 + 3 * n)?, at });
                }
                (Type::Composite { name, size, members }, 12 + 12 * count)
            }
            6 => (Type::Number { size }, 12 + 8 * count),
            7 | 12 => (Type::Other, 12),
            8..=11 | 18 => (Type::Alias { to: size }, 12),
            13 => (Type::Other, 12 + 8 * count),
            14 => (Type::Variable { name, of: size }, 16),
            15 => {
                let variables = (0..count).map(|n| word(3 + 3 * n)).collect::<Result<_>>()?;
                (Type::Section { name, variables }, 12 + 12 * count)
            }
            16 => (Type::Number { size }, 12),
            17 => (Type::Other, 16),
            19 => (Type::Number { size }, 12 + 12 * count),
            kind => bail!(".BTF has a type of unknown kind {kind}"),
        })
    }

    pub(crate) fn string(&self, at: u32) -> Result<String> {
        let rest = self.strings.get(at as usize..).context("a name lies outside .BTF")?;
        let end = rest.iter().position(|b| *b == 0).context("a name in .BTF has no end")?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    /// The type itself, behind all its names and qualifiers.
    pub(crate) fn bare(&self, mut id: u32) -> u32 {
        while let Some(Type::Alias { to }) = self.types.get(id as usize) {
            id = *to;
        }
        id
    }

    pub(crate) fn size(&self, id: u32) -> u32 {
        match &self.types[self.bare(id) as usize] {
            Type::Number { size } | Type::Composite { size, .. } => *size,
            Type::Pointer { .. } => 8,
            Type::Array { of, count } => self.size(*of) * count,
            Type::Alias { .. } | Type::Variable { .. } | Type::Section { .. } | Type::Other => 0,
        }
    }

    pub(crate) fn structure(&self, name: &str) -> Option<u32> {
        self.structures.get(name).copied()
    }

    /// The field of that name, also inside nested structures: `"a.b"`.
    pub(crate) fn field_of(&self, id: u32, path: &str) -> Option<Field> {
        let mut id = self.bare(id);
        let mut at = 0;
        for part in path.split('.') {
            let Type::Composite { members, .. } = &self.types[id as usize] else { return None };
            let member = members.iter().find(|m| m.name == part)?;
            at += member.at;
            id = self.bare(member.of);
        }
        Some(Field { at, size: self.size(id) })
    }

    pub(crate) fn field(&self, structure: &str, path: &str) -> Option<Field> {
        self.field_of(self.structure(structure)?, path)
    }

    /// The field at an offset, as a reader of the source would write it: `uses[3]`.
    pub(crate) fn describe(&self, id: u32, at: u32) -> String {
        match &self.types[self.bare(id) as usize] {
            Type::Composite { members, .. } => {
                let Some(member) = members.iter().rev().find(|m| m.at <= at) else { return format!("+{at}") };
                let rest = self.describe(member.of, at - member.at);
                let dot = if rest.is_empty() || rest.starts_with(['[', '+']) { "" } else { "." };
                format!("{}{dot}{rest}", member.name)
            }
            Type::Array { of, .. } => {
                let size = self.size(*of).max(1);
                let rest = self.describe(*of, at % size);
                let dot = if rest.is_empty() || rest.starts_with(['[', '+']) { "" } else { "." };
                format!("[{}]{dot}{rest}", at / size)
            }
            Type::Number { .. } | Type::Pointer { .. } if at == 0 => String::new(),
            Type::Number { .. }
            | Type::Pointer { .. }
            | Type::Alias { .. }
            | Type::Variable { .. }
            | Type::Section { .. }
            | Type::Other => format!("+{at}"),
        }
    }
}

/// The source line of an instruction.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) file: String,
    pub(crate) number: u32,
    pub(crate) text: String,
}

/// The lines of `.BTF.ext`: section name, offset in it, line. Sorted within each section.
pub(crate) fn lines(btf: &Btf, ext: &[u8]) -> Result<Vec<(String, u32, Line)>> {
    let header = u32_at(ext, 4)? as usize;
    let (at, len) = (u32_at(ext, 16)? as usize, u32_at(ext, 20)? as usize);
    let mut found = Vec::new();
    if len == 0 {
        return Ok(found);
    }
    let record = u32_at(ext, header + at)? as usize;
    let (mut here, end) = (header + at + 4, header + at + len);
    while here < end {
        let section = btf.string(u32_at(ext, here)?)?;
        let count = u32_at(ext, here + 4)? as usize;
        here += 8;
        for _ in 0..count {
            let offset = u32_at(ext, here)?;
            let file = btf.string(u32_at(ext, here + 4)?)?;
            let text = btf.string(u32_at(ext, here + 8)?)?.trim().to_owned();
            let number = u32_at(ext, here + 12)? >> 10;
            let file = file.trim_start_matches("./").to_owned();
            found.push((section.clone(), offset, Line { file, number, text }));
            here += record;
        }
    }
    Ok(found)
}

/// The field accesses that a loader would relocate: section name, offset in it, the structure looked at.
pub(crate) fn field_relocations(btf: &Btf, ext: &[u8]) -> Result<Vec<(String, u32, String)>> {
    let header = u32_at(ext, 4)? as usize;
    let mut found = Vec::new();
    if header < 32 {
        return Ok(found);
    }
    let (at, len) = (u32_at(ext, 24)? as usize, u32_at(ext, 28)? as usize);
    if len == 0 {
        return Ok(found);
    }
    let record = u32_at(ext, header + at)? as usize;
    let (mut here, end) = (header + at + 4, header + at + len);
    while here < end {
        let section = btf.string(u32_at(ext, here)?)?;
        let count = u32_at(ext, here + 4)? as usize;
        here += 8;
        for _ in 0..count {
            let structure = btf.bare(u32_at(ext, here + 4)?);
            // Kind 0: the byte offset of a field.
            if let (0, Some(Type::Composite { name, .. })) =
                (u32_at(ext, here + 12)?, btf.types.get(structure as usize))
            {
                found.push((section.clone(), u32_at(ext, here)?, name.clone()));
            }
            here += record;
        }
    }
    Ok(found)
}
