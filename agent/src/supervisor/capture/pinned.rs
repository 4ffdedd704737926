//! The pins from one run to the next: the service manager keeps their directory, and with it all of them, also when the host
//! has unmounted their file system and every process of the agent is gone.

use std::os::fd::AsFd as _;

use super::{Capture, Error, Records};
use crate::config::Config;
use crate::ebpf::{self, Moved};
use crate::systemd::store::Store;

/// What the service manager calls the directory.
const PINS: &str = "callgate-pins";

/// Moves the pins that the last run left to where they belong, if they are somewhere else. Says whether that is because
/// somebody unmounted their file system.
pub(super) fn take_up(config: &Config, store: &mut Store, records: &mut Records) -> Result<bool, Error> {
    let Some(left) = store.take(PINS) else {
        return Ok(false);
    };
    let dir = &config.bpffs_dir;
    match ebpf::move_pins(left.as_fd(), dir)? {
        Moved::Nothing => Ok(false),
        Moved::BySetting => {
            tracing::info!(dir = %dir.display(), "what the last run pinned elsewhere is moved to where `bpffs_dir` leads now");
            Ok(false)
        }
        Moved::Unmounted => {
            let what = "the BPF file system of the pins was unmounted; what the last run had pinned is held all the same, and pinned on another";
            tracing::error!(dir = %dir.display(), "{what}");
            records.perimeter_broken(what);
            Ok(true)
        }
    }
}

impl Capture {
    /// Has the service manager keep the directory as it is now, if that is another than it keeps.
    pub(super) fn keep_pins(&mut self) {
        match self.programs.pin_directory() {
            // No other has its numbers while it is kept.
            Ok((_, identity)) if self.kept_pins == Some(identity) => {}
            Ok((dir, identity)) => {
                self.store.forget(PINS);
                self.store.keep(PINS, dir.as_fd());
                self.kept_pins = Some(identity);
            }
            Err(error) => {
                // Said once: it is tried at each look for as long as the perimeter is not intact.
                if self.kept_pins.take().is_some() || self.intact {
                    tracing::error!(%error, "the service manager can't be given the pins to keep: if their file system is unmounted and the agent killed, workloads are held no more");
                }
            }
        }
    }
}
