//! What upstreams gave to be known again by: the TLS sessions of one connector, by server name.
//!
//! rustls' own store makes room at once for all that it may ever hold, and holds 8 tickets of each server: too much where
//! each workload has a store on each data thread. This one takes what its servers need.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Servers that are remembered; the one that was not connected to for longest is forgotten first.
pub(super) const SERVERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);
/// TLS 1.3 tickets of one server. Each is good for one connection (RFC 8446, appendix C.4), which brings new ones.
pub(super) const TICKETS: usize = 4;

/// The sessions of one connector.
pub(super) struct Sessions(Mutex<LruCache<ServerName<'static>, Server>>);

#[derive(Default)]
struct Server {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    /// Oldest first.
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        // `new` would take room for all at once.
        Self(Mutex::new(LruCache::sparse(SERVERS)))
    }

    fn servers(&self) -> MutexGuard<'_, LruCache<ServerName<'static>, Server>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, name: ServerName<'static>, what: impl FnOnce(&mut Server)) {
        what(self.servers().get_or_insert_mut(name, Server::default));
    }

    fn recall<T>(&self, name: &ServerName<'_>, what: impl FnOnce(&mut Server) -> Option<T>) -> Option<T> {
        what(self.servers().get_mut(&name.to_owned())?)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions(..)")
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.remember(server_name, |server| server.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.recall(server_name, |server| server.group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.remember(server_name, |server| server.tls12 = Some(value));
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.recall(server_name, |server| server.tls12.clone())
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.recall(server_name, |server| server.tls12.take());
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.remember(server_name, |server| {
            if server.tickets.len() >= TICKETS {
                server.tickets.pop_front();
            }
            server.tickets.push_back(value);
        });
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.recall(server_name, |server| server.tickets.pop_back())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: usize) -> ServerName<'static> {
        ServerName::try_from(format!("s{number}.example")).unwrap()
    }

    #[test]
    fn who_was_not_connected_to_for_longest_is_forgotten_first() {
        let sessions = Sessions::new();
        let known = |number| sessions.kx_hint(&server(number)).is_some();
        for number in 0..SERVERS.get() {
            sessions.set_kx_hint(server(number), NamedGroup::X25519);
        }
        assert!(known(0));
        sessions.set_kx_hint(server(SERVERS.get()), NamedGroup::X25519);
        assert!(known(0) && known(2) && known(SERVERS.get()));
        assert!(!known(1));
    }

    #[test]
    fn a_server_that_is_only_asked_for_takes_no_room() {
        let sessions = Sessions::new();
        assert!(sessions.take_tls13_ticket(&server(1)).is_none());
        assert!(sessions.tls12_session(&server(1)).is_none());
        sessions.remove_tls12_session(&server(1));
        assert_eq!(sessions.servers().len(), 0);
    }
}
