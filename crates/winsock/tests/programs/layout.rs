//! The headers, with every compiler of this machine, and Microsoft's through mingw-w64.

use std::process::Command;

use portkeep_tool::winsock::{SPELLINGS, headers};

use crate::{
    compiler::{has, kit, source, text},
    skipped,
};

const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror"];

#[test]
fn the_layouts_are_those_of_windows() {
    let Some(kit) = kit("the_layouts_are_those_of_windows") else { return };
    let compilers = [
        ("gcc", "-std=c11"),
        ("gcc", "-std=gnu17"),
        ("clang", "-std=c11"),
        ("clang-19", "-std=c11"),
        ("g++", "-std=c++17"),
        ("clang++", "-std=c++17"),
        ("clang++-19", "-std=c++17"),
    ];
    for (compiler, standard) in compilers {
        if !has(compiler) {
            skipped("the_layouts_are_those_of_windows", &format!("no {compiler}"));
            continue;
        }
        let mut options = vec![standard];
        options.extend(STRICT);
        options.extend(if standard.contains("++") {
            // C++ compilers warn about offsets in structures that do not have the standard layout of C++.
            ["-Wno-invalid-offsetof", "-xc++"]
        } else {
            ["-xc", "-pedantic"]
        });
        let output = kit.check(compiler, &options, &source("layout.c"));
        assert!(output.status.success(), "{compiler}: {}", text(&output));
    }
}

#[test]
fn the_layouts_hold_with_32_bits() {
    let Some(kit) = kit("the_layouts_hold_with_32_bits") else { return };
    let probe = kit.folder().join("probe32.c");
    std::fs::write(&probe, "#include <stdio.h>\nint main(void) { return 0; }\n").expect("a file");
    if !kit.check("cc", &["-m32"], &probe).status.success() {
        skipped("the_layouts_hold_with_32_bits", "no 32-bit C library");
        return;
    }
    let output = kit.check("cc", &["-m32", "-std=c11"], &source("layout.c"));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_c_tests_compile_with_microsofts_declarations() {
    const MINGW: &str = "x86_64-w64-mingw32-gcc";
    if !has(MINGW) {
        skipped("the_c_tests_compile_with_microsofts_declarations", "no mingw-w64");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Linked as well: the libraries of Windows have everything that is declared.
    for (name, libraries) in [("layout.c", &[][..]), ("conformance.c", &["-lws2_32", "-liphlpapi"])] {
        let output = Command::new(MINGW)
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-D_WIN32_WINNT=0x0600", "-o"])
            .arg(folder.path().join("program.exe"))
            .arg(source(name))
            .args(libraries)
            .output()
            .expect("the compiler runs");
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
}

#[test]
fn headers_are_found_under_every_spelling() {
    let test = "headers_are_found_under_every_spelling";
    let Some(kit) = kit(test) else { return };
    let includes = |names: &mut dyn Iterator<Item = &str>| -> String {
        let lines: String = names.map(|name| format!("#include <{name}>\n")).collect();
        format!("{lines}int main(void) {{ return (int)sizeof(INET_PORT_RESERVATION_INSTANCE) - 16; }}\n")
    };
    // In either order, in C and C++.
    let headers = headers().expect("the headers");
    let spellings = SPELLINGS.iter().map(|(name, _)| *name);
    let all: Vec<&str> = spellings.chain(headers.iter().map(|(name, _)| name.as_str())).collect();
    let orders = [includes(&mut all.iter().copied()), includes(&mut all.iter().rev().copied())];
    for (index, lines) in orders.iter().enumerate() {
        for (compiler, option) in [("cc", "-std=c11"), ("c++", "-std=c++17")] {
            if !has(compiler) {
                skipped(test, &format!("no {compiler}"));
                continue;
            }
            let file = kit.folder().join(format!("spelling{index}.{}", if compiler == "cc" { "c" } else { "cpp" }));
            std::fs::write(&file, lines).expect("a file");
            let output = kit.check(compiler, &[option, "-Wall", "-Wextra", "-Werror"], &file);
            assert!(output.status.success(), "{compiler} {index}: {}", text(&output));
        }
    }
}
