//! A program of a hook: what it is called with, and what its verdict means for the call.

use crate::{
    address,
    calls::{EPERM, Hook, SEALING, SEALING_QUOTA, steps},
    cpu::{Context, Cpu, PACKET},
    fault::{Outcome, fault},
    forget::netns_of,
    machine::Machine,
    scenario::{Call, Line, Scenario},
    state::State,
    world::SECRET,
};

const SOL_PORTKEEP: u32 = 0x504b;
/// The setup before the CPUs start is at an earlier time; both are in one period of everything that expires.
const NOW: u64 = 1_000_000_000_000;
const BEFORE: u64 = NOW - 1_000_000;

impl Machine {
    pub(crate) fn program_of(
        &mut self,
        scenario: &Scenario,
        state: &mut State,
        number: usize,
        line: &Line,
        hook: Hook,
    ) -> Outcome<Cpu> {
        let entry = match hook {
            Hook::Set => "portkeep_set",
            Hook::Get => "portkeep_get",
            Hook::Bind => "portkeep_bind4",
            Hook::PostBind => "portkeep_bound4",
            Hook::Connect => "portkeep_conn4",
            Hook::Release => "portkeep_close",
            Hook::Tcp => "portkeep_tcp",
            Hook::Admin => "portkeep_admin",
        };
        let Ok(entry) = self.program.entry(entry) else { return fault(format!("the object has no program {entry}")) };
        let mptcp = hook == Hook::Release && state.kernel.sockets[line.socket].mptcp;
        let pointer = if mptcp { address::mptcp(line.socket) } else { address::socket(line.socket) };
        let first = match hook {
            Hook::PostBind | Hook::Release => pointer,
            _ => address::CONTEXT,
        };
        let mut cpu = Cpu::new(entry, first);
        cpu.socket = line.socket;
        cpu.process = line.process;
        cpu.now =
            if self.watching { NOW } else { BEFORE } + ((number as u64) << 20) + 1000 * state.tasks[number].call as u64;
        let mut put = |at: usize, bytes: &[u8]| {
            if cpu.context.len() < at + bytes.len() {
                cpu.context.resize(at + bytes.len(), 0);
            }
            cpu.context[at..at + bytes.len()].copy_from_slice(bytes);
        };
        match hook {
            Hook::Set | Hook::Get => {
                let (name, buffer) = option(state, line);
                let size = buffer.len() as u64;
                put(0, &pointer.to_le_bytes());
                put(8, &address::BUFFER.to_le_bytes());
                put(16, &(address::BUFFER | size).to_le_bytes());
                put(24, &SOL_PORTKEEP.to_le_bytes());
                put(28, &u32::to_le_bytes(name));
                put(32, &(size as u32).to_le_bytes());
                put(36, &0u32.to_le_bytes());
                cpu.buffer = buffer;
            }
            Hook::Bind | Hook::Connect => {
                let port = match line.call {
                    Call::Bind { port, .. } => port,
                    _ => 9,
                };
                let sk = &state.kernel.sockets[line.socket];
                put(0, &2u32.to_le_bytes());
                // Another machine.
                put(4, &[10, 0, 0, 1]);
                put(24, &u32::from(port.swap_bytes()).to_le_bytes());
                put(28, &2u32.to_le_bytes());
                put(32, &(sk.field(8)? as u32).to_le_bytes());
                put(36, &(sk.field(12)? as u32).to_le_bytes());
                put(64, &pointer.to_le_bytes());
            }
            Hook::PostBind | Hook::Release => {}
            Hook::Tcp => {
                let sk = &state.kernel.sockets[line.socket];
                let (op, new_state) = match line.call {
                    Call::Connect => (3u32, 0u32),
                    Call::Accept { .. } => (5, 0),
                    Call::Listen => (11, 0),
                    // TCP_CLOSE.
                    _ => (10, 7),
                };
                put(0, &op.to_le_bytes());
                put(8, &new_state.to_le_bytes());
                put(20, &2u32.to_le_bytes());
                put(68, &u32::from(sk.port).to_le_bytes());
                put(84, &(u32::from(sk.watched) << 2).to_le_bytes());
                put(184, &pointer.to_le_bytes());
            }
            Hook::Admin => {
                cpu.kind = Context::Packet;
                put(0, &[0; 192]);
                cpu.buffer = vec![0; PACKET];
                cpu.buffer.extend(self.packet(scenario, state, number, line)?);
            }
        }
        if let Call::Bind { others, .. } = line.call {
            let refused = (hook == Hook::Bind && others.bind) || (hook == Hook::PostBind && others.post_bind_before);
            cpu.result = if refused { -EPERM } else { 0 };
        }
        Ok(cpu)
    }

