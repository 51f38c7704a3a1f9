//! hostPort of Kubernetes: the CNI plugin portmap redirects a port of the node to a pod. It binds nothing.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    path::Path,
    process::Stdio,
};

use portkeep_testkit::{
    machine::{Machine, Running},
    skip,
};

use crate::{PORTKEEP, connect, ready};

const TEST: &str = "hostport";
/// Set on machines where the plugins are installed: there, the test fails if one is missing.
const REQUIRE: &str = "PORTKEEP_REQUIRE_CNI";
const PLUGIN: &str = "/usr/lib/cni/portmap";
/// A server in the pod.
const SERVER: &str = r#"
import socket
server = socket.create_server(("", 80))
print("listens", flush=True)
while True:
    server.accept()[0].sendall(b"pod")
"#;

#[test]
fn a_host_port_goes_to_its_pod_whatever_is_reserved() {
    if !ready(TEST, &["iptables", "python3", "ip"], REQUIRE) {
        return;
    }
    if !Path::new(PLUGIN).exists() {
        return skip(TEST, &format!("no {PLUGIN} (containernetworking-plugins of Debian)"), REQUIRE);
    }
    let (node, pod) = (Machine::new(PORTKEEP, "node"), Machine::new(PORTKEEP, "pod"));
    connect(&node, &pod);
    node.portkeep(&["up"]).ok();
    let _agent = node.agent(node.command(&["agent"]));
    node.portkeep(&["persist", "add", "--name", "web", "--tcp", "8080", "--unit", "web.service"]).ok();

    let mut server = pod.program(&["python3", "-c", SERVER]).stdout(Stdio::piped()).spawn().unwrap();
    let out = server.stdout.take().unwrap();
    let server = Running(server);
    BufReader::new(out).read_line(&mut String::new()).unwrap();
    let configuration = serde_json::json!({
        "cniVersion": "0.4.0", "name": "pods", "type": "portmap", "capabilities": {"portMappings": true}, "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "sandbox": format!("/proc/{}/ns/net", server.pid())}],
            "ips": [{"version": "4", "interface": 0, "address": "10.9.0.2/24"}],
        },
    });
    let file = node.folder.path().join("portmap.json");
    fs::write(&file, configuration.to_string()).unwrap();
    node.shell(&format!(
        "CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_NETNS=/proc/{}/ns/net CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni {PLUGIN} <{}",
        server.pid(),
        file.display()
    ))
    .ok();

    // The reservation of another does not stop the packets to the pod, but it stops programs that bind the port.
    node.enter_network();
    let mut answer = String::new();
    TcpStream::connect("10.9.0.1:8080").unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "pod");
    assert_eq!(node.outsider_binds("tcp", 8080), "AddrInUse");
    // The rule is named with the port.
    let who = node.portkeep(&["who", "8080"]).ok();
    assert!(who.out.contains("10.9.0.2:80"), "{who:?}");
}
