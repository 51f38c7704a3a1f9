//! Reading /etc/services.

use portkeep_core::Services;

use crate::files::{Content, Root};

/// The services of the machine. If the file does not exist or cannot be read, there are none.
pub fn services() -> Services {
    services_of(Root("/".as_ref()))
}

pub(crate) fn services_of(root: Root<'_>) -> Services {
    match root.read(&root.path("/etc/services")) {
        Ok(Content::Text(text)) => Services::parse(&text),
        _ => Services::default(),
    }
}
