//! What each row says that a program needs: the variable is enough where there is nothing else, without it the program
//! says that it does not trust the certificate; and the bundle in its usual place is enough without any variable.

use anyhow::Result;
use harness::{Scripted, require};

use super::*;

/// The programs that [`calls::ALL`] does not have, each with a call. They don't try again, which takes long.
const OTHERS: &[(&str, &str)] = &[
    ("git", "git ls-remote https://git.example.test/large.git"),
    (
        "apt",
        r#"
echo "deb [trusted=yes] https://packages.example.test apt/" > /etc/apt/sources.list.d/greeting.list
only="-o Dir::Etc::SourceList=/etc/apt/sources.list.d/greeting.list -o Dir::Etc::SourceParts=-"
apt-get $only -o APT::Update::Error-Mode=any -q update
"#,
    ),
    (
        "pip",
        r#"
cd "$(mktemp -d)"
pip download --retries 0 --no-cache-dir --no-deps --index-url https://packages.example.test/pip greeting
"#,
    ),
    (
        "npm",
        r#"
cd "$(mktemp -d)"
npm view --fetch-retries 0 --cache "$PWD" --registry https://packages.example.test/npm greeting version
"#,
    ),
    (
        "Python websockets",
        "python3 /opt/clients/talk.py wss://events.example.test/talk/trust",
    ),
    (
        "Server-sent events over Node fetch",
        "node /opt/clients/events.mjs https://events.example.test trust",
    ),
    (
        "Node EventSource (package eventsource)",
        "node /opt/clients/eventsource.cjs https://events.example.test/feed/trust",
    ),
    (
        "Python gRPC",
        "python3 /opt/clients/echo.py grpc.example.test:443",
    ),
    ("Ruby gRPC", "ruby /opt/clients/echo.rb grpc.example.test:443"),
];
/// What stands for the bundle in a row's reason.
const PLACE: &str = "the bundle in its usual place";
/// They install for root alone, who has the bundle in its usual place always.
const OF_ROOT: &[&str] = &["apt"];
/// How programs say that they don't trust a certificate.
const DISTRUST: &[&str] = &[
    "certificate verify failed",
    "certificate verification failed",
    "certificate_verify_failed",
    "doesn't have a known issuer",
    "certificate signed by unknown authority",
    "unable to get local issuer certificate",
    "unable to get issuer certificate",
    "unable to verify the first certificate",
    "self-signed certificate in certificate chain",
    "pkix path building failed",
    "unknownissuer",
];
/// A service without the bundle in its usual place, and what takes it away there.
const BARE: &str = "client-bare.service";
const NOT_IN_PLACE: &str = "[Service]\nBindReadOnlyPaths=\nBindReadOnlyPaths=/run/callgate/trust\n";
/// Where the call of the moment stands.
const CALL: &str = "/opt/clients/call.sh";

/// What a row's reason comes down to.
struct Needs {
    name: String,
    variables: Vec<String>,
    place: bool,
}

/// What the rows of those programs say that work with nothing else.
fn needs() -> Result<Vec<Needs>> {
    let is_variable = |word: &&str| {
        let mut letters = word.chars();
        letters.all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_')
    };
    let rows = table()?.into_iter().filter(|(_, row)| row.works == "yes");
    rows.map(|(name, row)| {
        let quoted = row.reason.split('`').skip(1).step_by(2);
        let needs = Needs {
            name,
            variables: quoted.filter(is_variable).map(ToOwned::to_owned).collect(),
            place: row.reason.contains(PLACE),
        };
        if needs.variables.is_empty() && !needs.place {
            bail!("the row of {} gives no reason", needs.name);
        }
        Ok(needs)
    })
    .collect()
}

/// A host with all upstreams, clients, and the call that is made.
struct Trials {
    host: Host,
    _servers: Vec<Scripted>,
}

