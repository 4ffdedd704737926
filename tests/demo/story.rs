//! The set-up of the demo and the order of its steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::{Upstream, World, wait};

use crate::interrupt::Interrupt;
use crate::report::Report;
use crate::steps::{self, Step};

/// The API that is called.
pub(crate) const API: &str = "api.payments.test";
/// A server that no rule names.
pub(crate) const ELSEWHERE: &str = "elsewhere.test";
/// Its port.
pub(crate) const ELSEWHERE_PORT: u16 = 8080;
/// Whom the API takes the bearer of the token for.
pub(crate) const ACCOUNT: &str = "acme-billing";

const TOKEN: &str = "tok_demo_5f0c6e1b9a";
const RECORDS_LIMIT: Duration = Duration::from_secs(10);

/// What the steps work with.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) programs: Programs,
}

/// The clients, by the files that the kernel will see.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) curl: PathBuf,
    pub(crate) python: PathBuf,
    /// curl under another name: another executable, whatever it can do.
    pub(crate) stranger: PathBuf,
}

/// Sets everything up, takes the steps and collects the records.
pub(crate) fn tell(report: &mut Report) -> Result<()> {
    let interrupt = Interrupt::install()?;
    eprintln!("setting up a network, an API that wants a bearer token, and a policy");
    let mut stage = set_up(&interrupt)?;
    eprintln!("calling");
    take(report, &stage, &steps::UNMANAGED);
    let started = stage.world.start_agent();
    report.step(
        "the agent starts",
        "ready",
        started
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), |()| "ready".to_owned()),
        started.is_ok(),
    );
    if started.is_err() {
        return Ok(());
    }
    for step in &steps::MANAGED {
        interrupt.check()?;
        take(report, &stage, step);
    }
    check_records(report, &stage.world)?;
    let stopped = stage
        .world
        .stop_agent()
        .map_or_else(|error| format!("{error:#}"), |()| "stopped".to_owned());
    report.step("the agent stops", "stopped", &stopped, stopped == "stopped");
    Ok(())
}

fn set_up(interrupt: &Interrupt) -> Result<Stage> {
    let mut world = World::new()?;
    interrupt.covers(world.cgroup().to_owned());
    world.upstream(Upstream::new(API).bearer(TOKEN, ACCOUNT))?;
    world.upstream(Upstream::new(ELSEWHERE).plain().port(ELSEWHERE_PORT))?;
    let programs = Programs::find(world.dir())?;
    let secret = world.secret("payments", TOKEN)?;
    world.policy("demo.toml", &policy(&programs, &secret))?;
    Ok(Stage { world, programs })
}

impl Programs {
    fn find(dir: &Path) -> Result<Self> {
        let curl = fs::canonicalize("/usr/bin/curl").context("curl is missing (package curl)")?;
        let python = fs::canonicalize("/usr/bin/python3").context("python3 is missing (package python3)")?;
        let stranger = dir.join("stranger");
        fs::copy(&curl, &stranger).context("can't copy curl")?;
        Ok(Self {
            curl,
            python,
            stranger,
        })
    }
}

/// Two workloads; only the first, and only two of its programs, may make charges.
fn policy(programs: &Programs, secret: &Path) -> String {
    format!(
        r#"
[[workload]]
name = "billing"

  [[workload.allow]]
  name = "charges"
  host = "{API}"
  methods = ["GET", "POST"]
  paths = ["/v1/charges", "/v1/charges/{{id}}"]
  exe = [{:?}, {:?}]
  credential = "payments"
  private = true  # the sandbox's addresses are no public ones

[[workload]]
name = "reports"

  [[workload.allow]]
  name = "health"
  host = "{API}"
  methods = ["GET"]
  paths = ["/health"]
  private = true

[credential.payments]
hosts = ["{API}:443"]
scheme = "bearer"
source = {{ file = {secret:?} }}
"#,
        programs.curl, programs.python
    )
}

/// A step that can't even be taken went otherwise.
fn take(report: &mut Report, stage: &Stage, step: &Step) {
    match (step.run)(stage) {
        Ok((got, ok)) => report.step(step.name, step.expected, got, ok),
        Err(error) => report.step(step.name, step.expected, format!("{error:#}"), false),
    }
}

/// Every managed call has its record, and the token is in none of them.
fn check_records(report: &mut Report, world: &World) -> Result<()> {
    let calls = || -> Option<usize> {
        let records = world.records().ok()?;
        Some(
            records
                .iter()
                .filter(|record| record.field("status").is_u64())
                .count(),
        )
    };
    let expected = format!("{} calls, {0} records", steps::CALLS);
    // Not reaching the number is reported below, with what there was.
    drop(wait::until("a record of each call", RECORDS_LIMIT, || {
        calls().filter(|n| *n >= steps::CALLS)
    }));
    let found = calls().unwrap_or(0);
    report.step(
        "every call has one audit record",
        &expected,
        format!("{} calls, {found} records", steps::CALLS),
        found == steps::CALLS,
    );
    let written = fs::read_to_string(world.audit_file()).unwrap_or_default() + &world.agent()?.log();
    let leaked = written.contains(TOKEN);
    let got = if leaked { "found" } else { "absent" };
    report.step(
        "the token in what the agent wrote",
        "absent",
        got,
        !leaked && !written.is_empty(),
    );
    report.records(world.records()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use callgate::policy::{Policy, Source};

    use super::*;

    #[test]
    fn the_policy_is_one() {
        let programs = Programs {
            curl: "/usr/bin/curl".into(),
            python: "/usr/bin/python3".into(),
            stranger: "/x".into(),
        };
        let text = policy(&programs, Path::new("/etc/callgate/secrets/payments"));
        let compiled = Policy::compile(&[Source::new("demo.toml", &text)]).unwrap();
        assert!(compiled.warnings().is_empty(), "{:?}", compiled.warnings());
    }
}
