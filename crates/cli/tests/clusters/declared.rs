//! The drop-ins that are the same on all hosts: Nomad's, and the one of the Ansible playbook.

use std::fs;

use portkeep_testkit::{Outcome, kernel_or_skip, machine::Machine};

use crate::{PORTKEEP, packaging, ready};

/// Set on machines where Ansible is installed: there, the test fails if it is missing.
const REQUIRE_ANSIBLE: &str = "PORTKEEP_REQUIRE_ANSIBLE";

#[test]
fn the_drop_ins_of_the_package_have_no_mistakes() {
    let machine = Machine::new(PORTKEEP, "drop-ins");
    let mut found = 0;
    for folder in fs::read_dir(packaging()).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).into_iter().flatten() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                machine.portkeep(&["check", path.to_str().unwrap()]).ok();
                found += 1;
            }
        }
    }
    assert!(found >= 4, "{found}");
}

#[test]
fn the_dynamic_ports_of_nomad_are_for_its_tasks() {
    if !kernel_or_skip("nomad") {
        return;
    }
    let machine = Machine::new(PORTKEEP, "nomad");
    machine.portkeep(&["up"]).ok();
    // The hierarchy of the machine begins at its own cgroup.
    let text = fs::read_to_string(packaging().join("nomad/dynamic.toml")).unwrap();
    let slice = format!("{}/nomad.slice", machine.home());
    let folder = machine.folder.path().join("root/etc/portkeep/ports.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("nomad.toml"), text.replace("/nomad.slice", &slice)).unwrap();
    let _agent = machine.agent(machine.command(&["agent"]));

    // As Nomad names the cgroup of a task: its allocation and its name.
    let task = machine.cgroup.path().join("nomad.slice/share.slice/8e7c.web.scope");
    fs::create_dir_all(&task).unwrap();
    let bind = "import socket; socket.create_server((\"\", 20000))";
    machine.shell(&format!("echo $$ >{}/cgroup.procs && exec python3 -c '{bind}'", task.display())).ok();
    for (transport, port) in [("tcp", 20000), ("udp", 20000), ("tcp", 32000)] {
        assert_eq!(machine.outsider_binds(transport, port), "AddrInUse", "{port}/{transport}");
    }
    assert_eq!(machine.outsider_binds("tcp", 32001), "bound");
}

#[test]
fn the_playbook_declares_the_same_ports_on_each_host() {
    if !ready("ansible", &["ansible-playbook", "python3"], REQUIRE_ANSIBLE) {
        return;
    }
    let machine = Machine::new(PORTKEEP, "ansible");
    machine.portkeep(&["up"]).ok();
    let root = machine.folder.path().join("root");
    fs::create_dir_all(root.join("etc/portkeep/ports.d")).unwrap();
    let _agent = machine.agent(machine.command(&["agent"]));

    // The unchanged files, except for the root of the host.
    let playbook = fs::read_to_string(packaging().join("ansible/ports.yml")).unwrap();
    let declared = fs::read_to_string(packaging().join("ansible/ports.toml")).unwrap();
    let etc = format!("{}/etc/portkeep", root.display());
    assert_eq!(playbook.matches("/etc/portkeep").count(), 1);
    let at = machine.folder.path().join("ports.yml");
    fs::write(&at, playbook.replace("/etc/portkeep", &etc)).unwrap();
    let play = |declared: &str| -> Outcome {
        fs::write(machine.folder.path().join("ports.toml"), declared).unwrap();
        let mut command = machine.program(&["ansible-playbook", "--inventory", "localhost,", "--connection", "local"]);
        command.args(["--extra-vars", "ansible_become=false"]).arg(&at);
        let program = std::path::Path::new(PORTKEEP).parent().unwrap().display();
        command.env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap()));
        command.env("HOME", machine.folder.path()).env("ANSIBLE_LOCALHOST_WARNING", "False");
        command.output().unwrap().into()
    };
    play(&declared).ok();
    assert_eq!(machine.outsider_binds("udp", 29503), "AddrInUse");

    // A file with a mistake is not installed.
    let mistaken = play(&declared.replace("29500-29503", "29500-99999"));
    assert_eq!(mistaken.code, Some(2), "{mistaken:?}");
    assert!(mistaken.out.contains("99999"), "{mistaken:?}");
    assert_eq!(fs::read_to_string(root.join("etc/portkeep/ports.d/all-hosts.toml")).unwrap(), declared);

    // A port that is in use on this host is named.
    machine.enter_network();
    let taken = std::net::TcpListener::bind("127.0.0.1:29510").unwrap();
    let in_use = play(&declared.replace("29500-29503", "29508-29511"));
    assert_eq!(in_use.code, Some(2), "{in_use:?}");
    assert!(in_use.out.contains("29510/tcp is in use"), "{in_use:?}");
    drop(taken);

    // A file that is there, and that the agent has not read, is put in force; after that, nothing changes.
    let installed = declared.replace("29500-29503", "29520-29523");
    fs::write(root.join("etc/portkeep/ports.d/all-hosts.toml"), &installed).unwrap();
    let changed = play(&installed).ok().out;
    assert_eq!(machine.outsider_binds("udp", 29523), "AddrInUse");
    let unchanged = play(&installed).ok().out;
    assert!(changed.contains("changed=1 ") && unchanged.contains("changed=0 "), "{changed}{unchanged}");
}
