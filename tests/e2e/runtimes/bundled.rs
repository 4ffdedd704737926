//! Programs that trust only what they brought along: refused with one record that says why, and the ways that are left.

use anyhow::Result;
use harness::{launch, require};

use super::*;

const ALLOWED: &str = "allowed.example.test";
const TUNNELLED: &str = "tunnelled.example.test";
/// The roots that the clients bring along: those of the upstreams.
const ROOTS: &str = "/usr/local/share/ca-certificates/outside.crt";
const TUNNEL: &str = "[[workload.tunnel]]\nhost = \"tunnelled.example.test\"\nprivate = true\n";

/// The rows that this file runs.
pub(super) const ROWS: &[&str] = &["Rust rustls, bundled roots", "curl with a pinned key"];

fn start() -> Result<Host> {
    let host = Host::new(&[ALLOWED], TUNNEL, |world| {
        world.upstream(Upstream::new(ALLOWED))?;
        world.upstream(Upstream::new(TUNNELLED))?;
        Ok(())
    })?;
    host.rust_client()?;
    Ok(host)
}

/// The hash of the key that an upstream has, as curl wants it.
fn key_of(host: &Host, name: &str) -> Result<String> {
    let certificate = host.0.world().dir().join("upstream").join(format!("{name}.pem"));
    let script = r#"openssl x509 -in "$0" -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64"#;
    let arguments = ["-c".as_ref(), script.as_ref(), certificate.as_os_str()];
    Ok(launch::tool("sh".as_ref(), arguments)?.trim().to_owned())
}

/// A call to the allowed host is refused by the client, with one record of this outcome and kind; one to the tunnelled
/// host comes through.
fn refused_and_tunnelled(
    host: &Host,
    [outcome, kind]: [&str; 2],
    command: impl Fn(&str) -> Result<String>,
) -> Result<()> {
    let about = |name: &str| -> Result<Vec<_>> {
        let mut records = host.0.records()?;
        records.retain(|one| one.text("sni") == name);
        Ok(records)
    };
    for way in WAYS {
        let before = about(ALLOWED)?.len();
        let refused = host.run(*way, &command(ALLOWED)?)?;
        assert!(!refused.status.success(), "{refused:?}");
        let records = wait::until("a record of the refusal", wait::PATIENCE, || {
            let records = about(ALLOWED).ok()?.split_off(before);
            (!records.is_empty()).then_some(records)
        })?;
        let [record] = records.as_slice() else {
            bail!("one record was expected: {records:#?}");
        };
        let words = ["outcome", "error.source", "error.kind"].map(|name| record.text(name));
        assert_eq!(words, [outcome, "downstream", kind], "{record:?}");
        let hint = record.text("error.message");
        assert!(hint.contains("`tunnel` rule"), "{hint}");

        let path = format!("/{way:?}");
        let told = host.run(*way, &command(&format!("{TUNNELLED}{path}"))?)?.ok()?;
        assert!(told.contains(&path), "{told}");
    }
    wait::until("a record for each tunnel", wait::PATIENCE, || {
        let records = about(TUNNELLED).ok()?;
        let passed = |one: &&Record| one.text("kind") == "tunnel" && one.text("outcome") == "completed";
        (records.iter().filter(passed).count() == WAYS.len()).then_some(())
    })?;
    called_by(&about(ALLOWED)?, WAYS, None)?;
    called_by(&about(TUNNELLED)?, WAYS, None)?;
    assert!(host.0.world().server(ALLOWED)?.log()?.is_empty());
    Ok(())
}

#[test]
fn a_client_with_roots_of_its_own_is_refused_and_can_be_tunnelled_or_given_the_bundle() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let host = start()?;
    let client = |roots: &str, url: &str| format!("/opt/clients/rust-client bundled {roots} https://{url}/");
    refused_and_tunnelled(&host, ["failed", "client_distrust"], |url| Ok(client(ROOTS, url)))?;
    for way in WAYS {
        let told = host.run(*way, &client("$SSL_CERT_FILE", ALLOWED))?.ok()?;
        assert!(told.contains("GET"), "{told}");
    }
    promises(&ROWS[..1], "with `tunnel`, or its own setting")
}

