//! Lists of ports, and the one way in which people write ports (rules L1 and L3).
//!
//! A text is a comma list of numbers, ranges `a-b` and names of /etc/services: `80,443`, `http,8000-8099`. A list can
//! end with its transport: `/tcp`, `/udp` or `/tcp+udp`.

use std::{fmt, iter::FlatMap, ops::RangeInclusive, slice, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ParsePortsError, PortRange, PortSet, Services, Transports, shown};

/// The ports of a reservation: one block or several.
///
/// The blocks are in ascending order, and no two share a port or are neighbours: `81,80` is the block `80-81`. The
/// order in which the ports were written does not matter. All ports are in host byte order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortList {
    blocks: Vec<PortRange>,
}

impl PortList {
    /// The largest number of blocks of a list. Each block is a reservation in the kernel.
    pub const MOST_BLOCKS: usize = 64;

    /// The list of these blocks, in any order.
    ///
    /// # Errors
    ///
    /// If there is no block, a port is there twice, or there are more than [`PortList::MOST_BLOCKS`] that are not neighbours.
    pub fn new(blocks: impl IntoIterator<Item = PortRange>) -> Result<Self, ParsePortsError> {
        let mut sorted: Vec<PortRange> = blocks.into_iter().collect();
        sorted.sort_unstable();
        let mut blocks: Vec<PortRange> = Vec::new();
        for next in sorted {
            match blocks.last_mut() {
                Some(last) if last.overlaps(next) => {
                    let message = format!("port {} is in the list twice", next.start());
                    return Err(ParsePortsError::new(message, "name each port once".to_owned()));
                }
                Some(last) if u32::from(last.last()) + 1 == u32::from(next.start()) => {
                    *last = PortRange::inclusive(last.start(), next.last())
                        .map_err(|error| ParsePortsError::new(error.to_string(), None))?;
                }
                _ => blocks.push(next),
            }
        }
        if blocks.is_empty() {
            return Err(ParsePortsError::new("no port is named", "write 8080, 8080-8089 or 80,443".to_owned()));
        }
        if blocks.len() > Self::MOST_BLOCKS {
            let message = format!("a list has at most {} blocks, this one has {}", Self::MOST_BLOCKS, blocks.len());
            return Err(ParsePortsError::new(message, "make several reservations".to_owned()));
        }
        Ok(Self { blocks })
    }

    fn of_words(words: &[&str], transports: Option<Transports>, services: &Services) -> Result<Self, ParsePortsError> {
        let each = words.iter().map(|word| block(word, transports, services));
        Self::new(each.collect::<Result<Vec<_>, _>>()?)
    }

    /// The blocks, lowest first; at least one.
    pub fn blocks(&self) -> &[PortRange] {
        &self.blocks
    }

    /// The block, if the list has only one.
    pub fn as_block(&self) -> Option<PortRange> {
        match self.blocks.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// The first block.
    pub fn first(&self) -> PortRange {
        self.blocks[0]
    }

    /// The first port.
    pub fn start(&self) -> u16 {
        self.first().start()
    }

    /// The last port.
    pub fn last(&self) -> u16 {
        self.blocks[self.blocks.len() - 1].last()
    }

    /// How many ports, in all blocks.
    pub fn count(&self) -> u16 {
        // The sum fits: no port is in the list twice, and 0 is not in it.
        self.blocks.iter().map(|block| block.count()).sum()
    }

    /// Whether a port is in one of the blocks.
    pub fn contains(&self, port: u16) -> bool {
        self.blocks.iter().any(|block| block.contains(port))
    }

    /// Whether the two share a port.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.common(other).is_some()
    }

    /// The first run of ports that both have.
    pub fn common(&self, other: &Self) -> Option<PortRange> {
        self.blocks.iter().find_map(|one| other.blocks.iter().find_map(|another| one.common(*another)))
    }

    /// The ports, lowest first.
    pub fn iter(&self) -> <&Self as IntoIterator>::IntoIter {
        self.into_iter()
    }
}

/// The block of one word.
fn block(word: &str, transports: Option<Transports>, services: &Services) -> Result<PortRange, ParsePortsError> {
    let word = word.trim();
    if word.is_empty() {
        return Err(ParsePortsError::new("a port is missing", "write 8080, 8080-8089 or 80,443".to_owned()));
    }
    let numeric = |c: char| c.is_ascii_digit() || c.is_whitespace() || "-:".contains(c);
    if word.chars().all(numeric) { word.parse() } else { services.block(word, transports) }
}

impl From<PortRange> for PortList {
    fn from(block: PortRange) -> Self {
        Self { blocks: vec![block] }
    }
}

impl From<&PortList> for PortSet {
    fn from(list: &PortList) -> Self {
        list.blocks.iter().copied().collect()
    }
}

impl<'a> IntoIterator for &'a PortList {
    type Item = u16;
    type IntoIter = FlatMap<slice::Iter<'a, PortRange>, RangeInclusive<u16>, fn(&PortRange) -> RangeInclusive<u16>>;

