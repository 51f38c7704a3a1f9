//! `portkeep.h` for C programs has the numbers and layouts of the header that the BPF programs are compiled with.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use portkeep_testkit::skip;

fn header() -> String {
    fs::read_to_string(folder().join("include/portkeep.h")).unwrap()
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names of all numbers, and of all structures with their fields.
fn names(header: &str) -> (Vec<&str>, Vec<(&str, Vec<&str>)>) {
    let defines = header.lines().filter_map(|line| line.strip_prefix("#define "));
    let numbers = defines.filter_map(|line| line.split_once(' ')).map(|(name, _)| name).collect();
    let mut structures = Vec::new();
    for body in header.split("\nstruct ").skip(1) {
        let (name, rest) = body.split_once(" {\n").unwrap();
        let fields = rest.split_once("\n};").unwrap().0.lines().filter_map(|line| line.split_once(';'));
        let names = fields.map(|(declaration, _)| {
            let name = declaration.rsplit([' ', '\t']).next().unwrap();
            name.split('[').next().unwrap()
        });
        structures.push((name, names.collect()));
    }
    (numbers, structures)
}

/// The output of a program that shows them all.
fn shown(compiler: &str, includes: &str, program: &Path) -> String {
    let header = header();
    let (numbers, structures) = names(&header);
    assert!(numbers.len() >= 30 && structures.len() == 6, "{numbers:?} {structures:?}");
    let mut source = format!("{includes}\n#include <stdio.h>\n#include <stddef.h>\nint main(void) {{\n");
    for name in numbers {
        writeln!(source, "printf(\"{name} %lld\\n\", (long long){name});").unwrap();
    }
    for (structure, fields) in structures {
        writeln!(source, "printf(\"{structure} %zu\\n\", sizeof(struct {structure}));").unwrap();
        for field in fields {
            let (offset, size) = (
                format!("offsetof(struct {structure}, {field})"),
                format!("sizeof(((struct {structure} *)0)->{field})"),
            );
            writeln!(source, "printf(\"{structure}.{field} %zu %zu\\n\", {offset}, {size});").unwrap();
        }
    }
    source.push_str("return 0; }\n");
    let file = program.with_extension("c");
    fs::write(&file, source).unwrap();
    let mut compile = Command::new(compiler);
    assert!(compile.args(["-Wall", "-Werror", "-o"]).arg(program).arg(&file).status().unwrap().success());
    String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap()
}

fn has(compiler: &str) -> bool {
    Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// A folder that is deleted at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portkeep-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn both_headers_have_the_same_numbers() {
    if !has("cc") {
        return skip("both_headers_have_the_same_numbers", "no cc", "PORTKEEP_REQUIRE_LANGUAGES");
    }
    let folder = Folder::new("headers");
    let of = |path: &Path| format!("#include <linux/types.h>\n#include \"{}\"", path.canonicalize().unwrap().display());
    let users = shown("cc", &of(&self::folder().join("include/portkeep.h")), &folder.0.join("users"));
    let programs = shown("cc", &of(&self::folder().join("../kernel/bpf/portkeep.h")), &folder.0.join("programs"));
    assert!(users.lines().count() > 70, "{users}");
    assert_eq!(users, programs);
}

/// By itself, with the strictest options, in the oldest dialects.
#[test]
fn the_header_compiles_alone() {
    for (compiler, options) in [
        ("gcc", ["-std=c99", "-xc"]),
        ("g++", ["-std=c++11", "-xc++"]),
        ("clang", ["-std=c99", "-xc"]),
        ("clang++", ["-std=c++11", "-xc++"]),
    ] {
        if !has(compiler) {
            skip("the_header_compiles_alone", &format!("no {compiler}"), "PORTKEEP_REQUIRE_LANGUAGES");
            continue;
        }
        let mut compile = Command::new(compiler);
        compile.args(options).args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "/dev/null"]);
        compile.arg("-include").arg(folder().join("include/portkeep.h"));
        assert!(compile.status().unwrap().success(), "{compiler}");
    }
}
