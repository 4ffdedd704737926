//! Who is connected to the admin socket: each peer held from the accept on, and no more of them than the agent has
//! room for.
//!
//! Anybody may connect, managed processes too, so nobody's connections may cost others theirs or take descriptors that
//! the agent works with.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use tokio::net::UnixStream;

use super::Peer;
use crate::identity::process::HeldProcess;

/// Connections of root at once.
const ROOT: usize = 128;
/// Connections of any other user at once.
const USER: usize = 64;
/// Connections of all other users together.
const USERS: usize = 192;
/// Connections of managed processes together. They get nothing but to be told so.
const MANAGED: usize = 16;

/// Why a peer is turned away without an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum TurnedAway {
    /// Nobody can be told from the number.
    #[error("the process that connected is gone or unknown")]
    Unknown,
    /// Too many of its kind are here.
    #[error("too many connections of {0:?}")]
    Many(Kind),
}

/// Who shares a limit.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Root,
    User(u32),
    Managed,
}

/// Counts the connections.
#[derive(Debug)]
pub(super) struct Guests {
    /// The cgroup path that all workloads lie below, with a slash at its end.
    workloads: String,
    here: Mutex<BTreeMap<Kind, usize>>,
}

/// One connection's peer; dropping it makes room.
#[derive(Debug)]
pub(super) struct Guest {
    process: Arc<HeldProcess>,
    uid: u32,
    gid: u32,
    kind: Kind,
    guests: Arc<Guests>,
}

impl Guests {
    pub(super) fn new(workloads: &str) -> Self {
        Self {
            workloads: format!("{}/", workloads.trim_end_matches('/')),
            here: Mutex::default(),
        }
    }

    /// Takes hold of who connected. Call it right after the accept.
    pub(super) fn admit(self: &Arc<Self>, stream: &UnixStream) -> Result<Guest, TurnedAway> {
        let credentials = stream.peer_cred().map_err(|_error| TurnedAway::Unknown)?;
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        let process = hold(stream, pid.ok_or(TurnedAway::Unknown)?, credentials.uid())?;
        let kind = match (self.look(&process), credentials.uid()) {
            (Err(_), _) => Kind::Managed,
            (Ok(()), 0) => Kind::Root,
            (Ok(()), uid) => Kind::User(uid),
        };
        self.enter(kind)?;
        Ok(Guest {
            process: Arc::new(process),
            uid: credentials.uid(),
            gid: credentials.gid(),
            kind,
            guests: Arc::clone(self),
        })
    }

    fn enter(&self, kind: Kind) -> Result<(), TurnedAway> {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let users: usize = here
            .iter()
            .filter(|(kind, _)| matches!(kind, Kind::User(_)))
            .map(|(_, count)| count)
            .sum();
        let own = here.get(&kind).copied().unwrap_or_default();
        let full = match kind {
            Kind::Root => own >= ROOT,
            Kind::User(_) => own >= USER || users >= USERS,
            Kind::Managed => own >= MANAGED,
        };
        if full {
            return Err(TurnedAway::Many(kind));
        }
        here.insert(kind, own + 1);
        Ok(())
    }

    fn leave(&self, kind: Kind) {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        match here.get_mut(&kind) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                here.remove(&kind);
            }
        }
    }

    /// Managed processes may ask nothing, root's neither.
    fn look(&self, process: &HeldProcess) -> Result<(), &'static str> {
        match process.cgroup() {
            Ok(Some(cgroup)) if !cgroup.starts_with(&self.workloads) => Ok(()),
            Ok(Some(_)) => Err("managed processes may not use the admin socket"),
            Ok(None) | Err(_) => Err("the peer is gone or its cgroup is unknown"),
        }
    }
}

impl Guest {
    /// The peer as it is now: it may have been moved into a workload since it connected.
    pub(super) fn peer(&self) -> Result<Peer, &'static str> {
        self.guests.look(&self.process)?;
        Ok(Peer {
            process: Arc::clone(&self.process),
            uid: self.uid,
            gid: self.gid,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.leave(self.kind);
    }
}

/// Takes hold of the process that connected, and of no other that its number was given to since.
///
/// The kernel keeps a pidfd of it (Linux 6.5): while that process lives, nobody else has the number. Before, the number
/// is all there is: what started after the accept, or has another user, is not the peer.
fn hold(stream: &UnixStream, pid: u32, uid: u32) -> Result<HeldProcess, TurnedAway> {
    let unknown = |_error| TurnedAway::Unknown;
    let accepted = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|_errno| TurnedAway::Unknown)?;
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => {
            let process = HeldProcess::open(pid).map_err(unknown)?;
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ended, PollTimeout::ZERO) {
                Ok(0) => Ok(process),
                Ok(_) | Err(_) => Err(TurnedAway::Unknown),
            }
        }
        Err(Errno::ENOPROTOOPT) => {
            let process = HeldProcess::open(pid).map_err(unknown)?;
            let (owner, _group) = process.ids().map_err(unknown)?;
            let started = u128::from(process.start_time().map_err(unknown)?);
            let same = owner == uid && started <= std::time::Duration::from(accepted).as_nanos();
            if same {
                Ok(process)
            } else {
                Err(TurnedAway::Unknown)
            }
        }
        Err(_) => Err(TurnedAway::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_room_and_gets_it_back() {
        let guests = Guests::new("/callgate.slice");
        let fill = |kind| {
            let count = std::iter::repeat_with(|| guests.enter(kind)).take_while(Result::is_ok);
            count.count()
        };
        assert_eq!(fill(Kind::Managed), MANAGED);
        assert_eq!(fill(Kind::User(1)), USER);
        assert_eq!(fill(Kind::User(2)), USER);
        assert_eq!(fill(Kind::User(3)), USER);
        assert_eq!(fill(Kind::User(4)), 0, "all users together");
        assert_eq!(fill(Kind::Root), ROOT, "others take nothing from root");
        guests.leave(Kind::User(1));
        assert_eq!(fill(Kind::User(4)), 1);
        (0..ROOT).for_each(|_| guests.leave(Kind::Root));
        assert_eq!(fill(Kind::Root), ROOT);
    }

    #[tokio::test]
    async fn the_peer_of_a_connection_is_held() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let guests = Arc::new(Guests::new("/no-such.slice"));
        let guest = guests.admit(&ours).unwrap();
        assert_eq!(guest.peer().unwrap().process.pid(), std::process::id());
    }
}
