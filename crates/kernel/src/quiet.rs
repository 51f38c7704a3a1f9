//! Quiet network namespaces: which words and accounts are kept for them, and how these are removed.

use std::collections::{BTreeMap, BTreeSet};

use portkeep_core::{PortRange, Transport};
use zerocopy::FromZeros;

use crate::{
    admin::{Admin, AdminError},
    layout::{NOBODY, SPACE_WORDS, Space, Word, WordKey, has_share, root_elsewhere},
    maps::{MapAccessError, Maps, optional},
};

/// Why a quiet namespace was not forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// A map could not be read or written.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// The share could not be given back to the account that had paid for it.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl Maps {
    /// Make the words that cover a range of ports in a namespace. Then no account has to pay for the words in which
    /// sockets are counted.
    pub fn make_words(&mut self, netns: u64, ports: PortRange) -> Result<(), MapAccessError> {
        const NOEXIST: u64 = 1;
        let mut blank = Word::new_zeroed();
        blank.payer = NOBODY;
        for transport in Transport::ALL {
            for word in ports.start() / 64..=ports.last() / 64 {
                let key = WordKey::of(netns, transport, word * 64);
                // The word may exist already.
                let _ = self.words.insert(key, blank, NOEXIST);
            }
        }
        Ok(())
    }

    /// Remove vacant words of namespaces without reservations that have been quiet for `quiet_ns` nanoseconds. Returns
    /// how many were removed.
    ///
    /// Nothing else removes words: a program in the kernel could not, since another CPU may be using one. So the word
    /// is sealed first, which hides it from programs that start later. Once the programs that ran then have ended, the
    /// word is checked again. It is removed if it is still vacant.
    ///
    /// Reads all words and reservations once, for any number of namespaces: a machine with many containers has
    /// hundreds.
    pub fn forget_quiet_namespaces(&mut self, admin: &Admin, quiet_ns: u64) -> Result<usize, ForgetError> {
        let now = crate::sys::monotonic_ns();
        let mut quiet: BTreeMap<u64, Space> =
            self.spaces().flatten().filter(|(_, space)| now.saturating_sub(space.last) >= quiet_ns).collect();
        // The pool of the machine's own namespace keeps its words: see `make_words`.
        quiet.remove(&self.config()?.home);
        if quiet.is_empty() {
            return Ok(0);
        }
        for item in self.reservations() {
            quiet.remove(&item?.1.netns);
        }
        let mut sealed: BTreeSet<(u64, u16, u16)> = BTreeSet::new();
        for item in self.words() {
            let (key, word) = item?;
            // A word that is sealed already: the last round was killed.
            let seal = || word.sealed == 1 || word.is_vacant() && admin.set_word_sealed(&key, true).is_ok();
            if quiet.contains_key(&key.netns) && seal() {
                sealed.insert((key.netns, key.word, key.transport));
            }
        }
        crate::sys::wait_for_running_programs();
        let mut given_back: BTreeMap<u64, u32> = BTreeMap::new();
        let mut gone = 0;
        for (netns, word, transport) in sealed {
            let key = WordKey { netns, word, transport, zero: 0 };
            let Some(word) = self.word(&key)? else { continue };
            if word.bound == 0 && word.aside == 0 && self.words.remove(&key).is_ok() {
                gone += 1;
                *given_back.entry(word.payer).or_default() += 1;
            } else {
                admin.set_word_sealed(&key, false)?;
            }
        }
        let kept: BTreeSet<u64> = self.words().flatten().map(|(key, _)| key.netns).collect();
        let mut accounts = BTreeSet::new();
        for (netns, space) in quiet {
            let still = optional("spaces", self.spaces.get(&netns, 0))?.is_some_and(|now| now.last == space.last);
            if still && !kept.contains(&netns) && self.spaces.remove(&netns).is_ok() {
                *given_back.entry(space.payer).or_default() += SPACE_WORDS;
                accounts.insert(root_elsewhere(netns));
            }
        }
        for (account, words) in given_back.into_iter().filter(|(account, _)| has_share(*account)) {
            admin.give_back_share(account, words)?;
        }
        self.forget_accounts(admin, accounts)?;
        Ok(gone)
    }

    /// New namespaces keep being made, and each has an account of its own.
    fn forget_accounts(&mut self, admin: &Admin, mut accounts: BTreeSet<u64>) -> Result<(), ForgetError> {
        accounts.retain(|account| admin.set_quota_sealed(*account, true).is_ok());
        if accounts.is_empty() {
            return Ok(());
        }
        crate::sys::wait_for_running_programs();
        for account in accounts {
            match optional("quotas", self.quotas.get(&account, 0))? {
                Some(quota) if (quota.words, quota.pending, quota.limit) == (0, 0, 0) => {
                    let _ = self.quotas.remove(&account);
                }
                Some(_) => admin.set_quota_sealed(account, false)?,
                None => {}
            }
        }
        Ok(())
    }
}
