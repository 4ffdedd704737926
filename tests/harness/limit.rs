//! A world's time is limited: past it all its processes are killed, so whatever waits for one of them goes on and
//! fails, under any test runner.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{cgroup, wait};

/// How long a world may last; the longest test takes a small part of it on a busy machine.
pub const WORLD_LIMIT: Duration = Duration::from_mins(3);

/// Kills what is in a cgroup when time is up; dropping it calls that off.
#[derive(Debug)]
pub struct Limit {
    call_off: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Limit {
    /// Starts the clock for the processes in the tree of the cgroup directory `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, limit: Duration) -> Self {
        let (call_off, called_off) = mpsc::channel::<()>();
        let limit = wait::scaled(limit);
        let thread = thread::spawn(move || {
            if called_off.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                #[expect(
                    clippy::print_stderr,
                    reason = "the test's own output is where this is looked for"
                )]
                {
                    eprintln!("the world lasted {limit:?}: killing all in {}", dir.display());
                }
                cgroup::kill_all(&dir);
            }
        });
        Self {
            call_off: Some(call_off),
            thread: Some(thread),
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        drop(self.call_off.take());
        if let Some(thread) = self.thread.take() {
            // It can't panic, and there is nothing to do about it here if it did.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroup;
    use crate::launch::{self, Place};
    use crate::require;

    #[test]
    fn what_outlasts_it_is_killed() -> anyhow::Result<()> {
        require!(Root, CgroupV2);
        let group = Cgroup::new()?;
        let mut child = Place::in_cgroup(group.dir()).command(["sleep", "600"]).spawn()?;
        wait::until("the child is in its cgroup", wait::PATIENCE, || {
            let procs = std::fs::read_to_string(group.dir().join("cgroup.procs")).ok()?;
            (!procs.is_empty()).then_some(())
        })?;
        let _limit = Limit::new(group.dir().to_owned(), Duration::ZERO);
        assert!(!launch::wait_for(&mut child, wait::PATIENCE)?.success());
        Ok(())
    }
}
