//! Names of users, cached.
//!
//! Names come from the C library's user database. Where that asks a directory service, the first look-up of
//! a user may take as long as the service does; that holds up one thread of the resolver's pool once per user
//! and five minutes, and a host whose policy names users of a directory should run a caching daemon for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

/// After this a name is asked for again.
const FRESH: Duration = Duration::from_secs(300);
/// More users than this and the cache starts anew: a bound on memory, not a tuning knob.
const MAX_USERS: usize = 4096;

/// The cache; shared by the resolver's threads.
#[derive(Debug, Default)]
pub struct Users {
    known: Mutex<HashMap<u32, Asked>>,
}

/// The answer of the user database, and when it gave it.
#[derive(Debug)]
struct Asked {
    at: Instant,
    name: Option<Arc<str>>,
}

impl Users {
    /// The user's name; `None` if the database has none, or can't be asked.
    #[must_use]
    pub fn name(&self, uid: u32) -> Option<Arc<str>> {
        let now = Instant::now();
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(asked) = known.get(&uid)
                && now.duration_since(asked.at) < FRESH
            {
                return asked.name.clone();
            }
        }
        // Asked without the lock, so that a slow directory service holds up nobody else. A failure to ask
        // is not kept: the next connection may have more luck.
        let name = match User::from_uid(Uid::from_raw(uid)) {
            Ok(user) => user.map(|user| Arc::from(user.name)),
            Err(_) => return None,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_USERS {
            known.clear();
        }
        let asked = Asked {
            at: now,
            name: name.clone(),
        };
        known.insert(uid, asked);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_name_and_a_stranger_has_none() {
        let users = Users::default();
        assert_eq!(users.name(0).as_deref(), Some("root"));
        assert_eq!(users.name(0).as_deref(), Some("root"));
        assert_eq!(users.name(4_000_000_000), None);
    }
}
