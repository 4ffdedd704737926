//! Who takes a canary's connection that nobody turned round, so that it goes no further.

use std::net::TcpListener;

use crate::channel::CANARY;
use crate::ebpf::Netns;

/// Listens where canaries dial, while there are any.
#[derive(Debug)]
pub(super) struct Trap {
    listener: TcpListener,
    caught: bool,
}

impl Trap {
    /// In this network namespace, or the agent's own. `None` if something listens on that port at all addresses, or the
    /// loopback device is down: what is not turned round ends on this host then too.
    pub(super) fn set(space: Option<&Netns>) -> Option<Self> {
        let listen = || {
            let listener = TcpListener::bind(CANARY)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = match space {
            Some(netns) => netns.inside(listen),
            None => listen(),
        };
        match listener {
            Ok(listener) => Some(Self {
                listener,
                caught: false,
            }),
            Err(error) => {
                tracing::debug!(%error, address = %CANARY, "the agent can't listen where canaries dial");
                None
            }
        }
    }

    /// Takes what has come and closes it.
    pub(super) fn look(&mut self) {
        while self.listener.accept().is_ok() {
            self.caught = true;
        }
    }

    /// Whether something came.
    pub(super) fn has_caught(&self) -> bool {
        self.caught
    }
}
