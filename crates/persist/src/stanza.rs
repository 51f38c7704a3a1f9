//! The TOML form of declarations: `[[reservation]]` stanzas.
//!
//! A stanza has a name and ports (`ports`, `tcp`, `udp` or `both`). The keys of [`WHO`] name its audience; without one,
//! the audience is the administrators. All mistakes of a file are reported. A stanza with a mistake is left out, and
//! the others count.

use std::{ops::Range, path::Path};

use portkeep_core::{ParsePortsError, PortList, Ports, Transports, persistent::check_description};
use toml::{Spanned, de::DeTable, de::DeValue};

use crate::{
    Account, Audience, Conflict, Declaration, Declared, Diagnostic, Name, Origin, Services,
    diagnostic::Report,
    document::{self, Entry, integer, kind},
    merge::merge,
};

/// The keys that name the audience.
const WHO: [&str; 5] = ["user", "group", "unit", "cgroup", "administrators"];
/// All keys of a stanza.
pub const KEYS: [&str; 15] = [
    "name",
    "ports",
    "tcp",
    "udp",
    "both",
    "user",
    "group",
    "unit",
    "cgroup",
    "administrators",
    "strict",
    "ephemeral",
    "around",
    "force",
    "description",
];

/// A declaration, and the first line of its stanza.
pub(crate) type Read = (Declaration, usize);

/// The declarations of a file, and the complaints about its other stanzas.
pub(crate) fn read(file: &Path, text: &str, services: &Services) -> (Vec<Read>, Vec<Diagnostic>) {
    let mut report = Report::new(file, text);
    let mut found = Vec::new();
    let document = document::parse(&mut report, text).unwrap_or_default();
    for entry in document::entries(&document) {
        match (entry.key(), entry.value().get_ref()) {
            ("reservation", DeValue::Array(array)) => {
                for element in array {
                    match element.get_ref() {
                        DeValue::Table(table) => {
                            let at = element.span();
                            let line = report.place(at.start).0;
                            found.extend(stanza(&mut report, table, at, services).map(|read| (read, line)));
                        }
                        other => report.advise(element.span(), stanza_wanted(other), HEADER),
                    }
                }
            }
            ("reservation", DeValue::Table(_)) => {
                report.advise(entry.key_at(), "`[reservation]` is one table, not a list of them", HEADER);
            }
            ("reservation", other) => report.advise(entry.at(), stanza_wanted(other), HEADER),
            (key, _) if KEYS.contains(&key) => {
                report.advise(entry.key_at(), format!("`{key}` is before the first stanza"), HEADER);
            }
            _ => entry.unknown(&mut report, ["reservation"]),
        }
    }
    (found, report.into_diagnostics())
}

const HEADER: &str = "each reservation begins with the line `[[reservation]]`";

fn stanza_wanted(value: &DeValue<'_>) -> String {
    format!("`reservation` wants stanzas, not {}", kind(value))
}

