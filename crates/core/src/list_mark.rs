//! How the blocks of one list are recognised as one reservation.
//!
//! Each block is a reservation in the kernel. The labels of the blocks show that they belong together; the kernel does
//! not change labels. Such a label is the text, at most [`ListMark::TEXT`] bytes of it, then a zero, where readers of
//! labels stop, then the mark.

const LABEL: usize = 24;
const DIGITS: usize = 6;
/// The base of the id's digits.
const BASE: u32 = 36;
/// The id counts modulo this number.
const IDS: u32 = BASE.pow(DIGITS as u32);
/// The character for one block. The characters for more blocks follow it.
const ONE: u8 = b'0';

/// The mark of the blocks of a list: how many there are, and a number that other lists of the same owner do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListMark {
    blocks: u8,
    id: u32,
}

impl ListMark {
    /// Bytes of a label that remain for its text.
    pub const TEXT: usize = LABEL - DIGITS - 2;

    /// The mark of a list of so many blocks. `None` for one block, which has no mark (rule L3), and for more than 64.
    pub fn new(blocks: usize, id: u32) -> Option<Self> {
        let blocks = u8::try_from(blocks).ok().filter(|blocks| (2..=64).contains(blocks))?;
        Some(Self { blocks, id: id % IDS })
    }

    /// The mark for the list with this name, where names are unique. The same name always gives the same mark.
    pub fn of_name(blocks: usize, name: &str) -> Option<Self> {
        // FNV-1a.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self::new(blocks, hash)
    }

    /// How many blocks the list has.
    pub fn blocks(self) -> usize {
        self.blocks.into()
    }

    /// A label with the beginning of this text and the mark.
    pub fn label(self, text: &str) -> String {
        let end = (0..=Self::TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let mut label = text[..end].to_owned();
        label.extend(std::iter::repeat_n('\0', Self::TEXT + 1 - end));
        label.push((ONE - 1 + self.blocks).into());
        let digit = |place: u32| char::from_digit(self.id / BASE.pow(place) % BASE, BASE).expect("below the base");
        label.extend((0..DIGITS as u32).rev().map(digit));
        label
    }

    /// The mark in a label, if there is one.
    pub fn of(label: &[u8; LABEL]) -> Option<Self> {
        let (text, mark) = label.split_at(Self::TEXT + 1);
        let end = text.iter().position(|byte| *byte == 0)?;
        let padded = text[end..].iter().all(|byte| *byte == 0);
        let id = u32::from_str_radix(std::str::from_utf8(&mark[1..]).ok()?, BASE).ok().filter(|_| padded)?;
        Self::new(mark[0].checked_sub(ONE - 1)?.into(), id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire;

    proptest! {
        #[test]
        fn a_mark_is_found_in_its_label_and_the_text_is_read_before_it(text in "[^\\x00]{0,30}", blocks in 0usize..70, id: u32) {
            match ListMark::new(blocks, id) {
                None => prop_assert!(!(2..=64).contains(&blocks)),
                Some(mark) => {
                    let label = wire::label(&mark.label(&text));
                    prop_assert_eq!(ListMark::of(&label), Some(mark));
                    prop_assert_eq!(mark.blocks(), blocks);
                    let read = label.split(|byte| *byte == 0).next().unwrap();
                    prop_assert!(text.as_bytes().starts_with(read) && read.len() + 4 > text.len().min(ListMark::TEXT));
                }
            }
        }

        #[test]
        fn other_labels_have_none(text in "[^\\x00]{0,30}", garbage: [u8; 24]) {
            prop_assert_eq!(ListMark::of(&wire::label(&text)), None);
            let _ = ListMark::of(&garbage);
        }
    }

    #[test]
    fn the_mark_of_a_name_is_always_the_same() {
        let label = ListMark::of_name(2, "web").unwrap().label("web");
        assert_eq!(label, ["web", &"\0".repeat(14), "14ebr81"].concat());
    }
}
