//! `callgate audit`: follow and show the records.

mod follow;
mod line;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::audit::file::{DEFAULT_PATH, rotated};
use crate::audit::{Record, RequestId};
use crate::identity::WorkloadName;

/// Arguments of `callgate audit`.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the last records
    Tail(Tail),
    /// Show all fields of one record
    Show(Show),
}

#[derive(Debug, clap::Args)]
struct Tail {
    /// Go on with each new record
    #[arg(short, long)]
    follow: bool,
    /// Print records as they are in the file, one JSON document a line
    #[arg(long)]
    json: bool,
    /// Only records of this workload
    #[arg(long, value_name = "NAME", value_parser = workload)]
    workload: Option<WorkloadName>,
    /// How many records to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    /// The log
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// The id, as a refusal or `audit tail` shows it
    id: RequestId,
    /// Print the record as it is in the file
    #[arg(long)]
    json: bool,
    /// The log; its rotated files are searched too
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    file: PathBuf,
}

fn workload(text: &str) -> Result<WorkloadName, crate::identity::WorkloadNameError> {
    WorkloadName::parse(text)
}

/// Runs `callgate audit`. Exit code 1: `show` found no such record.
///
/// # Errors
/// If the log can't be read or nothing can be printed.
pub fn run(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let result = match &args.command {
        Command::Tail(tail) => tail.run(&mut out),
        Command::Show(show) => show.run(&mut out),
    };
    match result {
        // `callgate audit tail | head` ends well.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("can't read the audit log {}", path.display()))
}

impl Tail {
    fn run(&self, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let mut last = VecDeque::new();
        let mut reader = BufReader::new(open(&self.file)?);
        let mut rest = Vec::new();
        loop {
            rest.clear();
            if reader.read_until(b'\n', &mut rest)? == 0 || rest.last() != Some(&b'\n') {
                break;
            }
            last.extend(self.wanted(&rest));
            if last.len() > self.lines {
                last.pop_front();
            }
        }
        for record in &last {
            self.print(record, out)?;
        }
        out.flush()?;
        if self.follow {
            follow::follow(&self.file, reader, rest, |line| {
                self.wanted(line).map_or(Ok(()), |record| {
                    self.print(&record, out)?;
                    Ok(out.flush()?)
                })
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wanted(&self, line: &[u8]) -> Option<Record> {
        let record = Record::parse(line).ok()?;
        let of_workload = self.workload.is_none() || record.caller.workload == self.workload;
        of_workload.then_some(record)
    }

    fn print(&self, record: &Record, out: &mut impl Write) -> anyhow::Result<()> {
        if self.json {
            return print_json(record, out);
        }
        Ok(writeln!(out, "{}", line::Human(record))?)
    }
}

impl Show {
    fn run(&self, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let mut found = self.find(open(&self.file)?)?;
        for number in 1.. {
            if found.is_some() {
                break;
            }
            let Ok(file) = File::open(rotated(&self.file, number)) else { break };
            found = self.find(file)?;
        }
        let Some(record) = found else {
            writeln!(out, "{} has no record with the id {}", self.file.display(), self.id)?;
            return Ok(ExitCode::FAILURE);
        };
        if self.json {
            print_json(&record, out)?;
        } else {
            line::fields("", &serde_json::to_value(&record)?, out)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn find(&self, file: File) -> anyhow::Result<Option<Record>> {
        for line in BufReader::new(file).split(b'\n') {
            match Record::parse(&line?) {
                Ok(record) if record.id == self.id => return Ok(Some(record)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(None)
    }
}

fn print_json(record: &Record, out: &mut impl Write) -> anyhow::Result<()> {
    let mut line = Vec::new();
    record.write_line(&mut line)?;
    Ok(out.write_all(&line)?)
}

#[cfg(test)]
mod tests;
