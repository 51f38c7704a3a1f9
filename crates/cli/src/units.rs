//! Units of systemd, as their files say.

use std::{
    fs,
    path::{Path, PathBuf},
};

use portkeep::Transport;

/// Where systemd looks for units, and where its generators put them.
pub(crate) const FOLDERS: [&str; 9] = [
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/transient",
    "run/systemd/generator",
    "run/systemd/generator.early",
    "run/systemd/generator.late",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// The ports of .socket units that start with the system.
pub(crate) fn enabled_sockets(root: &Path) -> Vec<(String, Transport, u16)> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let name_of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut enabled: Vec<String> = Vec::new();
    for folder in FOLDERS {
        let wants = entries(&root.join(folder)).filter(|path| path.extension().is_some_and(|kind| kind == "wants"));
        enabled.extend(wants.flat_map(|wants| entries(&wants)).filter_map(|path| name_of(&path)));
    }
    enabled.retain(|name| name.ends_with(".socket"));
    enabled.sort();
    enabled.dedup();
    let mut found = Vec::new();
    for name in enabled {
        // The first folder that has it wins; what is in NAME.d is added.
        let Some(file) = FOLDERS.iter().map(|folder| root.join(folder).join(&name)).find(|file| file.is_file()) else {
            continue;
        };
        let mut files: Vec<PathBuf> = vec![file];
        for folder in FOLDERS {
            let mut more: Vec<PathBuf> = entries(&root.join(folder).join(format!("{name}.d"))).collect();
            more.sort();
            files.extend(more);
        }
        let text: String =
            files.iter().filter_map(|file| fs::read_to_string(file).ok()).map(|text| text + "\n").collect();
        found.extend(listened(&text).into_iter().map(|(transport, port)| (name.clone(), transport, port)));
    }
    found
}

/// The ports that a .socket unit listens on. An empty value removes the ones before it.
fn listened(text: &str) -> Vec<(Transport, u16)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let transport = match key.trim() {
            "ListenStream" => Transport::Tcp,
            "ListenDatagram" => Transport::Udp,
            _ => continue,
        };
        let value = value.trim();
        if value.is_empty() {
            found.clear();
        } else if let Ok(port) = value.rsplit(':').next().unwrap_or(value).parse() {
            found.push((transport, port));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_socket_units_are_read() {
        let text =
            "[Socket]\nListenStream=22\nListenStream=[::1]:2222\nListenDatagram=127.0.0.1:53\nListenStream=/run/x\n";
        assert_eq!(listened(text), [(Transport::Tcp, 22), (Transport::Tcp, 2222), (Transport::Udp, 53)]);
        assert_eq!(listened("ListenStream=22\nListenStream=\nListenStream=2200\n"), [(Transport::Tcp, 2200)]);
    }
}
