//! The arithmetic of instructions, apart from memory and calls.

use crate::{cpu::Cpu, program::Instruction};

pub(crate) const fn width(code: u8) -> usize {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

pub(crate) const fn sign_extend(value: u64, size: usize) -> u64 {
    match size {
        1 => value as u8 as i8 as i64 as u64,
        2 => value as u16 as i16 as i64 as u64,
        4 => value as u32 as i32 as i64 as u64,
        _ => value,
    }
}

/// False: unknown.
pub(crate) fn alu(cpu: &mut Cpu, i: Instruction) -> bool {
    let wide = i.code & 7 == 7;
    let to = cpu.registers[i.to as usize];
    let from = if i.code & 8 != 0 { cpu.registers[i.from as usize] } else { i.immediate as u64 };
    let (a, b) = if wide { (to, from) } else { (to & 0xffff_ffff, from & 0xffff_ffff) };
    let bits = if wide { 63 } else { 31 };
    let result = match i.code >> 4 {
        0x0 => a.wrapping_add(b),
        0x1 => a.wrapping_sub(b),
        0x2 => a.wrapping_mul(b),
        0x3 if i.offset == 0 => a.checked_div(b).unwrap_or(0),
        0x4 => a | b,
        0x5 => a & b,
        0x6 => a << (b & bits),
        0x7 => a >> (b & bits),
        0x8 => a.wrapping_neg(),
        0x9 if i.offset == 0 => a.checked_rem(b).unwrap_or(a),
        0xa => a ^ b,
        0xb => match i.offset {
            0 => b,
            8 => b as u8 as i8 as i64 as u64,
            16 => b as u16 as i16 as i64 as u64,
            32 => b as u32 as i32 as i64 as u64,
            _ => return false,
        },
        0xc if wide => ((a as i64) >> (b & 63)) as u64,
        0xc => (((a as u32) as i32) >> (b & 31)) as u32 as u64,
        0xd => {
            let swap = wide || i.code & 8 != 0;
            let value = match (i.immediate, swap) {
                (16, true) => u64::from((to as u16).swap_bytes()),
                (32, true) => u64::from((to as u32).swap_bytes()),
                (64, true) => to.swap_bytes(),
                (16, false) => u64::from(to as u16),
                (32, false) => u64::from(to as u32),
                (64, false) => to,
                _ => return false,
            };
            cpu.registers[i.to as usize] = value;
            return true;
        }
        _ => return false,
    };
    cpu.registers[i.to as usize] = if wide { result } else { result & 0xffff_ffff };
    true
}

/// Whether a conditional jump is made; `None`: unknown.
pub(crate) fn jumps(cpu: &Cpu, i: Instruction) -> Option<bool> {
    let wide = i.code & 7 == 5;
    let to = cpu.registers[i.to as usize];
    let from = if i.code & 8 != 0 { cpu.registers[i.from as usize] } else { i.immediate as u64 };
    let (a, b) = if wide { (to, from) } else { (to & 0xffff_ffff, from & 0xffff_ffff) };
    let (signed_a, signed_b) = if wide { (a as i64, b as i64) } else { (i64::from(a as i32), i64::from(b as i32)) };
    Some(match i.code >> 4 {
        0x1 => a == b,
        0x2 => a > b,
        0x3 => a >= b,
        0x4 => a & b != 0,
        0x5 => a != b,
        0x6 => signed_a > signed_b,
        0x7 => signed_a >= signed_b,
        0xa => a < b,
        0xb => a <= b,
        0xc => signed_a < signed_b,
        0xd => signed_a <= signed_b,
        _ => return None,
    })
}
