//! The metrics, as Prometheus reads them.

use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use portkeep::Reservation;
use portkeep_testkit::{
    World,
    agent::{AgentFolder, end_all},
    eventually_or, process, skip,
};

use crate::server::{NOBODY, Server};

/// Set on machines that must run the tests with Prometheus.
const REQUIRE: &str = "PORTKEEP_REQUIRE_PROMETHEUS";

fn packaging(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/monitoring").join(name).display().to_string()
}

/// Whether Prometheus is here; if not, says so.
fn prometheus(test: &str) -> bool {
    let here = ["promtool", "prometheus"].iter().all(|name| Command::new(name).arg("--version").output().is_ok());
    if !here {
        skip(test, "no Prometheus (apt-get install prometheus)", REQUIRE);
    }
    here
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}\n{input}");
}

struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The names of the metrics on a page.
fn names(page: &str) -> Vec<&str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[test]
fn the_metrics_count_what_happens() {
    let Some(world) = World::enter("web::metrics") else { return };
    let folder = AgentFolder::new();
    folder.drop_in("web.toml", "[[reservation]]\nname = \"site\"\ntcp = 8443\nunit = \"nginx.service\"\n");
    let agent = folder.agent();
    let server = Server::start(folder.path());
    let page = || server.get("/metrics").body;
    eventually_or(page, || page().contains("portkeep_events_followed 1"));
    let mine = Reservation::tcp().ports(4).acquire().unwrap();
    // The agent examines this one.
    let particular = Reservation::udp().at(7000).ports(2).acquire().unwrap();
    let port = mine.ports().start();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut outsider = process::Child::fork(|talk| {
        talk.say((0..2).filter(|_| TcpListener::bind(("127.0.0.1", port)).is_err()).count() as u64);
    });
    assert_eq!(outsider.talk.hear(), 2);
    outsider.join();
    drop(particular);
    let mut nobody = process::Child::fork(|talk| {
        process::become_user(NOBODY);
        let reservation = Reservation::tcp().ports(3).acquire().unwrap();
        talk.say(1);
        talk.try_hear();
        drop(reservation);
    });
    assert_eq!(nobody.talk.hear(), 1);
    let lines = [
        "portkeep_up 1",
        "portkeep_agent_up 1",
        "portkeep_agent_answers 1",
        "portkeep_pool_ports 4536",
        "portkeep_reservations{state=\"active\",kind=\"runtime\"} 2",
        "portkeep_reservations{state=\"active\",kind=\"persistent\"} 1",
        "portkeep_reservations{state=\"conflict\",kind=\"persistent\"} 0",
        "portkeep_reserved_ports{transport=\"tcp\",scope=\"process\",kind=\"runtime\"} 7",
        "portkeep_reserved_ports{transport=\"tcp\",scope=\"unit\",kind=\"persistent\"} 1",
        "portkeep_reserved_ports_in_use{transport=\"tcp\"} 1",
        "portkeep_grants_total 3",
        "portkeep_ends_total 1",
        "portkeep_pending_requests 0",
        "portkeep_pending_latency_seconds_count 1",
        "portkeep_quota_used_ports{account=\"user root\"} 4",
        "portkeep_quota_used_ports{account=\"user nobody\"} 3",
        "portkeep_quota_limit_ports{account=\"user nobody\"} 1024",
    ];
    for line in lines {
        eventually_or(|| format!("{line}\n{}", page()), || page().lines().any(|have| have == line));
    }
    let refusals = |name: &str| {
        let page = page();
        let numbers = page
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        numbers.sum::<u64>()
    };
    eventually_or(page, || {
        refusals("portkeep_refusals_total{unit=") == 2 && refusals("portkeep_refused_binds_total") >= 2
    });
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(answer.body.ends_with("# EOF\n"));

    // The alerts and the dashboard ask for metrics that exist.
    let known = names(&answer.body);
    for file in ["alerts.yml", "dashboard.json"] {
        let text = fs::read_to_string(packaging(file)).unwrap();
        let asked = text.match_indices("portkeep_").map(|(at, _)| {
            let rest = &text[at..];
            &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap()]
        });
        for name in asked {
            let base = ["_total", "_bucket", "_count", "_sum", "_info"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            assert!(known.contains(&base), "{file} asks for {name}; there are {known:?}");
        }
    }

    if prometheus("web::metrics") {
        scrape(&server, &answer.body);
    }
    drop((listener, mine, nobody));
    agent.stop();
    end_all(&world);
}

/// The older text format, which is all that promtool checks: names have their endings also in the comments, and neither units nor
/// an end are marked.
fn older_format(page: &str) -> String {
    let typed = |name: &str, kind: &str| page.lines().any(|line| line == format!("# TYPE {name} {kind}"));
    let line = |line: &str| {
        let mut words: Vec<String> = line.splitn(4, ' ').map(str::to_owned).collect();
        match words.get(1).map(String::as_str) {
            Some("HELP" | "TYPE") if line.starts_with('#') => {
                let name = words[2].clone();
                let ending = if typed(&name, "counter") {
                    "_total"
                } else if typed(&name, "info") {
                    "_info"
                } else {
                    ""
                };
                words[2].push_str(ending);
                if words[3] == "info" {
                    words[3] = "gauge".into();
                }
                Some(words.join(" ") + "\n")
            }
            _ if line.starts_with('#') => None,
            _ => Some(line.to_owned() + "\n"),
        }
    };
    page.lines().filter_map(line).collect()
}

/// promtool finds nothing wrong, and a real Prometheus scrapes it and evaluates the rules.
fn scrape(server: &Server, page: &str) {
    promtool(&["check", "metrics"], &older_format(page));
    promtool(&["check", "rules", &packaging("alerts.yml")], "");
    promtool(&["test", "rules", &packaging("alerts.test.yml")], "");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    let host = server.host();
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n- job_name: portkeep\n  \
         static_configs: [{{targets: [\"{host}\"]}}]\n",
        packaging("alerts.yml")
    );
    fs::write(&file, text).unwrap();
    promtool(&["check", "config", file.to_str().unwrap()], "");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display())).arg(format!("--web.listen-address=127.0.0.1:{port}"));
    command
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .stderr(log)
        .stdout(Stdio::null());
    let _running = Prometheus(command.spawn().unwrap());
    let ask = |query: &str| {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
        let _ = write!(stream, "GET /api/v1/{query} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stream, &mut text);
        text
    };
    let said = || format!("{}\n{}", ask("targets"), fs::read_to_string(folder.path().join("log")).unwrap());
    eventually_or(said, || ask("query?query=portkeep_grants_total").contains("\"3\""));
    eventually_or(said, || ask("query?query=portkeep_pending_latency_seconds_bucket").contains("+Inf"));
    eventually_or(said, || ask("query?query=up").contains("\"1\""));
    let rules = || ask("rules");
    eventually_or(rules, || rules().contains("PortkeepDown") && rules().contains("\"health\":\"ok\""));
}
