//! The pool, the ephemeral ports, NAT rules, the node ports of Kubernetes, and quotas.

use portkeep::{Info, PortRange, Transport, persistent::Audience};
use portkeep_core::PortSet;
use portkeep_observe::{namespaces, process, sysctl};

use super::finding::{Examined, Finding, Findings, Severity, requires_root};
use crate::{
    agent::Overlap,
    args::asked,
    commands::status::{QuotaUse, too_few_left},
};

/// Whether the pool overlaps the ephemeral ports of a network namespace (N3).
pub(super) fn pool(examined: &Examined<'_>) -> Findings {
    let pool = examined.status.pool;
    if pool.is_none() {
        return Ok(Vec::new());
    }
    let own = portkeep_kernel::netns::current_cookie().unwrap_or_default();
    let mut found: Vec<Finding> =
        examined.status.overlap().map(|overlap| of_overlap(overlap, "")).into_iter().collect();
    for namespace in namespaces::visible().flatten().filter(|namespace| namespace.cookie != own) {
        let name = namespace.name();
        if let Ok(Some(overlap)) = namespace.within(|| Overlap::of(pool)) {
            found.push(of_overlap(&overlap, &format!("in the network namespace {name}, ")));
        }
    }
    Ok(found)
}

/// Whether reservations that `force` allowed leave outgoing connections too few ephemeral ports (N5).
pub(super) fn ephemeral(examined: &Examined<'_>) -> Findings {
    // The same command that read the quotas read this.
    examined.of_root(&examined.status.quotas)?;
    let found = examined.status.exhausted.as_ref().map(|exhausted| {
        let severity = if exhausted.left == 0 { Severity::Error } else { Severity::Warning };
        Finding::new(severity, too_few_left(exhausted))
            .help("delete or move reservations in that range (`portkeep list` shows them), or make it wider")
    });
    Ok(found.into_iter().collect())
}

fn of_overlap(overlap: &Overlap, place: &str) -> Finding {
    // If the whole overlap is entered, no automatic choice gets a port of the pool. There are only fewer ports to
    // choose.
    let severity = if overlap.is_entered() { Severity::Note } else { Severity::Warning };
    Finding::new(severity, format!("{place}{overlap}")).help(Overlap::HELP)
}

/// NAT rules over reserved ports: with such a rule another program answers than the one that has the reservation. Some
/// reservations only keep ports free for such rules: no program can bind their ports by number. They are not reported.
pub(super) fn nat(examined: &Examined<'_>) -> Findings {
    let Some(redirects) = &examined.facts.redirects else {
        let root = requires_root();
        return Err(format!("nft and iptables-save show nothing: this {root}, and one of them installed"));
    };
    let mut found = Vec::new();
    let kept_free = |info: &&Info| info.strict && info.audience == Some(Audience::Administrators);
    for info in examined.all().filter(|info| !kept_free(info)) {
        for rule in redirects {
            let hit = asked::blocks_of(info).find_map(|block| block.common(rule.ports));
            let concerned = info.transports.iter().any(|each| rule.transport.is_none_or(|of| of == each));
            if let Some(ports) = hit.filter(|_| concerned) {
                let name = info.name.as_ref().map_or_else(String::new, |name| format!(" of {name}"));
                let message = format!(
                    "{ports}/{}{name} is reserved, but a NAT rule redirects it, so that another program answers: {}",
                    info.transports, rule.rule
                );
                found.push(Finding::new(Severity::Warning, message).help("remove the rule, or reserve other ports"));
            }
        }
    }
    Ok(found)
}

/// Programs of Kubernetes that give out node ports.
const KUBERNETES: [&str; 5] = ["kubelet", "kube-proxy", "k3s", "k3s-server", "microk8s"];

/// The range of Kubernetes' NodePort services, unless the cluster has another.
pub(super) fn node_ports(examined: &Examined<'_>) -> Findings {
    let running = process::all().find(|(_, comm)| KUBERNETES.contains(&comm.as_str()));
    let Some((pid, comm)) = running else { return Ok(Vec::new()) };
    let range = PortRange::inclusive(30_000, 32_767).map_err(|error| error.to_string())?;
    let tcp = examined.all().filter(|info| info.transports.contains(Transport::Tcp));
    let reserved: PortSet = tcp.flat_map(asked::blocks_of).collect();
    let open = PortSet::from(range).minus(&reserved);
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let mut message = format!("{comm} (pid {pid}) runs here, and {open} of its node ports are not reserved");
    let drawn = sysctl::local_port_range().ok().flatten().and_then(|ephemeral| ephemeral.common(range));
    let drawn =
        drawn.map(|drawn| PortSet::from(drawn).minus(&examined.facts.excluded)).filter(|drawn| !drawn.is_empty());
    if let Some(drawn) = &drawn {
        message += &format!("; outgoing connections may use {drawn}");
    }
    let help = "reserve them for nobody: a drop-in with `both = \"30000-32767\"` and `strict = true`";
    Ok(vec![Finding::new(Severity::Warning, message).help(help)])
}

/// The share of a quota, in percent, from which a finding is reported.
const NEARLY: u64 = 80;

pub(super) fn quotas(examined: &Examined<'_>) -> Findings {
    let quotas = examined.of_root(&examined.status.quotas)?.into_iter().flatten();
    let nearly =
        |quota: &&QuotaUse| quota.limit.is_some_and(|limit| u64::from(quota.used) * 100 >= u64::from(limit) * NEARLY);
    let finding = |quota: &QuotaUse| {
        let message = format!("{} holds {} of {} ports", quota.account, quota.used, quota.limit.unwrap_or_default());
        Finding::new(Severity::Warning, message)
            .help("raise `quota` in portkeep.toml(5), or end reservations (`portkeep list`)")
    };
    Ok(quotas.filter(nearly).map(finding).collect())
}