    fn into_iter(self) -> Self::IntoIter {
        self.blocks.iter().flat_map(|block| block.iter())
    }
}

impl PartialEq<PortRange> for PortList {
    fn eq(&self, block: &PortRange) -> bool {
        self.as_block() == Some(*block)
    }
}

/// `80,443,8000-8099`.
impl fmt::Display for PortList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, block) in self.blocks.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{block}")?;
        }
        Ok(())
    }
}

/// Numbers and ranges; names require [`Ports::parse`].
impl FromStr for PortList {
    type Err = ParsePortsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.split(',').map(str::parse).collect::<Result<Vec<_>, _>>()?)
    }
}

impl TryFrom<String> for PortList {
    type Error = ParsePortsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortList> for String {
    fn from(list: PortList) -> Self {
        list.to_string()
    }
}

/// A list of ports, and its transports if the text names them: `80,443`, `domain/udp`, `5000-5019/tcp+udp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The ports.
    pub list: PortList,
    /// The transports, if the text says them.
    pub transports: Option<Transports>,
}

impl Ports {
    /// Read a text. A transport after one of the ports applies to the whole list. Without a transport, a name must have
    /// the same port in all transports that know it.
    ///
    /// # Errors
    ///
    /// If it is no list of ports, it names several transports, or a name is not one port in the transport.
    pub fn parse(text: &str, services: &Services) -> Result<Self, ParsePortsError> {
        let (words, transports) = split(text)?;
        Ok(Self { list: PortList::of_words(&words, transports, services)?, transports })
    }

    /// The same, if transports can also be named beside the text. If neither names them, it is TCP.
    ///
    /// # Errors
    ///
    /// As [`Ports::parse`], and if the text says other transports than `beside`.
    pub fn resolve(
        text: &str,
        beside: Option<Transports>,
        services: &Services,
    ) -> Result<(PortList, Transports), ParsePortsError> {
        let (words, said) = split(text)?;
        let transports = match (said, beside) {
            (Some(said), Some(beside)) if said != beside => {
                let message = format!("\"{}\" says {said}, and {beside} is said beside it", shown(text));
                return Err(ParsePortsError::new(message, "say the transport once".to_owned()));
            }
            (said, beside) => said.or(beside).unwrap_or(Transports::Tcp),
        };
        Ok((PortList::of_words(&words, Some(transports), services)?, transports))
    }
}

/// The words of a list, and the transports of all of them.
fn split(text: &str) -> Result<(Vec<&str>, Option<Transports>), ParsePortsError> {
    let (mut words, mut transports) = (Vec::new(), None);
    for word in text.split(',') {
        let (ports, said) = split_transports(word)?;
        words.push(ports);
        match (transports, said) {
            (Some(one), Some(other)) if one != other => {
                let message = format!("\"{}\" names different transports; a list has the same for all", shown(text));
                return Err(ParsePortsError::new(message, "make a reservation for each".to_owned()));
            }
            (None, said) => transports = said,
            (Some(_), _) => {}
        }
    }
    Ok((words, transports))
}

/// The word before a slash, and the transports behind it.
///
/// # Errors
///
/// If the text after the slash is no transport.
pub fn split_transports(word: &str) -> Result<(&str, Option<Transports>), ParsePortsError> {
    let Some((ports, transports)) = word.rsplit_once('/') else { return Ok((word, None)) };
    match transports.trim().parse() {
        Ok(transports) => Ok((ports, Some(transports))),
        Err(why) => Err(ParsePortsError::new(format!("\"{}\": {why}", shown(word.trim())), None)),
    }
}

