//! Reads the configuration and the declarations, at the start and later.

use portkeep::persistent::protocol::Reloaded;
use portkeep_persist::Diagnostic;

use super::{agent::Agent, programs, registry::Changes, sweep::Sweep};

impl Agent<'_> {
    /// Apply the configuration; returns what could not be applied.
    pub(super) fn apply_configuration(&mut self) -> anyhow::Result<Vec<String>> {
        let complaints = self.policy.apply(&mut self.programs.maps, &self.programs.admin, &self.reserved_ports)?;
        let before = programs::pool(&self.programs.config);
        self.programs.config = self.programs.maps.config()?;
        self.reserved_ports.pool = programs::pool(&self.programs.config);
        self.event_log.limit(self.policy.config().events.per_second);
        if let Some(pool) = self.reserved_ports.pool
            && self.programs.config.home != 0
        {
            self.programs.maps.make_words(self.programs.config.home, pool)?;
        }
        if before != self.reserved_ports.pool {
            self.sweep = Sweep::begin(true);
        }
        complaints.iter().for_each(|complaint| tracing::warn!("{complaint}"));
        Ok(complaints)
    }

    /// Read the drop-ins and bring the BPF programs in line with them and the stores.
    pub(super) fn load_declarations(&mut self) -> anyhow::Result<Reloaded> {
        let (registry, mut tools) = self.registry();
        let (changes, wrong) = registry.load(&mut tools)?;
        let conflicts = registry.conflicts();
        let mut errors = registry.complaints();
        for diagnostic in wrong.iter().chain(&conflicts) {
            tracing::warn!("{}", diagnostic.on_one_line());
        }
        errors.extend(wrong.iter().map(Diagnostic::on_one_line));
        let complaints = conflicts.iter().map(Diagnostic::on_one_line).collect();
        self.unsettle(self.netns, &[]);
        let Changes { added, changed, removed, waiting } = changes;
        Ok(Reloaded { added, changed, removed, waiting, errors, complaints })
    }

    /// Read everything again. If the configuration has an error, the present one stays.
    pub(super) fn reload(&mut self) -> anyhow::Result<Reloaded> {
        self.service.reloading();
        let reloaded = self.read_again();
        // The service manager waits for this message, also after a failure.
        self.service.ready();
        reloaded
    }

    fn read_again(&mut self) -> anyhow::Result<Reloaded> {
        let (mut complaints, mut errors) = match self.policy.reload() {
            Ok(()) => (self.apply_configuration()?, Vec::new()),
            Err(wrong) => {
                let errors: Vec<String> = wrong.iter().map(Diagnostic::on_one_line).collect();
                tracing::warn!("the configuration stays as it was: {}", errors.join("\n"));
                (Vec::new(), errors)
            }
        };
        let mut reloaded = self.load_declarations()?;
        errors.append(&mut reloaded.errors);
        complaints.append(&mut reloaded.complaints);
        let Reloaded { added, changed, removed, waiting, .. } = reloaded;
        tracing::info!(added, changed, removed, waiting, "reloaded");
        Ok(Reloaded { complaints, errors, ..reloaded })
    }

    pub(super) fn retry_declarations(&mut self) -> anyhow::Result<()> {
        let (registry, mut tools) = self.registry();
        let begun = registry.retry(&mut tools)?;
        if begun > 0 {
            tracing::info!(begun, "what waited is in force now");
            self.unsettle(self.netns, &[]);
        }
        Ok(())
    }
}
