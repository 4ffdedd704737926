//! Ctrl-C and SIGTERM: everything that runs in the sandbox ends, the step under way fails, and the demo goes its
//! usual way out, so that nothing stays behind.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use harness::cgroup;
use nix::sys::signal::{SigSet, Signal};

/// Takes the signals over. Make it before any other thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt {
    seen: Arc<AtomicBool>,
    cgroup: Arc<Mutex<Option<PathBuf>>>,
}

impl Interrupt {
    /// Blocks the signals for this thread and those that it will make, and waits for them in one of its own.
    /// Child processes start with an empty mask.
    pub(crate) fn install() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("can't block signals")?;
        let interrupt = Self::default();
        let watcher = interrupt.clone();
        thread::spawn(move || {
            if set.wait().is_ok() {
                watcher.seen.store(true, Ordering::SeqCst);
                watcher.end();
            }
        });
        Ok(interrupt)
    }

    /// The cgroup whose processes are to be ended.
    pub(crate) fn covers(&self, cgroup: PathBuf) {
        *self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) = Some(cgroup);
        // A signal that came before there was anything to end.
        if self.seen.load(Ordering::SeqCst) {
            self.end();
        }
    }

    /// Fails once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        if self.seen.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        Ok(())
    }

    fn end(&self) {
        if let Some(dir) = &*self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) {
            cgroup::kill_all(dir);
        }
    }
}