/// `80,443/tcp`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transports {
            Some(transports) => write!(f, "{}/{transports}", self.list),
            None => self.list.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let services = Services::parse(
            "http 80/tcp www\nhttps 443/tcp\ndomain 53/tcp\ndomain 53/udp\ntftp 69/udp\nodd 1/tcp\nodd 2/udp\n",
        );
        Ports::parse(text, &services).map(|ports| ports.to_string()).map_err(|error| error.on_one_line())
    }

    #[test]
    fn l1_one_syntax() {
        for (text, meaning) in [
            ("8443", "8443"),
            ("5000-5019", "5000-5019"),
            ("5000:5019", "5000-5019"),
            ("80,443", "80,443"),
            (" 443 , 80 ", "80,443"),
            ("80,81", "80-81"),
            ("5002,5000-5001", "5000-5002"),
            ("65535,65534", "65534-65535"),
            ("http,https,8000-8009", "80,443,8000-8009"),
            ("www/tcp", "80/tcp"),
            ("domain/tcp+udp", "53/tcp+udp"),
            ("domain", "53"),
            ("tftp", "69"),
            ("odd/udp", "2/udp"),
            ("80,443/tcp", "80,443/tcp"),
            ("http/tcp,https/tcp", "80,443/tcp"),
            ("53/udp,5353", "53,5353/udp"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(meaning), "{text}");
        }
    }

    #[test]
    fn every_mistake_has_its_sentence() {
        for (text, why) in [
            ("", "a port is missing; write 8080"),
            ("80,", "a port is missing"),
            (",", "a port is missing"),
            ("0", "\"0\": port 0"),
            ("0-5", "\"0-5\": port 0"),
            ("9-8", "\"9-8\" ends before it begins"),
            ("65536", "\"65536\" is not a port or a range"),
            ("80,80", "port 80 is in the list twice"),
            ("80-90,85", "port 85 is in the list twice"),
            ("http,80", "port 80 is in the list twice"),
            (
                "htps",
                "\"htps\" is neither a port, nor a range, nor a service of /etc/services; did you mean \"https\"?",
            ),
            ("tftp/tcp", "\"tftp\" is only 69/udp in /etc/services; write 69"),
            ("tftp/tcp+udp", "\"tftp\" is only 69/udp"),
            ("odd", "\"odd\" is 1/tcp and 2/udp in /etc/services"),
            ("80/sctp", "\"80/sctp\": a transport is tcp, udp or tcp+udp"),
            ("80/tcp,53/udp", "\"80/tcp,53/udp\" names different transports"),
            ("80/", "\"80/\": a transport is"),
            ("/tcp", "a port is missing"),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.starts_with(why), "{text}: {wrong}");
        }
        let many: Vec<String> = (0..65).map(|i| (1000 + 2 * i).to_string()).collect();
        assert!(read(&many.join(",")).unwrap_err().starts_with("a list has at most 64 blocks, this one has 65"));
        assert!(read(&many[1..].join(",")).is_ok());
    }

    #[test]
    fn the_transport_is_said_once() {
        let services = Services::parse("domain 53/udp\n");
        let read = |text: &str, beside| {
            let read = Ports::resolve(text, beside, &services);
            read.map(|(list, transports)| format!("{list}/{transports}")).map_err(|error| error.to_string())
        };
        for (text, beside, meaning) in [
            ("80,443", None, "80,443/tcp"),
            ("80", Some(Transports::Both), "80/tcp+udp"),
            ("domain/udp", None, "53/udp"),
            ("domain", Some(Transports::Udp), "53/udp"),
            ("80/udp", Some(Transports::Udp), "80/udp"),
        ] {
            assert_eq!(read(text, beside).as_deref(), Ok(meaning));
        }
        assert_eq!(read("domain", None).unwrap_err(), "\"domain\" is only 53/udp in /etc/services");
        assert_eq!(
            read("80/udp", Some(Transports::Tcp)).unwrap_err(),
            "\"80/udp\" says udp, and tcp is said beside it"
        );
    }

    #[test]
    fn l3_a_list_of_one_block_is_the_block() {
        let range: PortRange = "5000-5019".parse().unwrap();
        let list = PortList::from(range);
        assert_eq!(list, range);
        assert_eq!((list.start(), list.last(), list.count()), (range.start(), range.last(), range.count()));
        assert_eq!(serde_json::to_string(&list).unwrap(), serde_json::to_string(&range).unwrap());
        assert_eq!(serde_json::from_str::<PortList>("\"80,443\"").unwrap().to_string(), "80,443");
        assert!(serde_json::from_str::<PortList>("\"http\"").is_err());
        assert_eq!("1-65535".parse::<PortList>().unwrap().count(), 65535);
    }

    proptest! {
        /// Compare a list with a set of ports: it has the same ports, in as few blocks as possible, and its text is
        /// read as the same list.
        #[test]
        fn a_list_is_a_set_of_ports(spans in prop::collection::vec((1u16..200, 0u16..8), 1..12)) {
            let blocks: Vec<PortRange> =
                spans.iter().map(|(first, more)| PortRange::inclusive(*first, first + more).unwrap()).collect();
            let set: PortSet = blocks.iter().copied().collect();
            let twice = usize::try_from(set.len()).unwrap() < blocks.iter().map(|block| usize::from(block.count())).sum();
            match PortList::new(blocks.clone()) {
                Err(_) => prop_assert!(twice),
                Ok(list) => {
                    prop_assert!(!twice);
                    prop_assert_eq!(PortSet::from(&list), set.clone());
                    let spans: Vec<(u16, u16)> = list.blocks().iter().map(|block| (block.start(), block.last())).collect();
                    prop_assert_eq!(spans, set.spans().collect::<Vec<_>>());
                    prop_assert_eq!(list.iter().count(), usize::from(list.count()));
                    prop_assert_eq!(&list.to_string().parse::<PortList>().unwrap(), &list);
                    let text = Ports { list: list.clone(), transports: Some(Transports::Both) };
                    prop_assert_eq!(Ports::parse(&text.to_string(), &Services::default()).unwrap(), text);
                    for other in blocks {
                        prop_assert!(list.overlaps(&other.into()));
                    }
                }
            }
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}") {
            let services = Services::parse(&text);
            let _ = Ports::parse(&text, &services);
            let _ = Ports::resolve(&text, Some(Transports::Both), &services);
        }
    }
}
