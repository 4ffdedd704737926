//! Unmodified programs of many runtimes on a booted Debian, each with its row in the README's table: it runs as a managed
//! workload, and its row says what came of it.

mod bundled;
mod calls;
mod git;
mod names;
mod packages;
mod roots;
mod streams;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use harness::{Access, Bed, Output, Record, Upstream, World, wait};

const README: &str = include_str!("../../README.md");
/// Where the clients are in the bed.
const CLIENTS: &str = "/opt/clients";
const API: &str = "api.example.test";
const TOKEN: &str = "the-runtimes-token";
/// An ordinary user of the host, with a home.
const USER: &str = "app";

/// How a program becomes a managed one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// By a command of root.
    Exec,
    /// By one of root for an ordinary user.
    ExecAs,
    /// By one of that user.
    ExecBy,
    /// As a service of root, with nothing but `callgate enable`.
    Unit,
    /// The same for a service with `User=`.
    UnitAs,
}

impl Way {
    /// The service that it is, if it is one.
    fn service(self) -> Option<&'static str> {
        match self {
            Self::Exec | Self::ExecAs | Self::ExecBy => None,
            Self::Unit => Some(SERVICE),
            Self::UnitAs => Some(SERVICE_AS),
        }
    }

    /// Whom a record names as the caller.
    fn user(self) -> &'static str {
        match self {
            Self::Exec | Self::Unit => "root",
            Self::ExecAs | Self::ExecBy | Self::UnitAs => USER,
        }
    }
}

/// For all that an ordinary user runs too.
const WAYS: &[Way] = &[Way::Exec, Way::ExecAs, Way::ExecBy, Way::Unit, Way::UnitAs];
const AS_ROOT: &[Way] = &[Way::Exec, Way::Unit];

/// Run what is at [`SCRIPT`], as root and as [`USER`].
const SERVICE: &str = "client.service";
const SERVICE_AS: &str = "client-as.service";
const SCRIPT: &str = "/opt/clients/service.sh";
const STDOUT: &str = "/opt/clients/service.out";
const STDERR: &str = "/opt/clients/service.err";

/// A host with the runtimes, the agent and a policy.
struct Host(Bed);

impl Host {
    /// With an API that answers whoever has its token, and what else `outside` starts; the workload may call the API and
    /// these `hosts` with the token, and what further `rules` say.
    fn new(hosts: &[&str], rules: &str, outside: impl FnOnce(&mut World) -> Result<()>) -> Result<Self> {
        let mut world = World::new()?;
        world.upstream(Upstream::new(API).bearer(TOKEN, "acme"))?;
        outside(&mut world)?;
        let bed = Bed::with_runtimes(world)?;
        bed.run(["useradd", "--create-home", USER])?.ok()?;
        bed.secret("api", TOKEN)?;
        bed.policy(&policy(hosts, rules))?;
        bed.write(SCRIPT, "")?;
        let host = Self(bed);
        host.service(SERVICE, "Environment=HOME=/root")?;
        host.service(SERVICE_AS, &format!("User={USER}"))?;
        Ok(host)
    }

