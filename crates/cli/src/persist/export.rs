//! `persist export`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use portkeep::{
    Info,
    persistent::{Declaration, Origin},
};

use super::view;
use crate::{DONE, Io, pins::Pins, sources::Sources};

const AFTER_HELP: &str = "\
Writes the permanent reservations that commands created, in the form of a drop-in file. Reservations declared in files \
are not included. Without a running agent this reads the store itself, which requires root.

Examples:
  portkeep persist export > reservations.toml
  portkeep persist export /root/reservations.toml";

/// Write reservations created by commands as TOML
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The file to write, `-` for standard output
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    sources: Sources,
}

pub(super) fn run(args: Args, io: &mut Io<'_>) -> anyhow::Result<u8> {
    let view = view::look(&args.pins, &args.sources, io)?;
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

/// Created by a command, to stay.
const fn is_stored(info: &Info) -> bool {
    matches!(info.origin, Some(Origin::Command { until_reboot: false, .. }))
}

/// All of it or nothing: an export that is there stays as it is until the new one is whole on the disk.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(|found| !found.is_file()) {
        // A device or a FIFO has no half.
        return fs::write(path, text);
    }
    // Not the link to it.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".new");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        if let Ok(found) = found {
            file.set_permissions(found.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}
