//! The registers, the stack and the call frames of one program in the middle of its run.

use crate::{
    address,
    fault::{Outcome, fault},
    memory::mix,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    Program,
    Call {
        to: usize,
    },
    /// A callback of `bpf_loop`.
    Loop {
        callback: usize,
        context: u64,
        round: u32,
        rounds: u32,
        to: usize,
    },
}

#[derive(Debug, Clone)]
struct Frame {
    back: Return,
    saved: [u64; 4],
}

/// The kind of context that the program was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    Bytes,
    Packet,
}

/// Where in the buffer a packet begins: the programs compare the lower half of its address with 0.
pub(crate) const PACKET: usize = 256;

pub(crate) const STACK_SIZE: usize = 512;

/// A store that others do not see yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) object: u32,
    pub(crate) offset: usize,
    pub(crate) size: usize,
    /// Of an atomic operation without a result; `None`: a plain store.
    pub(crate) operation: Option<i64>,
    pub(crate) value: u64,
}

/// A program in the middle of its run.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    pub(crate) registers: [u64; 11],
    pub(crate) at: usize,
    frames: Vec<Frame>,
    pub(crate) stack: Vec<u8>,
    pub(crate) kind: Context,
    pub(crate) context: Vec<u8>,
    pub(crate) buffer: Vec<u8>,
    /// Of `bpf_set_retval`.
    pub(crate) result: i32,
    pub(crate) socket: usize,
    pub(crate) process: usize,
    pub(crate) now: u64,
    pub(crate) late: Vec<Late>,
}

impl Cpu {
    pub(crate) fn new(entry: usize, first_argument: u64) -> Self {
        let mut registers = [0; 11];
        registers[1] = first_argument;
        registers[10] = address::STACK | STACK_SIZE as u64;
        Self {
            registers,
            at: entry,
            frames: vec![Frame { back: Return::Program, saved: [0; 4] }],
            stack: vec![0; STACK_SIZE],
            kind: Context::Bytes,
            context: Vec::new(),
            buffer: Vec::new(),
            result: 0,
            socket: 0,
            process: 0,
            now: 0,
            late: Vec::new(),
        }
    }

    /// In the program itself, not in a function it has called.
    pub(crate) fn is_outermost(&self) -> bool {
        self.frames.len() == 1
    }

    /// Whether a store to these eight bytes is late.
    pub(crate) fn is_late(&self, object: u32, cell: usize) -> bool {
        self.late.iter().any(|late| late.object == object && late.offset / 8 == cell)
    }

    pub(crate) fn hash(&self) -> u64 {
        let mut h = mix(self.at as u64, self.frames.len() as u64);
        for value in self.registers {
            h = mix(h, value);
        }
        for frame in &self.frames {
            for value in frame.saved {
                h = mix(h, value);
            }
            h = match frame.back {
                Return::Program => h,
                Return::Call { to } => mix(h, to as u64),
                Return::Loop { callback, context, round, to, .. } => {
                    mix(mix(mix(h, callback as u64), context), u64::from(round) << 32 | to as u64)
                }
            };
        }
        for bytes in [&self.stack, &self.context, &self.buffer] {
            for eight in bytes.chunks(8) {
                let mut word = [0; 8];
                word[..eight.len()].copy_from_slice(eight);
                h = mix(h, u64::from_le_bytes(word));
            }
        }
        for late in &self.late {
            h = mix(mix(h, u64::from(late.object) << 32 | late.offset as u64), late.value);
        }
        mix(h, self.result as u64)
    }

    pub(crate) fn enter(&mut self, back: Return, target: usize) -> Outcome<()> {
        if self.frames.len() >= 16 {
            return fault("more than 16 functions deep");
        }
        self.frames.push(Frame { back, saved: self.registers[6..10].try_into().expect("four registers") });
        self.stack.resize(self.frames.len() * STACK_SIZE, 0);
        self.registers[10] = address::STACK | (self.frames.len() * STACK_SIZE) as u64;
        self.at = target;
        Ok(())
    }

    pub(crate) fn begin_loop(&mut self, rounds: u32, callback: usize, context: u64) -> Outcome<()> {
        let back = Return::Loop { callback, context, round: 0, rounds, to: self.at };
        self.registers[1] = 0;
        self.registers[2] = context;
        self.enter(back, callback)
    }

    /// Leaves the function at hand; true: it was the program itself.
    pub(crate) fn leave(&mut self) -> bool {
        let depth = self.frames.len();
        let frame = self.frames.last_mut().expect("a running program has a frame");
        if let Return::Loop { callback, context, round, rounds, .. } = &mut frame.back {
            *round += 1;
            if self.registers[0] == 0 && *round < *rounds {
                self.registers[1] = u64::from(*round);
                self.registers[2] = *context;
                self.at = *callback;
                self.stack[(depth - 1) * STACK_SIZE..].fill(0);
                return false;
            }
        }
        let frame = self.frames.pop().expect("a running program has a frame");
        match frame.back {
            Return::Program => return true,
            Return::Call { to } => self.at = to,
            Return::Loop { round, to, .. } => {
                self.registers[0] = u64::from(round);
                self.at = to;
            }
        }
        self.registers[6..10].copy_from_slice(&frame.saved);
        self.registers[1..6].fill(0);
        self.stack.truncate((depth - 1) * STACK_SIZE);
        self.registers[10] = address::STACK | ((depth - 1) * STACK_SIZE) as u64;
        false
    }
}
