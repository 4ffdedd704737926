//! Real upstreams: one nginx for each host name, outside, with an access log that a test can read.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::ca::{Flaw, Leaf};
use crate::launch::{self, Place};
use crate::wait;

/// The description of an upstream; [`crate::World::upstream`] starts it.
#[derive(Clone, Debug)]
pub struct Upstream {
    host: String,
    port: u16,
    tls: bool,
    http2: bool,
    bearer: Option<(String, String)>,
    locations: Vec<(String, String)>,
    formats: Vec<(String, String)>,
    certificate_of: Option<String>,
    flaw: Option<Flaw>,
    leaf: Option<Leaf>,
    requests: u32,
}

impl Upstream {
    /// An HTTPS server for `host` on port 443 that speaks HTTP/1.1 and HTTP/2 and answers 200 to everything.
    #[must_use]
    pub fn new(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            port: 443,
            tls: true,
            http2: true,
            bearer: None,
            locations: Vec::new(),
            formats: Vec::new(),
            certificate_of: None,
            flaw: None,
            leaf: None,
            requests: 1_000_000,
        }
    }

    /// Without TLS, on port 80.
    #[must_use]
    pub fn plain(mut self) -> Self {
        (self.tls, self.http2, self.port) = (false, false, 80);
        self
    }

    /// On another port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// HTTP/1.1 only.
    #[must_use]
    pub fn http1(mut self) -> Self {
        self.http2 = false;
        self
    }

    /// Answers 401 without `Authorization: Bearer TOKEN`; with it, 200 and a JSON body that names `account`.
    #[must_use]
    pub fn bearer(mut self, token: &str, account: &str) -> Self {
        self.bearer = Some((token.to_owned(), account.to_owned()));
        self
    }

    /// nginx directives for one location, such as `return 204;`; a location takes no part in the bearer check.
    #[must_use]
    pub fn location(mut self, pattern: &str, directives: &str) -> Self {
        self.locations.push((pattern.to_owned(), directives.to_owned()));
        self
    }

    /// Another format for access logs, to be named in a location.
    #[must_use]
    pub fn log_format(mut self, name: &str, format: &str) -> Self {
        self.formats.push((name.to_owned(), format.to_owned()));
        self
    }

    /// With a certificate for another host than its own.
    #[must_use]
    pub fn certificate_of(mut self, host: &str) -> Self {
        self.certificate_of = Some(host.to_owned());
        self
    }

    /// Closes each connection after this many requests, as nginx does after its `keepalive_requests`.
    #[must_use]
    pub fn requests_per_connection(mut self, requests: u32) -> Self {
        self.requests = requests;
        self
    }

    /// With something wrong with its certificate.
    #[must_use]
    pub fn flawed(mut self, flaw: Flaw) -> Self {
        self.flaw = Some(flaw);
        self
    }

    /// With this certificate, which need not be of the world's authority.
    #[must_use]
    pub fn with_leaf(mut self, leaf: Leaf) -> Self {
        self.leaf = Some(leaf);
        self
    }

    /// The certificate that it was given, if it was given one.
    pub(crate) fn leaf(&self) -> Option<&Leaf> {
        self.leaf.as_ref()
    }

    /// What is wrong with its certificate.
    pub(crate) fn flaw(&self) -> Option<Flaw> {
        self.flaw
    }

    /// The name that its certificate is for.
    pub(crate) fn certified(&self) -> &str {
        self.certificate_of.as_deref().unwrap_or(&self.host)
    }

    /// The host name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    fn config(&self, at: &Files, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<String> {
        let mut text = String::new();
        let (dir, port) = (at.dir.display(), self.port);
        let options = format!(
            "{}{}",
            if self.tls { " ssl" } else { "" },
            if self.http2 { " http2" } else { "" }
        );
        // One process, so that it ends with the test even when the test is killed.
        writeln!(
            text,
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;"
        )?;
        writeln!(text, "events {{ worker_connections 4096; }}\nhttp {{")?;
        writeln!(text, "  log_format line escape=json '{LOG_FORMAT}';")?;
        writeln!(text, "  access_log {dir}/access.log line;")?;
        for (name, format) in &self.formats {
            writeln!(text, "  log_format {name} '{format}';")?;
        }
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(text, "  {kind}_temp_path {dir}/{kind};")?;
        }
        writeln!(
            text,
            "  keepalive_requests {}; default_type application/json;",
            self.requests
        )?;
        let (token, account) = self
            .bearer
            .as_ref()
            .map_or(("", ""), |(t, a)| (t.as_str(), a.as_str()));
        writeln!(
            text,
            "  map $http_authorization $account {{ default \"\"; \"Bearer {token}\" \"{account}\"; }}"
        )?;
        writeln!(
            text,
            "  server {{\n    listen {v4}:{port}{options};\n    listen [{v6}]:{port}{options};"
        )?;
        writeln!(text, "    server_name {};", self.host)?;
        if self.tls {
            let (cert, key) = (at.leaf.certificate.display(), at.leaf.key.display());
            writeln!(text, "    ssl_certificate {cert}; ssl_certificate_key {key};")?;
        }
        for (pattern, directives) in &self.locations {
            writeln!(text, "    location {pattern} {{ {directives} }}")?;
        }
        let check = r#"if ($account = "") { return 401 '{"error":"a bearer token is needed"}\n'; }"#;
        let check = if self.bearer.is_some() { check } else { "" };
        if !self.locations.iter().any(|(pattern, _)| pattern == "/") {
            writeln!(
                text,
                "    location / {{ {check}\n      return 200 '{OK_BODY}\\n'; }}"
            )?;
        }
        writeln!(text, "  }}\n}}")?;
        Ok(text)
    }
}

