//! How a worker ends: for another that serves already, or alone, while the whole agent is replaced.
//!
//! In the second case it outlives its supervisor for as long as its calls may go on, and sees to it that the kernel does
//! not refuse connections meanwhile: they wait at listeners that the service manager keeps.

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::unistd::alarm;
use tokio::time::Instant;

use crate::channel::worker::Channel;

use super::{Error, LAST_RECORDS, Worker};

/// How long a new agent may take to serve before connections are refused; until then who connects waits.
const COVER: Duration = Duration::from_secs(10);
/// How often it is looked whether the handover is over; the liveness word is fed as often.
const LOOK: Duration = Duration::from_millis(20);

/// How to end.
#[derive(Debug)]
pub(super) struct Drain {
    /// How long calls may go on.
    pub(super) deadline: Duration,
    /// How long a connection without a call stays open, for its client's next request.
    pub(super) idle: Duration,
    /// The supervisor leaves too. This closes when the next one's worker serves, or when there is to be none.
    pub(super) baton: Option<UnixStream>,
}

impl Drain {
    /// Nobody is there any more to drain for.
    pub(super) const NOW: Self = Self {
        deadline: Duration::ZERO,
        idle: Duration::ZERO,
        baton: None,
    };
}

impl Worker {
    /// Accepts nothing more, lets calls under way end, cuts off what still runs at the deadline. Meanwhile a new
    /// policy is put to those calls, and whatever else the supervisor says is heeded.
    ///
    /// The liveness word is not fed any more from here on, except during a handover: another worker does it.
    pub(super) async fn drain(&mut self, drain: Drain, channel: &mut Channel) -> Result<(), Error> {
        self.draining = true;
        for listening in self.listeners.values() {
            listening.stop.cancel();
        }
        self.threads.accepted_all().await;
        let ended = self.threads.drain(drain.deadline, drain.idle);
        tokio::pin!(ended);
        let mut handover = begin(drain)?;
        let mut look = tokio::time::interval(LOOK);
        let (mut over, mut supervised) = (false, true);
        while !over || handover.as_ref().is_some_and(Handover::is_under_way) {
            let heard = tokio::select! {
                () = &mut ended, if !over => {
                    over = true;
                    continue;
                }
                _ = look.tick(), if handover.is_some() => {
                    self.bridge(handover.as_mut()).await;
                    continue;
                }
                event = channel.next(), if supervised => match event {
                    Ok(Some(event)) => self.handle(event).await.map_err(Some),
                    Ok(None) => Err(None),
                    Err(broken) => Err(Some(broken.into())),
                },
            };
            match heard {
                Ok(None) => {}
                Ok(Some(sooner)) => {
                    self.threads.drain_sooner(sooner.deadline, sooner.idle);
                    handover = begin(sooner)?.or(handover);
                }
                // It has said that it would go.
                Err(_) if handover.is_some() => supervised = false,
                Err(None) => {
                    supervised = false;
                    self.threads.drain_sooner(Duration::ZERO, Duration::ZERO);
                }
                Err(Some(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// One look during a handover.
    async fn bridge(&mut self, handover: Option<&mut Handover>) {
        let Some(handover) = handover else { return };
        handover.look();
        if handover.is_under_way()
            && let Err(error) = self.liveness.beat()
        {
            tracing::error!(%error, "the kernel's liveness word can't be written; connections are refused until another agent serves");
        }
        if !handover.settled && self.threads.arriving() == 0 && !self.client.is_asking() {
            handover.settled = true;
            if let Err(error) = self.client.settled().await {
                tracing::debug!(%error, "the supervisor did not wait");
            }
        }
    }
}

/// The time between two agents, as the first one's worker sees it.
struct Handover {
    baton: Option<UnixStream>,
    until: Instant,
    /// Whether the supervisor was told that nothing needs it any more.
    settled: bool,
}

/// Nobody sees to this process any more: the kernel ends it if it does not end by itself.
fn begin(drain: Drain) -> Result<Option<Handover>, Error> {
    let Some(baton) = drain.baton else {
        return Ok(None);
    };
    baton.set_nonblocking(true)?;
    let longest = drain.deadline.max(COVER) + LAST_RECORDS;
    alarm::set(u32::try_from(longest.as_secs() + 1).unwrap_or(u32::MAX));
    Ok(Some(Handover {
        baton: Some(baton),
        until: Instant::now() + COVER,
        settled: false,
    }))
}

impl Handover {
    fn is_under_way(&self) -> bool {
        self.baton.is_some()
    }

    fn look(&mut self) {
        let Some(baton) = &mut self.baton else { return };
        let held = baton.read(&mut [0]);
        let held =
            held.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted));
        if !held || Instant::now() >= self.until {
            self.baton = None;
        }
    }
}