/// One stanza, or `None` and complaints.
fn stanza(report: &mut Report<'_>, table: &DeTable<'_>, at: Range<usize>, services: &Services) -> Option<Declaration> {
    let before = report.count();
    let mut name = None;
    let mut block: Option<(Entry<'_, '_>, Transports, PortList)> = None;
    let mut audience = Vec::new();
    let mut strict = false;
    let mut ephemeral: Option<Entry<'_, '_>> = None;
    let mut around = false;
    let mut force = false;
    let mut description = String::new();
    let mut ports_named = false;

    for entry in document::entries(table) {
        let key = entry.key();
        match key {
            "name" => {
                name = entry.string(report).and_then(|text| {
                    let read = text.parse::<Name>();
                    read.map_err(|error| report.say(entry.at(), error.to_string())).ok()
                });
            }
            "ports" | "tcp" | "udp" | "both" => {
                ports_named = true;
                let said = match key {
                    "tcp" => Some(Transports::Tcp),
                    "udp" => Some(Transports::Udp),
                    "both" => Some(Transports::Both),
                    _ => None,
                };
                let Some((list, transports)) = ports(report, &entry, said, services) else { continue };
                block = match block {
                    None => Some((entry, transports, list)),
                    // `tcp` and `udp` with the same ports mean the same as `both`.
                    Some((first, one, same)) if same == list => {
                        Some((first, if one == transports { one } else { Transports::Both }, list))
                    }
                    Some((first, ..)) => {
                        report.advise(
                            entry.key_at(),
                            format!("`{key}` and `{}` name different ports in one stanza", first.key()),
                            "write two stanzas, each with a name of its own",
                        );
                        Some((first, transports, list))
                    }
                };
            }
            _ if WHO.contains(&key) => {
                let named = audience_of(report, &entry);
                audience.extend(named.into_iter().map(|one| (entry, one)));
            }
            "strict" => strict = entry.boolean(report).unwrap_or_default(),
            "ephemeral" => ephemeral = entry.boolean(report).unwrap_or_default().then_some(entry),
            "around" => around = entry.boolean(report).unwrap_or_default(),
            "force" => force = entry.boolean(report).unwrap_or_default(),
            "description" => {
                if let Some(text) = entry.string(report) {
                    match check_description(text) {
                        Ok(()) => text.clone_into(&mut description),
                        Err(message) => report.say(entry.at(), message),
                    }
                }
            }
            _ => entry.unknown(report, KEYS),
        }
    }

    if !table.contains_key("name") {
        report.advise(at.clone(), "this reservation has no `name`", "names are what commands and listings call it by");
    }
    if !ports_named {
        report.advise(
            at,
            "this reservation names no ports",
            "write `ports = \"80,443\"`, `udp = \"5000-5019\"` or `both = \"domain\"`",
        );
    }
    let audience = together(report, audience)?;
    if let Some(entry) = &ephemeral
        && let Some(why) = Declaration::no_range(block.as_ref().map(|(.., list)| list), &audience, strict)
    {
        report.say(entry.key_at(), format!("a private ephemeral range {why}"));
    }
    // A stanza with a mistake is left out as a whole. Otherwise a mistake in `user` would give the ports to the
    // administrators alone.
    if report.count() != before {
        return None;
    }
    let (_, transports, ports) = block?;
    let ephemeral = ephemeral.is_some();
    Some(Declaration { name: name?, ports, transports, audience, strict, ephemeral, around, force, description })
}

/// The alternative to asking for port 0.
const ANY: &str = "`portkeep persist add --any N` chooses once and keeps the numbers";
const PORTS: &str = "a port, a text such as \"80,443\", \"5000-5019\" or \"domain\", or a list of these";

/// The ports of a number, a text (rule L1), or a list of these. `said`: the transports that the key names.
fn ports(
    report: &mut Report<'_>,
    entry: &Entry<'_, '_>,
    said: Option<Transports>,
    services: &Services,
) -> Option<(PortList, Transports)> {
    let values = match entry.value().get_ref() {
        DeValue::Array(array) => array.iter().collect(),
        _ => vec![entry.value()],
    };
    let mut words = Vec::new();
    for value in values {
        let at = value.span();
        words.push(match value.get_ref() {
            number @ DeValue::Integer(_) => match integer(number).and_then(|number| u16::try_from(number).ok()) {
                Some(0) => {
                    report.advise(at, "port 0 means \"any\"; a persistent reservation names its ports", ANY);
                    return None;
                }
                Some(port) => port.to_string(),
                None => {
                    report.say(at, "a port is a number from 1 to 65535");
                    return None;
                }
            },
            DeValue::String(text) => text.to_string(),
            _ => {
                entry.wrong_kind(report, PORTS);
                return None;
            }
        });
    }
    let read = Ports::resolve(&words.join(","), said, services);
    read.map_err(|error| wrong_ports(report, entry.at(), &error)).ok()
}

pub(crate) fn wrong_ports(report: &mut Report<'_>, at: Range<usize>, error: &ParsePortsError) {
    report.add(at, error.to_string(), error.help().map(str::to_owned));
}

