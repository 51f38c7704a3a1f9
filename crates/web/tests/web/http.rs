//! The answers of the server.

use std::net::{TcpListener, TcpStream, UdpSocket};

use portkeep::{Reservation, State};
use portkeep_testkit::{
    World,
    agent::AgentFolder,
    eventually, eventually_or, note,
    process::{Child, become_user},
    schema,
};
use serde_json::Value;

use crate::server::{NOBODY, Server};

const FILES: [&str; 6] = ["/", "/style.css", "/page.js", "/map.js", "/model.js", "/icon.svg"];

/// The output of a command with `--json`, as the server gives it.
fn check(name: &str, value: &Value) {
    schema::check(&[name, "--json"], &value.to_string(), false);
}

#[test]
fn every_answer_has_a_strict_policy() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for path in FILES.iter().chain(&["/api/map", "/metrics", "/nothing"]) {
        let answer = server.get(path);
        assert_eq!(answer.status, if *path == "/nothing" { 404 } else { 200 }, "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("form-action 'none'"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for path in FILES {
        let body = server.get(path).body;
        let elsewhere = body.replace("http://www.w3.org/", "");
        assert!(
            !elsewhere.contains("http://") && !elsewhere.contains("https://") && !elsewhere.contains("\"//"),
            "{path}"
        );
        assert!(!body.contains(" style=") && !body.contains("<style"), "{path} has inline styles");
    }
}

#[test]
fn requests_from_elsewhere_and_changes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let host = server.host();
    let port = host.rsplit_once(':').unwrap().1;
    for (head, status) in [
        (format!("GET /api/map HTTP/1.1\r\nHost: {host}\r\n"), 200),
        (format!("GET /api/map HTTP/1.1\r\nHost: localhost:{port}\r\n"), 200),
        (format!("HEAD /api/map HTTP/1.1\r\nHost: {host}\r\n"), 200),
        (format!("GET /api/map HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"), 200),
        (format!("GET /api/map HTTP/1.1\r\nHost: evil.example:{port}\r\n"), 421),
        (format!("GET http://evil.example/api/map HTTP/1.1\r\nHost: {host}\r\n"), 421),
        ("GET /api/map HTTP/1.0\r\n".to_owned(), 400),
        (format!("GET /api/map HTTP/1.1\r\nHost: {host}\r\nOrigin: http://evil.example\r\n"), 403),
        (format!("GET /events HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: cross-site\r\n"), 403),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n".to_owned(), 421),
        (format!("POST /api/map HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"), 405),
        (format!("DELETE /api/who?port=80 HTTP/1.1\r\nHost: {host}\r\n"), 405),
        (format!("OPTIONS /api/map HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"), 405),
        (format!("GET /api/map?netns=1 HTTP/1.1\r\nHost: {host}\r\n"), 404),
    ] {
        let answer = server.request(&head);
        assert_eq!(answer.status, status, "{head}{answer:?}");
        if status == 405 {
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
        if status > 400 {
            assert!(!answer.body.contains("local_port_range"), "{answer:?}");
        }
    }
}

#[test]
fn a_number_that_is_no_port_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for port in ["0", "65536", "99999", "-1", "http"] {
        let answer = server.get(&format!("/api/who?port={port}"));
        let why = format!("port={port}: a port is a number from 1 to 65535\n");
        assert_eq!((answer.status, answer.body.as_str()), (400, &*why));
    }
}

#[test]
fn a_unix_socket_is_removed_at_the_end_and_replaced_when_stale() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let listen = format!("unix:{}", path.display());
    // The socket of a server that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut server = Server::start_with(folder.path(), &["--listen", &listen], |_| {});
    assert_eq!(server.address, listen);
    assert_eq!(server.get("/api/map").status, 200);
    assert_eq!(server.request("GET / HTTP/1.1\r\nHost: evil.example\r\n").status, 421);
    assert_eq!(server.stop(), Some(0));
    assert!(!path.exists());
}

#[test]
fn wrong_usage_and_an_address_in_use_are_errors() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let run = |listen: &str| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_portkeep-web")).args(["--listen", listen]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, said) = run(&address.to_string());
    assert_eq!(status, Some(1));
    assert!(
        said.starts_with("error: cannot listen on") && said.contains(&format!("portkeep who {}", address.port())),
        "{said}"
    );
    assert_eq!(run("7676").0, Some(2));
}

#[test]
fn the_map_has_sockets_and_ranges_without_kernel_enforcement() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let map = server.get("/api/map").json();
    check("map", &map);
    let mine = |sockets: &&Value| sockets["transport"] == "tcp" && sockets["state"] == "listening";
    let sets = map["sockets"].as_array().unwrap().iter().filter(mine).map(|sockets| sockets["ports"].as_str().unwrap());
    let has = |set: &str| set.parse::<portkeep_core::PortSet>().unwrap().contains(port);
    assert!(sets.clone().any(has), "{port}: {:?}", Vec::from_iter(sets));
    let who = server.get(&format!("/api/who?port={port}")).json();
    check("who", &who);
    assert_eq!(who[0]["bound_by"][0]["process"]["pid"], std::process::id(), "{who}");
    let namespaces = server.get("/api/namespaces").json();
    check("namespaces", &namespaces);
    assert_eq!(namespaces[0]["netns_name"], "this");
}

