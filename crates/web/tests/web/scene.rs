//! What there is to see.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use portkeep::{Reservation, Scope};
use portkeep_testkit::{
    agent::{AgentFolder, AgentProcess},
    process::{Child, Talk},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reservations of [`Large`].
pub(crate) const RESERVATIONS: usize = 10_000;
/// Sockets of [`Large`].
pub(crate) const SOCKETS: usize = 50_000;
/// Processes that hold them.
const HOLDERS: u8 = 4;

/// A machine with much on it.
pub(crate) struct Large {
    pub(crate) folder: AgentFolder,
    agent: AgentProcess,
    _reservations: Vec<Reservation>,
    _holders: Vec<Child>,
}

impl Large {
    pub(crate) fn new() -> Self {
        let folder = AgentFolder::new();
        folder.configure("pool = \"2000-31999\"\n");
        let agent = folder.agent();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        // A process has some 20,000 descriptors at most. They are forked first, so that they hold no reservation open.
        let mut holders = Vec::from_iter((0..HOLDERS).map(|holder| Child::fork(|talk| hold(holder, talk))));
        holders.iter_mut().for_each(|holder| assert_eq!(holder.talk.hear(), 1));
        let label = |number: usize| format!("service-{}", number % 97);
        let reservations = (0..RESERVATIONS).map(|number| {
            let request = if number % 3 == 0 { Reservation::udp() } else { Reservation::tcp() };
            request.ports(1 + (number % 3) as u16).label(label(number)).acquire().unwrap()
        });
        let reservations = Vec::from_iter(reservations);
        Self { folder, agent, _reservations: reservations, _holders: holders }
    }

    /// The next test has the usual pool again.
    pub(crate) fn end(self) {
        self.folder.configure(&format!("pool = \"{}\"\n", portkeep_core::defaults::POOL));
        self.folder.reload();
        self.agent.stop();
    }
}

/// Bind one part of the sockets, each process on another address, and keep them until this process is killed.
fn hold(holder: u8, talk: &mut Talk) {
    let address = Ipv4Addr::new(127, 0, 1 + holder, 1);
    let sockets = (0..SOCKETS / usize::from(HOLDERS)).map(|number| UdpSocket::bind((address, 35_000 + number as u16)).unwrap());
    let sockets = Vec::from_iter(sockets);
    talk.say(1);
    talk.try_hear();
    drop(sockets);
}

/// A server as there are many: declared ports of services, programs that hold some, a few conflicts.
pub(crate) struct Scene {
    pub(crate) folder: AgentFolder,
    pub(crate) agent: AgentProcess,
    /// Only this process may use it.
    pub(crate) own: Reservation,
    pub(crate) rest: Rest,
}

/// What only has to be there.
pub(crate) type Rest = (Vec<Reservation>, Vec<TcpListener>, Vec<UdpSocket>, Vec<(TcpStream, TcpStream)>);

/// What packages declared: name, keys of ports and audience.
const DECLARED: [(&str, &str); 13] = [
    ("website", "tcp = \"80,443\"\nunit = \"nginx.service\"\naround = true"),
    ("postgresql", "tcp = 5432\nunit = \"postgresql.service\"\naround = true\ndescription = \"The main database\""),
    ("redis", "tcp = \"6379-6381\"\nunit = \"redis.service\"\naround = true"),
    ("sip", "tcp = 5060\nunit = \"sip.service\""),
    ("rtp", "udp = \"16384-17407\"\nunit = \"sip.service\""),
    ("tomcat", "tcp = \"8443\"\nunit = \"tomcat.service\""),
    ("game-servers", "udp = \"27000-27499\"\nunit = \"games.slice\""),
    ("node-ports", "tcp = \"30000-32767\"\nunit = \"kubelet.service\""),
    ("syslog", "udp = 514\nuser = \"root\"\naround = true"),
    ("build-farm", "tcp = \"20000-21999\"\nuser = \"root\""),
    ("crawler", "tcp = \"40000-42047\"\nunit = \"crawler.service\"\nephemeral = true"),
    ("metrics", "tcp = 9100\nunit = \"node-exporter.service\""),
    ("second-website", "tcp = 443\nunit = \"caddy.service\""),
];

impl Scene {
    pub(crate) fn new() -> Self {
        let folder = AgentFolder::new();
        for (name, keys) in DECLARED {
            let stanzas = keys_of(name, keys);
            let order = if name.starts_with("second") { "90" } else { "50" };
            folder.drop_in(&format!("{order}-{name}.toml"), &stanzas);
        }
        let listen = |port: u16| TcpListener::bind(("127.0.0.1", port)).unwrap();
        // These were there before the reservations of their audience, and one is in the way of another's.
        let mut listeners: Vec<TcpListener> = [22, 80, 443, 5432, 6379, 6380, 3000, 9100, 11211].map(listen).into();
        let agent = folder.agent();
        let label = |request: portkeep::Request, ports: u16, label: &str| {
            request.scope(Scope::User).ports(ports).label(label).acquire().unwrap()
        };
        let reservations = vec![
            label(Reservation::tcp(), 64, "pytest -n 16"),
            label(Reservation::tcp().both(), 200, "integration tests"),
            label(Reservation::tcp().ephemeral(), 700, "browser tests"),
            label(Reservation::udp(), 512, "media"),
            label(Reservation::tcp(), 24, "preview"),
        ];
        let own = Reservation::tcp().ports(8).align(8).label("debugger").acquire().unwrap();
        listeners.extend(reservations[0].ports().iter().step_by(3).map(listen));
        listeners.extend(reservations[1].ports().iter().take(90).map(listen));
        let datagrams = reservations[3].ports().iter().step_by(2).take(160);
        let datagrams = datagrams.map(|port| UdpSocket::bind(("127.0.0.1", port)).unwrap()).collect();
        let connections = (0..400).map(|number| {
            let server = &listeners[number % 3];
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            (client, server.accept().unwrap().0)
        });
        let connections = connections.collect();
        Self { folder, agent, own, rest: (reservations, listeners, datagrams, connections) }
    }
}

/// A stanza for each block: a list of ports is several reservations.
fn keys_of(name: &str, keys: &str) -> String {
    match keys.strip_prefix("tcp = \"80,443\"") {
        Some(rest) => [80, 443].map(|port| format!("[[reservation]]\nname = \"{name}-{port}\"\ntcp = {port}{rest}\n")).concat(),
        None => format!("[[reservation]]\nname = \"{name}\"\n{keys}\n"),
    }
}