/// The audience of all keys of [`WHO`]. If there is a mistake, it is reported, and the result is `None`.
fn together(report: &mut Report<'_>, named: Vec<(Entry<'_, '_>, Audience)>) -> Option<Audience> {
    let last = named.last().map(|(entry, _)| *entry);
    let audience = Audience::any_of(named.into_iter().map(|(_, audience)| audience));
    match (audience, last) {
        (Ok(audience), _) => Some(audience),
        (Err(error), Some(entry)) => {
            let help = "users, groups and units can be named together; administrators may use the ports in any case";
            report.advise(entry.key_at(), error.to_string(), help);
            None
        }
        (Err(_), None) => None,
    }
}

/// The audiences that one of the keys of [`WHO`] names. `user`, `group` and `unit` can name several.
fn audience_of(report: &mut Report<'_>, entry: &Entry<'_, '_>) -> Vec<Audience> {
    let values = match (entry.key(), entry.value().get_ref()) {
        ("user" | "group" | "unit", DeValue::Array(array)) => array.iter().collect(),
        _ => vec![entry.value()],
    };
    if values.is_empty() {
        report.say(entry.at(), format!("`{}` is an empty list", entry.key()));
    }
    values.into_iter().filter_map(|value| one_of(report, entry, value)).collect()
}

fn one_of(report: &mut Report<'_>, entry: &Entry<'_, '_>, value: &Spanned<DeValue<'_>>) -> Option<Audience> {
    let read = match (entry.key(), value.get_ref()) {
        ("administrators", _) => {
            return match entry.boolean(report)? {
                true => Some(Audience::Administrators),
                false => {
                    let help = "administrators may use every reservation; leave the key out";
                    report.advise(entry.at(), "`administrators` can only be true", help);
                    None
                }
            };
        }
        ("user", _) => return account(report, "user", value).map(Audience::User),
        ("group", _) => return account(report, "group", value).map(Audience::Group),
        ("unit", DeValue::String(name)) => Audience::unit(name),
        ("unit", _) => {
            entry.wrong_kind(report, "a text in quotes, or a list of these");
            return None;
        }
        _ => Audience::cgroup(entry.string(report)?),
    };
    read.map_err(|error| report.add(value.span(), error.to_string(), error.correction().map(ToString::to_string))).ok()
}

/// A user or group by number or name.
pub(crate) fn account(report: &mut Report<'_>, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Account> {
    let read = match value.get_ref() {
        DeValue::String(text) => text.parse(),
        number @ DeValue::Integer(_) => Account::id(integer(number).unwrap_or(-1)),
        other => {
            report.say(value.span(), format!("`{key}` wants a name in quotes or a number, not {}", kind(other)));
            return None;
        }
    };
    read.map_err(|error| report.say(value.span(), error.to_string())).ok()
}

/// Declarations as stanzas, in the order given. The text can be used as a drop-in and be read by [`import`].
pub fn export<'a>(declarations: impl IntoIterator<Item = &'a Declaration>) -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "# Persistent reservations, as `portkeep persist export` writes them. They can be dropped into\n# /etc/portkeep/ports.d/ or read by `portkeep persist import`.\n",
    );
    for declaration in declarations {
        let mut key = |key: &str, value: toml::Value| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{key} = {value}");
        };
        let value = |audience: &Audience| match audience {
            Audience::Administrators => Some(toml::Value::from(true)),
            Audience::User(Account::Id(id)) | Audience::Group(Account::Id(id)) => Some(i64::from(*id).into()),
            Audience::User(Account::Name(name)) | Audience::Group(Account::Name(name)) => Some(name.as_str().into()),
            Audience::Unit(name) | Audience::Cgroup(name) => Some(name.as_str().into()),
            Audience::Several(_) => None,
        };
        let ports = match &declaration.ports {
            one if one.count() == 1 => i64::from(one.start()).into(),
            list => list.to_string().into(),
        };
        let transports = match declaration.transports {
            Transports::Tcp => "tcp",
            Transports::Udp => "udp",
            Transports::Both => "both",
        };
        key("\n[[reservation]]\nname", declaration.name.as_str().into());
        key(transports, ports);
        for kind in WHO {
            let of_kind = declaration.audience.each().iter().filter(|one| one.kind() == kind).filter_map(value);
            match of_kind.collect::<Vec<_>>() {
                none if none.is_empty() => {}
                one if one.len() == 1 => key(kind, one[0].clone()),
                list => key(kind, list.into()),
            }
        }
        if declaration.strict {
            key("strict", true.into());
        }
        if declaration.ephemeral {
            key("ephemeral", true.into());
        }
        if declaration.around {
            key("around", true.into());
        }
        if declaration.force {
            key("force", true.into());
        }
        if !declaration.description.is_empty() {
            key("description", declaration.description.as_str().into());
        }
    }
    text
}

