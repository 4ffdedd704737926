//! Every chore of the project, the same on a desk and in CI: `cargo xtask VERB`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for people at a terminal"
)]

mod bench;
mod check;
mod ci;
mod cmd;
mod demo;
mod dist;
mod manual;
mod setup;
mod test;
mod tidy;
mod train;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cmd::Outcome;
use crate::dist::Profile;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Every chore of the project")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what building and testing need (Debian packages, rust-src, bpf-linker); does only what is missing
    Setup,
    /// Show the whole job on real connections in a sandbox of its own
    Demo {
        /// One JSON document on standard output
        #[arg(long)]
        json: bool,
    },
    /// Build and run every test that this machine can run, and say how long each bed took
    Test {
        /// Only tests whose name contains this
        #[arg(long)]
        filter: Option<String>,
        /// The long ones too: every test of the kernel's side on other kernels
        #[arg(long, conflicts_with = "filter")]
        all: bool,
    },
    /// Boot other kernels in QEMU and run the tests of what depends on the kernel there
    Vm(vm::Arguments),
    /// Format, lints, documentation, dependency policy
    Check,
    /// The rules of the repository that no compiler knows
    Tidy,
    /// Build the Debian package: optimised binary, unit, settings, man pages, completions
    Dist {
        /// Unoptimised and unpacked, as the tests of the package use it
        #[arg(long)]
        dev: bool,
    },
    /// Put the agent under load and keep a profile of it, by which `dist` and `bench` optimise from then on (needs root)
    Train,
    /// Write the man pages, shell completions and default settings anew, after a change of the command line or of a setting
    Manual,
    /// Measure: single steps, or with `peers` the agent beside other proxies
    Bench(bench::Arguments),
    /// What CI runs: check, tidy and test, with one closing line
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Demo { json } => demo::run(json),
        Verb::Test { all: true, .. } => test::run_with_long_ones(),
        Verb::Test { filter, .. } => test::run(filter.as_deref()),
        Verb::Vm(arguments) => vm::run(&arguments),
        Verb::Check => check::run(),
        Verb::Tidy => tidy::run(),
        Verb::Dist { dev } => dist::run(if dev { Profile::Dev } else { Profile::Release }),
        Verb::Train => train::run(),
        Verb::Manual => manual::run(),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Ci => ci::run(),
    };
    match outcome {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            Outcome::No.into()
        }
    }
}