/// Its certificate is of no authority that a program has compiled in.
const ALERTED: &str = "alerted.example.test";
/// Shakes hands and writes down how that went.
const ALERTS: &str = "import json, select, socket, ssl, sys
v4, v6, port, log, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
listeners = [socket.create_server((v4, int(port))), socket.create_server((v6, int(port)), family=socket.AF_INET6)]
while True:
    connection = select.select(listeners, [], [])[0][0].accept()[0]
    try:
        context.wrap_socket(connection, server_side=True).recv(1)
        how = 'none'
    except OSError as error:
        how = getattr(error, 'reason', None) or 'none'
    connection.close()
    with open(log, 'a') as file:
        print(json.dumps({'path': how, 'head': '', 'body': 0, 'trailers': ''}), file=file)";

/// The roots in the program are the public ones, so no upstream of a test can please it: what a tunnel passes is the
/// program's own word about the upstream's certificate.
#[test]
fn a_client_with_the_public_roots_compiled_in_is_refused_and_in_a_tunnel_judges_the_upstream_itself()
-> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let rule = format!("[[workload.tunnel]]\nhost = \"{ALERTED}\"\nprivate = true\n");
    let mut alerted = None;
    let host = Host::new(&[ALLOWED], &rule, |world| {
        world.upstream(Upstream::new(ALLOWED))?;
        alerted = Some(world.scripted_by(ALERTS, ALERTED, Some(ALERTED))?);
        Ok(())
    })?;
    host.rust_client()?;
    let alerted = alerted.context("an upstream")?;
    let client = |url: &str| format!("/opt/clients/rust-client compiled https://{url}/");
    host.0.unit(
        "compiled.service",
        &format!("[Service]\nExecStart={}\n", client(ALLOWED)),
    )?;
    let enable = [
        "callgate",
        "enable",
        "--dry-run",
        "--workload",
        "billing",
        "compiled",
    ];
    let said = host.0.run(enable)?.ok()?;
    let warned = "/opt/clients/rust-client seems to bring roots of its own and may not trust the agent";
    assert!(said.contains(warned), "{said}");
    for way in WAYS {
        for name in [ALLOWED, ALERTED] {
            let refused = host.run(*way, &client(name))?;
            assert!(!refused.status.success(), "{refused:?}");
            assert!(refused.stderr.contains("UnknownIssuer"), "{refused:?}");
        }
    }
    let of = |kind: &str, name: &str| -> Result<Vec<Record>> {
        let mut records = host.0.records()?;
        records.retain(|one| one.text("kind") == kind && one.text("sni") == name);
        Ok(records)
    };
    let (refused, tunnels) = wait::until("a record of each", wait::PATIENCE, || {
        let (calls, tunnels) = (of("connection", ALLOWED).ok()?, of("tunnel", ALERTED).ok()?);
        (calls.len() == WAYS.len() && tunnels.len() == WAYS.len()).then_some((calls, tunnels))
    })
    .with_context(|| format!("{:#?}", host.0.records()))?;
    called_by(&refused, WAYS, None)?;
    called_by(&tunnels, WAYS, None)?;
    for record in refused {
        assert_eq!(record.text("error.kind"), "client_distrust", "{record:?}");
        assert!(
            record.text("error.message").contains("`tunnel` rule"),
            "{record:?}"
        );
    }
    for record in tunnels {
        assert_eq!(record.text("outcome"), "completed", "{record:?}");
    }
    wait::until("the client's own alerts", wait::PATIENCE, || {
        let arrived = alerted.arrived().ok()?;
        let own = arrived.iter().filter(|one| one.path == "TLSV1_ALERT_UNKNOWN_CA");
        (own.count() == WAYS.len()).then_some(())
    })
    .with_context(|| format!("{:?}", alerted.arrived()))?;
    promises(&ROWS[..1], "with `tunnel`, or its own setting")
}

#[test]
fn a_client_that_pins_a_key_is_refused_and_can_be_tunnelled() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let host = start()?;
    let keys = [ALLOWED, TUNNELLED].map(|name| key_of(&host, name));
    let [allowed, tunnelled] = keys;
    let (allowed, tunnelled) = (allowed?, tunnelled?);
    refused_and_tunnelled(&host, ["aborted", "no_request"], |url| {
        let key = if url.starts_with(ALLOWED) {
            &allowed
        } else {
            &tunnelled
        };
        Ok(format!("curl -sS --pinnedpubkey sha256//{key} https://{url}"))
    })?;
    promises(&ROWS[1..], "with `tunnel`")
}
