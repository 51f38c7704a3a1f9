//! A fault: the end of a schedule that must not be.

/// Something that must not happen: a broken invariant, or an instruction or helper that this tool does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) String);

pub(crate) type Outcome<T> = Result<T, Fault>;

pub(crate) fn fault<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Fault(text.into()))
}
