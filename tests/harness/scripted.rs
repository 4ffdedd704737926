//! An upstream that does byte for byte what nginx can't: trailers, early answers, answers cut short, WebSocket echo,
//! and a log of each request's head exactly as it arrived. What it does for which path stands in `scripted.py`.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::ca::Leaf;
use crate::launch::{self, Place};
use crate::wait;

/// What [`Scripted`] runs unless a test brings a script of its own.
pub(crate) const SCRIPT: &str = include_str!("scripted.py");

/// One request as it arrived.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Arrived {
    /// Path without the query; `closed` stands for a connection that ended, `head` then says how.
    pub path: String,
    /// The whole head, bytes as Latin-1.
    pub head: String,
    /// Body bytes.
    pub body: u64,
    /// Trailer lines.
    pub trailers: String,
}

impl Arrived {
    /// The values of a field, whatever its name's letter case.
    #[must_use]
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1);
        lines
            .filter_map(|line| line.split_once(':'))
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

/// A running scripted upstream.
#[derive(Debug)]
pub struct Scripted {
    log: PathBuf,
    child: Child,
}

impl Scripted {
    /// Starts it; with a leaf it speaks TLS, on port 443, else on port 80.
    pub(crate) fn start(
        script: &str,
        place: &Place,
        dir: &Path,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        leaf: Option<&Leaf>,
    ) -> Result<Self> {
        let log = dir.join("arrived.jsonl");
        fs::write(&log, "").context("can't make the scripted upstream's log")?;
        let port: u16 = if leaf.is_some() { 443 } else { 80 };
        let arguments = [v4.to_string(), v6.to_string(), port.to_string()];
        let mut command = place.command(
            ["/usr/bin/python3", "-c", script]
                .into_iter()
                .chain(arguments.iter().map(String::as_str)),
        );
        command.arg(&log);
        if let Some(leaf) = leaf {
            command.arg(&leaf.certificate).arg(&leaf.key);
        }
        let child = command
            .stdout(Stdio::null())
            .spawn()
            .context("can't start python3 (package python3)")?;
        let address: SocketAddr = (v4, port).into();
        let server = Self { log, child };
        wait::until(
            "the scripted upstream accepts connections",
            wait::PATIENCE,
            || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok(),
        )?;
        Ok(server)
    }

    /// What has arrived so far, ended connections left out.
    ///
    /// # Errors
    /// If the log can't be read or understood.
    pub fn arrived(&self) -> Result<Vec<Arrived>> {
        let text = fs::read_to_string(&self.log).context("can't read the scripted upstream's log")?;
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let parse = |line| serde_json::from_str(line).with_context(|| format!("arrived: {line}"));
        let all: Vec<Arrived> = whole.lines().map(parse).collect::<Result<_>>()?;
        Ok(all.into_iter().filter(|one| one.path != "closed").collect())
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(launch::wait_for(&mut self.child, wait::PATIENCE));
    }
}
