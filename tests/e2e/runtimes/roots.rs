//! The host's roots change: what the agent goes by and what managed programs trust follow, and nothing is started anew.

use anyhow::Result;
use harness::ca::Ca;
use harness::require;

use super::*;

/// Their certificates are of an authority that is one of the host's for a while.
const CALLED: &str = "called.example.test";
const TUNNELLED: &str = "tunnelled.example.test";
const TUNNEL: &str = "[[workload.tunnel]]\nhost = \"tunnelled.example.test\"\nprivate = true\n";
const AUTHORITY: &str = "/usr/local/share/ca-certificates/another.crt";

const PROGRAMS: &[(&str, &str)] = &[
    ("curl", "curl -sS URL"),
    ("requests", "python3 /opt/clients/call.py requests URL"),
    ("node", "node /opt/clients/call.mjs fetch URL"),
    ("go", "/opt/clients/call-go URL"),
    ("java", "java -cp /opt/clients Call URL"),
];
/// Those that look where the host's roots usually are when no variable tells them otherwise.
const BARE: &[&str] = &["curl", "requests", "go", "java"];
/// How they are started after the change.
const STARTED: &[Way] = &[Way::Exec, Way::UnitAs];

/// Starts each program, which then waits for what to call.
const RESIDENTS: &str = r#"
cd /opt/clients/resident
run() {
  name=$1
  shift
  "$@" <>"$name.in" >"$name.out" 2>&1 &
}
run curl sh -c 'while read -r url; do curl -sS "$url"; done'
run requests python3 /opt/clients/call.py requests
run node node /opt/clients/call.mjs fetch
run go /opt/clients/call-go
run java java -cp /opt/clients Call
wait
"#;
const RESIDENT: &str = "resident.service";

/// The programs, each with the name of its case; without the variables it is another case.
fn cases() -> Vec<(String, String)> {
    let bare = |name: &&(&str, &str)| BARE.contains(&name.0);
    let as_they_are = PROGRAMS
        .iter()
        .map(|(name, call)| ((*name).to_owned(), (*call).to_owned()));
    let without = PROGRAMS.iter().filter(bare);
    let without =
        without.map(|(name, call)| (format!("{name} bare"), format!("env -i PATH=\"$PATH\" {call}")));
    as_they_are.chain(without).collect()
}

/// Those of the cases that got an answer from this host.
fn answered(host: &Host, way: Way, url: &str) -> Result<(Vec<String>, Output)> {
    let call = |(name, call): &(String, String)| {
        let call = call.replace("URL", url);
        format!(
            "told=$({call} 2>&1); echo \"{name}: $told\" >&2; case $told in *'\"account\"'*) echo '{name}';; esac\n"
        )
    };
    let script: String = cases().iter().map(call).collect();
    let output = host.run(way, &script)?;
    Ok((output.stdout.lines().map(ToOwned::to_owned).collect(), output))
}

/// The programs of [`PROGRAMS`] that run on in one service.
struct Residents<'a>(&'a Host);

impl<'a> Residents<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        let script = host.client("resident.sh", RESIDENTS)?;
        let pipes: String = PROGRAMS.iter().map(|(name, _)| format!(" {name}.in")).collect();
        host.0
            .sh(&format!(
                "mkdir -m 777 {CLIENTS}/resident && cd {CLIENTS}/resident && mkfifo -m 666{pipes}"
            ))?
            .ok()?;
        let text = format!("[Service]\nType=exec\nUser=nobody\nExecStart=/bin/sh {script}\n");
        host.0.unit(RESIDENT, &text)?;
        host.0
            .run(["callgate", "enable", RESIDENT, "--workload", "billing"])?
            .ok()?;
        host.0.systemctl(&["start", RESIDENT])?.ok()?;
        Ok(Self(host))
    }

    /// Has each of them call this host; what came of it is on record.
    fn call(&self, name: &str, phase: &str, status: u16) -> Result<()> {
        for (program, _) in PROGRAMS {
            let path = format!("/{phase}/{program}");
            let tell = format!("echo https://{name}{path} > {CLIENTS}/resident/{program}.in");
            self.0.0.sh(&tell)?.ok()?;
            let recorded = self.0.0.expect_record(&[
                ("unit", RESIDENT.into()),
                ("authority", format!("{name}:443").into()),
                ("path", path.clone().into()),
                ("status", status.into()),
            ]);
            recorded.with_context(|| format!("{program}: {}", self.told(program)))?;
            if status == 200 {
                wait::until("the answer", wait::PATIENCE, || {
                    self.told(program).contains(&path).then_some(())
                })
                .with_context(|| format!("{program}: {}", self.told(program)))?;
            }
        }
        Ok(())
    }

    fn told(&self, program: &str) -> String {
        let path = format!("{CLIENTS}/resident/{program}.out");
        fs::read_to_string(self.0.0.path(path)).unwrap_or_default()
    }

    /// The processes that have to be the same ones throughout.
    fn processes(&self) -> Result<[String; 2]> {
        let pid = |unit| self.0.0.property(unit, "MainPID");
        Ok([pid(RESIDENT)?, pid("callgate.service")?])
    }
}

