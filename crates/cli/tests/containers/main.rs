//! Containers of a real dockerd and a real Podman: published ports, the host's network, restarts, `run` around and inside them, and the agent.

mod daemonset;
mod engine;
mod podman;

use std::process::{Command, Stdio};

use portkeep_testkit::{at_root, kernel_or_skip, machine, skip};

use engine::Engine;

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");
const TEST: &str = "containers";
/// Set on machines where the servers are installed: there, the test fails if one is missing.
const REQUIRE: &str = "PORTKEEP_REQUIRE_DOCKER";

/// `None`, with the reason on standard error, where there can be no engine.
fn engine() -> Option<Engine> {
    if !kernel_or_skip(TEST) {
        return None;
    }
    if at_root() {
        skip(TEST, "the engine's cgroup has to be below the one that is enforced in", REQUIRE);
        return None;
    }
    Engine::start()
}

/// Whether these programs are here. If not, the test is reported as skipped.
fn have(test: &str, programs: &[&str], require: &str) -> bool {
    let is_missing = |program: &&&str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        !found.is_ok_and(|status| status.success())
    };
    let missing = programs.iter().find(is_missing);
    if let Some(program) = missing {
        skip(test, &format!("no {program}"), require);
    }
    missing.is_none()
}

#[test]
fn containers_have_the_ports_that_are_reserved_for_them() {
    let Some(engine) = engine() else { return };
    let machine = &engine.machine;
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let reserve = |name: &str, port: &str, whom: &[&str]| {
        machine.portkeep(&[&["persist", "add", "--name", name, "--tcp", port], whom].concat()).ok();
    };

    // The doctor names published ports that are not reserved, and those that are declared for something else.
    let findings = || {
        let report = machine.portkeep(&["doctor", "--json"]).json();
        report.as_array().unwrap().iter().find(|one| one["check"] == "containers").unwrap()["findings"].clone()
    };
    engine.serve("--name open --publish 8090:80", 80).ok();
    let text = findings().to_string();
    assert!(
        text.contains("containers have published 8090/tcp (by pid ") && text.contains("--unit docker.service"),
        "{text}"
    );
    machine.shell("mkdir -p \"$0/root/etc/portkeep/ports.d\"").ok();
    let drop_in = machine.folder.path().join("root/etc/portkeep/ports.d/a.toml");
    std::fs::write(&drop_in, "[[reservation]]\nname = \"a\"\ntcp = 8090\nunit = \"a.service\"\n").unwrap();
    machine.portkeep(&["reload"]);
    let text = findings().to_string();
    assert!(text.contains("8090/tcp of a is declared for unit a.service"), "{text}");
    std::fs::remove_file(&drop_in).unwrap();
    engine.docker("rm --force open").ok();
    machine.portkeep(&["reload"]).ok();
    assert_eq!(findings(), serde_json::json!([]));

    // A published port is bound by the engine, so it is reserved for the engine's unit.
    reserve("shop", "8080", &["--unit", "docker.service"]);
    engine.serve("--name shop --publish 8080:80", 80).ok();
    engine.answers(8080);
    engine.docker("stop --time 0 shop").ok();
    assert_eq!(machine.outsider_binds("tcp", 8080), "AddrInUse");
    engine.docker("start shop").ok();
    engine.answers(8080);
    // After a crash, the restart policy gets it again.
    engine.docker("update --restart always shop").ok();
    engine.shell("kill -KILL $(docker inspect --format '{{.State.Pid}}' shop)").ok();
    assert_eq!(machine.outsider_binds("tcp", 8080), "AddrInUse");
    engine.answers(8080);

    // A port of another unit cannot be published.
    reserve("other", "8081", &["--unit", "other.service"]);
    let refused = engine.serve("--name refused --publish 8081:80", 80);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.err.contains("8081: bind: address already in use"), "{refused:?}");

    // A container in the host's network binds itself: its cgroup counts, and the engine's unit does not.
    engine.serve("--name outside --network host", 8081).ok();
    let logs = engine.docker("logs outside 2>&1; docker wait outside").ok().out;
    assert!(logs.contains("Address already in use"), "{logs}");
    let slice = format!("{}/web.slice", machine.home());
    reserve("host", "8082", &["--cgroup", &slice]);
    engine.serve(&format!("--name inside --network host --cgroup-parent {slice}"), 8082).ok();
    engine.answers(8082);
    assert_eq!(machine.outsider_binds("tcp", 8082), "AddrInUse");

    // R11: the engine binds, and not the command, so the engine must be admitted. A user in the group `docker` can do
    // this as root can.
    let container = "docker run --rm --publish {PORT}:80 web /bin/busybox true";
    let out_of_scope = engine.shell(&format!("{PORTKEEP} run -- {container}"));
    assert_eq!(out_of_scope.code, Some(125), "{out_of_scope:?}");
    let also = "run --also unit=docker.service";
    engine.shell(&format!("{PORTKEEP} {also} -- {container}")).ok();
    let member = "setpriv --reuid=65534 --regid=65534 --groups=$(stat -c %g /run/docker.sock)";
    engine.shell(&format!("mkdir -m 777 /run/member; export DOCKER_CONFIG=/run/member; {member} {PORTKEEP} {also} --quiet -- {container}")).ok();
    let server = "docker run --rm --name once --publish {PORT}:80 web /bin/busybox httpd -f -h /www -p 80";
    engine.shell(&format!("{PORTKEEP} {also} --ports 61100 -- {server} >$0/once.log 2>&1 &")).ok();
    engine.answers(61100);
    assert!(machine.portkeep(&["who", "61100"]).ok().out.contains("unit docker.service"));
    engine.docker("kill once").ok();

    // A program in a container reserves ports in its own network.
    let mounts = "--volume /lib:/lib:ro --volume /lib64:/lib64:ro --volume /usr/lib:/usr/lib:ro";
    let inside = engine.docker(&format!(
        "run --rm {mounts} --volume {PORTKEEP}:/portkeep:ro web /portkeep run --require-kernel -- /bin/busybox echo {{PORT}}"
    ));
    assert_eq!(inside.ok().out, "61000\n");
}

#[test]
#[ignore = "plays an outsider for the other tests"]
fn helper_binds() {
    machine::help();
}
