//! Waiting for something to become true: a poll with a deadline, the only place that sleeps.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything local may take before a test gives up; generous, because a loaded machine is no fault.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The variable that says how many times longer everything takes here than elsewhere: an emulated machine is slow.
pub const SLOWNESS_VARIABLE: &str = "CALLGATE_TEST_SLOWNESS";

const PAUSE: Duration = Duration::from_millis(10);

/// What a limit comes to on this machine.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit * slowness()
}

/// So many of something, or as many fewer as everything takes longer here: for what one client does within its limit.
#[must_use]
pub fn fewer(count: usize) -> usize {
    let slowness = usize::try_from(slowness()).unwrap_or(usize::MAX);
    count.div_ceil(slowness.max(1))
}

fn slowness() -> u32 {
    let text = std::env::var(SLOWNESS_VARIABLE).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Calls `probe` until it gives something, at most for `limit`, scaled.
///
/// # Errors
/// After `limit`, naming `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    let limit = scaled(limit);
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if started.elapsed() >= limit {
            bail!("{what}: not so after {:.1} s", limit.as_secs_f32());
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_probe_found() {
        let mut calls = 0;
        let found = until("third call", PATIENCE, || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn names_what_it_waited_for() {
        let error = until("the moon", Duration::ZERO, || None::<()>).unwrap_err();
        assert!(error.to_string().contains("the moon"));
    }
}
