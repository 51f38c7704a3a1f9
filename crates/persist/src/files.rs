//! Reading files that anybody may have put there.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, major, minor, open, openat2};

use crate::Diagnostic;

/// The largest file that is read.
pub(crate) const LARGEST: u64 = 1 << 20;

/// The file at a path.
pub(crate) enum Content {
    /// A regular file of UTF-8 text.
    Text(String),
    /// `/dev/null`.
    Null,
    /// No file.
    Absent,
}

/// Where files are looked for: the machine's own root, or the root of an image or a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root<'a>(pub(crate) &'a Path);

impl Root<'_> {
    /// The path of a file below this root, for messages and opening.
    pub(crate) fn path(self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// Read a file below the root. Links stay below the root, as they would if it were the root.
    pub(crate) fn read(self, path: &Path) -> Result<Content, Diagnostic> {
        // A mask is recognised by the target of the link, because an image may have no /dev/null.
        if std::fs::read_link(path).is_ok_and(|target| target == Path::new("/dev/null")) {
            return Ok(Content::Null);
        }
        let inside = path.strip_prefix(self.0).ok().filter(|_| self.0 != Path::new("/"));
        let opened = match inside {
            None => open(path, FLAGS, Mode::empty()),
            Some(inside) => open(self.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|root| openat2(root, inside, FLAGS, Mode::empty(), ResolveFlags::IN_ROOT)),
        };
        content(path, opened)
    }
}

/// With these flags, opening a fifo does not wait for a writer, and a terminal does not become the controlling
/// terminal.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Read any file.
pub(crate) fn read(path: &Path) -> Result<Content, Diagnostic> {
    content(path, rustix::fs::openat(CWD, path, FLAGS, Mode::empty()))
}

fn content(path: &Path, opened: rustix::io::Result<std::os::fd::OwnedFd>) -> Result<Content, Diagnostic> {
    let wrong = |error: io::Error| Diagnostic::whole(path, format!("cannot be read: {error}"));
    let file = match opened {
        Ok(descriptor) => File::from(descriptor),
        // A link to a missing file is a mistake. A missing file alone is not.
        Err(rustix::io::Errno::NOENT) if std::fs::symlink_metadata(path).is_ok() => {
            return Err(Diagnostic::whole(path, "is a link to a file that does not exist")
                .with_help("to mask the file of that name elsewhere link to /dev/null"));
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Content::Absent),
        Err(error) => return Err(wrong(error.into())),
    };
    let status = fstat(&file).map_err(|error| wrong(error.into()))?;
    let kind = match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {
            return text(path, &file, status.st_size.unsigned_abs()).map(Content::Text);
        }
        FileType::CharacterDevice if (major(status.st_rdev), minor(status.st_rdev)) == (1, 3) => {
            return Ok(Content::Null);
        }
        FileType::Directory => "a directory",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    };
    Err(Diagnostic::whole(path, format!("is {kind}, not a file")))
}

fn text(path: &Path, file: &File, size: u64) -> Result<String, Diagnostic> {
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(LARGEST)).unwrap_or(0));
    let read = file.take(LARGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| Diagnostic::whole(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Diagnostic::whole(path, "is larger than 1 MiB; it was not read"));
    }
    decode(path, bytes)
}

/// The text of a file's bytes.
pub(crate) fn decode(path: &Path, bytes: Vec<u8>) -> Result<String, Diagnostic> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let begin = valid.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&valid[begin..]).chars().count() + 1;
        let mut shown = Diagnostic::whole(path, "is not UTF-8 text");
        (shown.line, shown.column) = (Some(line), Some(column));
        shown
    })
}
