//! The tools that are programs of their own. They need Portkeep's crates, and xtask does not build those.

use std::{
    ffi::{OsStr, OsString},
    process::{Command, ExitCode},
};

use portkeep_tool::target_folder;

#[derive(clap::Subcommand)]
pub(crate) enum Tool {
    /// Run the kernel tests in virtual machines
    VmTest(Arguments),
    /// Boot a machine with Portkeep installed
    BootTest(Arguments),
    /// Write the manual pages and shell completions into a folder
    Pages(Arguments),
    /// Compare Portkeep with the usual ways to get a port
    Compare(Arguments),
    /// Check that programs of others do not notice Portkeep
    DoNoHarm(Arguments),
    /// Let many processes do everything at random, kill them, and check that every promise holds
    Soak(Arguments),
    /// Try every order in which CPUs can run the checked-in BPF programs, up to a bound
    Interleave(Arguments),
}

/// Everything behind the name goes to the tool, `--help` included.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

impl Tool {
    pub(crate) fn run(&self) -> ExitCode {
        let (package, first, arguments) = match self {
            Self::VmTest(rest) => ("portkeep-guests", Some("vm-test"), rest),
            Self::BootTest(rest) => ("portkeep-guests", Some("boot-test"), rest),
            Self::Pages(rest) => ("portkeep-pages", None, rest),
            Self::Compare(rest) => ("portkeep-compare", None, rest),
            Self::DoNoHarm(rest) => ("portkeep-harmless", None, rest),
            Self::Soak(rest) => ("portkeep-soak", None, rest),
            Self::Interleave(rest) => ("portkeep-interleave", None, rest),
        };
        let words = first.map(OsStr::new).into_iter().chain(arguments.arguments.iter().map(OsString::as_os_str));
        if let Err(error) = portkeep_tool::build(&["--bin", package]) {
            return portkeep_tool::exit(Err(error));
        }
        let program = target_folder().join("debug").join(package);
        // In the folder of the caller: paths among the arguments may be relative to it.
        match Command::new(program).args(words).status() {
            Ok(status) => {
                status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
            Err(error) => {
                eprintln!("error: cannot start {package}: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
