//! The declarations that Windows programs expect around the calls, and what must not compile.

use std::fs;

use portkeep_testkit::World;

use crate::{
    compiler::{has, kit, source, text},
    skipped,
};

#[test]
fn declarations_of_windows_programs_compile_and_work() {
    let test = "declarations_of_windows_programs_compile_and_work";
    let Some(kit) = kit(test) else { return };
    let Some(_world) = World::enter(test) else { return };
    for (compiler, options) in
        [("cc", ["-std=c11", "-xc"]), ("clang-19", ["-std=c11", "-xc"]), ("g++", ["-std=c++17", "-xc++"])]
    {
        if !has(compiler) {
            skipped(test, &format!("no {compiler}"));
            continue;
        }
        let mut options = options.to_vec();
        options.extend(["-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]);
        let program = kit.build(compiler, &options, &source("declarations.c"));
        let output = kit.command(program).output().expect("the program starts");
        assert!(output.status.success(), "{compiler}: {}", text(&output));
    }
}

/// Whether a program compiles; the program without its includes.
fn compiles(test: &str, compiler: &str, options: &[&str], program: &str) -> bool {
    let kit = kit(test).expect("asked before");
    let extension = if compiler.contains("++") { "cpp" } else { "c" };
    let file = kit.folder().join(format!("{test}.{extension}"));
    fs::write(&file, format!("#include <winsock2.h>\n#include <iphlpapi.h>\n{program}\n")).expect("a file");
    kit.check(compiler, &[options, &["-Wall", "-Wextra", "-Werror"]].concat(), &file).status.success()
}

#[test]
fn every_form_of_wmain_is_called_or_refused() {
    let test = "every_form_of_wmain_is_called_or_refused";
    let Some(kit) = kit(test) else { return };
    let body = "{ (void)c; return v[0] == 0; }";
    for compiler in ["cc", "c++"] {
        for form in ["WCHAR **v", "const WCHAR **v", "WCHAR *const *v", "WCHAR *v[]", "const WCHAR *v[]"] {
            let program = format!("int wmain(int c, {form}) {body}");
            assert!(compiles(test, compiler, &[], &program), "{compiler}: {form}");
            // It gets its arguments.
            let file = kit.folder().join(if compiler == "cc" { "form.c" } else { "form.cpp" });
            fs::write(&file, format!("#include <windows.h>\n{program}\n")).expect("a file");
            let output = kit.command(kit.build(compiler, &[], &file)).output().expect("it starts");
            assert!(output.status.success(), "{compiler}: {form}: {}", output.status);
        }
        assert!(compiles(test, compiler, &[], "int wmain(void) { return 0; }"), "{compiler}");
        assert!(!compiles(test, compiler, &[], &format!("int wmain(long c, WCHAR **v) {body}")), "{compiler}");
    }
}

#[test]
fn methods_called_select_and_tokens_of_either_type_compile() {
    let test = "methods_called_select_and_tokens_of_either_type_compile";
    if kit(test).is_none() {
        return;
    }
    let program = "struct Menu { int select() { return 1; } int select(int i) { return i; } };
        int main() {
            Menu menu;
            uint64_t token = 0;
            UINT64 other = 0;
            return menu.select() + menu.select(2) + (int)CreatePersistentTcpPortReservation(1, 1, &token) +
                (int)LookupPersistentUdpPortReservation(1, 1, &other);
        }";
    assert!(compiles(test, "c++", &["-std=c++17"], program));
}

#[test]
fn formats_are_checked_on_demand() {
    let test = "formats_are_checked_on_demand";
    if kit(test).is_none() {
        return;
    }
    let program = |format| format!("int main(void) {{ DWORD number = 1; return printf(\"{format}\", number); }}");
    for compiler in ["cc", "c++"] {
        assert!(compiles(test, compiler, &[], &program("%lu")), "{compiler}");
        assert!(!compiles(test, compiler, &["-DPORTKEEP_CHECK_FORMATS"], &program("%lu")), "{compiler}");
        assert!(compiles(test, compiler, &["-DPORTKEEP_CHECK_FORMATS"], &program("%u")), "{compiler}");
    }
}
