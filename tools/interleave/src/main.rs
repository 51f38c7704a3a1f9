//! `cargo xtask interleave`: all orders of the shipped object.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use clap::Parser;
use portkeep_interleave::{SCENARIOS, explore_weak, is_known_limit, replay};
use portkeep_tool::repository;

/// Try every order in which CPUs can run the shipped BPF programs, up to a bound
#[derive(Parser)]
#[command(name = "interleave", disable_version_flag = true)]
struct Options {
    /// Fewer preemptions: minutes instead of an hour
    #[arg(long)]
    short: bool,
    /// Only this scenario
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Follow one schedule of the scenario, access by access
    #[arg(long, value_name = "SCHEDULE", requires = "scenario")]
    replay: Option<String>,
    /// Memory order: so many stores of a schedule are seen late, past the CPU's later loads
    #[arg(long, value_name = "STORES", default_value_t = 0)]
    late: u32,
    /// Run another object than the checked-in one
    #[arg(long, value_name = "PATH")]
    object: Option<PathBuf>,
    /// Print the names of the scenarios
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    // The search is as deep as a schedule is long.
    let search = std::thread::Builder::new().stack_size(1 << 30).spawn(|| run(&Options::parse()));
    match search.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(true))) => ExitCode::SUCCESS,
        Ok(Ok(Ok(false))) => ExitCode::FAILURE,
        Ok(Ok(Err(error))) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: starting the search: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if options.list {
        for (name, text) in SCENARIOS {
            let title = text.lines().find_map(|line| line.strip_prefix("title ")).unwrap_or("");
            println!("{name:<28} {title}");
        }
        return Ok(true);
    }
    let shipped = || repository().join("crates/kernel/bpf/portkeep.bpf.o");
    let path = options.object.clone().unwrap_or_else(shipped);
    let object = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    if let (Some(name), Some(schedule)) = (&options.scenario, &options.replay) {
        let (trace, fault) = replay(&object, name, schedule)?;
        for line in trace {
            println!("{line}");
        }
        println!("{}", fault.as_deref().map_or("no fault".to_owned(), |fault| format!("FAULT: {fault}")));
        return Ok(fault.is_none());
    }
    println!("| scenario | CPUs | preemptions | contended cells | states | schedules | ends | seconds | result |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut clean = true;
    for (name, _) in SCENARIOS {
        if options.scenario.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let began = Instant::now();
        let report = explore_weak(&object, name, options.short, options.late)?;
        let seconds = began.elapsed().as_secs_f64();
        let (cpus, bound) = (report.cpus, report.preemptions);
        match report.outcome {
            Ok(f) => println!(
                "| {name} | {cpus} | {bound} | {} | {} | {:.3e} | {} | {seconds:.1} | clean |",
                f.contended, f.states, f.schedules, f.ends
            ),
            Err(found) if is_known_limit(name) => {
                println!("| {name} | {cpus} | {bound} | | | | | {seconds:.1} | known limit: {} |", found.fault);
            }
            Err(found) => {
                clean = false;
                println!("| {name} | {cpus} | {bound} | | | | | {seconds:.1} | FAULT |");
                println!("\nFAULT in {name}: {}", found.fault);
                println!("  --scenario {name} --replay {}\n", found.schedule);
            }
        }
    }
    Ok(clean)
}
