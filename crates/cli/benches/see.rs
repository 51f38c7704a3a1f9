//! The cost of looking: `list`, `who` and the port map on a machine with ten thousand reservations, fifty thousand sockets and a
//! thousand processes, and what portkeep-web costs while nobody looks. The real programs, in a cgroup and a network namespace of
//! their own, with kernel enforcement up and an agent.
//!
//! `cargo bench -p portkeep-cli --bench see` as root; `-- --write` puts the results into docs/internals/benchmarks.md.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portkeep_testkit::{
    crowd,
    machine::{Machine, Running},
    report::median,
    table::{Row, Table},
};

const RESERVATIONS: usize = 10_000;
const SOCKETS: usize = 50_000;
const PROCESSES: usize = 1_000;
/// The processes that share the listener of the busy port, and the connections to it.
const WORKERS: usize = 16;
const CONNECTIONS: usize = 1_000;
const BUSY: u16 = 33_000;
const ROUNDS: usize = 15;
const IDLE: Duration = Duration::from_secs(60);

const HEAD: &str = "# What looking costs\n\nMade by `cargo bench -p portkeep-cli --bench see -- --write` as root, in one run. Times of \
                    commands are what they need beyond `true`, started in the same way and in turns with them.";

fn main() {
    let Some(machine) = Machine::of_benchmark(PORTKEEP, "bench-see") else { return };
    let web = build_web();
    let configuration = machine.folder.path().join("root/etc/portkeep");
    fs::create_dir_all(&configuration).expect("a folder");
    fs::write(configuration.join("portkeep.toml"), "pool = \"2000-31999\"\n").expect("a file");
    machine.portkeep(&["up"]).ok();
    let _agent = machine.agent(machine.command(&["agent"]));
    let mut table = Table::default();

    let workers = crowd::workers(WORKERS, BUSY, CONNECTIONS);
    let processes = crowd::processes(PROCESSES - WORKERS);
    let busy = format!("{BUSY}/tcp");
    let filter = format!("sport = :{BUSY}");
    let [who, ss] = commands(&machine, [&[PORTKEEP, "who", &busy], &["ss", "-Hanptu", &filter]]);
    table.push(Row::at_most("`who` of a busy port, 1,000 processes, ms", who, 30.0).missed_because(
        "the links of ten thousand open files are read in /proc, as `ss` does, in parts at the same time",
    ));
    table.push(Row::info("the same / `ss -anptu` of that port", who / ss));

    let sockets = crowd::sockets(SOCKETS);
    let reservations = crowd::reservations(RESERVATIONS);
    let lists: [&[&str]; 3] = [&[PORTKEEP, "list"], &[PORTKEEP, "list", "--json"], &[PORTKEEP, "who", &busy]];
    let [list, json, who] = commands(&machine, lists);
    table.push(Row::at_most("`list` with 10,000 reservations and 50,000 sockets, ms", list, 1000.0));
    table.push(Row::at_most("`list --json` with them, ms", json, 1000.0));
    table.push(Row::info("`who` of the busy port with them, ms", who));

    let server = Server::start(&machine, &web);
    let map = median(
        (0..ROUNDS)
            .map(|_| {
                // The server repeats an answer for a quarter of a second.
                thread::sleep(Duration::from_millis(300));
                server.ask("/api/map")
            })
            .collect(),
    );
    table.push(Row::at_most("the data of the port map with them, ms", map, 1000.0));
    let used = server.used();
    thread::sleep(IDLE);
    table.push(Row::at_most("processor time of portkeep-web in 60 idle seconds, ms", server.used() - used, 0.0));
    table.note(format!(
        "{PROCESSES} processes with ten files each; {WORKERS} of them share the busy listener, which has {CONNECTIONS} connections"
    ));
    drop((server, reservations, sockets, processes, workers));
    machine.portkeep(&["down"]).ok();
    print!("{table}");
    if std::env::args().any(|arg| arg == "--write") {
        table.write("see", HEAD).expect("writing docs/internals/benchmarks.md");
    }
}

const PORTKEEP: &str = env!("CARGO_BIN_EXE_portkeep");

/// portkeep-web, beside portkeep.
fn build_web() -> std::path::PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--package=portkeep-web"]);
    assert!(cargo.status().expect("cargo starts").success(), "portkeep-web is not built");
    Path::new(PORTKEEP).with_file_name("portkeep-web")
}

/// The milliseconds that each command needs beyond `true`, the median of turns.
fn commands<const N: usize>(machine: &Machine, commands: [&[&str]; N]) -> [f64; N] {
    let time = |words: &[&str]| {
        let mut command = machine.program(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        command.status().expect("it starts");
        begun.elapsed().as_secs_f64() * 1e3
    };
    let mut bare = Vec::new();
    let mut times = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        bare.push(time(&["true"]));
        for (words, times) in commands.iter().zip(&mut times) {
            times.push(time(words));
        }
    }
    let bare = median(bare);
    times.map(|times| median(times) - bare)
}

/// A running portkeep-web.
struct Server {
    process: Running,
    address: String,
}

impl Server {
    fn start(machine: &Machine, web: &Path) -> Self {
        let words = [web.to_str().expect("a path in UTF-8"), "--listen", "127.0.0.1:0"];
        let mut child = machine.program(&words).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("its address");
        let address = line.trim().strip_prefix("listening on http://").expect("an address").trim_end_matches('/');
        Self { process: Running(child), address: address.to_owned() }
    }

    /// The milliseconds until an answer has been read.
    fn ask(&self, path: &str) -> f64 {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        begun.elapsed().as_secs_f64() * 1e3
    }

    /// Its processor time so far, in milliseconds: user and system, in ticks of 10 ms.
    fn used(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ').collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("a number") * 10.0).sum()
    }
}
