//! A Rust client over rustls: `rust-client native URL` trusts what the host trusts, `rust-client compiled URL` only the
//! roots that are compiled in (webpki-roots), `rust-client bundled ROOTS URL` only those in that PEM file. Prints the
//! answer's body.
#![expect(clippy::print_stdout, reason = "the body is the result")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["native", url] => call(native()?, url),
        ["compiled", url] => call(compiled(), url),
        ["bundled", file, url] => call(bundled(file)?, url),
        _ => bail!("usage: native URL | compiled URL | bundled ROOTS URL"),
    }
}

fn native() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        bail!("no roots: {:?}", found.errors);
    }
    Ok(roots)
}

fn compiled() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

fn bundled(file: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

fn call(roots: RootCertStore, url: &str) -> Result<()> {
    let rest = url.strip_prefix("https://").context("an https URL")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())?;
    let connection = ClientConnection::new(Arc::new(config), name)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect((host, 443))?);
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    println!("{body}");
    Ok(())
}