    /// The administrator's packet, laid out as the object has it.
    fn packet(&self, scenario: &Scenario, state: &State, number: usize, line: &Line) -> Outcome<Vec<u8>> {
        let btf = &self.program.btf;
        let Some(request) = btf.structure("admin_request") else { return fault("the object has no admin_request") };
        let mut packet = vec![0; btf.size(request) as usize];
        let mut other = 0;
        let mut put = |path: &str, value: u64| {
            if let Some(field) = btf.field_of(request, path) {
                let at = field.at as usize;
                packet[at..at + field.size as usize].copy_from_slice(&value.to_le_bytes()[..field.size as usize]);
            }
        };
        let mut of = |r: usize, op: u64| {
            put("op", op);
            put("id", u64::from(state.reservations[r].id));
            put("token", state.reservations[r].token);
            put("netns", scenario.reservations[r].netns);
        };
        match &line.call {
            Call::Confirm { reservation } => of(*reservation, 1),
            Call::Refuse { reservation } => {
                of(*reservation, 2);
                put("error", 98);
            }
            Call::End { reservation } => of(*reservation, 3),
            Call::Create { start, count, terms, reservation } => {
                of(*reservation, 6);
                put("start", u64::from(*start));
                put("count", u64::from(*count));
                put("transports", u64::from(scenario.reservations[*reservation].transports));
                put("scope", 1);
                put("flags", u64::from(terms.strict) << 1 | u64::from(terms.ephemeral) << 2);
                put("uid", u64::from(terms.uid));
                put("also", u64::from(terms.also != 0));
                other = terms.also;
            }
            Call::Change { reservation, uid, also } => {
                of(*reservation, 7);
                put("scope", 1);
                put("uid", u64::from(*uid));
                put("also", u64::from(*also != 0));
                other = *also;
            }
            Call::Forget { port } => {
                put("op", 10);
                put("limit", u64::from(state.tasks[number].step == SEALING));
                put("netns", netns_of(scenario));
                put("start", u64::from(*port));
                put("transports", 1);
            }
            Call::ForgetQuota { account } => {
                put("op", 11);
                put("limit", u64::from(state.tasks[number].step == SEALING_QUOTA));
                put("account", *account);
            }
            Call::Vacate { netns, port } => {
                put("op", 5);
                put("netns", *netns);
                put("start", u64::from(*port));
                put("transports", 1);
            }
            _ => return fault("this call has no packet"),
        }
        packet.extend(also(other));
        Ok(packet)
    }