const LOG_FORMAT: &str = r#"{"method":"$request_method","uri":"$request_uri","host":"$host","status":$status,"protocol":"$server_protocol","authorization":"$http_authorization","sent":$body_bytes_sent,"received":$request_length,"connection":"$connection"}"#;
const OK_BODY: &str = r#"{"account":"$account","method":"$request_method","path":"$request_uri"}"#;

/// One line of the upstream's own access log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Access {
    /// The method.
    pub method: String,
    /// Path and query, as they arrived.
    pub uri: String,
    /// The Host header or `:authority`.
    pub host: String,
    /// The status that was answered.
    pub status: u16,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The Authorization header, empty if there was none.
    pub authorization: String,
    /// Body bytes sent.
    pub sent: u64,
    /// Request bytes received.
    pub received: u64,
    /// nginx's serial number of the connection.
    pub connection: String,
}

/// Where a server's files are.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) leaf: Leaf,
}

/// A running upstream.
#[derive(Debug)]
pub struct Server {
    host: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    port: u16,
    log: PathBuf,
    child: Child,
}

impl Server {
    pub(crate) fn start(
        what: &Upstream,
        files: &Files,
        place: &Place,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
    ) -> Result<Self> {
        let config = files.dir.join("nginx.conf");
        fs::write(&config, what.config(files, v4, v6)?).context("can't write nginx.conf")?;
        let mut command = place.command([
            Path::new("nginx"),
            "-p".as_ref(),
            &files.dir,
            "-c".as_ref(),
            &config,
        ]);
        // nginx opens its compiled-in error log before it reads ours: quiet, unless it fails (see `ready`).
        let stderr =
            fs::File::create(files.dir.join("stderr.log")).context("can't make nginx's stderr file")?;
        command
            .env("PATH", tool_path())
            .stdout(Stdio::null())
            .stderr(stderr);
        let child = command
            .spawn()
            .context("can't start nginx (package nginx-light)")?;
        let log = files.dir.join("access.log");
        let mut server = Self {
            host: what.host.clone(),
            v4,
            v6,
            port: what.port,
            log,
            child,
        };
        server.ready(&files.dir)?;
        Ok(server)
    }

    /// The host name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its IPv4 address and port.
    #[must_use]
    pub fn v4(&self) -> SocketAddr {
        (self.v4, self.port).into()
    }

    /// Its IPv6 address and port.
    #[must_use]
    pub fn v6(&self) -> SocketAddr {
        (self.v6, self.port).into()
    }

    /// What it has logged so far. nginx writes a line when the response is sent, so wait for a line that you
    /// expect ([`wait::until`]).
    ///
    /// # Errors
    /// If the log can't be read or understood.
    pub fn log(&self) -> Result<Vec<Access>> {
        let text = fs::read_to_string(&self.log).context("can't read the upstream's access log")?;
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log: {line}")))
            .collect()
    }

    fn ready(&mut self, dir: &Path) -> Result<()> {
        let address = self.v4();
        let child = &mut self.child;
        wait::until("nginx accepts connections", wait::PATIENCE, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Err(anyhow::anyhow!("nginx ended: {status}")));
            }
            TcpStream::connect_timeout(&address, Duration::from_secs(1))
                .is_ok()
                .then_some(Ok(()))
        })
        .and_then(|outcome| outcome)
        .with_context(|| {
            let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
            format!("{}{}", read("stderr.log"), read("error.log"))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(launch::wait_for(&mut self.child, wait::PATIENCE));
    }
}

/// The caller's PATH, with the directories where Debian has servers.
fn tool_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}
