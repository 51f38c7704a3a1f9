//! The README, followed on a Debian on which Portkeep was never installed. `readme.sh` has the steps.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use portkeep_tool::{Tool, cargo, debian, repository, target_folder};

use super::check::Place;
use crate::install::{read, write};

const CC: Tool = Tool { name: "cc", remedy: "apt-get install gcc" };
const PIP: Tool = Tool { name: "pip", remedy: "apt-get install python3-pip" };

pub(super) fn run(made: &[PathBuf]) -> Result<()> {
    let place = Place::new(&debian::base(debian::PYTHON)?, made)?;
    let root = &place.root;
    PIP.run(
        PIP.command()
            .args(["wheel", "--quiet", "--no-deps", "--wheel-dir"])
            .arg(root.join("packages"))
            .arg(repository().join("python")),
    )?;
    let [suite, service, rust, c] = examples()?;
    let folder = root.join("examples");
    for (name, lines) in [("suite", suite), ("service", service)] {
        let commands = lines.lines().filter_map(|line| line.split_once(' ')).map(|(_, command)| format!("{command}\n"));
        write(&folder.join(name), &commands.collect::<String>())?;
    }
    compile_rust(&rust, &folder)?;
    compile_c(&c, &folder)?;
    place.run(include_str!("readme.sh"))
}

/// The four blocks of the README's section of examples.
fn examples() -> Result<[String; 4]> {
    let text = read(&repository().join("README.md"))?;
    let section = text.split("\n## ").find(|section| section.starts_with("Examples\n"));
    let mut parts = section.context("the README has no examples")?.split("```");
    parts.next();
    let mut blocks = Vec::new();
    while let (Some(block), Some(_)) = (parts.next(), parts.next()) {
        let (language, code) = block.split_once('\n').context("a block without a line")?;
        blocks.push((language.to_owned(), code.to_owned()));
    }
    let languages: Vec<&str> = blocks.iter().map(|(language, _)| language.as_str()).collect();
    ensure!(languages == ["console", "console", "rust", "c"], "the README has other examples: {languages:?}");
    let codes: Vec<String> = blocks.into_iter().map(|(_, code)| code).collect();
    codes.try_into().map_err(|_| anyhow::anyhow!("there are four"))
}

/// This machine's Debian is that of the folder, so programs that are built here run there.
fn compile_rust(code: &str, to: &Path) -> Result<()> {
    let package = tempfile::tempdir().context("making a temporary folder")?;
    let library = repository().join("crates/portkeep");
    write(
        &package.path().join("Cargo.toml"),
        &format!(
            "[package]\nname = \"readme\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\nportkeep = {{ path = {:?} }}\n",
            library.display().to_string()
        ),
    )?;
    write(
        &package.path().join("src/main.rs"),
        &format!(
            "use std::net::Ipv4Addr;\n\nfn main() -> Result<(), Box<dyn std::error::Error>> {{\n{code}\n\
             let ports = [rtp.local_addr()?.port(), rtcp.local_addr()?.port()];\n\
             assert!(ports[0] % 2 == 0 && ports[1] == ports[0] + 1, \"{{ports:?}}\");\n\
             println!(\"ports: {{ports:?}}\");\nOk(())\n}}\n"
        ),
    )?;
    let target = target_folder().join("readme");
    let mut build = cargo();
    build.current_dir(package.path()).env("CARGO_TARGET_DIR", &target).args(["build", "--quiet"]);
    ensure!(build.status().context("starting cargo")?.success(), "the README's program in Rust does not build");
    fs::copy(target.join("debug/readme"), to.join("rust")).context("copying the program in Rust")?;
    Ok(())
}

/// With the header of the repository, which is the header that the package has installed.
fn compile_c(code: &str, to: &Path) -> Result<()> {
    let source = to.join("c.c");
    write(
        &source,
        &format!(
            "#include <stdio.h>\n#include <sys/socket.h>\n#include <portkeep.h>\n\nint main(void)\n{{\n{code}\n\
             printf(\"ports: %d, %d in a row\\n\", granted.start, granted.count);\nreturn granted.count != 4;\n}}\n"
        ),
    )?;
    let include = repository().join("crates/portkeep/include");
    CC.run(CC.command().args(["-Wall", "-Werror", "-I"]).arg(include).arg("-o").arg(to.join("c")).arg(&source))
}
