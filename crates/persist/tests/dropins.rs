//! Drop-in folders below a root of their own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use portkeep_persist::{
    Origin, Services,
    dropin::{self, FileState, Loaded},
    merge,
};

/// A root that is removed after the test.
struct Root(tempfile::TempDir);

const ETC: &str = "etc/portkeep/ports.d";
const RUN: &str = "run/portkeep/ports.d";
const LIB: &str = "usr/lib/portkeep/ports.d";

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, file: &str) -> PathBuf {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn file(&self, folder: &str, name: &str, text: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(&format!("{folder}/{name}")), text).unwrap();
        self
    }

    fn link(&self, folder: &str, name: &str, target: &str) -> &Self {
        symlink(target, self.path(&format!("{folder}/{name}"))).unwrap();
        self
    }

    fn load(&self) -> Loaded {
        dropin::load(self.0.path())
    }

    /// The names in order, and the complaints with paths that begin at the root.
    fn loaded(&self) -> (Vec<String>, Vec<String>) {
        let loaded = self.load();
        let names = loaded.declared.iter().map(|declared| declared.declaration.name.to_string()).collect();
        (names, loaded.diagnostics.iter().map(|shown| self.short(&shown.to_string())).collect())
    }

    fn short(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "/")
    }
}

fn stanza(name: &str, port: u16) -> String {
    format!("[[reservation]]\nname = \"{name}\"\ntcp = {port}\n")
}

#[test]
fn the_same_name_in_a_folder_that_counts_more_hides_the_others() {
    let root = Root::new();
    root.file(LIB, "50-a.toml", stanza("lib-a", 1)).file(RUN, "50-a.toml", stanza("run-a", 1));
    root.file(ETC, "50-a.toml", stanza("etc-a", 1)).file(LIB, "60-b.toml", stanza("lib-b", 2));
    root.file(RUN, "60-b.toml", stanza("run-b", 2)).file(LIB, "70-c.toml", stanza("lib-c", 3));
    assert_eq!(root.loaded(), (vec!["etc-a".into(), "run-b".into(), "lib-c".into()], vec![]));
    let files: Vec<(String, bool)> = root
        .load()
        .files
        .iter()
        .map(|file| (root.short(file.path.to_str().unwrap()), matches!(file.state, FileState::Hidden { .. })))
        .collect();
    let expected = [
        (format!("/{ETC}/50-a.toml"), false),
        (format!("/{RUN}/50-a.toml"), true),
        (format!("/{LIB}/50-a.toml"), true),
        (format!("/{RUN}/60-b.toml"), false),
        (format!("/{LIB}/60-b.toml"), true),
        (format!("/{LIB}/70-c.toml"), false),
    ];
    assert_eq!(files, expected);
}

#[test]
fn names_are_in_lexical_order_wherever_the_files_are() {
    let root = Root::new();
    for (folder, name) in [(LIB, "b"), (ETC, "a"), (RUN, "c"), (ETC, "B"), (LIB, "10"), (LIB, "9"), (ETC, "é")] {
        root.file(folder, &format!("{name}.toml"), stanza(&format!("n{}", name.replace('é', "e")), 1));
    }
    assert_eq!(root.loaded().0, ["n10", "n9", "nB", "na", "nb", "nc", "ne"]);
}

#[test]
fn links_to_dev_null_and_empty_files_mask() {
    let root = Root::new();
    for name in ["a.toml", "b.toml", "c.toml"] {
        root.file(LIB, name, stanza(&name[..1], 1));
    }
    root.link(ETC, "a.toml", "/dev/null").file(RUN, "b.toml", "");
    assert_eq!(root.loaded(), (vec!["c".into()], vec![]));
    let masked = root.load().files.iter().filter(|file| file.state == FileState::Mask).count();
    assert_eq!(masked, 2);
    // A mask in a folder that counts less is itself hidden.
    root.link(LIB, "d.toml", "/dev/null").file(ETC, "d.toml", stanza("d", 2));
    assert_eq!(root.loaded().0, ["c", "d"]);
    // A file with only a comment declares nothing either, but it is not a mask: it was read.
    root.file(ETC, "c.toml", "# nothing\n");
    assert_eq!(root.loaded(), (vec!["d".into()], vec![]));
}

