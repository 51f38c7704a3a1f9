//! Another user, for the command of `run`.

use std::ffi::{CString, OsString};

use anyhow::Context;
use nix::unistd::{self, Uid, getresuid, initgroups, setgid, setresuid, setuid};
use portkeep::persistent::Account;

/// A user of this machine.
#[derive(Clone, Debug)]
pub(crate) struct User(unistd::User);

impl User {
    /// The one of this name or number.
    pub(crate) fn of(account: &Account) -> anyhow::Result<Self> {
        let found = match account {
            Account::Id(uid) => unistd::User::from_uid(Uid::from_raw(*uid)),
            Account::Name(name) => unistd::User::from_name(name),
        };
        found
            .with_context(|| format!("looking up user {account}"))?
            .map(Self)
            .with_context(|| format!("there is no user {account}"))
    }

    /// An error if this process may not become it.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(Uid::effective().is_root(), "--user requires root");
        Ok(())
    }

    pub(crate) fn uid(&self) -> u32 {
        self.0.uid.as_raw()
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The variables that name a user, as a login sets them.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 4] {
        let unistd::User { name, dir, shell, .. } = &self.0;
        [("USER", name.into()), ("LOGNAME", name.into()), ("HOME", dir.into()), ("SHELL", shell.into())]
    }

    /// Become it, with its groups and without any right of root. This cannot be undone.
    pub(crate) fn become_it(&self) -> anyhow::Result<()> {
        let name = CString::new(self.name()).context("its name")?;
        initgroups(&name, self.0.gid).context("setting the groups")?;
        setgid(self.0.gid).context("setting the group")?;
        setuid(self.0.uid).context("setting the user")?;
        Ok(())
    }

    /// Make requests as this user, until the result is dropped: the scope `user` means the real uid of the process that asks.
    pub(crate) fn asks(&self) -> anyhow::Result<Asking> {
        let before = getresuid().context("asking for the own user")?.real;
        let root = Uid::effective();
        setresuid(self.0.uid, root, root).context("asking as another user")?;
        Ok(Asking { before })
    }
}

/// See [`User::asks`].
#[derive(Debug)]
pub(crate) struct Asking {
    before: Uid,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let root = Uid::effective();
        // This cannot fail: without the right to do it, the first change would have failed.
        let _ = setresuid(self.before, root, root);
    }
}
