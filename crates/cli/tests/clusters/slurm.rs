//! A cluster of two nodes: slurmctld, and for each node a slurmd in a network, a cgroup and an enforcement of its own. The job
//! belongs to a user without rights, and `packaging/slurm/task-prolog` is the TaskProlog.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use portkeep_core::{PortList, PortRange};
use portkeep_testkit::{
    Outcome, eventually, eventually_or,
    machine::{Machine, Running},
    skip,
};

use crate::{PORTKEEP, connect, packaging, ready};

const TEST: &str = "slurm";
/// Set on machines where Slurm is installed: there, the test fails if it is missing.
const REQUIRE: &str = "PORTKEEP_REQUIRE_SLURM";
/// The user of the jobs.
const UID: u32 = 65534;
/// Few ports, so that the numbers are used again.
const RANGE: std::ops::RangeInclusive<u16> = 20000..=20007;

/// A task: it binds the port of its number on the node, says so, and ends when the file `end` is there.
const TASK: &str = r#"
import os, socket, sys, time
ports = []
for part in os.environ["SLURM_STEP_RESV_PORTS"].split(","):
    first, _, last = part.partition("-")
    ports += range(int(first), int(last or first) + 1)
server = socket.create_server(("", ports[int(os.environ["SLURM_LOCALID"])]))
print(*(os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_RESV_PORTS", "MASTER_PORT", "PORTKEEP_ENFORCEMENT")), flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
"#;

/// Each node has a port more than it has tasks. srun waits for ever for a node that does not answer.
const JOB: &str = "exec timeout 60 srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --resv-ports=3 TASK";

struct Node {
    name: &'static str,
    machine: Machine,
    _agent: Running,
    _slurmd: Option<Running>,
}

/// The folder of the first node has the files of all.
struct Cluster {
    nodes: [Node; 2],
    _daemons: Vec<Running>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            // This ends the tasks and slurmstepd, too.
            let _ = fs::write(node.machine.cgroup.path().join("cgroup.kill"), "1");
        }
    }
}

/// One line of a configuration for each node, so that its `portkeep` is the one of the node.
fn environment(machine: &Machine) -> String {
    let command = machine.command(&["status"]);
    let set = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    set.map(|(name, value)| format!("export {name}='{value}'\n")).collect()
}

fn configuration(folder: &Path, host: &str) -> String {
    let at = folder.display();
    format!(
        "ClusterName=test\nSlurmctldHost={host}(10.9.0.1)\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\n\
         AuthInfo=socket={at}/munge.socket\nCredType=cred/munge\nStateSaveLocation={at}/saved\nSlurmdSpoolDir={at}/%n\n\
         SlurmdPidFile={at}/%n.pid\nSlurmctldPidFile={at}/slurmctld.pid\nSlurmctldLogFile={at}/slurmctld.log\n\
         SlurmdLogFile={at}/%n.log\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n\
         SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\nKillWait=1\nKillOnBadExit=1\nSlurmdParameters=config_overrides\n\
         MpiParams=ports={}-{}\nTaskProlog={at}/task-prolog\n\
         NodeName=node1 NodeAddr=10.9.0.1 Port=6821 CPUs=4\nNodeName=node2 NodeAddr=10.9.0.2 Port=6822 CPUs=4\n\
         PartitionName=all Nodes=ALL Default=YES State=UP\n",
        RANGE.start(),
        RANGE.end()
    )
}

impl Node {
    fn new(name: &'static str) -> Self {
        let machine = Machine::new(PORTKEEP, name);
        machine.portkeep(&["up"]).ok();
        let agent = machine.agent(machine.command(&["agent"]));
        Self { name, machine, _agent: agent, _slurmd: None }
    }

    /// Whether an outsider, even as root, can bind the port on this node.
    fn binds(&self, port: u16) -> bool {
        let binds = |transport| match self.machine.outsider_binds(transport, port).as_str() {
            "bound" => true,
            "AddrInUse" => false,
            other => panic!("{other}"),
        };
        let (tcp, udp) = (binds("tcp"), binds("udp"));
        tcp && udp
    }

    /// The processes of the node with this name.
    fn processes(&self, name: &str) -> Vec<String> {
        let all = fs::read_to_string(self.machine.cgroup.path().join("cgroup.procs")).unwrap();
        let is_named = |pid: &&str| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim_end() == name
        };
        all.lines().filter(is_named).map(str::to_owned).collect()
    }
}

