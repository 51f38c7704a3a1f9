//! Machines with something to see.

use std::net::{TcpListener, TcpStream, UdpSocket};

use portkeep::{Reservation, Scope, persistent::Audience};
use portkeep_testkit::{
    Below, World,
    agent::{AgentFolder, AgentProcess, end_all},
    crowd,
    process::Child,
};

/// Reservations of [`Large`].
pub(crate) const RESERVATIONS: usize = 10_000;
/// Sockets of [`Large`].
pub(crate) const SOCKETS: usize = 50_000;

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
        // First the processes, so that they hold no reservation open.
        let holders = crowd::sockets(SOCKETS);
        Self { folder, agent, _reservations: crowd::reservations(RESERVATIONS), _holders: holders }
    }

    /// The next test has the usual pool again.
    pub(crate) fn end(self) {
        self.folder.configure(&format!("pool = \"{}\"\n", portkeep_core::defaults::POOL));
        self.folder.reload();
        self.agent.stop();
    }
}

/// A typical server: declared ports of services that run in their units, programs that hold other ports, and
/// reservations that are not in force.
pub(crate) struct Scene {
    pub(crate) folder: AgentFolder,
    agent: Option<AgentProcess>,
    /// Only this process may use it.
    pub(crate) own: Reservation,
    rest: Rest,
    services: Vec<Service>,
}

/// Change the name that the kernel knows this thread by.
pub(crate) fn rename(name: &str) {
    rustix::thread::set_name(&std::ffi::CString::new(name).unwrap()).unwrap();
}

/// Everything else in the scene. It only has to exist.
type Rest = (Vec<Reservation>, Vec<TcpListener>, Vec<UdpSocket>, Vec<TcpStream>);

/// A process in a unit. The process is dropped before the unit.
struct Service {
    process: Child,
    _unit: Below,
}

/// Declarations of packages: name, and the other keys.
const DECLARED: [(&str, &str); 13] = [
    ("website", "tcp = \"80,443\"\nunit = [\"nginx.service\", \"certbot.service\"]"),
    ("postgresql", "tcp = 5432\nunit = \"postgresql.service\"\ndescription = \"The main database\""),
    ("redis", "tcp = \"6379-6381\"\nunit = \"redis.service\""),
    ("sip", "tcp = 5060\nunit = \"sip.service\""),
    ("rtp", "udp = \"16384-17407\"\nunit = \"sip.service\""),
    ("tomcat", "tcp = 8443\nunit = \"tomcat.service\""),
    ("game-servers", "udp = \"27000-27499\"\nunit = \"games.service\""),
    ("node-ports", "tcp = \"30000-32767\"\nunit = \"kubelet.service\""),
    ("syslog", "udp = 514\nuser = \"root\""),
    ("build-farm", "tcp = \"20000-21999\"\nuser = \"root\""),
    ("crawler", "tcp = \"40000-42047\"\nunit = \"crawler.service\"\nephemeral = true"),
    ("metrics", "tcp = 9100\nunit = \"node-exporter.service\""),
    ("second-website", "tcp = 443\nunit = \"caddy.service\""),
];

/// Connections to each of two ports of a service.
const CONNECTIONS: usize = 150;

impl Scene {
    pub(crate) fn new(world: &World) -> Self {
        let folder = AgentFolder::new();
        for (name, keys) in DECLARED {
            let order = if name.starts_with("second") { 90 } else { 50 };
            folder.drop_in(&format!("{order}-{name}.toml"), &format!("[[reservation]]\nname = \"{name}\"\n{keys}\n"));
        }
        // These sockets keep a service's port in use.
        let listen = |port: u16| TcpListener::bind(("127.0.0.1", port)).unwrap();
        let mut listeners = Vec::from([22, 3000, 9100, 11211].map(listen));
        let agent = folder.agent();
        let services = vec![
            Service::start(world, "nginx.service", vec![80, 443], Vec::new()),
            Service::start(world, "postgresql.service", vec![5432], Vec::new()),
            Service::start(world, "redis.service", vec![6379, 6380], Vec::new()),
            Service::start(world, "sip.service", vec![5060], (16384..17000).step_by(2).collect()),
            Service::start(world, "kubelet.service", (30_000..30_400).step_by(7).collect(), Vec::new()),
        ];
        let request = |request: portkeep::Request, ports: u16, label: &str| {
            // As if another program did it.
            rename(label.split(' ').next().unwrap());
            request.scope(Scope::User).ports(ports).label(label).acquire().unwrap()
        };
        let reservations = vec![
            request(Reservation::tcp(), 64, "pytest -n 16"),
            request(Reservation::tcp().both(), 200, "mvn verify"),
            request(Reservation::tcp().ephemeral(), 700, "playwright"),
            request(Reservation::udp(), 512, "ffmpeg"),
            request(Reservation::tcp().also(Audience::Unit("docker.service".into())), 24, "vite preview"),
        ];
        rename("gdbserver");
        let own = Reservation::tcp().ports(8).align(8).label("debugger").acquire().unwrap();
        listeners.extend(reservations[0].ports().iter().step_by(3).map(listen));
        listeners.extend(reservations[1].ports().iter().take(90).map(listen));
        let datagrams = reservations[3].ports().iter().step_by(2).take(160);
        let datagrams = datagrams.map(|port| UdpSocket::bind(("127.0.0.1", port)).unwrap()).collect();
        let clients = [80, 443].into_iter().flat_map(|port| [port; CONNECTIONS]);
        let clients = clients.map(|port| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        Self { folder, agent: Some(agent), own, rest: (reservations, listeners, datagrams, clients), services }
    }

    /// The process of a service.
    pub(crate) fn process_of(&self, unit: &str) -> u32 {
        let service = self.services.iter().find(|service| service._unit.path().ends_with(unit));
        service.expect("there is such a service").process.pid()
    }

    /// Stop the agent, do something, and start another one.
    pub(crate) fn restart_agent(&mut self, meanwhile: impl FnOnce()) {
        self.agent.take().into_iter().for_each(AgentProcess::stop);
        meanwhile();
        self.agent = Some(self.folder.agent());
    }

    /// End everything, the agent too.
    pub(crate) fn end(self, world: &World) {
        self.agent.into_iter().for_each(AgentProcess::stop);
        drop((self.own, self.rest, self.services));
        end_all(world);
    }
}

impl Service {
    fn start(world: &World, unit: &str, tcp: Vec<u16>, udp: Vec<u16>) -> Self {
        let unit = Below::new(world, unit);
        let procs = unit.path().join("cgroup.procs");
        let name = unit.path().file_stem().unwrap().to_str().unwrap().to_owned();
        let mut process = Child::fork(move |talk| {
            rename(&name);
            std::fs::write(&procs, "0").unwrap();
            let bind = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).unwrap();
            let listeners = Vec::from_iter(tcp.iter().map(bind));
            let sockets = Vec::from_iter(udp.iter().map(|port| UdpSocket::bind(("127.0.0.1", *port)).unwrap()));
            talk.say(1);
            let accepted = listeners
                .iter()
                .filter(|_| tcp.contains(&80))
                .flat_map(|listener| listener.incoming().take(CONNECTIONS));
            let accepted = Vec::from_iter(accepted);
            // Until it is killed.
            talk.try_hear();
            drop((accepted, sockets));
        });
        assert_eq!(process.talk.hear(), 1);
        Self { process, _unit: unit }
    }
}
