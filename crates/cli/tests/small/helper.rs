//! Other programs, played by this test binary: a test that is ignored does what a variable says.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Output, Stdio},
};

use portkeep::{AcquireError, Request, Reservation};
use portkeep_testkit::{Outcome, machine::Machine};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

const PART: &str = "PORTKEEP_TEST_PART";
/// Printed before the output of another program, because the test harness prints a text of its own first.
const MARK: &str = "begin of the output\n";

/// The words that start this binary as a helper.
pub(crate) const WORDS: [&str; 4] = ["--exact", "helper::plays", "--ignored", "--nocapture"];

#[test]
#[ignore = "plays other programs for the other tests"]
fn plays() {
    let Ok(part) = std::env::var(PART) else { return };
    print!("\n{MARK}");
    std::io::stdout().flush().unwrap();
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["listen", port] => {
            let _listener = std::net::TcpListener::bind(("0.0.0.0", port.parse().unwrap())).unwrap();
            println!("listening");
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
        ["library", count] => library(count.parse().unwrap()),
        // As the default profiles of container engines do, newer ones and those that do not know the call.
        ["without-bpf", ref program @ ..] => without(321, 1, program),
        ["without-clone3", ref program @ ..] => without(435, 38, program),
        _ => panic!("{part}"),
    }
}

/// This binary as other programs of the machine.
pub(crate) trait Helper {
    /// In the part `part`, started by the command `before`.
    fn helper(&self, before: &[&str], part: &str) -> Outcome;
    /// Listens on a TCP port until its input ends.
    fn listener(&self, port: u16) -> Child;
}

impl Helper for Machine {
    fn helper(&self, before: &[&str], part: &str) -> Outcome {
        without_frame(helper_command(self, before, part).output().unwrap())
    }

    fn listener(&self, port: u16) -> Child {
        let mut command = helper_command(self, &[], &format!("listen {port}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "listening"));
        child
    }
}

fn helper_command(machine: &Machine, before: &[&str], part: &str) -> Command {
    let own = machine.for_everybody(std::env::current_exe().unwrap().to_str().unwrap());
    let mut command = machine.program(&[before, &[own.as_str()], &WORDS].concat());
    command.env(PART, part);
    command
}

fn without_frame(output: Output) -> Outcome {
    let mut said = Outcome::from(output);
    let (_, out) = said.out.split_once(MARK).unwrap_or_else(|| panic!("{said:?}"));
    said.out = out.split("test helper::plays").next().unwrap_or_default().to_owned();
    said
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn report(request: &Request) -> Option<Reservation> {
    match request.acquire() {
        Ok(reservation) => {
            println!("{} {}", reservation.ports().count(), reservation.enforcement().name());
            Some(reservation)
        }
        Err(error) => {
            println!("{:?}: {error}", error.errno().map(|errno| errno.0));
            assert!(!matches!(error, AcquireError::SocketCall { .. }), "{error:?}");
            None
        }
    }
}

/// The grants of a program with the library: `count` ports; for TCP and UDP together; what holding cannot give; and after
/// all of it as many descriptors as before.
fn library(count: u16) {
    let before = descriptors();
    drop(report(&Reservation::tcp().ports(count)));
    drop(report(&Reservation::udp().ports(count).both()));
    drop(report(&Reservation::tcp().require(portkeep::Require::Kernel)));
    drop(report(&Reservation::tcp().scope(portkeep::Scope::User)));
    assert_eq!(descriptors(), before, "something is half held");
    if let Some(reservation) = report(&Reservation::tcp().ports(2)) {
        let address = std::net::Ipv4Addr::LOCALHOST;
        let (one, two) = (reservation.bind_tcp(address).unwrap(), reservation.bind_tcp(address).unwrap());
        assert!(reservation.ports().contains(one.local_addr().unwrap().port()));
        assert!(reservation.ports().contains(two.local_addr().unwrap().port()));
    }
}

/// Become a program under a filter that denies a system call (of x86-64) with this errno.
fn without(call: i64, errno: u32, program: &[&str]) {
    let arch: TargetArch = std::env::consts::ARCH.try_into().unwrap();
    let deny = SeccompAction::Errno(errno);
    let filter = SeccompFilter::new([(call, Vec::new())].into(), SeccompAction::Allow, deny, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    // For this thread, which is the one that execs.
    seccompiler::apply_filter(&filter).unwrap();
    panic!("{}", Command::new(program[0]).args(&program[1..]).exec());
}
