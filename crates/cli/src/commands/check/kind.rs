//! The type of a file.

use std::{fs, path::Path};

use portkeep_persist::config::KEYS;

/// Files in a folder named `portreserve` are distinguished where they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Configuration,
    DropIn,
}

pub(super) fn of(file: &Path) -> Kind {
    let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
    if folder == "ports.d" || folder == "portreserve" {
        return Kind::DropIn;
    }
    if file.file_name().is_some_and(|name| name == "portkeep.toml") {
        return Kind::Configuration;
    }
    // A FIFO or a device is not read here. The code that reads drop-ins reports it.
    match fs::metadata(file) {
        Ok(metadata) if metadata.is_file() => by_content(&fs::read(file).unwrap_or_default()),
        _ => Kind::DropIn,
    }
}

/// The type by the beginnings of the lines, so that a file with a mistake is still recognised.
fn by_content(bytes: &[u8]) -> Kind {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines().map(str::trim_start);
    let is_key = |word: &str| KEYS.iter().any(|key| key.name.split('.').next() == Some(word));
    let of_config = |line: &str| {
        let word = line.trim_start_matches('[').split(|c: char| !c.is_alphanumeric() && c != '_').next();
        word.is_some_and(is_key)
    };
    if lines.clone().any(|line| line.starts_with("[[reservation") || line.starts_with("[reservation")) {
        return Kind::DropIn;
    }
    if lines.any(of_config) { Kind::Configuration } else { Kind::DropIn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_place_its_name_or_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            of(&path)
        };
        assert_eq!(file("a.toml", "[[reservation]]\nname = \"x\"\n"), Kind::DropIn);
        assert_eq!(file("b.toml", "# x\n  pool = \"none\"\n"), Kind::Configuration);
        assert_eq!(file("c.toml", "[quota.users]\nx = 1\n"), Kind::Configuration);
        assert_eq!(file("d.toml", ""), Kind::DropIn);
        assert_eq!(file("portkeep.toml", ""), Kind::Configuration);
        assert_eq!(file("ports.d/portkeep.toml", "pool = \"none\"\n"), Kind::DropIn);
        assert_eq!(file("portreserve/cups", "pool"), Kind::DropIn);
        assert_eq!(of(&dir.path().join("absent")), Kind::DropIn);
    }
}
