//! The server as a process, and requests to it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::{net::UnixStream, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use portkeep_testkit::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// User and group without any right.
pub(crate) const NOBODY: u32 = 65534;

/// A running server. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    /// Where it listens, as it said.
    pub(crate) address: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// As JSON, if it succeeded.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!((self.status, self.header("content-type")), (200, Some("application/json")), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Server {
    /// Start it in this thread's network namespace. It asks the agent in `folder`.
    pub(crate) fn start(folder: &Path) -> Self {
        Self::start_with(folder, &["--listen", "127.0.0.1:0"], |_| {})
    }

    /// The same as a user without any right.
    pub(crate) fn start_as_nobody(folder: &Path) -> Self {
        // If the build folder is in the home of a user, other users cannot start the program there.
        let copy = folder.join("portkeep-web");
        assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_portkeep-web")).arg(&copy).status().unwrap().success());
        let mut command = Command::new(copy);
        command.args(["--listen", "127.0.0.1:0"]).uid(NOBODY).gid(NOBODY);
        Self::run(folder, command)
    }

    pub(crate) fn start_with(folder: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portkeep-web"));
        command.args(arguments);
        prepare(&mut command);
        Self::run(folder, command)
    }

    fn run(folder: &Path, mut command: Command) -> Self {
        command.env("PORTKEEP_RUNTIME_DIR", folder).env_remove("PORTKEEP_WEB_LISTEN");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        Self { child, address: address.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The Host of its address.
    pub(crate) fn host(&self) -> &str {
        self.address.strip_prefix("http://").map_or("localhost", |rest| rest.trim_end_matches('/'))
    }

    /// A request as a browser's page of the server itself makes it.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", self.host()))
    }

    /// Any request: its first line and headers.
    pub(crate) fn request(&self, head: &str) -> Answer {
        let text = format!("{head}Connection: close\r\n\r\n");
        match self.address.strip_prefix("unix:") {
            Some(path) => ask(UnixStream::connect(path).unwrap(), &text),
            None => ask(TcpStream::connect(self.host()).unwrap(), &text),
        }
    }

    /// The lines of a stream that does not end.
    pub(crate) fn stream(&self, path: &str) -> impl Iterator<Item = String> {
        let mut stream = TcpStream::connect(self.host()).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host()).as_bytes()).unwrap();
        BufReader::new(stream).lines().map(Result::unwrap)
    }

    /// Processor time that it has used so far, in ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// End it by a signal; its exit status.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), Signal::TERM).unwrap();
        let mut status = None;
        eventually(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(mut stream: impl Read + Write, text: &str) -> Answer {
    stream.write_all(text.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Answer { status, head: head.to_owned(), body: if chunked { join_chunks(body) } else { body.to_owned() } }
}

fn join_chunks(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    whole
}
