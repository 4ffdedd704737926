//! `callgate audit`: follow and show the records.

mod follow;
mod line;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::WRONG;
use crate::audit::file::rotated;
use crate::audit::{Record, RequestId};
use crate::config::DEFAULT_PATH;
use crate::identity::WorkloadName;

/// Arguments of `callgate audit`.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// The agent's settings, which say where the log is
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, global = true)]
    config: PathBuf,
    /// The log, instead of the one that the settings name
    #[arg(long, value_name = "PATH", global = true)]
    file: Option<PathBuf>,
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
}

#[derive(Debug, clap::Args)]
struct Show {
    /// The id, as a refusal or `audit tail` shows it
    id: RequestId,
    /// Print the record as it is in the file
    #[arg(long)]
    json: bool,
}

fn workload(text: &str) -> Result<WorkloadName, crate::identity::WorkloadNameError> {
    WorkloadName::parse(text)
}

/// Runs `callgate audit` on the log that `by_settings` finds, or the one that was named. Exit code 1: `show` found
/// no such record; 2: the settings have errors, which `by_settings` has shown.
///
/// # Errors
/// If the log can't be read or nothing can be printed.
pub fn run(
    args: &AuditArgs,
    by_settings: impl FnOnce(&Path) -> anyhow::Result<Option<PathBuf>>,
) -> anyhow::Result<ExitCode> {
    let named = args.file.clone().map(|file| Ok(Some(file)));
    let Some(file) = named.unwrap_or_else(|| by_settings(&args.config))? else {
        return Ok(ExitCode::from(WRONG));
    };
    let mut out = io::stdout().lock();
    let result = match &args.command {
        Command::Tail(tail) => tail.run(&file, &mut out),
        Command::Show(show) => show.run(&file, &mut out),
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
    File::open(path).with_context(|| {
        let path = path.display();
        format!(
            "can't read the audit log {path} (the agent makes it when it first runs; --file names another)"
        )
    })
}

impl Tail {
    fn run(&self, file: &Path, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let mut reader = BufReader::new(open(file)?);
        let (mut last, rest) = self.last(&mut reader)?;
        for number in 1.. {
            if last.len() >= self.lines {
                break;
            }
            let Ok(older) = File::open(rotated(file, number)) else {
                break;
            };
            let (mut older, _) = self.last(&mut BufReader::new(older))?;
            older.append(&mut last);
            last = older;
        }
        for record in last.iter().skip(last.len().saturating_sub(self.lines)) {
            self.print(record, out)?;
        }
        out.flush()?;
        if self.follow {
            follow::follow(file, reader, rest, |line| {
                self.wanted(line).map_or(Ok(()), |record| {
                    self.print(&record, out)?;
                    Ok(out.flush()?)
                })
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The last wanted records of one file, and the line that is not whole yet.
    fn last(&self, reader: &mut BufReader<File>) -> anyhow::Result<(VecDeque<Record>, Vec<u8>)> {
        let (mut last, mut line) = (VecDeque::new(), Vec::new());
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
                return Ok((last, line));
            }
            last.extend(self.wanted(&line));
            if last.len() > self.lines {
                last.pop_front();
            }
        }
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
    fn run(&self, path: &Path, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let mut found = self.find(open(path)?)?;
        for number in 1.. {
            if found.is_some() {
                break;
            }
            let Ok(file) = File::open(rotated(path, number)) else {
                break;
            };
            found = self.find(file)?;
        }
        let Some(record) = found else {
            writeln!(out, "{} has no record with the id {}", path.display(), self.id)?;
            return Ok(ExitCode::FAILURE);
        };
        if self.json {
            print_json(&record, out)?;
        } else {
            let mut line = Vec::new();
            record.write_line(&mut line)?;
            line::fields("", &serde_json::from_slice(&line)?, out)?;
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
