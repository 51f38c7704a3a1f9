//! Few descriptors: `ulimit -n 64`, and down to where nothing works any more.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::Stdio,
    time::Duration,
};

use portkeep_testkit::{Outcome, eventually, machine::Machine};

use crate::{PORTKEEP, helper::Helper, machine, works};

fn with(machine: &Machine, limit: u32, words: &[&str]) -> Outcome {
    let limit = format!("--nofile={limit}");
    Outcome::from(machine.program(&[&["prlimit", &limit, PORTKEEP], words].concat()).output().unwrap())
}

#[test]
fn sixty_four_descriptors_are_enough_for_every_command_and_the_agent() {
    let machine = machine!("nofile-64");
    let file = machine.folder.path().join("export.toml");
    let file = file.to_str().unwrap();
    with(&machine, 64, &["run", "--require-kernel", "--", "true"]).ok();
    with(&machine, 64, &["up"]).ok();
    let agent = machine.agent(machine.program(&["prlimit", "--nofile=64", PORTKEEP, "agent"]));
    for words in [
        &["acquire", "--count", "500"][..],
        &["acquire", "--ports", "20000-20499", "--both"],
        &["run", "--", "true"],
        &["persist", "add", "--name", "a", "--tcp", "8443", "--strict"],
        &["persist", "list"],
        &["persist", "show", "a"],
        &["persist", "export", file],
        &["persist", "delete", "a"],
        &["persist", "import", file],
        &["reload"],
        &["check"],
        &["excludedportrange", "show", "tcp"],
        &["list"],
        &["who", "8443"],
        &["status"],
        &["upgrade"],
    ] {
        let said = with(&machine, 64, words).ok();
        assert_eq!(said.err, "", "{words:?}");
    }
    drop(agent);
    with(&machine, 64, &["down"]).ok();
    machine.is_clean();
}

