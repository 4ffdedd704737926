//! One canary on its way: what the process says, what the worker has heard, and what that means.

use std::process::{ExitCode, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

use super::Cage;
use super::trap::Trap;
use crate::ebpf::Origin;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// What the worker has to say may come a little later than the end of the process.
const GRACE: Duration = Duration::from_secs(1);

/// What a canary says of its connect, as its exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// Somebody took the connection.
    Connected,
    /// The kernel side refused it: where it was dialled the supervisor listens, or something else does.
    Refused,
    /// Something else.
    Failed,
    /// The process could not enter the workload's cgroup.
    NotInside,
}

impl Told {
    const ALL: [(Self, u8); 4] = [
        (Self::Connected, 0),
        (Self::Refused, 10),
        (Self::Failed, 12),
        (Self::NotInside, 13),
    ];

    fn by(status: ExitStatus) -> Option<Self> {
        let code = status.code()?;
        let found = Self::ALL.iter().find(|(_, number)| i32::from(*number) == code);
        found.map(|(told, _)| *told)
    }
}

impl From<Told> for ExitCode {
    fn from(told: Told) -> Self {
        let found = Told::ALL.iter().find(|(one, _)| *one == told);
        found.map_or(Self::FAILURE, |(_, number)| Self::from(*number))
    }
}

/// Who is expected where, shared with who answers the workers' questions.
#[derive(Clone, Debug, Default)]
pub(in crate::supervisor) struct Flights(Arc<Mutex<Vec<Expected>>>);

#[derive(Debug)]
struct Expected {
    pid: u32,
    number: u32,
    netns: u64,
    heard: bool,
}

impl Flights {
    /// The worker took a connection to where canaries dial; whether it is one of them.
    pub(in crate::supervisor) fn heard(&self, origin: &Origin) -> bool {
        let mut all = self.lock();
        let found = all.iter_mut().find(|one| {
            // In another pid namespace than the first the kernel side may not know process ids.
            origin.tgid().is_none_or(|pid| pid == one.pid)
                && one.number == origin.workload()
                && one.netns == origin.netns_cookie()
        });
        found.map(|one| one.heard = true).is_some()
    }

    /// Starts one, which nobody hears of before it is expected.
    pub(super) fn start(
        &self,
        cage: Cage,
        home: u64,
        spawn: impl FnOnce() -> std::io::Result<Child>,
    ) -> Result<Flying, String> {
        let mut all = self.lock();
        let child = spawn().map_err(|error| error.to_string())?;
        let pid = child.id().ok_or("it ended at once")?;
        all.push(Expected {
            pid,
            number: cage.number,
            netns: cage.space.as_ref().map_or(home, |space| space.netns.cookie()),
            heard: false,
        });
        drop(all);
        Ok(Flying {
            cage,
            child,
            pid,
            until: Instant::now() + PATIENCE,
            ended: None,
            flights: self.clone(),
        })
    }

    fn has_heard(&self, pid: u32) -> bool {
        self.lock().iter().any(|one| one.pid == pid && one.heard)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that was sent.
#[derive(Debug)]
pub(super) struct Flying {
    pub(super) cage: Cage,
    child: Child,
    pid: u32,
    until: Instant,
    ended: Option<(Option<Told>, Instant)>,
    flights: Flights,
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.flights.lock().retain(|one| one.pid != self.pid);
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Judged {
    Well,
    Nothing,
    Failed(&'static str),
}

impl Flying {
    /// What came of it; `None` while that can't be said.
    pub(super) fn judge(&mut self, trap: Option<&Trap>) -> Option<Judged> {
        let now = Instant::now();
        if self.flights.has_heard(self.pid) {
            return Some(Judged::Well);
        }
        if self.ended.is_none() {
            match self.child.try_wait() {
                Ok(Some(status)) => self.ended = Some((Told::by(status), now + GRACE)),
                Ok(None) if now < self.until => return None,
                Ok(None) | Err(_) => return Some(Judged::Failed("the canary did not come to an end")),
            }
        }
        let (told, grace) = self.ended?;
        let caught = trap.map(Trap::has_caught);
        match told {
            Some(Told::Connected) if now < grace => None,
            told => Some(judge(told, caught)),
        }
    }
}

/// What it means that a canary told this and no worker has heard of it. `caught` is whether the trap has, if there is one.
fn judge(told: Option<Told>, caught: Option<bool>) -> Judged {
    match told {
        Some(Told::Connected) if caught == Some(true) => Judged::Failed(
            "NOT CAPTURED: a connection from inside the workload went where it was dialled, past the agent",
        ),
        Some(Told::Connected) => Judged::Failed(
            "a connection from inside the workload was taken, but the agent's worker does not know of it",
        ),
        Some(Told::Refused) if caught.is_none() => {
            Judged::Failed("a connection from inside the workload is refused, by the kernel side or past it")
        }
        Some(Told::Refused) => Judged::Failed(
            "the kernel side refuses connections from inside the workload that it should turn to the agent",
        ),
        Some(Told::Failed) => Judged::Failed("a connection from inside the workload fails"),
        Some(Told::NotInside) => Judged::Nothing,
        None => Judged::Failed("the canary broke off before it could tell"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_that_no_worker_heard_of_is_a_finding_whatever_it_says() {
        for (told, _) in Told::ALL {
            for caught in [None, Some(false), Some(true)] {
                let judged = judge(Some(told), caught);
                let nothing = told == Told::NotInside;
                assert_eq!(matches!(judged, Judged::Failed(_)), !nothing, "{told:?}");
                let past = matches!(judged, Judged::Failed(why) if why.starts_with("NOT CAPTURED"));
                let expected = told == Told::Connected && caught == Some(true);
                assert_eq!(past, expected, "{told:?} {caught:?}");
            }
        }
        assert!(matches!(judge(None, None), Judged::Failed(_)));
    }
}
