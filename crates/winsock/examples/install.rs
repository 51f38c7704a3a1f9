//! Install the Winsock layer for C programs: headers, libraries, pkg-config file.

use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(prefix) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: install PREFIX");
        return ExitCode::from(2);
    };
    // The example is in target/debug/examples, and the libraries it was built with in target/debug/deps.
    let built = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("deps")));
    let result = built
        .ok_or_else(|| std::io::Error::other("the build folder is unknown"))
        .and_then(|built| portkeep_winsock::install::install(&std::path::absolute(&prefix)?, &built));
    match result {
        Ok(installed) => {
            println!("PKG_CONFIG_PATH={}", installed.pkg_config.display());
            println!("LD_LIBRARY_PATH={}", installed.libraries.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("install: {error}");
            ExitCode::FAILURE
        }
    }
}
