//! Where the C programs run: in the cgroup of this process's sandbox, in a
//! network namespace of the test's own, with the real agent beside them or without one.

use std::{fs, io::Write, os::unix::net::UnixStream, process::Command};

use portkeep_agent::{Agent, KernelPart, Options};
use portkeep_testkit::{Sandbox, World, process::Child};
use rustix::process::{Pid, Signal, kill_process};

use crate::compiler::kit;

/// A user without any right.
const NOBODY: u32 = 65534;

/// The agent, as a process of its own. Dropped, it is killed, and nothing of it is left.
pub(crate) struct AgentProcess {
    child: Child,
    tell: UnixStream,
}

impl AgentProcess {
    /// On the BPF programs of this process's sandbox. Tests that have one run one at a time ([`World`]): the child has
    /// copies of all descriptors of this process.
    pub(crate) fn start(_world: &World) -> Self {
        let folder = kit("the agent").expect("a kit").agent_folder();
        // The store of the one before.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        let (tell, told) = UnixStream::pair().expect("a pair of sockets");
        let mut child = Child::fork(|talk| {
            let mut kernel = KernelPart::of_loaded(&mut Sandbox::get().loaded()).expect("kernel enforcement");
            let agent = Agent::start(&mut kernel, &Options::below(&folder)).expect("the agent starts");
            talk.say(1);
            let (never, _kept) = UnixStream::pair().expect("a pair of sockets");
            agent.run(&told, &never).expect("the agent runs");
        });
        assert_eq!(child.talk.hear(), 1);
        Self { child, tell }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// SIGSTOP: it still counts as running, and answers nobody.
    pub(crate) fn stop(&self) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a pid");
        kill_process(pid, Signal::STOP).expect("our own child");
    }

    /// In good order, so that its own failures are seen.
    pub(crate) fn end(mut self) {
        self.tell.write_all(b"!").expect("it listens");
        self.child.join();
    }
}

/// A command that runs as somebody without any right.
pub(crate) fn as_nobody(mut command: Command) -> Command {
    use std::os::unix::process::CommandExt;
    command.uid(NOBODY).gid(NOBODY);
    command
}
