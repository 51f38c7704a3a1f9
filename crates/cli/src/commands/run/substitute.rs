//! The ports of a command, in its environment and in its arguments.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use anyhow::Context;
use portkeep::PortList;

/// All ports, comma-separated.
fn comma_list(ports: &PortList) -> String {
    ports.iter().map(|port| port.to_string()).collect::<Vec<_>>().join(",")
}

/// The variables that have the ports.
pub fn environment(ports: &PortList, label: Option<&str>) -> Vec<(String, String)> {
    let mut variables = vec![("PORT".into(), ports.start().to_string()), ("PORTS".into(), comma_list(ports))];
    variables.extend(ports.iter().enumerate().map(|(i, port)| (format!("PORT{i}"), port.to_string())));
    if let Some(label) = label {
        let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = label.chars().map(upper).collect();
        // A variable must not begin with a digit, or no shell can read it.
        let digit = if name.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
        variables.push((format!("{digit}{name}_PORT"), ports.start().to_string()));
    }
    variables
}

/// Replace `{PORT}`, `{PORT0}`, ... and `{PORTS}` by the ports, and `{{PORT}}` by `{PORT}`. Other braces stay as they
/// are.
///
/// # Errors
///
/// If the word names a port that does not exist.
pub fn fill_in(word: &OsStr, ports: Option<&PortList>) -> anyhow::Result<OsString> {
    let mut rest = word.as_bytes();
    let mut filled = Vec::with_capacity(rest.len());
    while let Some(at) = rest.windows(5).position(|window| window == b"{PORT") {
        let (before, from) = rest.split_at(at);
        filled.extend_from_slice(before);
        let inner = from[5..].iter().position(|byte| *byte == b'}').map(|end| &from[5..5 + end]);
        if let Some(inner) = inner
            && (matches!(inner, b"" | b"S") || inner.iter().all(u8::is_ascii_digit))
            && filled.ends_with(b"{")
            && from.get(6 + inner.len()) == Some(&b'}')
        {
            // The outer brace at the beginning is in `filled` already: it stays. The outer brace at the end is left
            // out.
            filled.extend_from_slice(&from[1..6 + inner.len()]);
            rest = &from[7 + inner.len()..];
            continue;
        }
        let value = match inner {
            Some(b"") => Some(wanted(ports)?.start().to_string()),
            Some(b"S") => Some(comma_list(wanted(ports)?)),
            Some(digits) if digits.iter().all(u8::is_ascii_digit) => Some(nth(digits, wanted(ports)?)?.to_string()),
            _ => None,
        };
        match (value, inner) {
            (Some(value), Some(inner)) => {
                filled.extend_from_slice(value.as_bytes());
                rest = &from[5 + inner.len() + 1..];
            }
            _ => {
                filled.extend_from_slice(&from[..5]);
                rest = &from[5..];
            }
        }
    }
    filled.extend_from_slice(rest);
    Ok(OsString::from_vec(filled))
}

fn wanted(ports: Option<&PortList>) -> anyhow::Result<&PortList> {
    ports.context("an argument wants a port by its number, and --ephemeral alone gives none; add --count 1")
}

fn nth(digits: &[u8], ports: &PortList) -> anyhow::Result<u16> {
    let digits = String::from_utf8_lossy(digits);
    let port = digits.parse().ok().and_then(|index| ports.iter().nth(index));
    port.with_context(|| {
        let last = ports.count() - 1;
        format!(
            "an argument has {{PORT{digits}}}, and the last port is {{PORT{last}}}; ask for more ports with --count or --ports"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> PortList {
        "61000-61002".parse().unwrap()
    }

    fn filled(word: &str) -> String {
        fill_in(OsStr::new(word), Some(&three())).unwrap().into_string().unwrap()
    }

    #[test]
    fn arguments_get_the_ports() {
        assert_eq!(filled("127.0.0.1:{PORT}"), "127.0.0.1:61000");
        assert_eq!(filled("{PORT0},{PORT2};{PORTS}"), "61000,61002;61000,61001,61002");
        let list = "443,80,8000-8001".parse().unwrap();
        let word = OsStr::new("{PORT} {PORT1} {PORT3} {PORTS}");
        assert_eq!(fill_in(word, Some(&list)).unwrap(), "80 443 8001 80,443,8000,8001");
        assert_eq!(filled("{PORT"), "{PORT");
        assert_eq!(filled("${PORTABLE} {} {{PORTABLE}}"), "${PORTABLE} {} {{PORTABLE}}");
        assert_eq!(filled("{{PORT1}} {{PORT}}{PORT} {{PORTS}"), "{PORT1} {PORT}61000 {61000,61001,61002");
        assert!(fill_in(OsStr::new("{PORT3}"), Some(&three())).is_err());
        assert!(fill_in(OsStr::new("{PORT}"), None).is_err());
        assert_eq!(fill_in(OsStr::new("${PORTABLE}"), None).unwrap(), "${PORTABLE}");
    }

    #[test]
    fn arguments_need_not_be_text() {
        let word = OsString::from_vec(b"\xff{PORT}\xfe".to_vec());
        let filled = fill_in(&word, Some(&"80".parse().unwrap())).unwrap();
        assert_eq!(filled.into_vec(), b"\xff80\xfe");
    }

    #[test]
    fn the_label_names_a_variable() {
        let name = |label| environment(&"80".parse().unwrap(), Some(label)).pop().unwrap().0;
        assert_eq!(name("http"), "HTTP_PORT");
        assert_eq!(name("my-app.2"), "MY_APP_2_PORT");
        assert_eq!(name("9p"), "_9P_PORT");
    }
}
