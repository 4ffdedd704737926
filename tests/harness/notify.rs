//! The receiving end of sd_notify(3): how a test learns that the agent is ready.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A socket to be named in `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// Binds the socket at `path`, replacing an old one.
    ///
    /// # Errors
    /// If it can't be bound.
    pub fn bind(path: &Path) -> Result<Self> {
        if path.exists() {
            std::fs::remove_file(path).context("can't remove an old notify socket")?;
        }
        let socket = UnixDatagram::bind(path).with_context(|| format!("can't bind {}", path.display()))?;
        socket
            .set_nonblocking(true)
            .context("can't make the notify socket non-blocking")?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// What to put into `NOTIFY_SOCKET`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `READY=1` is among the messages that have arrived since the last call.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.messages()
            .iter()
            .any(|message| message.lines().any(|line| line == "READY=1"))
    }

    fn messages(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            self.socket
                .recv(&mut buffer)
                .ok()
                .map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_seen_among_other_lines() {
        let dir = tempfile::tempdir().unwrap();
        let notify = NotifySocket::bind(&dir.path().join("n")).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"STATUS=loading", notify.path()).unwrap();
        assert!(!notify.is_ready());
        sender.send_to(b"STATUS=up\nREADY=1", notify.path()).unwrap();
        assert!(notify.is_ready());
    }
}