fn start() -> Result<(Host, Ca)> {
    let mut authority = None;
    let host = Host::new(&[CALLED], TUNNEL, |world| {
        let place = world.dir().join("another");
        fs::create_dir(&place).context("can't make a directory")?;
        let another = Ca::named(&place, "another authority")?;
        let called = another.issue(CALLED)?;
        world.upstream(Upstream::new(CALLED).bearer(TOKEN, "acme").with_leaf(called))?;
        let tunnelled = another.issue(TUNNELLED)?;
        world.upstream(Upstream::new(TUNNELLED).with_leaf(tunnelled))?;
        authority = Some(another);
        Ok(())
    })?;
    host.client("call.py", include_str!("clients/call.py"))?;
    host.client("call.mjs", include_str!("clients/call.mjs"))?;
    host.client("call.go", include_str!("clients/call.go"))?;
    host.client("Call.java", include_str!("clients/Call.java"))?;
    host.0
        .sh("cd /opt/clients && go build -o call-go call.go && javac Call.java")?
        .ok()?;
    Ok((host, authority.context("it was made")?))
}

/// Whether all programs, of before and new ones, reach both hosts, the one through the agent and the other by their own
/// verification, or none does.
fn hold(host: &Host, residents: &Residents<'_>, phase: &str, trusted: bool) -> Result<()> {
    let all: Vec<_> = cases().into_iter().map(|(name, _)| name).collect();
    for way in STARTED {
        for name in [CALLED, TUNNELLED] {
            let (answered, output) = answered(host, *way, &format!("https://{name}/{phase}/{way:?}"))?;
            let wanted = if trusted { all.as_slice() } else { &[] };
            assert_eq!(answered, wanted, "{name} {phase} ({way:?}): {}", output.stderr);
        }
    }
    residents.call(CALLED, phase, if trusted { 200 } else { 502 })
}

/// Waits until the agent goes by the change.
fn until_called(host: &Host, path: &str, status: &str) -> Result<()> {
    let call = format!("curl -sS -o /dev/null -w '%{{http_code}}' https://{CALLED}/{path}");
    wait::until("the agent goes by the new roots", wait::PATIENCE, || {
        let output = host.run(Way::Exec, &call).ok()?;
        (output.stdout == status).then_some(())
    })
}

/// Each call of this phase was refused, since the upstream's authority is none of the host's.
fn refused(host: &Host, phase: &str) -> Result<()> {
    let mut records = host.0.records()?;
    records.retain(|one| one.text("path").starts_with(&format!("/{phase}/")));
    records.retain(|one| one.text("authority") == format!("{CALLED}:443"));
    let calls = STARTED.len() * cases().len() + PROGRAMS.len();
    assert_eq!(records.len(), calls, "{records:#?}");
    for record in &records {
        let words = ["outcome", "error.source", "error.kind"].map(|name| record.text(name));
        assert_eq!(
            words,
            ["failed", "upstream", "upstream_certificate"],
            "{record:?}"
        );
        let message = record.text("error.message");
        assert!(message.contains("no trusted root has issued it"), "{message}");
    }
    Ok(())
}

#[test]
fn programs_and_the_agent_go_by_the_hosts_roots_of_now_without_a_restart() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let (host, authority) = start()?;
    let residents = Residents::start(&host)?;
    let processes = residents.processes()?;
    hold(&host, &residents, "before", false)?;
    refused(&host, "before")?;

    host.0
        .write(AUTHORITY, &fs::read_to_string(authority.certificate())?)?;
    host.0.run(["update-ca-certificates"])?.ok()?;
    until_called(&host, "follows", "200")?;
    hold(&host, &residents, "added", true)?;

    fs::remove_file(host.0.path(AUTHORITY))?;
    host.0.run(["update-ca-certificates"])?.ok()?;
    until_called(&host, "leaves", "502")?;
    hold(&host, &residents, "taken", false)?;
    refused(&host, "taken")?;
    residents.call(API, "others", 200)?;
    assert_eq!(residents.processes()?, processes);

    for name in [CALLED, TUNNELLED] {
        let log = host.0.world().server(name)?.log()?;
        let early = |one: &&Access| {
            ["/before", "/taken"]
                .iter()
                .any(|phase| one.uri.starts_with(phase))
        };
        assert_eq!(log.iter().filter(early).count(), 0, "{name}: {log:?}");
    }
    Ok(())
}
