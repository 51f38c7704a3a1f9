//! All orders of the shipped object: `tools/interleave`, built and started as a program of its own.

use anyhow::{Context, Result, ensure};

use crate::tool::cargo;

/// Try every order in which CPUs can run the checked-in BPF programs, up to a bound
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Options of the program itself; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut tool = cargo();
    tool.args(["run", "--quiet", "--release", "--package", "portkeep-interleave", "--"]).args(&options.arguments);
    let status = tool.status().context("starting cargo")?;
    ensure!(status.success(), "some orders break something, see above");
    Ok(())
}