    /// The meaning of the program's verdict for the call.
    #[expect(clippy::too_many_arguments, reason = "all are about the one program that has just returned")]
    pub(crate) fn check_step(
        &mut self,
        scenario: &Scenario,
        state: &mut State,
        number: usize,
        line: &Line,
        hook: Hook,
        cpu: &Cpu,
        verdict: u64,
    ) -> Outcome<()> {
        let passes = verdict & 1 != 0;
        let mut result = cpu.result;
        if !passes && result >= 0 {
            result = -EPERM;
        }
        match hook {
            Hook::Admin => {
                result = -(verdict as i32);
                if let (Call::Create { reservation, .. }, 0) = (&line.call, result) {
                    let read = |path: &str| {
                        let field = self.program.btf.field("admin_request", path);
                        field.map_or(0, |f| {
                            let mut bytes = [0; 8];
                            bytes[..f.size as usize]
                                .copy_from_slice(&cpu.buffer[PACKET + f.at as usize..][..f.size as usize]);
                            u64::from_le_bytes(bytes)
                        })
                    };
                    let r = &mut state.reservations[*reservation];
                    (r.token, r.id, r.start) = (read("token"), read("id") as u32, read("start") as u16);
                }
            }
            Hook::Set | Hook::Get => {
                let length = i32::from_le_bytes(cpu.context[32..36].try_into().expect("four bytes"));
                if passes && result == 0 && length != -1 && hook == Hook::Set {
                    return fault("a control code was left to the kernel, which does not know it");
                }
            }
            Hook::Bind => {
                if !passes {
                    crate::check::refused(self, scenario, state, number, result)?;
                }
                let raw = u16::from_le_bytes([cpu.context[24], cpu.context[25]]);
                let port = u16::from_be(raw);
                let sk = &mut state.kernel.sockets[line.socket];
                if result == 0 && sk.port == 0 {
                    sk.bound_by_number = port != 0;
                }
                if port != 0 {
                    state.tasks[number].port = port;
                }
            }
            Hook::PostBind => {
                let Call::Bind { others, .. } = line.call else { return fault("only a bind has a post_bind") };
                if !passes {
                    crate::check::refused(self, scenario, state, number, result)?;
                }
                if others.post_bind_after && result == 0 {
                    result = -EPERM;
                }
                if result != 0 {
                    state.kernel.give_port_up(line.socket);
                    state.kernel.sockets[line.socket].bound_by_number = false;
                } else {
                    state.settled[line.socket] = true;
                }
            }
            Hook::Connect => {
                let sk = &mut state.kernel.sockets[line.socket];
                if sk.port != 0 && !state.settled[line.socket] {
                    sk.bound_by_number = true;
                    state.settled[line.socket] = true;
                }
            }
            Hook::Release | Hook::Tcp => result = 0,
        }
        state.tasks[number].result = result;
        if result != 0 {
            state.tasks[number].step = steps(&line.call).len() - 1;
        } else {
            state.tasks[number].step += 1;
        }
        Ok(())
    }
}

/// A `struct portkeep_also` for a user, nothing for 0.
fn also(uid: u32) -> Vec<u8> {
    if uid == 0 {
        return vec![];
    }
    let mut bytes = vec![0; 136];
    bytes[0] = 1;
    bytes[4..8].copy_from_slice(&uid.to_le_bytes());
    bytes
}

/// Number and value of a socket option.
fn option(state: &State, line: &Line) -> (u32, Vec<u8>) {
    let token = |r: usize| state.reservations[r].token.to_le_bytes().to_vec();
    match &line.call {
        Call::Acquire { start, count, terms, .. } => {
            let mut ask = vec![0; 16];
            ask[0..2].copy_from_slice(&start.to_le_bytes());
            ask[2..4].copy_from_slice(&count.to_le_bytes());
            ask[4] = u8::from(terms.both) | u8::from(terms.strict) << 1 | u8::from(terms.ephemeral) << 2;
            ask[8] = u8::from(terms.user);
            if terms.also != 0 {
                ask[12] = 1;
                ask.resize(48, 0);
                ask.extend(also(terms.also));
            }
            (100, ask)
        }
        Call::Release { reservation } => (101, token(*reservation)),
        Call::Associate { reservation } => (102, token(*reservation)),
        Call::Beacon => {
            let mut mark: Vec<u8> = SECRET.iter().flat_map(|half| half.to_le_bytes()).collect();
            mark.extend([1, 0, 0, 0, 0, 0, 0, 0]);
            (104, mark)
        }
        _ => (201, vec![0; 64]),
    }
}
