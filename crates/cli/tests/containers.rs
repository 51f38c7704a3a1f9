//! Containers of a real dockerd: published ports, the host's network, restarts, and `run` around and inside them. It has a
//! network, a mount namespace and a cgroup of its own, as if it were the unit `docker.service`.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portkeep_testkit::{
    Outcome, at_root, kernel_or_skip,
    machine::{self, Machine},
    skip,
};
use rustix::process::{Pid, Signal, kill_process};

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");
const TEST: &str = "containers";
/// Set where the servers are installed: there, not finding one is a failure.
const REQUIRE: &str = "PORTKEEP_REQUIRE_DOCKER";
/// An engine that does not come up within this has something missing.
const START: Duration = Duration::from_secs(60);

/// The engine, with an image `web` of a static busybox.
struct Engine {
    machine: Machine,
    dockerd: Child,
}

impl Engine {
    fn start() -> Option<Self> {
        for program in ["dockerd", "docker", "containerd", "runc", "iptables", "busybox"] {
            let found =
                Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
            if !found.is_ok_and(|status| status.success()) {
                skip(TEST, &format!("no {program} (docker.io, iptables and busybox-static of Debian)"), REQUIRE);
                return None;
            }
        }
        let mounts =
            r#"mount -t bpf bpf "$0/bpf" && chmod 755 "$0/bpf" && mount -t tmpfs tmpfs /run && ip link set lo up"#;
        let machine = Machine::made(PORTKEEP, TEST, mounts);
        let unit = machine.cgroup.path().join("docker.service");
        std::fs::create_dir(&unit).unwrap();
        let script = format!(
            r#"echo $$ >{}/cgroup.procs && exec dockerd --storage-driver vfs --data-root "$0/data" --exec-root /run/docker \
               --pidfile /run/docker.pid --host unix:///run/docker.sock --cgroup-parent {}/containers.slice"#,
            unit.display(),
            machine.home()
        );
        let log = std::fs::File::create(machine.folder.path().join("dockerd.log")).unwrap();
        let mut command = machine.program(&["sh", "-c", &script, machine.folder.path().to_str().unwrap()]);
        let dockerd = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let engine = Self { machine, dockerd };
        let begun = Instant::now();
        while engine.docker("version >/dev/null").code != Some(0) {
            if begun.elapsed() > START {
                let log = std::fs::read_to_string(engine.machine.folder.path().join("dockerd.log")).unwrap_or_default();
                skip(TEST, &format!("dockerd does not start: {:?}", log.lines().last()), REQUIRE);
                return None;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let image = r#"mkdir -p "$0/image/bin" "$0/image/www" && cp "$(command -v busybox)" "$0/image/bin/busybox" &&
            echo hello >"$0/image/www/index.html" && tar -C "$0/image" -c . | docker import - web"#;
        engine.shell(image).ok();
        Some(engine)
    }

    fn shell(&self, script: &str) -> Outcome {
        let script = format!("export DOCKER_HOST=unix:///run/docker.sock DOCKER_CONFIG=/run/docker-client; {script}");
        self.machine.shell(&script)
    }

    fn docker(&self, words: &str) -> Outcome {
        self.shell(&format!("docker {words}"))
    }

    /// A container with a web server.
    #[track_caller]
    fn serve(&self, options: &str, port: u16) -> Outcome {
        self.docker(&format!("run --detach {options} web /bin/busybox httpd -f -h /www -p {port}"))
    }

    /// Its answer. A published port answers before the server in the container does.
    #[track_caller]
    fn answers(&self, port: u16) {
        let script = format!(
            "for i in $(seq 100); do busybox wget -qO- http://127.0.0.1:{port}/ && exit; sleep 0.1; done; exit 1"
        );
        assert_eq!(self.shell(&script).ok().out, "hello\n");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.docker("ps --all --quiet | xargs --no-run-if-empty docker rm --force");
        let _ = kill_process(Pid::from_child(&self.dockerd), Signal::TERM);
        let _ = self.dockerd.wait();
        self.machine.portkeep(&["down"]);
    }
}

#[test]
fn containers_have_the_ports_that_are_reserved_for_them() {
    if !kernel_or_skip(TEST) {
        return;
    }
    if at_root() {
        return skip(TEST, "the engine's cgroup has to be below the one that is enforced in", REQUIRE);
    }
    let Some(engine) = Engine::start() else { return };
    let machine = &engine.machine;
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let reserve = |name: &str, port: &str, whom: &[&str]| {
        machine.portkeep(&[&["persist", "add", "--name", name, "--tcp", port], whom].concat()).ok();
    };

    // The doctor names published ports that nothing keeps, and those that are declared for something else.
    let findings = || {
        let report = machine.portkeep(&["doctor", "--json"]).json();
        report.as_array().unwrap().iter().find(|one| one["check"] == "containers").unwrap()["findings"].clone()
    };
    engine.serve("--name open --publish 8090:80", 80).ok();
    let open = findings();
    let text = open.to_string();
    assert!(
        text.contains("containers have published 8090 (by pid ") && text.contains("--unit docker.service"),
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

    // The engine binds, and not the command: the scope `user` has both.
    let container = "docker run --rm --publish {PORT}:80 web /bin/busybox true";
    let out_of_scope = engine.shell(&format!("{PORTKEEP} run -- {container}"));
    assert_eq!(out_of_scope.code, Some(125), "{out_of_scope:?}");
    engine.shell(&format!("{PORTKEEP} run --scope user -- {container}")).ok();

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