impl Trials {
    fn new() -> Result<Self> {
        let hosts = [git::HOST, packages::HOST, streams::EVENTS, streams::GRPC];
        let mut servers = Vec::new();
        let host = Host::new(&hosts, "", |world| {
            for (name, script) in [(git::HOST, git::SERVER), (streams::GRPC, streams::GRPC_SERVER)] {
                servers.push(world.scripted_by(script, name, Some(name))?);
            }
            servers.push(world.scripted(streams::EVENTS, Some(streams::EVENTS))?);
            packages::registries(world)
        })?;
        for clients in [calls::CLIENTS, streams::CLIENTS] {
            host.clients(clients)?;
        }
        host.go_client()?;
        host.rust_client()?;
        host.service(BARE, &format!("User={USER}"))?;
        // Behind the agent's own.
        host.0.write(
            &format!("/etc/systemd/system/{BARE}.d/90-bare.conf"),
            NOT_IN_PLACE,
        )?;
        host.0.systemctl(&["daemon-reload"])?.ok()?;
        Ok(Self {
            host,
            _servers: servers,
        })
    }

    /// Makes the call of these programs, with what their rows say that they need and without.
    fn hold(&self, programs: &[(&str, &str)]) -> Result<()> {
        let needs = needs()?;
        let mut wrong = Vec::new();
        for (name, call) in programs {
            let needs = needs.iter().find(|one| one.name == *name);
            let needs = needs.with_context(|| format!("no row for {name}"))?;
            let call = call.replace("URL", &format!("https://{API}/v1/trust"));
            self.host.0.write(CALL, &format!("set -e\n{call}\n"))?;
            wrong.extend(self.wrong_about(needs)?);
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("{}", wrong.join("\n"))
    }

    fn wrong_about(&self, needs: &Needs) -> Result<Vec<String>> {
        let name = &needs.name;
        let mut wrong = Vec::new();
        for variable in &needs.variables {
            let output = self.call(BARE, Some(variable))?;
            if !output.status.success() {
                wrong.push(format!("{name} fails with {variable} alone: {output:?}"));
            }
        }
        if needs.place {
            let service = if OF_ROOT.contains(&name.as_str()) {
                SERVICE
            } else {
                SERVICE_AS
            };
            let output = self.call(service, None)?;
            if !output.status.success() {
                wrong.push(format!(
                    "{name} fails with the bundle in its usual place alone: {output:?}"
                ));
            }
        }
        if !OF_ROOT.contains(&name.as_str()) {
            let output = self.call(BARE, None)?;
            let told = format!("{} {}", output.stdout, output.stderr).to_lowercase();
            if output.status.success() || !DISTRUST.iter().any(|words| told.contains(words)) {
                wrong.push(format!(
                    "{name} without any does not speak of distrust: {output:?}"
                ));
            }
        }
        Ok(wrong)
    }

    /// Makes the call with no more variables than every program has, and this one as the agent sets it.
    fn call(&self, service: &str, variable: Option<&str>) -> Result<Output> {
        let set = variable.map(|name| format!("{name}=\"${name}\""));
        let set = set.unwrap_or_default();
        let bare = format!("exec env -i PATH=\"$PATH\" HOME=\"$HOME\" {set} sh {CALL}");
        self.host.serve(service, &bare)
    }
}

#[test]
fn all_programs_that_work_unmodified_are_tried() -> Result<()> {
    let calls = calls::ALL.iter().copied().flatten();
    let mut tried: Vec<_> = calls.chain(OTHERS).map(|(name, _)| *name).collect();
    tried.sort_unstable();
    let needs = needs()?;
    let rows: Vec<_> = needs.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(tried, rows);
    Ok(())
}

#[test]
fn plain_calls_need_what_their_rows_say() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    Trials::new()?.hold(&calls::ALL.concat())
}

#[test]
fn other_programs_need_what_their_rows_say() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    Trials::new()?.hold(OTHERS)
}