#[test]
fn links_stay_below_the_root() {
    let root = Root::new();
    root.file("opt", "real.toml", stanza("linked", 1)).link(ETC, "a.toml", "/opt/real.toml");
    root.link(ETC, "b.toml", "../../../opt/real.toml").link(ETC, "c.toml", "/nowhere");
    let (names, wrong) = root.loaded();
    assert_eq!(names, ["linked", "linked"]);
    assert_eq!(
        wrong,
        [format!(
            "/{ETC}/c.toml: is a link to a file that does not exist\nhelp: to mask the file of that name elsewhere link to /dev/null"
        )]
    );
    // The machine has an /etc/passwd, but this root has none.
    root.link(RUN, "d.toml", "/etc/passwd");
    assert!(root.loaded().1[1].contains("d.toml: is a link to a file that does not exist"));
}

#[test]
fn other_files_are_passed_over() {
    let root = Root::new();
    for name in ["a.conf", "a.toml~", "a.toml.dpkg-old", ".a.toml", "README", "toml"] {
        root.file(ETC, name, "not toml at all [");
    }
    assert_eq!(root.loaded(), (vec![], vec![]));
    assert!(root.load().files.is_empty());
    // If there is no folder at all, there are no drop-ins.
    assert_eq!(Root::new().loaded(), (vec![], vec![]));
}

#[test]
fn an_unreadable_file_is_reported_and_the_others_are_read() {
    let root = Root::new();
    fs::create_dir_all(root.path(&format!("{ETC}/a-directory.toml/x"))).unwrap();
    let fifo = root.path(&format!("{ETC}/b-fifo.toml"));
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.path(&format!("{ETC}/c-socket.toml"))).unwrap());
    root.file(ETC, "d-large.toml", vec![b'#'; (1 << 20) + 1]).file(ETC, "e-latin.toml", b"# a comment\n# caf\xe9\n");
    root.link(ETC, "f-loop.toml", "f-loop.toml").file(ETC, "g.toml", stanza("good", 1));
    root.file(ETC, "h-largest.toml", vec![b'#'; 1 << 20]);
    let (names, wrong) = root.loaded();
    assert_eq!(names, ["good"]);
    let begins = [
        "a-directory.toml: is a directory, not a file",
        "b-fifo.toml: is a fifo, not a file",
        "c-socket.toml: ",
        "d-large.toml: is larger than 1 MiB",
        "e-latin.toml:2:6: is not UTF-8 text",
        "f-loop.toml: cannot be read: ",
    ];
    assert_eq!(wrong.len(), begins.len(), "{wrong:#?}");
    for (shown, begin) in wrong.iter().zip(begins) {
        assert!(shown.starts_with(&format!("/{ETC}/{begin}")), "{shown}");
    }
    // Here `ports.d` is a file, not a folder.
    let root = Root::new();
    root.file("etc/portkeep", "ports.d", "");
    assert!(root.loaded().1[0].starts_with("/etc/portkeep/ports.d: cannot be listed"), "{:?}", root.loaded());
}

#[test]
fn conflicts_between_packages_name_both_files() {
    let root = Root::new();
    root.file(LIB, "nginx.toml", format!("# web\n{}", stanza("nginx", 8443)));
    root.file(LIB, "tomcat.toml", format!("{}{}", stanza("tomcat", 8443), stanza("tomcat-ajp", 8009)));
    let merged = merge([], root.load().declared);
    assert_eq!(merged.in_force.len(), 2);
    assert_eq!(
        root.short(&merged.conflicts[0].to_string()),
        format!("8443/tcp of `tomcat` (/{LIB}/tomcat.toml:1) is reserved as `nginx` by /{LIB}/nginx.toml:2")
    );
    let shown = merged.conflicts[0].diagnostic().unwrap().to_string();
    assert!(
        root.short(&shown).starts_with(&format!("/{LIB}/tomcat.toml:1:1: 8443/tcp of `tomcat` is reserved as")),
        "{shown}"
    );
}