/// The declarations of a text in stanza form, all or none. Complaints name the text as `file`.
///
/// # Errors
///
/// Everything that is wrong with it. Two stanzas with the same name or port are an error, too.
pub fn import(file: &Path, text: &str, services: &Services) -> Result<Vec<Declaration>, Vec<Diagnostic>> {
    // The export of a store may be larger than a drop-in, but it has a limit, too.
    if text.len() > 16 << 20 {
        return Err(vec![Diagnostic::whole(file, "is larger than 16 MiB; it was not read")]);
    }
    let (read, mut diagnostics) = read(file, text, services);
    diagnostics.extend(clashes(file, &read));
    if diagnostics.is_empty() {
        Ok(read.into_iter().map(|(declaration, _)| declaration).collect())
    } else {
        Err(diagnostics)
    }
}

/// The complaints about stanzas of one file that have the same name or port.
fn clashes(file: &Path, read: &[Read]) -> Vec<Diagnostic> {
    let declared = read.iter().map(|(declaration, line)| Declared {
        declaration: declaration.clone(),
        origin: Origin::File { path: file.to_owned(), line: *line },
    });
    merge([], declared).conflicts.iter().filter_map(Conflict::diagnostic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> (Vec<String>, Vec<String>) {
        let services = Services::parse("https 443/tcp\ndomain 53/tcp\ndomain 53/udp\nodd 1/tcp\nodd 2/udp\n");
        let (found, wrong) = read(Path::new("f"), text, &services);
        let found =
            found.iter().map(|(d, line)| format!("{line}: {} {}/{} {}", d.name, d.ports, d.transports, d.audience));
        (found.collect(), wrong.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn stanzas_say_what_where_and_who() {
        let (found, wrong) = read_all(
            r#"# A comment.
[[reservation]]
name = "web"
tcp = "https"
unit = "nginx.service"

[[reservation]]
name = "dns"
both = "domain"
user = 53

  [[reservation]]
name = "rtp"
udp = "5000-5019"
group = "voice"
strict = true
around = true
force = true
description = "media"

[[reservation]]
name = "twice"
tcp = 7
udp = "7"
cgroup = "/system.slice"

[[reservation]]
name = "admin"
tcp = 0x50
administrators = true

[[reservation]]
name = "list"
ports = "https,8443"

[[reservation]]
name = "both"
ports = [8000, "8081-8089,domain/tcp+udp"]

[[reservation]]
name = "one"
udp = [7001, 7000]
"#,
        );
        assert_eq!(wrong, [""; 0]);
        assert_eq!(
            found,
            [
                "2: web 443/tcp unit nginx.service",
                "7: dns 53/tcp+udp user 53",
                "12: rtp 5000-5019/udp group voice",
                "21: twice 7/tcp+udp cgroup /system.slice",
                "27: admin 80/tcp administrators",
                "32: list 443,8443/tcp administrators",
                "36: both 53,8000,8081-8089/tcp+udp administrators",
                "40: one 7000-7001/udp administrators",
            ]
        );
    }

    /// Each stanza body has one mistake. Its complaint begins with this place and this text.
    #[test]
    fn every_mistake_is_pointed_at_and_most_come_with_advice() {
        let cases = [
            ("name = \"a\"\ntcp = 1\nstrickt = true", "4:1: unknown key `strickt`\nhelp: did you mean `strict`?"),
            ("tcp = 1", "1:1: this reservation has no `name`"),
            ("name = \"a\"", "1:1: this reservation names no ports"),
            ("name = \"-a\"\ntcp = 1", "2:8: a name starts with a letter or a digit, not with '-'"),
            ("name = 7\ntcp = 1", "2:8: `name` wants a text in quotes, not a number"),
            ("name = \"a\"\ntcp = 0", "3:7: port 0 means \"any\""),
            ("name = \"a\"\ntcp = 65536", "3:7: a port is a number from 1 to 65535"),
            ("name = \"a\"\ntcp = -1", "3:7: a port is a number from 1 to 65535"),
            ("name = \"a\"\ntcp = \"0-5\"", "3:7: \"0-5\": port 0 cannot be part"),
            ("name = \"a\"\ntcp = \"9-8\"", "3:7: \"9-8\" ends before it begins"),
            ("name = \"a\"\ntcp = \"1-70000\"", "3:7: \"1-70000\" is not a port or a range"),
            ("name = \"a\"\ntcp = [1, [2]]", "3:7: `tcp` wants a port, a text such as \"80,443\""),
            ("name = \"a\"\ntcp = true", "3:7: `tcp` wants a port, a text such as \"80,443\""),
            ("name = \"a\"\ntcp = []", "3:7: a port is missing\nhelp: write 8080"),
            ("name = \"a\"\ntcp = [1, \"2,1\"]", "3:7: port 1 is in the list twice"),
            ("name = \"a\"\ntcp = [1, \"x\"]", "3:7: \"x\" is neither a port"),
            ("name = \"a\"\nports = \"1/tcp,2/udp\"", "3:9: \"1/tcp,2/udp\" names different transports"),
            ("name = \"a\"\nports = [\"1/tcp\", \"2/udp\"]", "3:9: \"1/tcp,2/udp\" names different transports"),
            ("name = \"a\"\nports = 1\ntcp = 2", "4:1: `tcp` and `ports` name different ports"),
            (
                "name = \"a\"\ntcp = \"htps\"",
                "3:7: \"htps\" is neither a port, nor a range, nor a service of /etc/services\nhelp: did you mean \"https\"?",
            ),
            ("name = \"a\"\nudp = \"https\"", "3:7: \"https\" is only 443/tcp in /etc/services\nhelp: write 443"),
            ("name = \"a\"\nboth = \"https\"", "3:8: \"https\" is only 443/tcp in /etc/services\nhelp: write 443"),
            ("name = \"a\"\nboth = \"odd\"", "3:8: \"odd\" is 1/tcp and 2/udp in /etc/services\nhelp: name them apart"),
            (
                "name = \"a\"\ntcp = \"80/udp\"",
                "3:7: \"80/udp\" says udp, and tcp is said beside it\nhelp: say the transport once",
            ),
            (
                "name = \"a\"\ntcp = 1\nudp = 2",
                "4:1: `udp` and `tcp` name different ports in one stanza\nhelp: write two",
            ),
            ("name = \"a\"\ntcp = 1\nuser = 1\ncgroup = \"/b\"", "5:1: cgroup /b cannot be one of several"),
            ("name = \"a\"\ntcp = 1\nuser = 1\nadministrators = true", "5:1: administrators cannot be one of several"),
            ("name = \"a\"\ntcp = 1\nuser = [1, 2, 3]\ngroup = [4, 5]", "5:1: at most 4 users, groups and units"),
            ("name = \"a\"\ntcp = 1\nunit = [\"a.service\", \"a.service\"]", "4:1: unit a.service is named twice"),
            ("name = \"a\"\ntcp = 1\nunit = []", "4:8: `unit` is an empty list"),
            ("name = \"a\"\ntcp = 1\nunit = [\"a.service\", 7]", "4:8: `unit` wants a text in quotes, or a list"),
            (
                "name = \"a\"\ntcp = 1\nunit = \"b\"",
                "4:8: \"b\" is not the name of a service or scope: it ends in neither .service nor .scope\nhelp: write \"b.service\"",
            ),
            (
                "name = \"a\"\ntcp = 1\nunit = \"b.slice\"",
                "4:8: \"b.slice\" is a slice; only services and scopes can be named here\nhelp: for a cgroup",
            ),
            ("name = \"a\"\ntcp = 1\ncgroup = \"b\"", "4:10: \"b\" is not absolute"),
            ("name = \"a\"\ntcp = 1\nuser = -1", "4:8: -1 is not a user or group"),
            ("name = \"a\"\ntcp = 1\nuser = true", "4:8: `user` wants a name in quotes or a number, not true or false"),
            ("name = \"a\"\ntcp = 1\nadministrators = false", "4:18: `administrators` can only be true"),
            (
                "name = \"a\"\ntcp = 1\nephemeral = true",
                "4:1: a private ephemeral range needs a user, group, unit or cgroup that it is for",
            ),
            (
                "name = \"a\"\ntcp = 1\nuser = 7\nephemeral = true\nstrict = true",
                "5:1: a private ephemeral range cannot be `strict` as well: only sockets that are not associated draw from it",
            ),
            (
                "name = \"a\"\ntcp = [1, 3]\nuser = 7\nephemeral = true",
                "5:1: a private ephemeral range has to be one block, not several",
            ),
            ("name = \"a\"\ntcp = 1\nstrict = 1", "4:10: `strict` wants true or false, not a number"),
            ("name = \"a\"\ntcp = 1\ndescription = \"a\\nb\"", "4:15: a description is one line of text"),
            ("name = \"a\"\ntcp = 1\ntcp = 2", "4:1: not TOML: duplicate key"),
            ("name = \"a\"\ntcp = ", "3:7: not TOML: "),
        ];
        for (body, begin) in cases {
            let (found, wrong) = read_all(&format!("[[reservation]]\n{body}"));
            assert_eq!(found, [""; 0], "{body}");
            assert_eq!(wrong.len(), 1, "{body}: {wrong:?}");
            assert!(wrong[0].starts_with(&format!("f:{begin}")), "{body}:\n{}\ninstead of\n{begin}", wrong[0]);
        }
    }

    #[test]
    fn all_mistakes_are_reported_and_the_other_stanzas_stay() {
        let (found, wrong) = read_all(
            "title = 1\n[[reservation]]\nname = \"\"\ntpc = 1\nuser = \"\"\n[[reservation]]\nname = \"good\"\ntcp = 1\n[other]\n",
        );
        assert_eq!(found, ["6: good 1/tcp administrators"]);
        let places: Vec<String> = wrong.iter().map(|w| w.split(": ").next().unwrap().to_owned()).collect();
        assert_eq!(places, ["f:1:1", "f:2:1", "f:3:8", "f:4:1", "f:5:8", "f:9:2"], "{wrong:#?}");
        let (_, wrong) = read_all("[reservation]\nname = \"a\"");
        assert!(wrong[0].contains("not a list"), "{wrong:?}");
        let (_, wrong) = read_all("name = \"a\"");
        assert!(wrong[0].contains("before the first stanza"), "{wrong:?}");
        let (_, wrong) = read_all("a = \nb = \n[[reservation]\n");
        assert!(wrong.len() >= 3, "every syntax error: {wrong:?}");
    }

    #[test]
    fn an_import_is_all_or_nothing() {
        let import = |text: &str| import(Path::new("-"), text, &Services::default());
        let good = "[[reservation]]\nname = \"a\"\ntcp = 1\n";
        assert_eq!(import(good).unwrap().len(), 1);
        assert!(import(&format!("{good}[[reservation]]\nname = \"b\"\ntcp = 0\n")).is_err());
        let twice = import(&format!("{good}{good}")).unwrap_err();
        assert_eq!(twice[0].to_string().lines().next(), Some("-:4:1: the name `a` is used by -:1"));
    }
}
