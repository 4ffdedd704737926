//! Unmodified programs of many runtimes on a booted Debian, each with its row in the README's table: it runs as a managed
//! workload, and its row says what came of it.

mod calls;

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use harness::{Bed, Output, Upstream, World, wait};

const README: &str = include_str!("../../README.md");
/// Where the clients are in the bed.
const CLIENTS: &str = "/opt/clients";
const API: &str = "api.example.test";
const TOKEN: &str = "the-runtimes-token";

const POLICY: &str = r#"
[[workload]]
name = "billing"

[credential.api]
hosts = ["api.example.test:443"]
scheme = "bearer"
source = { file = "/etc/callgate/secrets/api" }
"#;

const ALLOW_API: &str = r#"
[[workload.allow]]
host = "api.example.test"
credential = "api"
private = true
"#;

/// How a program becomes a managed one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Exec,
}

const WAYS: &[Way] = &[Way::Exec];

/// A host with the runtimes, the agent and a policy.
struct Host(Bed);

impl Host {
    /// With an API that answers whoever has its token, and what else `outside` adds; `rules` come beside the API's.
    fn new(rules: &str, outside: impl FnOnce(&mut World) -> Result<()>) -> Result<Self> {
        let mut world = World::new()?;
        world.upstream(Upstream::new(API).bearer(TOKEN, "acme"))?;
        outside(&mut world)?;
        let bed = Bed::with_runtimes(world)?;
        bed.secret("api", TOKEN)?;
        let (workload, credential) = POLICY.split_once("\n\n").context("two parts")?;
        bed.policy(&format!("{workload}\n{ALLOW_API}{rules}\n{credential}"))?;
        Ok(Self(bed))
    }

    /// Puts a client there and gives its path.
    fn client(&self, name: &str, text: &str) -> Result<String> {
        let path = format!("{CLIENTS}/{name}");
        self.0.write(&path, text)?;
        Ok(path)
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
        match way {
            Way::Exec => self.0.run([
                "callgate",
                "exec",
                "--workload",
                "billing",
                "--",
                "sh",
                "-c",
                script,
            ]),
        }
    }

    /// Runs each script, in which `URL` stands for one of the API's own to that run, as a managed program in each way,
    /// and holds what comes of it against its row in the table.
    fn check(&self, cases: &[(&str, &str)]) -> Result<()> {
        let table = table()?;
        let mut wrong = Vec::new();
        for (number, (name, script)) in cases.iter().enumerate() {
            let promised = table.get(*name).with_context(|| format!("no row for {name}"))?;
            for way in WAYS {
                let path = format!("/v1/{number}/{way:?}");
                let script = script.replace("URL", &format!("https://{API}{path}"));
                let output = self.run(*way, &script)?;
                match self.called(&path, &output) {
                    Ok(()) if promised == "yes" => {}
                    outcome => wrong.push(format!("{name} ({way:?}): {outcome:?}: {output:?}")),
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("{}\nrecords: {:#?}", wrong.join("\n"), self.0.records()?)
    }

    /// Whether a call to this path of the API came through with the credential, on record and in the API's own log.
    fn called(&self, path: &str, output: &Output) -> Result<()> {
        if !output.status.success() || !output.stdout.contains("acme") {
            bail!("no answer");
        }
        self.0.expect_record(&[
            ("workload", "billing".into()),
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
            let here = |one: &&harness::Access| one.uri == path && one.authorization == bearer;
            (log.iter().filter(here).count() == 1).then_some(())
        })
    }
}

/// The README's table: what each program's row says.
fn table() -> Result<BTreeMap<String, String>> {
    let (_, section) = README.split_once("\n## Runtimes\n").context("no section")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| {
        let mut cells = row
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned());
        let pair = cells.next().zip(cells.next());
        pair.with_context(|| format!("not a row: {row}"))
    })
    .collect()
}
