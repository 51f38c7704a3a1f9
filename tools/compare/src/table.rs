//! The result, in Markdown.

use std::fmt::{self, Write as _};

use anyhow::{Context, Result, ensure};
use portkeep_testkit::report;

use super::{
    crash::{AT_ONCE, Crash},
    job::Tally,
    latency::Latency,
    races::{Field, RANGE},
    subject::Subject,
};

pub(super) struct Row {
    pub(super) subject: Subject,
    pub(super) latency: Latency,
    pub(super) races: Tally,
    pub(super) crash: Crash,
}

pub(super) struct Table {
    pub(super) rows: Vec<Row>,
    pub(super) field: Field,
    pub(super) command: String,
}

/// A picker as it is, and the same under `portkeep run --ephemeral`.
pub(super) struct Picker {
    pub(super) subject: Subject,
    pub(super) races: Tally,
    pub(super) within_range: Tally,
}

/// The pickers of one run.
#[derive(Default)]
pub(super) struct Pickers {
    pub(super) rows: Vec<Picker>,
}

/// The time relative to that of the yardstick, and the time in microseconds.
fn cost(ns: f64, yardstick: f64) -> String {
    format!("{:.2} ({:.1} µs)", ns / yardstick, ns / 1000.0)
}

fn lost(tally: Tally) -> String {
    let mut text = format!("{} of {}", tally.lost, tally.rounds);
    if tally.lost > 0 {
        let _ = write!(text, " ({:.1} %)", 100.0 * f64::from(tally.lost) / f64::from(tally.rounds));
    }
    if tally.refused > 0 {
        let _ = write!(text, ", {} more without ports", tally.refused);
    }
    text
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yardstick = self.rows.iter().find(|row| row.subject == Subject::Bind0).map(|row| row.latency);
        let Some(yardstick) = yardstick else { return Err(fmt::Error) };
        writeln!(f, "Made by `{}` as root, all in one run. {}.\n", self.command, report::machine())?;
        writeln!(
            f,
            "| | one port taken and given back, `bind(0)` = 1 | 8 ports | rounds lost | an outsider gets, of 8 \
             ports in hand: plainly / with SO_REUSEADDR | after `kill -9` |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|---|")?;
        for Row { subject, latency, races, crash, .. } in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {} | {} / {} | {} |",
                subject.title(),
                cost(latency.one, yardstick.one),
                cost(latency.all, yardstick.all),
                lost(*races),
                crash.plain,
                crash.reuse,
                crash.after
            )?;
        }
        let Field { processes, neighbours, .. } = self.field;
        writeln!(
            f,
            "\nA round, as test suites play it: a process gets 8 ports, prepares something for up to 20 ms, and starts a \
             program on each, which binds it within 10 ms, with SO_REUSEADDR as servers do. The round is lost if one of \
             them does not get its port. {processes} such processes run side by side, among {neighbours} neighbours \
             that all the time listen on ports the kernel chooses and on ports of their own choice in 15000-65535, and \
             connect. Everybody has the same neighbours, and is used as its documentation says: portserver with its \
             default pool (its row after `kill -9` is with one of 8 ports), `portkeep portserver` among neighbours of another \
             user, because its ports are for all programs of one user, the sockets that hold ports closed just before the programs start, Portkeep's ports taken \
             with `portkeep acquire` (the times are those of \
             the library, which makes a socket for each reservation)."
        )?;
        Ok(())
    }
}

impl fmt::Display for Pickers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## The same pickers under `run --ephemeral`\n\nMade by `cargo xtask compare --pickers --write` as root (the \
             whole comparison makes it, too), in one run. {}. The rounds are those above, and the pickers are not \
             changed: each test process runs under `portkeep run --ephemeral {RANGE}`.\n",
            report::machine()
        )?;
        writeln!(f, "| | rounds lost | rounds lost under `run --ephemeral` |\n|---|---:|---:|")?;
        for Picker { subject, races, within_range } in &self.rows {
            writeln!(f, "| {} | {} | **{}** |", subject.title(), lost(*races), lost(*within_range))?;
        }
        Ok(())
    }
}

impl Pickers {
    /// None loses a round under `run --ephemeral`.
    pub(super) fn check(&self) -> Result<()> {
        for Picker { subject, within_range, .. } in &self.rows {
            ensure!(
                within_range.lost == 0 && within_range.refused == 0,
                "{} lost rounds under run --ephemeral",
                subject.title()
            );
        }
        Ok(())
    }
}

impl Table {
    /// The few columns that fit on the front page.
    pub(super) fn summary(&self) -> String {
        let mut text = String::from(
            "| | test rounds lost | outsiders get of 8 ports: plainly / with SO_REUSEADDR | 8 ports, time |\n\
             |---|---:|---:|---:|\n",
        );
        // A summary has at most eight rows.
        let left_out = [Subject::Held, Subject::EphemeralPortReserve];
        for Row { subject, latency, races, crash, .. } in
            self.rows.iter().filter(|row| !left_out.contains(&row.subject))
        {
            let (title, Tally { lost, rounds, .. }) = (subject.title(), races);
            let _ = writeln!(
                text,
                "| {title} | {lost} of {rounds} | {} / {} | {:.0} µs |",
                crash.plain,
                crash.reuse,
                latency.all / 1000.0
            );
        }
        text
    }

    /// The budget for these figures.
    pub(super) fn check(&self) -> Result<()> {
        let enforced: Vec<_> = self.rows.iter().filter(|row| row.subject.enforced()).collect();
        for Row { subject, races, crash, .. } in &enforced {
            let name = subject.name();
            ensure!(races.lost == 0 && races.refused == 0, "{name} lost rounds: {}", lost(*races));
            ensure!((crash.plain, crash.reuse) == (0, 0), "outsiders got reserved ports of {name}: {crash:?}");
        }
        let kernel = enforced.iter().find(|row| row.subject == Subject::Kernel).context("Portkeep was not measured")?;
        let Row { crash, .. } = kernel;
        ensure!(crash.after.starts_with(AT_ONCE), "Portkeep's ports were not free at once after a crash: {crash:?}");
        Ok(())
    }
}
