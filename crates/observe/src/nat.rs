//! NAT rules that redirect what is sent to a port: then another program answers than the one that has bound the port.
//!
//! They are read with the tools of every machine that has such rules: `nft`, `iptables-save`, and `iptables-legacy-save`
//! where iptables has tables of its own. These neither change anything, nor load a module for a table that does not exist.
//! Where the kernel has no tables, no tool is started.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs, io,
    process::{Child, Command, Stdio},
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use portkeep_core::{PortRange, Transport};
use serde_json::Value;

use crate::netlink;

/// A rule that redirects ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `None`: both.
    pub transport: Option<Transport>,
    /// The ports that it redirects, host byte order.
    pub ports: PortRange,
    /// The rule, for people: "nftables ip nat PREROUTING: dnat to 10.0.0.2:22".
    pub rule: String,
}

impl Redirect {
    /// Whether it redirects this port.
    pub fn has(&self, transport: Transport, port: u16) -> bool {
        self.transport.is_none_or(|of| of == transport) && self.ports.contains(port)
    }
}

/// The tools, started: they run while this process looks at other things.
#[derive(Debug)]
pub struct Reading {
    nft: Nft,
    /// The tools of iptables. `None`: as far as is known, they are not needed.
    tables: Option<[Option<Child>; 2]>,
    /// The tools for the tables of `iptables-legacy`. `None`: there are no such tables.
    legacy: Option<[Option<Child>; 2]>,
}

#[derive(Debug)]
enum Nft {
    /// The kernel has no tables, so there are no rules.
    NoTables,
    /// The tool, started. `None`: it is not installed, or cannot be used.
    Tool(Option<Child>),
}

