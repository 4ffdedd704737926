//! Programs that call an HTTPS API, in each runtime's usual ways.

use anyhow::Result;
use harness::require;

use super::*;

const COMMANDS: &[(&str, &str)] = &[("curl", "curl -sS URL"), ("wget", "wget -nv -O- URL")];

const PYTHON: &[(&str, &str)] = &[
    ("Python urllib", "python3 /opt/clients/call.py urllib URL"),
    ("Python requests", "python3 /opt/clients/call.py requests URL"),
    ("Python httpx", "python3 /opt/clients/call.py httpx URL"),
    ("Python aiohttp", "python3 /opt/clients/call.py aiohttp URL"),
];

const NODE: &[(&str, &str)] = &[
    ("Node fetch", "node /opt/clients/call.mjs fetch URL"),
    ("Node https", "node /opt/clients/call.mjs https URL"),
];

const COMPILED: &[(&str, &str)] = &[
    ("Go net/http", "/opt/clients/call-go URL"),
    ("Java HttpClient", "java /opt/clients/Call.java URL"),
    ("Rust rustls, native roots", "/opt/clients/rust-client native URL"),
];

const PHP_AND_RUBY: &[(&str, &str)] = &[
    ("PHP streams", "php /opt/clients/call.php streams URL"),
    ("PHP curl", "php /opt/clients/call.php curl URL"),
    ("Ruby net/http", "ruby /opt/clients/call.rb URL"),
];

/// The rows that this file runs.
pub(super) const ALL: &[&[(&str, &str)]] = &[COMMANDS, PYTHON, NODE, COMPILED, PHP_AND_RUBY];

pub(super) const CLIENTS: &[(&str, &str)] = &[
    ("call.py", include_str!("clients/call.py")),
    ("call.mjs", include_str!("clients/call.mjs")),
    ("Call.java", include_str!("clients/Call.java")),
    ("call.go", include_str!("clients/call.go")),
    ("call.php", include_str!("clients/call.php")),
    ("call.rb", include_str!("clients/call.rb")),
];

/// A host with the clients; those that are compiled are not.
fn plain() -> Result<Host> {
    let host = Host::new(&[], "", |_world| Ok(()))?;
    host.clients(CLIENTS)?;
    Ok(host)
}

#[test]
fn commands_call_with_the_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    plain()?.check(COMMANDS)
}

#[test]
fn python_calls_with_the_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    plain()?.check(PYTHON)
}

#[test]
fn node_calls_with_the_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    plain()?.check(NODE)
}

#[test]
fn go_java_and_rust_call_with_the_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let host = plain()?;
    host.go_client()?;
    host.rust_client()?;
    host.check(COMPILED)
}

#[test]
fn php_and_ruby_call_with_the_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    plain()?.check(PHP_AND_RUBY)
}