#[test]
fn an_unprivileged_server_shows_reservations_and_follows_events_once_it_may() {
    let Some(world) = World::enter("web::unprivileged") else { return };
    let folder = AgentFolder::new();
    folder.drop_in("web.toml", "[[reservation]]\nname = \"site\"\ntcp = 8443\nunit = \"nginx.service\"\n");
    let taken = TcpListener::bind("127.0.0.1:9100").unwrap();
    folder.drop_in("taken.toml", "[[reservation]]\nname = \"exporter\"\ntcp = 9100\nunit = \"exporter.service\"\n");
    let agent = folder.agent();
    let reservation = Reservation::tcp().ports(4).label("mine").acquire().unwrap();
    let port = reservation.ports().start();
    let server = Server::start_as_nobody(folder.path());

    let map = server.get("/api/map").json();
    check("map", &map);
    assert_eq!((&map["up"], &map["agent_answers"], &map["netns"]), (&true.into(), &true.into(), &world.netns().into()));
    let named = |name: &str| {
        let list = map["reservations"].as_array().unwrap();
        list.iter().find(|each| each["name"] == name).unwrap_or_else(|| panic!("{name}: {map:#}"))
    };
    assert_eq!(named("site")["audience"]["value"], "nginx.service");
    assert_eq!(named("mine")["start"], port);
    assert_eq!(named("exporter")["state"], State::Waiting.to_string());
    assert!(named("exporter")["reason"].as_str().unwrap().contains("9100/tcp is in use by"), "{map:#}");
    let who = server.get("/api/who?port=9100").json();
    check("who", &who);
    assert_eq!(who[0]["waiting"][0]["name"], "exporter");
    assert_eq!(who[0]["bound_by"][0]["state"], "listening");
    drop(taken);

    let following = |server: &Server| {
        let line = server.stream("/events").find(|line| line.starts_with("data: ")).unwrap();
        serde_json::from_str::<Value>(&line["data: ".len()..]).unwrap()
    };
    eventually(|| following(&server)["reason"].as_str().is_some_and(|reason| reason.contains("portkeep-watch")));
    assert!(!server.get("/metrics").body.contains("portkeep_quota_used_ports"));

    folder.configure(&format!("watchers = {NOBODY}\n"));
    assert_eq!(folder.reload().errors, Vec::<String>::new());
    eventually(|| following(&server)["following"] == true);
    assert!(server.get("/metrics").body.contains("portkeep_quota_used_ports{account=\"user root\"} 4"));
    // It may follow, and change nothing.
    let mut outsider = Child::fork(|talk| {
        become_user(NOBODY);
        let refused = folder.connect().reload().is_err();
        let bound = TcpListener::bind(("127.0.0.1", port)).is_ok();
        talk.say(u64::from(refused) | u64::from(bound) << 1);
    });
    let events = server.stream("/events");
    assert_eq!(outsider.talk.hear(), 1);
    outsider.join();
    // The bind was refused before or after the stream began, so another follows.
    let mut again = Child::fork(|talk| talk.say(UdpSocket::bind(("127.0.0.1", port)).is_ok().into()));
    assert_eq!(again.talk.hear(), 1);
    again.join();
    let mut refuse = Child::fork(|talk| talk.say(TcpListener::bind(("127.0.0.1", port)).is_ok().into()));
    assert_eq!(refuse.talk.hear(), 0);
    refuse.join();
    let event = events
        .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
        .find(|line| line.contains("\"refused\""));
    let event: Value = serde_json::from_str(&event.unwrap()).unwrap();
    check("watch", &event);
    assert_eq!(event["start"], port);
    drop(reservation);
    agent.stop();
    eventually_or(|| server.get("/api/map").body, || server.get("/api/map").json()["agent"] == false);
    portkeep_testkit::agent::end_all(&world);
}

/// The times are measured and reported. No test fails because of a slow one.
#[test]
fn a_large_machine_is_mapped_and_an_idle_server_rests() {
    let Some(world) = World::enter("web::large") else { return };
    let scene = crate::scene::Large::new();
    let server = Server::start(scene.folder.path());
    let (begin, used) = (std::time::Instant::now(), server.ticks());
    let answer = server.get("/api/map");
    let (first, used) = (begin.elapsed(), server.ticks() - used);
    let map = answer.json();
    assert_eq!(map["reservations"].as_array().unwrap().len(), crate::scene::RESERVATIONS);
    note(&format!(
        "map of {} reservations and {} sockets: {first:?}, of it {used} ticks of processor time; {} KiB",
        crate::scene::RESERVATIONS,
        crate::scene::SOCKETS,
        answer.body.len() / 1024
    ));
    let before = server.ticks();
    std::thread::sleep(std::time::Duration::from_secs(3));
    note(&format!("idle server: {} ticks of processor time in 3 s", server.ticks() - before));
    // A connection without a request costs nothing either.
    drop(TcpStream::connect(server.host()).unwrap());
    scene.end();
    drop(world);
}
