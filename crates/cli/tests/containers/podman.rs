//! A real Podman as root: conmon holds a published port, and a NAT rule leads to the container.

use std::path::Path;

use portkeep_testkit::{Outcome, kernel_or_skip, machine::Machine, skip};

use crate::{PORTKEEP, have};

const TEST: &str = "podman";
/// Set on machines where it is installed: there, the test fails if it is missing.
const REQUIRE: &str = "PORTKEEP_REQUIRE_PODMAN";
/// The network of Debian's package.
const NETWORK: &str = "/etc/cni/net.d/87-podman-bridge.conflist";

/// Podman with all its state in the folder of a machine, and an image `box` of a static busybox.
struct Podman {
    machine: Machine,
    /// Where its containers are, in each hierarchy of cgroups.
    cgroup: String,
}

impl Podman {
    fn start() -> Option<Self> {
        if !have(TEST, &["podman", "conmon", "runc", "iptables", "busybox"], REQUIRE) {
            return None;
        }
        if !Path::new(NETWORK).exists() {
            skip(TEST, &format!("no {NETWORK}"), REQUIRE);
            return None;
        }
        let mounts = r#"mount -t bpf bpf "$0/bpf" && chmod 755 "$0/bpf" && mount -t tmpfs tmpfs /run &&
            mount -t tmpfs tmpfs /var/lib && ip link set lo up"#;
        let cgroup = format!("portkeep-podman-{}", std::process::id());
        let podman = Self { machine: Machine::made(PORTKEEP, TEST, mounts), cgroup };
        let image = r#"mkdir -p "$0/image/bin" "$0/cni" && cp "$(command -v busybox)" "$0/image/bin/busybox" &&
            cp /etc/cni/net.d/87-podman-bridge.conflist "$0/cni" && tar -C "$0/image" -c . >"$0/image.tar""#;
        podman.machine.shell(image).ok();
        podman.podman(r#"import "$0/image.tar" box"#).ok();
        Some(podman)
    }

    fn podman(&self, words: &str) -> Outcome {
        self.machine.shell(&format!(
            r#"podman --root "$0/store" --runroot /run/store --storage-driver vfs --cgroup-manager cgroupfs \
               --events-backend none --runtime runc --network-config-dir "$0/cni" {words}"#
        ))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.podman("rm --all --force --time 0");
        self.machine.portkeep(&["down"]);
        self.machine
            .shell(&format!("find /sys/fs/cgroup -depth -path '*/{}*' -type d -exec rmdir {{}} \\;", self.cgroup));
    }
}

#[test]
fn a_port_that_podman_publishes_is_seen_and_kept() {
    if !kernel_or_skip(TEST) {
        return;
    }
    let Some(podman) = Podman::start() else { return };
    let machine = &podman.machine;
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let run = format!(
        "run --detach --name web --publish 8090:80 --cgroup-parent /{} --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
         box /bin/busybox httpd -f -p 80",
        podman.cgroup
    );
    podman.podman(&run).ok();
    let who = machine.portkeep(&["who", "8090/tcp"]).out;
    for text in ["(conmon)", "listening on 0.0.0.0:8090", "a NAT rule redirects it", ":80"] {
        assert!(who.contains(text), "{text} in {who}");
    }
    let doctor = machine.portkeep(&["doctor"]).out;
    let remedy = doctor.lines().find_map(|line| line.split_once("`portkeep persist add 8090/tcp")?.1.split('`').next());
    let remedy = remedy.unwrap_or_else(|| panic!("{doctor}"));

    // With the remedy the port is kept while the container is stopped, and Podman can start it again.
    let words: Vec<&str> = ["persist", "add", "8090/tcp"].into_iter().chain(remedy.split_whitespace()).collect();
    machine.portkeep(&words).ok();
    podman.podman("stop --time 0 web").ok();
    let bind = ["timeout", "5", "busybox", "nc", "-l", "-p", "8090"];
    let outsider = Outcome::from(machine.as_nobody(&bind).output().unwrap());
    assert!(outsider.err.contains("Address already in use"), "{outsider:?}");
    podman.podman("start web").ok();
}
