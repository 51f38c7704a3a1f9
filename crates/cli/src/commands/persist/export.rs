//! `persist export`.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, bail};
use portkeep::{
    Info,
    persistent::{Declaration, Origin},
};

use super::view;
use crate::{DONE, Io, args::sources::Places, whole_file::write_whole};

const AFTER_HELP: &str = "\
Writes the permanent reservations that commands created, in the form of a drop-in file. Reservations declared in files \
are not included. Without a running agent this reads the store itself, which requires root.

Examples:
  portkeep persist export > reservations.toml
  portkeep persist export /root/reservations.toml";

/// Write reservations created by commands as TOML
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The file to write, `-` for standard output
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    places: Places,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let view = view::look(&args.places, io)?;
    if !view.with_store {
        bail!("the store cannot be read, so there is nothing to export");
    }
    let stored = view.declared.iter().filter(|info| is_stored(info));
    let stored: Vec<Declaration> = stored.filter_map(Info::declaration).collect();
    let text = portkeep_persist::export(&stored);
    if args.file.as_os_str() == "-" {
        write!(io.out, "{text}")?;
    } else {
        write_whole(&args.file, &text).with_context(|| format!("writing {}", args.file.display()))?;
    }
    Ok(DONE)
}

/// Whether a command created it, and not only until reboot.
const fn is_stored(info: &Info) -> bool {
    matches!(info.origin, Some(Origin::Command { until_reboot: false, .. }))
}