/// Found here: with five or fewer descriptors, an `up` that failed left half of it pinned, and its lock.
#[test]
fn with_too_few_descriptors_it_says_so_and_nothing_is_left_half_done() {
    let machine = machine!("nofile-few");
    for limit in (4..9).chain([12, 16, 24, 32]) {
        let why = &["the limit of open files is too low", "`ulimit -n"];
        with(&machine, limit, &["up"]).fails(1, why);
        machine.is_clean();
        with(&machine, limit, &["agent", "--up"]).fails(1, &["ulimit -n"]);
        machine.is_clean();
        // If enough descriptors are left, the ports are held, and a message says so.
        let said = with(&machine, limit, &["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]);
        match said.code {
            Some(0) => assert_eq!(said.out, "held\n", "{limit}"),
            code => assert_eq!((code, said.out.as_str()), (Some(125), ""), "{limit}: {said:?}"),
        }
        said.reports(&["ulimit -n"]);
        machine.is_clean();
    }
    // With more descriptors a later step fails, until there are enough.
    for limit in (36..64).step_by(4) {
        let up = with(&machine, limit, &["up"]);
        match up.code {
            Some(0) => drop(with(&machine, limit, &["down"]).ok()),
            _ => drop(up.fails(1, &["ulimit -n"])),
        }
        machine.is_clean();
        let run = with(&machine, limit, &["run", "--", "sh", "-c", "echo $PORTKEEP_ENFORCEMENT"]);
        match (run.code, run.out.as_str()) {
            (Some(0), "kernel\n") => assert_eq!(run.err, "", "{limit}"),
            (Some(0), "held\n") | (Some(125), "") => drop(run.reports(&["ulimit -n"])),
            _ => panic!("{limit}: {run:?}"),
        }
        machine.is_clean();
    }
    works(&machine);
}

/// Found here: `who` reported a port as free although it could not ask about it.
#[test]
fn no_command_reports_a_port_as_free_for_lack_of_descriptors() {
    let machine = machine!("nofile-answer");
    machine.portkeep(&["up"]).ok();
    let holding = machine.hold(&[]);
    for limit in (4..9).chain([10, 12, 14, 16, 20]) {
        for words in
            [&["who", "61000"][..], &["list"], &["status"], &["persist", "list"], &["release", "62000"], &["upgrade"]]
        {
            let said = with(&machine, limit, words);
            let answered = match words[0] {
                "who" => said.out.contains("belongs to") && said.code == Some(0),
                "list" => said.out.contains("61000") && said.code == Some(0),
                "status" => !said.out.contains("not up"),
                "persist" => said.code == Some(0),
                "release" => said.code == Some(3),
                _ => said.code == Some(0),
            };
            let refused = said.code == Some(1);
            assert!(answered || refused, "{limit} {words:?}: {said:?}");
            if refused {
                said.reports(&["ulimit -n"]);
            }
        }
    }
    holding.let_go();
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

#[test]
fn held_mode_with_more_ports_than_descriptors_holds_nothing() {
    let machine = machine!("nofile-held");
    let held = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let copy = machine.for_everybody(PORTKEEP);
    let say = |limit: &str, words: &[&str]| {
        Outcome::from(
            machine.program(&[&["prlimit", limit], &held[..], &[copy.as_str()], words].concat()).output().unwrap(),
        )
    };
    let why = &["requires a descriptor for each, more than the limit of open files leaves (`ulimit -n`)"];
    say("--nofile=64", &["acquire", "--count", "100"]).fails(1, why);
    say("--nofile=64", &["acquire", "--ports", "20000-20099"]).fails(1, why);
    say("--nofile=64", &["run", "--count", "100", "--both", "--", "echo", "started"]).fails(125, why);
    say("--nofile=64", &["acquire", "--count", "30"]).ok();
    // The library: all or nothing, the same number of descriptors afterwards, and what fits is held.
    let said = machine.helper(&[&["prlimit", "--nofile=64"], &held[..]].concat(), "library 100").ok();
    let lines: Vec<&str> = said.out.lines().collect();
    let shown = "Some(24): holding 100 ports requires a descriptor for each, more than the limit of open files leaves (`ulimit -n`)";
    assert_eq!((lines[0], lines[1], lines[4]), (shown, shown, "2 held"), "{said:?}");
    machine.is_clean();
}

/// As many connections to the agent as it can take, and the answer to one more.
fn take_all_descriptors(machine: &Machine) -> (Vec<UnixStream>, String) {
    let socket = machine.folder.path().join("run/agent.sock");
    let mut taken = Vec::new();
    loop {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // No answer takes so long. With this limit a missing answer is a failure.
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // An agent without descriptors answers first and closes: then a write may fail.
        let asked = stream.write_all(b"\"list\"\n");
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(asked.is_ok() || answer.contains("descriptor"), "{asked:?}: {answer}");
        if answer.contains("refused") || answer.contains("descriptor") {
            return (taken, answer);
        }
        taken.push(stream);
        assert!(taken.len() <= 64, "it took {}", taken.len());
    }
}

/// Found here: if a namespace could not be looked for, the agent treated it as ended. The pool got its ports, which
/// were in use since before `up`.
#[test]
fn an_agent_without_descriptors_releases_nothing_that_it_cannot_check() {
    let machine = machine!("nofile-aside");
    let mut listener = machine.listener(61005);
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.program(&["prlimit", "--nofile=64", PORTKEEP, "agent"]));
    let taken = take_all_descriptors(&machine).0;
    eventually(|| machine.log().contains("put off"));
    assert!(!machine.log().contains("vacant again"), "{}", machine.log());
    machine.portkeep(&["acquire", "--ports", "61005"]).fails(1, &["61005/tcp is in use by pid"]);
    drop(taken);
    drop(listener.stdin.take());
    listener.wait().unwrap();
    eventually(|| machine.portkeep(&["acquire", "--ports", "61005"]).code == Some(0));
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Found here: a client that could not be accepted waited for an answer until it gave up, and the agent ran in a busy
/// loop.
#[test]
fn an_agent_without_descriptors_answers_who_cannot_be_accepted() {
    let machine = machine!("nofile-agent");
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.program(&["prlimit", "--nofile=64", PORTKEEP, "agent"]));
    let (taken, refusal) = take_all_descriptors(&machine);
    assert!(refusal.contains("no descriptor left for another connection; try again"), "{refusal}");
    machine.portkeep(&["persist", "add", "--name", "a", "--tcp", "8443"]).fails(1, &["no descriptor left"]);
    // Its work goes on once they are gone.
    drop(taken);
    eventually(|| machine.portkeep(&["acquire", "--ports", "20000"]).code == Some(0));
    machine.portkeep(&["persist", "add", "--name", "a", "--tcp", "8443"]).ok();
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}

/// Found here: the agent mistook the lack of descriptors for the end of kernel enforcement. It removed all its entries
/// from `ip_local_reserved_ports`, and ended.
///
/// For a namespace with a port outside the pool, the agent requires a descriptor as long as the port is reserved.
#[test]
fn an_agent_with_more_namespaces_than_descriptors_refuses_and_goes_on() {
    let machine = machine!("nofile-spaces");
    machine.portkeep(&["up"]).ok();
    let agent = machine.agent(machine.program(&["prlimit", "--nofile=64", PORTKEEP, "agent"]));
    let words = ["unshare", "--net", PORTKEEP, "acquire", "--ports", "20000"];
    let elsewhere = || {
        let mut command = machine.program(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut holders = Vec::new();
    let refused = loop {
        let mut holder = elsewhere();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            break Outcome::from(holder.wait_with_output().unwrap());
        }
        assert!(line.starts_with("20000 tcp "), "{line}");
        holders.push(holder);
        assert!(holders.len() < 64, "it took {}", holders.len());
    };
    refused.fails(1, &["the agent could not find out whether it is in use"]);
    assert!(holders.len() > 10, "{}", holders.len());
    // It keeps its grants, and it is the agent still.
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json().as_array().unwrap().len(), holders.len());
    assert_eq!(machine.portkeep(&["status", "--json"]).ok().json()["agent"], true);
    for mut holder in holders {
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
    }
    eventually(|| Outcome::from(machine.program(&words).output().unwrap()).code == Some(0));
    drop(agent);
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}
