//! `packaging/kubernetes`: the image is built from the Containerfile, and its container has what the DaemonSet gives it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use portkeep_testkit::{eventually_or, skip};
use serde_json::Value;

use crate::{PORTKEEP, REQUIRE, TEST, engine};

/// The documents of a YAML file; `None` where Python has no parser for it.
fn yaml(path: &Path) -> Option<Vec<Value>> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = Command::new("python3").args(["-c", script]).arg(path).stderr(Stdio::piped()).output().ok()?;
    let err = String::from_utf8_lossy(&output.stderr);
    if err.contains("No module named 'yaml'") {
        return None;
    }
    assert!(output.status.success(), "{}: {err}", path.display());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

const LAST_CAPABILITY: &str = "/proc/sys/kernel/cap_last_cap";

fn is(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
}

/// The rights of a container that a kubelet calls privileged, with the cgroup namespace of the node. In a sandbox even
/// root may lack capabilities, and Docker starts no container with a right that Docker lacks. Then the existing rights
/// are named.
fn privileged() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let (own, last) = (u64::from_str_radix(bounding.trim(), 16).unwrap(), fs::read_to_string(LAST_CAPABILITY).unwrap());
    let all = (2u64 << last.trim().parse::<u32>().unwrap()) - 1;
    if own == all {
        return " --privileged --cgroupns host".to_owned();
    }
    let mut options =
        " --cgroupns host --security-opt seccomp=unconfined --security-opt systempaths=unconfined".to_owned();
    for needed in ["DAC_READ_SEARCH", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"] {
        options.push_str(&format!(" --cap-add {needed}"));
    }
    options
}

/// The strings of an array.
fn words(array: &Value) -> String {
    array.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_agent_of_the_daemonset_enforces_on_its_node() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/kubernetes").canonicalize().unwrap();
    let Some(documents) = yaml(&packaging.join("daemonset.yaml")) else {
        return skip(TEST, "no python3-yaml", REQUIRE);
    };
    let generated = yaml(&packaging.join("kustomization.yaml")).unwrap().remove(0)["configMapGenerator"].take();
    let Some(engine) = engine() else { return };
    let machine = &engine.machine;
    let folder = machine.folder.path();

    // A base image with the libraries of this machine, and nothing of the program.
    let image = format!(
        r#"mkdir -p "$0/base/bin" "$0/context" && cp "$(command -v busybox)" "$0/base/bin/busybox" && cp {PORTKEEP} "$0/context" &&
        for file in $(ldd {PORTKEEP} | grep -o '/[^ ]*'); do mkdir -p "$0/base$(dirname $file)" && cp -L $file "$0/base$file"; done &&
        tar -C "$0/base" -c . | docker import - base && export DOCKER_BUILDKIT=0 &&
        docker build --quiet --build-arg BASE=base --tag portkeep --file {}/Containerfile "$0/context""#,
        packaging.display()
    );
    engine.shell(&image).ok();

    // The container as the kubelet would start it. The folders of the node are those of this machine.
    let daemonset = documents.iter().find(|document| document["kind"] == "DaemonSet").unwrap();
    let pod = &daemonset["spec"]["template"]["spec"];
    let [container] = pod["containers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    let mut options = format!("--detach --env PORTKEEP_ENFORCE=/sys/fs/cgroup{}", machine.home());
    for (set, option) in [
        (&pod["hostNetwork"], " --network host"),
        (&pod["hostPID"], " --pid host"),
        (&container["securityContext"]["privileged"], &privileged()),
    ] {
        options.push_str(if is(set) { option } else { "" });
    }
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let source = match volume["hostPath"]["path"].as_str() {
            Some("/sys/fs/bpf") => folder.join("bpf"),
            Some("/sys/fs/cgroup") => machine.cgroup.path().parent().unwrap().to_owned(),
            Some("/run/portkeep") => folder.join("run"),
            Some("/var/lib/portkeep") => folder.join("state"),
            Some("/etc/portkeep") => folder.join("root/etc/portkeep"),
            None => {
                // A link for each file, as the kubelet makes them.
                let maps = generated.as_array().unwrap();
                let map = maps.iter().find(|map| map["name"] == volume["configMap"]["name"]).unwrap();
                let declared = folder.join("declared");
                fs::create_dir_all(declared.join("..data")).unwrap();
                for file in words(&map["files"]).split(' ') {
                    fs::copy(packaging.join(file), declared.join("..data").join(file)).unwrap();
                    std::os::unix::fs::symlink(format!("..data/{file}"), declared.join(file)).unwrap();
                }
                declared
            }
            Some(other) => panic!("{other} is not in this machine"),
        };
        fs::create_dir_all(&source).unwrap();
        let only = if is(&mount["readOnly"]) { ":ro" } else { "" };
        options.push_str(&format!(" --volume {}:{}{only}", source.display(), mount["mountPath"].as_str().unwrap()));
    }
    let image = container["image"].as_str().unwrap();
    let agent = format!("run --name agent {options} {image} {}", words(&container["args"]));
    let ready = format!("exec agent {}", words(&container["readinessProbe"]["exec"]["command"]));
    let starts = || {
        engine.docker(&agent).ok();
        eventually_or(
            || format!("{:?} {:?}", engine.docker(&ready), engine.docker("logs agent")),
            || engine.docker(&ready).code == Some(0) && machine.outsider_binds("tcp", 30000) == "AddrInUse",
        );
    };
    starts();

    // On the node, where another `portkeep` sees the same.
    for (transport, port) in [("udp", 30000), ("tcp", 32767), ("udp", 32767)] {
        assert_eq!(machine.outsider_binds(transport, port), "AddrInUse", "{port}/{transport}");
    }
    assert_eq!(machine.outsider_binds("tcp", 29999), "bound");
    let listed = machine.portkeep(&["list", "--json"]).ok().json();
    assert_eq!((&listed[0]["name"], &listed[0]["ports"]), (&"kubernetes-nodeport".into(), &"30000-32767".into()));
    let token = listed[0]["token"].clone();

    // A container in a network of its own can have the numbers.
    engine.docker("run --rm web /bin/busybox httpd -p 30000").ok();

    // The pod is replaced: there is no gap, and it is the same reservation.
    engine.docker("rm --force agent").ok();
    assert_eq!(machine.outsider_binds("tcp", 30000), "AddrInUse");
    starts();
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json()[0]["token"], token);
}
