//! Lines that people have to see although a test passes.

/// Write a line to standard error directly: the harness hides what a passing test prints.
pub fn note(line: &str) {
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("{line}\n").as_bytes());
}
