//! A real dockerd with a network, a mount namespace and a cgroup of its own, as if it were the unit `docker.service`.

use std::{
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use portkeep_testkit::{Outcome, machine::Machine, skip};
use rustix::process::{Pid, Signal, kill_process};

use crate::{PORTKEEP, REQUIRE, TEST, have};

/// If an engine does not come up within this time, something is missing.
const START: Duration = Duration::from_secs(60);

/// The engine, with an image `web` of a static busybox.
pub(crate) struct Engine {
    pub(crate) machine: Machine,
    dockerd: Child,
}

impl Engine {
    pub(crate) fn start() -> Option<Self> {
        if !have(TEST, &["dockerd", "docker", "containerd", "runc", "iptables", "busybox"], REQUIRE) {
            return None;
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

    pub(crate) fn shell(&self, script: &str) -> Outcome {
        let script = format!("export DOCKER_HOST=unix:///run/docker.sock DOCKER_CONFIG=/run/docker-client; {script}");
        self.machine.shell(&script)
    }

    pub(crate) fn docker(&self, words: &str) -> Outcome {
        self.shell(&format!("docker {words}"))
    }

    /// A container with a web server.
    #[track_caller]
    pub(crate) fn serve(&self, options: &str, port: u16) -> Outcome {
        self.docker(&format!("run --detach {options} web /bin/busybox httpd -f -h /www -p {port}"))
    }

    /// Its answer. A published port answers before the server in the container does.
    #[track_caller]
    pub(crate) fn answers(&self, port: u16) {
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
