//! `cargo xtask bench`: what single steps cost, and in a sandbox the agent beside other proxies, with much to do, and for long.

mod steps;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::cmd::{self, Outcome};
use crate::setup;
use crate::train;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Only micro-benchmarks whose name contains this
    filter: Option<String>,
    /// Put the micro-benchmarks' times into BENCHMARKS.md
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure the agent beside nginx, HAProxy, Envoy, squid and mitmproxy, in turns, on private loopback (needs root)
    Peers(Peers),
    /// Measure the agent with many connections, rules, workloads, credentials and hosts (needs root)
    Scale(Scale),
    /// Half a load for long, with reloads, new secrets and everything that dies: nothing may grow (needs root)
    Soak(Soak),
}

#[derive(Debug, Args)]
struct Scale {
    /// How often each figure is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 3)]
    secs: u32,
    /// Put the tables into BENCHMARKS.md
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Args)]
struct Soak {
    /// How long the load lasts
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// Put the table into BENCHMARKS.md
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Args)]
struct Peers {
    /// How often each peer has its turn
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 4)]
    secs: u32,
    /// Seconds to wait at most, before each turn, for the rest of the machine to be idle
    #[arg(long, default_value_t = 20)]
    settle: u32,
    /// Which, with commas between; all that are installed unless given
    #[arg(long)]
    peers: Option<String>,
    /// Put the tables into BENCHMARKS.md
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome> {
    let words = |pairs: &[(&str, String)]| {
        let both = pairs
            .iter()
            .flat_map(|(name, value)| [(*name).to_owned(), value.clone()]);
        both.collect::<Vec<_>>()
    };
    match &arguments.what {
        Some(What::Peers(peers)) => {
            let mut numbers = vec![
                ("--rounds", peers.rounds.to_string()),
                ("--secs", peers.secs.to_string()),
                ("--settle", peers.settle.to_string()),
            ];
            numbers.extend(peers.peers.clone().map(|peers| ("--peers", peers)));
            measure("peers", "measure.sh", &words(&numbers), peers.write)
        }
        Some(What::Scale(scale)) => {
            let numbers = [
                ("--rounds", scale.rounds.to_string()),
                ("--secs", scale.secs.to_string()),
            ];
            measure("scale", "scale.sh", &words(&numbers), scale.write)
        }
        Some(What::Soak(soak)) => {
            let numbers = [("--minutes", soak.minutes.to_string())];
            measure("soak", "soak.sh", &words(&numbers), soak.write)
        }
        None => steps::measure(arguments.filter.as_deref(), arguments.write),
    }
}

/// Measures the optimised agent, and shows the tables.
fn measure(what: &str, script: &str, arguments: &[String], write_down: bool) -> Result<Outcome> {
    if !cmd::is_root() {
        eprintln!("bench: needs root, for a sandbox of its own: sudo -E cargo xtask bench {what}");
        return Ok(Outcome::Lacking);
    }
    setup::all()?;
    let agent = train::build()?;
    let how = train::how_built()?;
    let tables = format!("{how}\n\n{}", sandboxed(&agent, script, arguments)?);
    println!("{tables}");
    if write_down {
        write(what, &tables)?;
    }
    Ok(Outcome::Good)
}

/// Runs a script of `tests/peers` with this agent; what it prints.
pub(crate) fn sandboxed(agent: &Path, name: &str, arguments: &[String]) -> Result<String> {
    let own = cmd::root().join("target/peers");
    let run = own.join("run");
    fs::create_dir_all(&run).with_context(|| format!("can't make {}", run.display()))?;
    let script = |name: &str| {
        let path = cmd::root().join("tests/peers").join(name);
        let mut command = cmd::command::<&str>(&path.to_string_lossy(), []);
        command
            .env("CALLGATE", agent)
            .env("BENCH_CACHE", own.join("cache"))
            .env("BENCH_RUN", &run)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    if let Err(error) = cmd::run(script("install.sh")) {
        eprintln!("bench: {error:#}; measuring what is there");
    }
    let mut measure = script(name);
    measure.args(arguments);
    cmd::show(&measure);
    let output = measure
        .stderr(Stdio::inherit())
        .output()
        .context("can't start the measurement")?;
    let tables = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("the measurement failed: {}; {tables}", output.status);
    }
    Ok(tables.into_owned())
}

/// Replaces what stands in BENCHMARKS.md between the two marks of this name.
fn write(name: &str, tables: &str) -> Result<()> {
    let file = cmd::root().join("BENCHMARKS.md");
    let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_old, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.with_context(|| format!("{} lacks {begin}{end}", file.display()))?;
    let new = format!(
        "{before}{begin}{}\n\n{}\n{end}{after}",
        machine(),
        tables.trim_end()
    );
    fs::write(&file, new).with_context(|| format!("can't write {}", file.display()))
}

/// Where and when this was measured.
fn machine() -> String {
    let date = cmd::read(cmd::command("date", ["+%Y-%m-%d"])).unwrap_or_default();
    let kernel = cmd::read(cmd::command("uname", ["-r"])).unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}; {cores} cores of {model}; Linux {}; {}.",
        date.trim(),
        kernel.trim(),
        env::consts::ARCH
    )
}