impl Cluster {
    fn start() -> Option<Self> {
        let mut nodes = ["node1", "node2"].map(Node::new);
        connect(&nodes[0].machine, &nodes[1].machine);
        let folder = nodes[0].machine.folder.path().to_owned();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        fs::write(folder.join("slurm.conf"), configuration(&folder, host.trim_end())).unwrap();
        fs::create_dir(folder.join("saved")).unwrap();
        // The script as it is, with the `portkeep` of the test and of the node.
        let script = fs::read_to_string(packaging().join("slurm/task-prolog")).unwrap();
        let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n";
        let program = Path::new(&nodes[0].machine.for_everybody(PORTKEEP)).parent().unwrap().to_owned();
        let own = format!(
            "PATH={}:/usr/sbin:/usr/bin:/sbin:/bin\n. {}/$SLURMD_NODENAME.env\n",
            program.display(),
            folder.display()
        );
        assert_eq!(script.matches(path).count(), 1);
        fs::write(folder.join("task-prolog"), script.replace(path, &own)).unwrap();
        fs::set_permissions(folder.join("task-prolog"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("task.py"), TASK).unwrap();
        for node in &nodes {
            fs::write(folder.join(format!("{}.env", node.name)), environment(&node.machine)).unwrap();
        }
        fs::write(folder.join("munge.key"), [7; 128]).unwrap();
        fs::set_permissions(folder.join("munge.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let munged = [
            "munged",
            "--foreground",
            "--force",
            "--socket",
            &at("munge.socket"),
            "--key-file",
            &at("munge.key"),
            "--log-file",
            &at("munge.log"),
            "--pid-file",
            &at("munge.pid"),
            "--seed-file",
            &at("munge.seed"),
        ];
        let start = |machine: &Machine, words: &[&str]| {
            let log = File::create(folder.join(format!("{}.out", words[0]))).unwrap();
            let mut command = machine.program(words);
            command.env("SLURM_CONF", folder.join("slurm.conf"));
            Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
        };
        let mut daemons = vec![start(&nodes[0].machine, &munged)];
        eventually(|| folder.join("munge.socket").exists());
        daemons.push(start(&nodes[0].machine, &["slurmctld", "-D"]));
        for node in &mut nodes {
            node._slurmd = Some(start(&node.machine, &["slurmd", "-D", "-N", node.name]));
        }
        let cluster = Self { nodes, _daemons: daemons };
        eventually_or(
            || format!("{:?}\n{}", cluster.slurm("sinfo"), cluster.logs()),
            || cluster.slurm("sinfo --noheader --Node --format=%T").out == "idle\nidle\n",
        );
        Some(cluster)
    }

    fn folder(&self) -> PathBuf {
        self.nodes[0].machine.folder.path().to_owned()
    }

    fn logs(&self) -> String {
        let names = ["slurmctld.log", "node1.log", "node2.log", "slurmctld.out", "slurmd.out"];
        names.iter().map(|name| fs::read_to_string(self.folder().join(name)).unwrap_or_default()).collect()
    }

    /// A command of Slurm, as the user of the jobs.
    fn command(&self, words: &str) -> Command {
        let words = words.replace("TASK", &format!("python3 {0}/task.py {0}/end", self.folder().display()));
        let mut command = self.nodes[0].machine.as_nobody(&["sh", "-c", &words]);
        command.env("SLURM_CONF", self.folder().join("slurm.conf")).current_dir("/");
        command
    }

    fn slurm(&self, words: &str) -> Outcome {
        self.command(words).output().unwrap().into()
    }

    /// A job of four tasks on two nodes, when all of them have bound their ports.
    fn job(&self) -> Job {
        let _ = fs::remove_file(self.folder().join("end"));
        let mut srun = self.command(JOB);
        let mut srun = srun.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(srun.stdout.take().unwrap());
        let mut lines = Vec::new();
        for _ in 0..4 {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            if line.is_empty() {
                let end: Outcome = srun.wait_with_output().unwrap().into();
                panic!("{lines:?} {end:?}\n{}", self.logs());
            }
            lines.push(line);
        }
        assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
        let words: Vec<&str> = lines[0].split_whitespace().collect();
        let ports: PortList = words[1].parse().unwrap();
        assert_eq!((ports.count(), words[2], words[3]), (3, ports.start().to_string().as_str(), "kernel"));
        Job { id: words[0].to_owned(), ports, srun, _out: out }
    }

    /// None of these is reserved or bound on any node.
    #[track_caller]
    fn are_free(&self, ports: &PortList) {
        for node in &self.nodes {
            eventually_or(
                || format!("{}: {:?}", node.name, node.machine.portkeep(&["who", &ports.to_string()])),
                || ports.iter().all(|port| node.binds(port)),
            );
        }
    }
}

struct Job {
    id: String,
    ports: PortList,
    srun: Child,
    _out: BufReader<ChildStdout>,
}

impl Job {
    /// srun's end.
    fn wait(self) -> Outcome {
        self.srun.wait_with_output().unwrap().into()
    }
}

#[test]
fn the_ports_of_a_step_are_reserved_on_its_nodes_while_it_runs() {
    if !ready(TEST, &["slurmctld", "slurmd", "srun", "munged", "python3", "ip"], REQUIRE) {
        return;
    }
    let Some(cluster) = Cluster::start() else { return skip(TEST, "slurmctld does not start", REQUIRE) };

    // Both nodes refuse all of the numbers to root, whether they are bound or not. The next number is not reserved.
    let job = cluster.job();
    for node in &cluster.nodes {
        assert!(job.ports.iter().all(|port| !node.binds(port)), "{}", node.name);
        let listed = node.machine.portkeep(&["list", "--json"]).ok().json();
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
        assert_eq!(listed[0]["name"], format!("slurm-{}", job.id));
        assert_eq!(listed[0]["ports"], job.ports.to_string());
        assert_eq!((&listed[0]["owner"]["uid"], &listed[0]["state"]), (&UID.into(), &"active".into()));
        let free = RANGE.clone().find(|port| !job.ports.iter().any(|own| own == *port)).unwrap();
        assert!(node.binds(free));
    }
    // It ends by itself.
    let ports = job.ports.clone();
    fs::write(cluster.folder().join("end"), "").unwrap();
    job.wait().ok();
    cluster.are_free(&ports);

    // It is cancelled.
    let job = cluster.job();
    let ports = job.ports.clone();
    cluster.slurm(&format!("scancel {}", job.id)).ok();
    job.wait();
    cluster.are_free(&ports);

    // slurmstepd is killed on one node. The other node is not affected, and a port that is still bound stays bound.
    let job = cluster.job();
    let ports = job.ports.clone();
    let [first, second] = &cluster.nodes;
    let step = second.processes("slurmstepd");
    assert_eq!(step.len(), 1);
    second.machine.shell(&format!("kill -KILL {}", step[0])).ok();
    let unbound = ports.iter().last().unwrap();
    eventually(|| second.binds(unbound));
    assert!(!first.binds(unbound));
    assert!(!second.binds(ports.start()));
    fs::write(cluster.folder().join("end"), "").unwrap();
    // Otherwise srun would wait for the node.
    cluster.slurm(&format!("scancel {}", job.id)).ok();
    job.wait();
    cluster.are_free(&ports);

    // slurmctld gives out the numbers in turn. One of the next three is reserved by another process on one node: the
    // step fails, and its message says so.
    let taken = RANGE.start() + (3 * 3 + 2) % RANGE.len() as u16;
    let holder = second.machine.hold(&["--ports", &taken.to_string(), "--label", "intruder"]);
    let failed = cluster.slurm(JOB);
    assert_ne!(failed.code, Some(0), "{failed:?}");
    for words in [&format!("node2: error: {taken}/tcp"), "intruder"] {
        assert!(failed.out.contains(words), "{failed:?}");
    }
    assert!(!failed.out.contains("node1: "), "{failed:?}");
    // A batch script that was submitted by a step with this port.
    let done = cluster.folder().join("user/done");
    let submit = format!("sbatch --nodelist=node2 --output=/dev/null --wrap 'touch {}'", done.display());
    cluster.slurm(&format!("SLURM_STEP_RESV_PORTS={taken} {submit}")).ok();
    eventually_or(|| cluster.logs(), || done.exists());
    holder.let_go();
    cluster.are_free(&PortList::from(PortRange::inclusive(*RANGE.start(), *RANGE.end()).unwrap()));
}