#[test]
fn service_names_are_those_of_the_root() {
    let root = Root::new();
    root.file("etc", "services", "here 1234/tcp\n");
    root.file(ETC, "a.toml", "[[reservation]]\nname = \"a\"\ntcp = \"here\"\n");
    assert_eq!(root.load().declared[0].declaration.ports.to_string(), "1234");
    let bare = Root::new();
    bare.file(ETC, "a.toml", "[[reservation]]\nname = \"a\"\ntcp = \"here\"\n");
    assert!(bare.loaded().1[0].contains("there is no /etc/services"), "{:?}", bare.loaded());
}

#[test]
fn portreserves_files_come_last() {
    let root = Root::new();
    root.file("etc", "services", "ipp 631/tcp\nipp 631/udp\n");
    root.file("etc/portreserve", "cups", "ipp\n").file("etc/portreserve", "cups.rpmsave", "1\n");
    root.file("etc/portreserve", "broken", "1\nnonsense\n").file(ETC, "z.toml", stanza("z", 7));
    let (names, wrong) = root.loaded();
    assert_eq!(names, ["z", "portreserve:broken:1", "portreserve:cups:631"]);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].starts_with("/etc/portreserve/broken:2:1: \"nonsense\" is neither"), "{wrong:?}");
    let declared = &root.load().declared[2];
    assert_eq!(declared.declaration.audience.to_string(), "unit cups.service");
    assert!(matches!(&declared.origin, Origin::File { line: 1, .. }));
    let checked = dropin::check(&root.path("etc/portreserve/cups"), &Services::parse("ipp 631/tcp\n"));
    assert_eq!(checked.declared[0].declaration.transports.to_string(), "tcp");
}

#[test]
fn check_reports_all_that_load_would_and_more() {
    let root = Root::new();
    let services = Services::default();
    let check = |path: &Path| -> Vec<String> {
        dropin::check(path, &services).diagnostics.iter().map(|shown| root.short(&shown.to_string())).collect()
    };
    root.file(ETC, "a.toml", format!("{}{}", stanza("a", 1), stanza("b", 1)));
    assert!(check(&root.path(&format!("{ETC}/a.toml")))[0].starts_with(&format!("/{ETC}/a.toml:4:1: 1/tcp of `b`")));
    root.file(ETC, "a.conf", stanza("a", 1));
    assert!(check(&root.path(&format!("{ETC}/a.conf")))[0].contains("only files that end in .toml"));
    assert_eq!(check(&root.path("nothing.toml")), ["/nothing.toml: does not exist"]);
    root.file("home", "draft.toml", stanza("a", 1));
    assert_eq!(check(&root.path("home/draft.toml")), [""; 0]);
}

/// For any file name, the report can be written as JSON.
#[test]
fn a_name_that_is_not_text_is_still_reported() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let root = Root::new();
    let path = root.path(&format!("{ETC}/x")).with_file_name(OsStr::from_bytes(b"caf\xe9.toml"));
    fs::write(&path, format!("{}[[reservation]]\n", stanza("a", 1))).unwrap();
    root.file(LIB, "a.toml", stanza("a", 1));
    let loaded = root.load();
    let json = serde_json::to_string(&loaded).unwrap();
    assert!(json.contains("caf\u{fffd}.toml"), "{json}");
    assert_eq!(serde_json::to_value(merge([], loaded.declared)).unwrap()["conflicts"][0]["reason"], "name");
}

#[test]
fn l1_a_drop_in_has_ports_as_the_command_line_has_them() {
    for (text, meaning) in [
        ("8443", "8443/tcp"),
        ("80,443", "80,443/tcp"),
        ("443, 80-81/udp", "80-81,443/udp"),
        ("domain/tcp+udp", "53/tcp+udp"),
        ("5000-5019", "5000-5019/tcp"),
    ] {
        let root = Root::new();
        root.file("etc", "services", "domain 53/tcp\ndomain 53/udp\n");
        root.file(ETC, "a.toml", format!("[[reservation]]\nname = \"a\"\nports = \"{text}\"\nuser = \"root\"\n"));
        let loaded = root.load();
        let declared =
            &loaded.declared.first().unwrap_or_else(|| panic!("{text}: {:?}", loaded.diagnostics)).declaration;
        assert_eq!(format!("{}/{}", declared.ports, declared.transports), meaning, "{text}");
    }
}
