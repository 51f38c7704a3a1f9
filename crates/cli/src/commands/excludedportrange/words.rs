//! netsh's syntax: `protocol=tcp startport=40000`, or the values alone in their order. Tags and words can be shortened
//! as long as they are unambiguous. Upper and lower case are the same.

use portkeep::{PortRange, Transport, persistent::Lifetime};

/// The meaning of the words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) protocol: Option<Transport>,
    pub(super) start: Option<u16>,
    pub(super) count: Option<u16>,
    pub(super) store: Option<Lifetime>,
}

/// The tags, in the order of values without tags.
const TAGS: [&str; 4] = ["protocol", "startport", "numberofports", "store"];

/// Read the words; `tags` are those that the command has.
pub(super) fn read(words: &[String], tags: &[&'static str]) -> Result<Parsed, String> {
    let mut said = Parsed::default();
    let mut given: Vec<&str> = Vec::new();
    for word in words {
        let (tag, value) = match word.split_once('=') {
            Some((tag, value)) => (complete(tag, tags).map_err(|why| format!("{word}: {why}"))?, value),
            // As in netsh: a value without a tag is for the first tag that has no value yet.
            None => match tags.iter().find(|tag| !given.contains(tag)) {
                Some(tag) => (*tag, word.as_str()),
                None => return Err(format!("{word}: there is nothing left that this could be")),
            },
        };
        if given.contains(&tag) {
            return Err(format!("{word}: {tag} is given twice"));
        }
        given.push(tag);
        said.set(tag, value).map_err(|why| format!("{word}: {why}"))?;
    }
    Ok(said)
}

/// The only one of the words that begins with `word`.
pub(super) fn complete(word: &str, words: &[&'static str]) -> Result<&'static str, String> {
    let lower = word.to_lowercase();
    let mut fitting = words.iter().filter(|each| !lower.is_empty() && each.starts_with(&lower));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(other)) => Err(format!("{word:?} could be {one} or {other}")),
        _ => Err(format!("{word:?} is not one of {}", words.join(", "))),
    }
}

impl Parsed {
    fn set(&mut self, tag: &str, value: &str) -> Result<(), String> {
        let number = |from: u16| match value.parse::<u16>() {
            Ok(number) if number >= from => Ok(number),
            _ => Err(format!("{tag} is a number from {from} to 65535")),
        };
        match tag {
            "protocol" => {
                self.protocol = Some(match complete(value, &["tcp", "udp"]) {
                    Ok("tcp") => Transport::Tcp,
                    Ok(_) => Transport::Udp,
                    Err(_) => return Err("protocol is tcp or udp".into()),
                });
            }
            "startport" => self.start = Some(number(1)?),
            "numberofports" => self.count = Some(number(1)?),
            _ => {
                self.store = Some(match complete(value, &["active", "persistent"]) {
                    Ok("active") => Lifetime::UntilReboot,
                    Ok(_) => Lifetime::UntilDeleted,
                    Err(_) => return Err("store is active (until the next reboot) or persistent".into()),
                });
            }
        }
        Ok(())
    }

    /// The block, for a command that requires one.
    pub(super) fn block(self) -> Result<(Transport, PortRange), String> {
        let missing = |tag: &str| format!("{tag} is missing");
        let protocol = self.protocol.ok_or_else(|| missing(TAGS[0]))?;
        let start = self.start.ok_or_else(|| missing(TAGS[1]))?;
        let count = self.count.ok_or_else(|| missing(TAGS[2]))?;
        Ok((protocol, PortRange::new(start, count).map_err(|error| error.to_string())?))
    }
}

/// The tags of `add` and `delete`.
pub(super) const BLOCK: &[&str] = &TAGS;
/// The tags of `show`.
pub(super) const SHOW: &[&str] = &[TAGS[0], TAGS[3]];

/// The words after `netsh`: a context, a verb, its object, and the rest. Gives the verb and the rest.
pub(super) fn behind_netsh(words: &[String]) -> Result<(&'static str, &[String]), String> {
    let mut rest = words;
    for context in [&["interface"][..], &["ipv4", "ipv6"]] {
        if let Some(word) = rest.first()
            && complete(word, context).is_ok()
        {
            rest = &rest[1..];
        }
    }
    let [verb, what, rest @ ..] = rest else {
        return Err("only `netsh interface ipv4 show|add|delete excludedportrange` is understood here".into());
    };
    let verb = complete(verb, &["show", "add", "delete"])?;
    complete(what, &["excludedportrange"])?;
    Ok((verb, rest))
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn add(text: &str) -> Result<String, String> {
        let said = read(&words(text), BLOCK)?;
        let (protocol, ports) = said.block()?;
        Ok(format!("{ports}/{protocol} {:?}", said.store))
    }

    #[test]
    fn tags_and_places_and_abbreviations_say_the_same() {
        let persistent = "40000-40010/tcp Some(UntilDeleted)";
        for text in [
            "protocol=tcp startport=40000 numberofports=11 store=persistent",
            "store=persistent numberofports=11 startport=40000 protocol=tcp",
            "tcp 40000 11 persistent",
            "tcp startport=40000 11 persistent",
            "prot=TCP Start=40000 num=11 sto=PERS",
            "p=t sta=40000 n=11 sto=p",
        ] {
            assert_eq!(add(text).as_deref(), Ok(persistent), "{text}");
        }
        assert_eq!(add("udp 7 1").as_deref(), Ok("7/udp None"));
        assert_eq!(add("udp 7 1 active").as_deref(), Ok("7/udp Some(UntilReboot)"));
    }

    proptest::proptest! {
        /// The order of the tags does not matter, and each tag can be shortened.
        #[test]
        fn any_order_and_any_clear_beginning_will_do(
            order in proptest::sample::subsequence(vec![0usize, 1, 2, 3], 4).prop_shuffle(),
            cut in 0usize..5, start in 1u16.., udp: bool, active: bool,
        ) {
            let shortest = [1, 3, 1, 3];
            let values = [
                if udp { "udp".to_owned() } else { "tcp".into() },
                start.to_string(),
                "1".into(),
                if active { "active".into() } else { "persistent".into() },
            ];
            let words: Vec<String> = order
                .into_iter()
                .map(|tag| {
                    let length = (shortest[tag] + cut).min(TAGS[tag].len());
                    format!("{}={}", &TAGS[tag][..length], values[tag])
                })
                .collect();
            let said = read(&words, BLOCK).unwrap();
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            assert_eq!(said.block(), Ok((transport, PortRange::single(start).unwrap())));
            assert_eq!(said.store, Some(if active { Lifetime::UntilReboot } else { Lifetime::UntilDeleted }));
        }

        #[test]
        fn no_word_is_too_strange(words in proptest::collection::vec(".{0,12}", 0..6)) {
            let _ = read(&words, BLOCK).map(Parsed::block);
            let _ = behind_netsh(&words);
        }
    }

    #[test]
    fn errors_are_reported() {
        for (text, why) in [
            ("", "protocol is missing"),
            ("tcp", "startport is missing"),
            ("tcp 40000", "numberofports is missing"),
            ("sctp 1 1", "sctp: protocol is tcp or udp"),
            ("tcp 0 1", "0: startport is a number from 1 to 65535"),
            ("tcp 1 70000", "70000: numberofports is a number from 1 to 65535"),
            ("tcp 65535 2", "past 65535"),
            ("st=1", "st=1: \"st\" could be startport or store"),
            ("port=1", "port=1: \"port\" is not one of protocol, startport, numberofports, store"),
            ("tcp protocol=udp", "protocol=udp: protocol is given twice"),
            ("tcp 1 1 active more", "more: there is nothing left that this could be"),
            ("tcp 1 1 store=never", "store=never: store is active (until the next reboot) or persistent"),
            ("=1", "=1: \"\" is not one of"),
        ] {
            let wrong = add(text).unwrap_err();
            assert!(wrong.contains(why), "{text}: {wrong}");
        }
        assert!(read(&words("tcp startport=1"), SHOW).is_err());
    }

    #[test]
    fn pasted_commands_are_understood() {
        for text in [
            "interface ipv4 add excludedportrange protocol=tcp",
            "int ipv4 add ex protocol=tcp",
            "int ipv6 add excluded protocol=tcp",
            "ADD excludedportrange protocol=tcp",
        ] {
            let words = words(text);
            assert_eq!(behind_netsh(&words), Ok(("add", &words[words.len() - 1..])), "{text}");
        }
        assert!(behind_netsh(&words("int ipv4 show dynamicport tcp")).is_err());
        assert!(behind_netsh(&words("int ip")).is_err());
    }
}