    /// Makes a service that runs the script of the moment, and enables it.
    fn service(&self, name: &str, settings: &str) -> Result<()> {
        let text = format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n{settings}\nExecStart=/bin/sh {SCRIPT}\nStandardOutput=truncate:{STDOUT}\nStandardError=truncate:{STDERR}\n"
        );
        self.0.unit(name, &text)?;
        self.0
            .run(["callgate", "enable", name, "--workload", "billing"])?
            .ok()?;
        Ok(())
    }

    /// Puts a client there and gives its path.
    fn client(&self, name: &str, text: &str) -> Result<String> {
        let path = format!("{CLIENTS}/{name}");
        self.0.write(&path, text)?;
        Ok(path)
    }

    /// Puts these there.
    fn clients(&self, named: &[(&str, &str)]) -> Result<()> {
        named
            .iter()
            .try_for_each(|(name, text)| self.client(name, text).map(drop))
    }

    /// Compiles the client of Go's that was put there.
    fn go_client(&self) -> Result<()> {
        self.0
            .sh("cd /opt/clients && go build -o call-go call.go")?
            .ok()?;
        Ok(())
    }

    /// Puts the workspace's own client with rustls there.
    fn rust_client(&self) -> Result<()> {
        let path = self.0.path(format!("{CLIENTS}/rust-client"));
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::copy(env!("CARGO_BIN_EXE_rust-client"), path)?;
        Ok(())
    }

    /// Runs a shell script as the workload.
    fn run(&self, way: Way, script: &str) -> Result<Output> {
        if let Some(service) = way.service() {
            return self.serve(service, script);
        }
        let exec = ["callgate", "exec", "--workload", "billing"];
        let by_root = ["--user", way.user()];
        let itself = ["setpriv", "--reuid", USER, "--regid", USER];
        let itself = [itself.as_slice(), &["--init-groups", "--reset-env", "--"]].concat();
        let (before, options): (&[&str], &[&str]) = match way {
            Way::ExecAs => (&[], &by_root),
            Way::ExecBy => (&itself, &[]),
            Way::Exec | Way::Unit | Way::UnitAs => (&[], &[]),
        };
        self.0
            .run([before, &exec, options, &["--", "sh", "-c", script]].concat())
    }

    /// Runs it as the service.
    fn serve(&self, service: &str, script: &str) -> Result<Output> {
        self.0.write(SCRIPT, script)?;
        let started = self.0.systemctl(&["start", service])?;
        let read = |path| fs::read_to_string(self.0.path(path)).unwrap_or_default();
        Ok(Output {
            status: started.status,
            stdout: read(STDOUT),
            stderr: read(STDERR) + &started.stderr,
        })
    }

    /// Runs each script, in which `URL` stands for one of the API's own to that run, as a managed program in each way,
    /// and holds what comes of it against its row in the table.
    fn check(&self, cases: &[(&str, &str)]) -> Result<()> {
        let mut wrong = Vec::new();
        for (number, (name, script)) in cases.iter().enumerate() {
            promises(&[name], "yes")?;
            for way in WAYS {
                let path = format!("/v1/{number}/{way:?}");
                let script = script.replace("URL", &format!("https://{API}{path}"));
                let output = self.run(*way, &script)?;
                if let Err(error) = self.called(*way, &path, &output) {
                    wrong.push(format!("{name} ({way:?}): {error:#}: {output:?}"));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("{}\nrecords: {:#?}", wrong.join("\n"), self.0.records()?)
    }

    /// Whether a call to this path of the API came through with the credential, on record and in the API's own log.
    fn called(&self, way: Way, path: &str, output: &Output) -> Result<()> {
        if !output.status.success() || !output.stdout.contains("acme") {
            bail!("no answer");
        }
        self.0.expect_record(&[
            ("workload", "billing".into()),
            ("unit", way.service().into()),
            ("user", way.user().into()),
            ("authority", format!("{API}:443").into()),
            ("path", path.into()),
            ("outcome", "completed".into()),
            ("status", 200.into()),
            ("credential.name", "api".into()),
        ])?;
        let server = self.0.world().server(API)?;
        wait::until("a line in the API's log", wait::PATIENCE, || {
            let log = server.log().ok()?;
            let bearer = format!("Bearer {TOKEN}");
            let here = |one: &&Access| one.uri == path && one.authorization == bearer;
            (log.iter().filter(here).count() == 1).then_some(())
        })
    }
}

fn policy(hosts: &[&str], rules: &str) -> String {
    let hosts: Vec<_> = [API].iter().chain(hosts).collect();
    let allow = |host: &&&str| {
        format!("[[workload.allow]]\nhost = \"{host}\"\ncredential = \"api\"\nprivate = true\n")
    };
    let allowed: String = hosts.iter().map(allow).collect();
    let listed: Vec<_> = hosts.iter().map(|host| format!("{host}:443")).collect();
    format!(
        "[[workload]]\nname = \"billing\"\nexec_by = {{ users = [\"{USER}\"] }}\n{allowed}{rules}\n[credential.api]\nhosts = {listed:?}\nscheme = \"bearer\"\nsource = {{ file = \"/etc/callgate/secrets/api\" }}\n"
    )
}

/// Whether these records are of calls in each of these ways, and of no others, `user` being the caller instead of the
/// way's own where a program changes it.
fn called_by(records: &[Record], ways: &[Way], user: Option<&str>) -> Result<()> {
    let callers = records
        .iter()
        .map(|one| ["user", "unit"].map(|name| one.text(name)));
    let callers: BTreeSet<_> = callers.collect();
    let expected = ways
        .iter()
        .map(|way| [user.unwrap_or(way.user()), way.service().unwrap_or("-")].map(ToOwned::to_owned));
    let expected: BTreeSet<_> = expected.collect();
    if callers != expected {
        bail!("users and units {expected:?} were expected, not {callers:?}: {records:#?}");
    }
    Ok(())
}

/// Holds what came of these programs against their rows.
fn promises(names: &[&str], outcome: &str) -> Result<()> {
    let table = table()?;
    for name in names {
        let row = table.get(*name).with_context(|| format!("no row for {name}"))?;
        if row.works != outcome {
            bail!(
                "the row of {name} says {:?}, but its test shows {outcome:?}",
                row.works
            );
        }
    }
    Ok(())
}

#[test]
fn every_row_of_the_table_has_a_run() -> Result<()> {
    let calls = calls::ALL
        .iter()
        .flat_map(|cases| cases.iter().map(|(name, _)| *name));
    let others = [git::ROWS, packages::ROWS, streams::ROWS, bundled::ROWS];
    let mut run: Vec<_> = calls.chain(others.into_iter().flatten().copied()).collect();
    run.sort_unstable();
    let table = table()?;
    let rows: Vec<_> = table.keys().map(String::as_str).collect();
    assert_eq!(run, rows);
    Ok(())
}

/// What a program's row says.
struct Row {
    works: String,
    reason: String,
}

/// The README's table.
fn table() -> Result<BTreeMap<String, Row>> {
    let (_, section) = README.split_once("\n## Runtimes\n").context("no section")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| {
        let cells = row
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned());
        let cells: Vec<_> = cells.collect();
        let [name, works, reason] = <[String; 3]>::try_from(cells)
            .ok()
            .with_context(|| format!("not a row: {row}"))?;
        Ok((name, Row { works, reason }))
    })
    .collect()
}
