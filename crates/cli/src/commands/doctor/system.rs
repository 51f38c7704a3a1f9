//! The kernel, cgroups, BPF programs and the agent.

use std::{fs, io, os::unix::net::UnixStream, path::Path};

use portkeep::{State, persistent::protocol};
use portkeep_core::Transport;
use portkeep_kernel::{
    Obstacle, cgroup,
    hooks::{self, Attached},
};
use portkeep_observe::sockets::Listing;
use rustix::{net::sockopt::socket_peercred, system::uname};

use super::finding::{Examined, Finding, Findings, Severity, requires_root};

/// The oldest kernel that is supported.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn kernel(_: &Examined<'_>) -> Findings {
    let release = uname().release().to_string_lossy().into_owned();
    Ok(of_kernel(&release, Path::new("/sys/kernel/btf/vmlinux")))
}

fn of_kernel(release: &str, btf: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        found.push(
            Finding::new(Severity::Error, format!("this kernel is {release}, and enforcement requires Linux 6.1"))
                .help("upgrade the kernel; until then programs can only hold ports"),
        );
    }
    if !btf.exists() {
        let message =
            format!("the kernel has no BTF ({}): units, cgroups and groups are not recognised", btf.display());
        let help = "use a kernel with CONFIG_DEBUG_INFO_BTF, or declare reservations with `user`";
        found.push(Finding::new(Severity::Warning, message).help(help));
    }
    if Listing::of(Transport::Tcp).is_ok_and(|listing| !listing.complete) {
        found.push(Finding::new(
            Severity::Note,
            "this kernel does not list TCP sockets that are bound and do not listen (Linux 6.8 does), so their processes \
             cannot be named",
        ));
    }
    found
}

pub(super) fn cgroups(_: &Examined<'_>) -> Findings {
    let missing = Finding::new(Severity::Error, "no cgroup v2 hierarchy is mounted: nothing can be enforced")
        .help("boot with systemd.unified_cgroup_hierarchy=1, or mount one: `mount -t cgroup2 none /sys/fs/cgroup`");
    Ok(if cgroup::root().is_some() { Vec::new() } else { vec![missing] })
}

pub(super) fn enforcement(examined: &Examined<'_>) -> Findings {
    let status = &examined.status;
    let mut found = Vec::new();
    match (status.up, &status.not_seen) {
        (None, Some(why)) => return Err(why.clone()),
        (Some(true), Some(why)) if status.build.is_none() && Obstacle::to_bpf().is_none() => {
            let help = "see the versions that it names; `portkeep upgrade` puts the new programs in place of the old";
            found.push(Finding::new(Severity::Error, why.clone()).help(help));
        }
        (Some(false), _) => {
            let finding = Finding::new(Severity::Warning, "kernel enforcement is not up: programs can only hold ports");
            found.push(match Obstacle::to_bpf() {
                Some(obstacle) => finding.help(format!("it cannot be brought up from here: {obstacle}")),
                None => finding.help("`systemctl enable --now portkeep.service`, or `portkeep up`"),
            });
        }
        _ => {}
    }
    if status.transient == Some(true) {
        let message = "kernel enforcement is up for a `portkeep run` only, and ends with it";
        found.push(Finding::new(Severity::Note, message).help("`portkeep up` keeps it up"));
    }
    Ok(found)
}

pub(super) fn agent(examined: &Examined<'_>) -> Findings {
    let mut found = Vec::new();
    let declared = examined.declared.len();
    match (examined.status.agent, examined.status.agent_answers) {
        (Some(true), Some(false)) => found.push(
            Finding::new(Severity::Error, "the agent does not answer: it hangs or was stopped")
                .help("restart it: `systemctl restart portkeep`"),
        ),
        (Some(true), _) => {}
        (Some(false), _) if declared > 0 => {
            let message = format!("no agent runs, and {declared} persistent reservations are declared");
            let severity = match examined.declared.iter().all(|info| info.state == State::Active) {
                true => Severity::Warning,
                false => Severity::Error,
            };
            found.push(Finding::new(severity, message).help("`systemctl start portkeep`, or `portkeep agent`"));
        }
        (Some(false), _) => found.push(
            Finding::new(Severity::Note, "no agent runs: only ports of the pool can be reserved")
                .help("`systemctl start portkeep`, or `portkeep agent`"),
        ),
        (None, _) => {}
    }
    if let Some((pid, file)) = agents_program()
        && let Some(gone) = file.strip_suffix(" (deleted)")
    {
        let message = format!("the agent (pid {pid}) is an older program than the one that is installed now ({gone})");
        found.push(Finding::new(Severity::Warning, message).help("restart it: `systemctl restart portkeep`"));
    }
    Ok(found)
}

/// The agent's process, and the file that it was started from.
fn agents_program() -> Option<(i32, String)> {
    let socket = UnixStream::connect(protocol::socket_path()).ok()?;
    let pid = socket_peercred(&socket).ok()?.pid.as_raw_nonzero().get();
    let file = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some((pid, file.to_string_lossy().into_owned()))
}

/// Other BPF programs that decide about the same binds and connects.
pub(super) fn hooks(examined: &Examined<'_>) -> Findings {
    let Some(path) = examined.of_root(&examined.status.enforced_in)? else { return Ok(Vec::new()) };
    let root = cgroup::root().ok_or("there is no cgroup v2 hierarchy")?;
    let enforced = root.join(path.trim_start_matches('/'));
    let mut found = Vec::new();
    let programs = hooks::programs(&enforced).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => requires_root(),
        _ => error.to_string(),
    })?;
    for (folder, programs) in programs {
        let name = |program: &Attached| match &*program.name {
            "" => format!("program {} ({})", program.id, program.hook),
            name => format!("{name} (program {}, {})", program.id, program.hook),
        };
        let others = programs.iter().filter(|program| !program.name.starts_with("portkeep_"));
        let others: Vec<String> = others.map(name).collect();
        if others.is_empty() {
            continue;
        }
        let cgroup = Path::new("/").join(folder.strip_prefix(&root).unwrap_or(&folder));
        let place = match () {
            () if folder == enforced => "the cgroup that is enforced in",
            () if folder.starts_with(&enforced) => "for the processes in it alone",
            () => "above the cgroup that is enforced in",
        };
        let message = format!(
            "other BPF programs are attached to the cgroup {} ({place}): {}; they may refuse what a reservation allows",
            cgroup.display(),
            others.join(", ")
        );
        let help = "`bpftool prog show id NUMBER` shows more; systemd's SocketBindAllow= and SocketBindDeny= are such programs";
        found.push(Finding::new(Severity::Note, message).help(help));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_and_one_without_btf() {
        let btf = tempfile::NamedTempFile::new().unwrap();
        let errors = |release: &str, btf: &Path| {
            let severities = of_kernel(release, btf).into_iter().map(|finding| finding.severity);
            severities.filter(|severity| *severity != Severity::Note).collect::<Vec<_>>()
        };
        assert_eq!(errors("6.1.0-13-amd64", btf.path()), []);
        assert_eq!(errors("6.18.44", btf.path()), []);
        assert_eq!(errors("5.15.0-91-generic", btf.path()), [Severity::Error]);
        assert_eq!(errors("6.0.19", btf.path()), [Severity::Error]);
        assert_eq!(errors("6.12.1", Path::new("/no/such/file")), [Severity::Warning]);
    }
}
