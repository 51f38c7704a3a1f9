//! Lines that people shall see although a test passes.

/// A line on standard error, past the harness, which swallows what a passing test prints.
pub fn note(line: &str) {
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("{line}\n").as_bytes());
}