impl Reading {
    /// Start the tools in the calling thread's network namespace.
    pub fn start() -> Self {
        let nft = match has_tables() {
            Ok(false) => Nft::NoTables,
            // The tools would be refused, too.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Self { nft: Nft::Tool(None), tables: Some([None, None]), legacy: None };
            }
            Ok(true) | Err(_) => Nft::Tool(start("nft", &["-j", "list", "ruleset"])),
        };
        let needed = matches!(nft, Nft::Tool(None));
        Self { nft, tables: needed.then(start_iptables), legacy: has_own_tables().then(start_legacy) }
    }

    /// Wait for the rules; `None` if no tool could show them (this requires root), or none those of `iptables-legacy`.
    pub fn finish(self) -> Option<Vec<Redirect>> {
        let text = match self.nft {
            Nft::NoTables => Some(NO_TABLES.to_owned()),
            Nft::Tool(tool) => output(tool),
        };
        // Rules of iptables are in the ruleset, and nft cannot read their content.
        let opaque = text.as_ref().is_none_or(|text| text.contains(r#""xt""#));
        let tables = self.tables.or_else(|| opaque.then(start_iptables)).unwrap_or_default().map(output);
        let nft = text.and_then(|text| of_nft(&text));
        let legacy = self.legacy.map(|tools| tools.map(output));
        let is_unread = |texts: &[Option<String>; 2]| texts.iter().all(Option::is_none);
        if legacy.as_ref().map_or_else(|| nft.is_none() && is_unread(&tables), is_unread) {
            return None;
        }
        let mut found = nft.unwrap_or_default();
        for (tool, text) in IPTABLES.into_iter().cycle().zip(legacy.into_iter().flatten().chain(tables)) {
            for rule in text.iter().flat_map(|text| of_iptables(tool, text)) {
                // On some distributions `iptables-save` is that of `iptables-legacy`.
                if !found.contains(&rule) {
                    found.push(rule);
                }
            }
        }
        Some(found)
    }
}

/// The output of `nft -j list ruleset` without tables.
const NO_TABLES: &str = r#"{"nftables": []}"#;

/// Whether there are tables of nftables. The tables of `iptables-nft` are among them.
///
/// # Errors
///
/// Permission denied: only root can see them. Any other error: the kernel cannot list them.
fn has_tables() -> io::Result<bool> {
    /// `NFT_MSG_GETTABLE` of `NFNL_SUBSYS_NFTABLES`, of `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`.
    const GET_TABLES: u16 = 10 << 8 | 1;
    /// A `struct nfgenmsg`: of all families.
    const OF_ALL: [u8; 4] = [0; 4];
    let mut has = false;
    netlink::list(NETLINK_NETFILTER, GET_TABLES, OF_ALL.to_vec(), |_| has = true)?;
    Ok(has)
}

/// The tools of each family.
const IPTABLES: [&str; 2] = ["iptables", "ip6tables"];

fn start_iptables() -> [Option<Child>; 2] {
    IPTABLES.map(|tool| start(&format!("{tool}-save"), &[]))
}

/// Where `iptables-save` shows the tables of nftables, `iptables-legacy-save` shows the others.
fn start_legacy() -> [Option<Child>; 2] {
    IPTABLES.map(|tool| start(&format!("{tool}-legacy-save"), &[]).or_else(|| start(&format!("{tool}-save"), &[])))
}

/// Whether iptables has tables that are not in the ruleset of nft (`iptables-legacy`).
fn has_own_tables() -> bool {
    ["ip", "ip6"].iter().any(|family| match fs::read(format!("/proc/thread-self/net/{family}_tables_names")) {
        Ok(names) => !names.is_empty(),
        // Without the module there are no such tables. Ordinary users cannot read this file.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    })
}

/// `None`: the tool is not installed.
fn start(tool: &str, args: &[&str]) -> Option<Child> {
    // The paths of ordinary users do not contain these folders.
    let mut path: OsString = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(tool);
    command.args(args).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().ok()
}

/// The output of a tool that succeeds.
fn output(tool: Option<Child>) -> Option<String> {
    let output = tool?.wait_with_output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The rules in the output of `nft -j list ruleset`; `None` if the text is no such output.
pub fn of_nft(text: &str) -> Option<Vec<Redirect>> {
    let ruleset: Value = serde_json::from_str(text).ok()?;
    let objects = ruleset["nftables"].as_array()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |value: &Value, set: &str| [text(&value["family"]), text(&value["table"]), set.to_owned()];
    // Ports that a rule names through a set or a map.
    let sets: BTreeMap<_, _> = objects
        .iter()
        .filter_map(|object| object.get("set").or_else(|| object.get("map")))
        .map(|set| (name(set, &text(&set["name"])), &set["elem"]))
        .collect();
    let mut found = Vec::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let Some(expressions) = rule["expr"].as_array() else { continue };
        let Some((verb, target)) = expressions.iter().find_map(target) else { continue };
        let resolve = |value: &Value| -> Vec<PortRange> {
            match value.as_str().and_then(|text| text.strip_prefix('@')) {
                Some(set) => sets.get(&name(rule, set)).map(|elements| ports_of(elements)).unwrap_or_default(),
                None => ports_of(value),
            }
        };
        let (mut transport, mut ports) = (None, None);
        for expression in expressions {
            let (left, right) = (&expression["match"]["left"], &expression["match"]["right"]);
            if left["payload"]["field"] == "dport" && expression["match"]["op"] != "!=" {
                transport = transport.or_else(|| left["payload"]["protocol"].as_str()?.parse().ok());
                ports = Some(resolve(right));
            } else if left["meta"]["key"] == "l4proto" {
                transport = transport.or_else(|| right.as_str()?.parse().ok());
            }
        }
        // `dnat to tcp dport map { 80 : 10.0.0.2 }`
        let map =
            [&target["addr"]["map"], &target["port"]["map"], &target["map"]].into_iter().find(|map| !map.is_null());
        if let Some(map) = map.filter(|map| map["key"]["payload"]["field"] == "dport") {
            transport = transport.or_else(|| map["key"]["payload"]["protocol"].as_str()?.parse().ok());
            ports = Some(resolve(&map["data"]));
        }
        let to = match (&target["addr"], &target["port"]) {
            (Value::String(address), Value::Null) => format!(" to {address}"),
            (Value::String(address), port) => format!(" to {address}:{port}"),
            (_, Value::Number(port)) => format!(" to port {port}"),
            _ => String::new(),
        };
        let words = [&rule["family"], &rule["table"], &rule["chain"]].map(text).join(" ");
        let rule = format!("nftables {words}: {verb}{to}");
        let every = || vec![PortRange::ALL];
        let each = ports.unwrap_or_else(every).into_iter();
        found.extend(each.map(|ports| Redirect { transport, ports, rule: rule.clone() }));
    }
    Some(found)
}

/// The statement, if it redirects.
fn target(expression: &Value) -> Option<(&'static str, &Value)> {
    ["dnat", "redirect", "tproxy"].into_iter().find_map(|verb| Some((verb, expression.get(verb)?)))
}

/// The ports in an expression of nft: a number, a range, a set of both, or the keys of a map.
fn ports_of(value: &Value) -> Vec<PortRange> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    match value {
        Value::Number(_) => port(value).and_then(|port| PortRange::single(port).ok()).into_iter().collect(),
        Value::Array(all) => all
            .iter()
            .flat_map(|each| match each.as_array().map(Vec::as_slice) {
                // An element of a map: key and value.
                Some([key, _]) => ports_of(key),
                _ => ports_of(each),
            })
            .collect(),
        Value::Object(object) => match (object.get("range"), object.get("set"), object.get("elem")) {
            (Some(range), _, _) => {
                let ends = port(&range[0]).zip(port(&range[1]));
                ends.and_then(|(first, last)| PortRange::inclusive(first.max(1), last).ok()).into_iter().collect()
            }
            (_, Some(set), _) => ports_of(set),
            (_, _, Some(elem)) => ports_of(&elem["val"]),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The rules in the output of `iptables-save` or `ip6tables-save`, as `tool` says.
pub fn of_iptables(tool: &str, text: &str) -> Vec<Redirect> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("-A ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            // `! --dport 80` means every other port.
            (at == 0 || words[at - 1] != "!").then(|| words.get(at + 1).copied()).flatten()
        };
        let Some(target) = after("-j").filter(|target| ["DNAT", "REDIRECT", "TPROXY"].contains(target)) else {
            continue;
        };
        let to = ["--to-destination", "--to-ports", "--on-port"].into_iter().find_map(after);
        let to = to.map_or_else(String::new, |to| format!(" to {to}"));
        let rule = format!("{tool} {}: {target}{to}", words[1]);
        let transport = after("-p").and_then(|name| name.parse().ok());
        let named = after("--dport").or_else(|| after("--dports")).unwrap_or("1:65535");
        for span in named.split(',') {
            let (first, last) = span.split_once(':').unwrap_or((span, span));
            let ends = (first.parse::<u16>(), last.parse::<u16>());
            if let (Ok(first), Ok(last)) = ends
                && let Ok(ports) = PortRange::inclusive(first.max(1), last)
            {
                found.push(Redirect { transport, ports, rule: rule.clone() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(redirects: &[Redirect]) -> Vec<(Option<Transport>, String, &str)> {
        redirects.iter().map(|each| (each.transport, each.ports.to_string(), each.rule.as_str())).collect()
    }

    #[test]
    fn rules_of_nftables_are_read() {
        let dport = |protocol: &str, right: Value| json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}});
        let rule = |expressions: Vec<Value>| json!({"rule": {"family": "ip", "table": "nat", "chain": "pre", "expr": expressions}});
        let ruleset = json!({"nftables": [
            {"metainfo": {"version": "1.1.3"}},
            {"set": {"family": "ip", "table": "nat", "name": "web", "elem": [80, {"range": [8000, 8009]}]}},
            rule(vec![dport("tcp", json!(22)), json!({"dnat": {"addr": "10.0.0.2", "port": 2222}})]),
            rule(vec![dport("udp", json!({"set": [53, {"range": [5353, 5354]}]})), json!({"redirect": {"port": 5300}})]),
            rule(vec![dport("tcp", json!("@web")), json!({"dnat": {"addr": "10.0.0.3"}})]),
            rule(vec![json!({"dnat": {"addr": {"map": {
                "key": {"payload": {"protocol": "tcp", "field": "dport"}},
                "data": {"set": [[30080, "10.0.0.4"]]},
            }}}})]),
            rule(vec![dport("tcp", json!(25)), json!({"drop": null})]),
            rule(vec![json!({"masquerade": null})]),
        ]});
        let (tcp, udp) = (Some(Transport::Tcp), Some(Transport::Udp));
        assert_eq!(
            seen(&of_nft(&ruleset.to_string()).unwrap()),
            [
                (tcp, "22".into(), "nftables ip nat pre: dnat to 10.0.0.2:2222"),
                (udp, "53".into(), "nftables ip nat pre: redirect to port 5300"),
                (udp, "5353-5354".into(), "nftables ip nat pre: redirect to port 5300"),
                (tcp, "80".into(), "nftables ip nat pre: dnat to 10.0.0.3"),
                (tcp, "8000-8009".into(), "nftables ip nat pre: dnat to 10.0.0.3"),
                (tcp, "30080".into(), "nftables ip nat pre: dnat"),
            ]
        );
        assert_eq!(of_nft("{}"), None);
    }

    #[test]
    fn rules_of_iptables_are_read() {
        let text = "\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 22 -j DNAT --to-destination 10.0.0.2:22
-A PREROUTING -p udp -m multiport --dports 53,5000:5010 -j REDIRECT --to-ports 5300
-A PREROUTING -p tcp -m tcp ! --dport 80 -j DNAT --to-destination 10.0.0.9
-A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE
COMMIT
";
        let (tcp, udp) = (Some(Transport::Tcp), Some(Transport::Udp));
        assert_eq!(
            seen(&of_iptables("iptables", text)),
            [
                (tcp, "22".into(), "iptables PREROUTING: DNAT to 10.0.0.2:22"),
                (udp, "53".into(), "iptables PREROUTING: REDIRECT to 5300"),
                (udp, "5000-5010".into(), "iptables PREROUTING: REDIRECT to 5300"),
                (tcp, "1-65535".into(), "iptables PREROUTING: DNAT to 10.0.0.9"),
            ]
        );
        assert!(of_iptables("iptables", text)[0].has(Transport::Tcp, 22));
        assert!(!of_iptables("iptables", text)[0].has(Transport::Udp, 22));
    }
}
