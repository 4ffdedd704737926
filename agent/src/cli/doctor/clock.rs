//! The checks of time: whether the clock is set and kept, and whether the agent's root is good at the time that it shows.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use super::Check;
use crate::time::{self, Kept};
use crate::tls::{self, ca};

/// Before this day (2025-01-01) the wall clock is surely wrong; nothing valid would be signed.
const EARLIEST: i64 = 1_735_689_600;
/// By the kernel's reckoning nothing has corrected the clock for close to three hours. timesyncd, which asks its server
/// least often, lets it come to a second.
const LARGE_ERROR: Duration = Duration::from_secs(5);
/// How long before the root's end it is time to think of another.
const SOON: Duration = Duration::from_secs(90 * 24 * 3600);

const CLOCK: &str = "clock";
const SET: &str = "set the clock and keep it so (systemd-timesyncd, chrony)";
const KEEP: &str = "keep it right: systemctl enable --now systemd-timesyncd, or chrony with `rtcsync`; for a container, on its host";
/// What hangs on it.
const HURT: &str = "once it is off, clients refuse the agent's leaves, the agent upstreams' certificates, and records bear wrong times";

/// Whether the wall clock can be trusted.
pub(super) fn check() -> Check {
    match clock_gettime(ClockId::CLOCK_REALTIME) {
        Ok(now) => of(now.tv_sec(), time::kept()),
        Err(errno) => Check::fail(CLOCK, errno.to_string(), SET),
    }
}

fn of(seconds: i64, kept: io::Result<Kept>) -> Check {
    if seconds < EARLIEST {
        let found = format!("{seconds} seconds since 1970 is in the past: no certificate is valid then");
        return Check::fail(CLOCK, found, SET);
    }
    let doubt = match kept {
        Ok(kept) if !kept.synchronised => {
            "the kernel counts it as unsynchronised: nothing keeps it right".to_owned()
        }
        Ok(kept) if kept.error > LARGE_ERROR => {
            let seconds = kept.error.as_secs();
            format!("nothing has corrected it for hours: it can be {seconds} s off")
        }
        Ok(_) => return Check::pass(CLOCK, "set and synchronised"),
        Err(error) => format!("the kernel does not say whether it is synchronised ({error})"),
    };
    Check::warn(CLOCK, format!("set, but {doubt}; {HURT}"), KEEP)
}

const ROOT: &str = "agent's root";

/// Whether clients can take what the root in this file signs now.
pub(super) fn root(file: &Path) -> Check {
    match ca::validity(file) {
        Ok(Some(valid)) => of_root(file, &valid, SystemTime::now()),
        Ok(None) => Check::pass(ROOT, "none yet: the agent makes it when it starts first"),
        Err(tls::Error::RootFile { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Check::warn(
                ROOT,
                format!("not looked at: only root may read {}", file.display()),
                "run `callgate doctor` as root",
            )
        }
        Err(error) => Check::fail(
            ROOT,
            error.to_string(),
            "if it can't be restored: move it away and restart callgate.service, which makes another, then the workloads' units",
        ),
    }
}

fn of_root(file: &Path, valid: &Range<SystemTime>, now: SystemTime) -> Check {
    let file = file.display();
    let another = format!(
        "if the clock is right: move {file} away, `systemctl restart callgate`, which makes another, then restart the workloads' units"
    );
    if now < valid.start {
        let found = format!(
            "{file} is not valid before {}: clients refuse all that it signs",
            day(valid.start)
        );
        return Check::fail(ROOT, found, &format!("{SET}; {another}"));
    }
    if now >= valid.end {
        let found = format!(
            "{file} has ended on {}: clients refuse all that it signs",
            day(valid.end)
        );
        return Check::fail(ROOT, found, &another);
    }
    let found = format!("valid until {}", day(valid.end));
    if now + SOON >= valid.end {
        return Check::warn(ROOT, found, &another);
    }
    Check::pass(ROOT, found)
}

/// As one writes it, in UTC.
fn day(time: SystemTime) -> String {
    ::time::OffsetDateTime::from(time).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    const NOW: i64 = EARLIEST + 1;

    fn kept(synchronised: bool, seconds: u64) -> io::Result<Kept> {
        Ok(Kept {
            synchronised,
            error: Duration::from_secs(seconds),
        })
    }

    #[test]
    fn a_clock_that_was_never_set_fails_however_it_is_kept() {
        for kept in [kept(true, 0), kept(false, 16)] {
            let check = of(86_400, kept);
            assert_eq!(check.status, Status::Fail);
            assert!(check.found.contains("86400 seconds since 1970"), "{check:?}");
        }
    }

    #[test]
    fn a_clock_that_is_kept_passes() {
        let check = of(NOW, kept(true, 1));
        assert_eq!(
            (check.status, check.fix.as_str()),
            (Status::Pass, ""),
            "{check:?}"
        );
        assert_eq!(of(EARLIEST, kept(true, 5)).status, Status::Pass);
    }

    #[test]
    fn a_clock_that_nothing_keeps_is_warned_about_with_what_will_hurt() {
        let mut said = Vec::new();
        let forbidden = Err(io::ErrorKind::PermissionDenied.into());
        for kept in [kept(false, 0), kept(true, 6), forbidden] {
            let check = of(NOW, kept);
            assert_eq!(check.status, Status::Warn, "{check:?}");
            assert!(
                check.found.contains(HURT) && check.fix.contains("timesyncd"),
                "{check:?}"
            );
            said.push(check.found);
        }
        for (found, why) in said.iter().zip(["unsynchronised", "6 s off", "does not say"]) {
            assert!(found.contains(why), "{found}");
        }
    }

    #[test]
    fn a_root_is_good_from_its_first_moment_to_its_last() {
        const HOUR: Duration = Duration::from_secs(3600);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let valid = start..start + 2 * SOON;
        let at = |now| of_root(Path::new("/state/ca.pem"), &valid, now);
        for (now, status, found) in [
            (start - HOUR, Status::Fail, "not valid before 2027-01-15"),
            (start, Status::Pass, "valid until 2027-07-14"),
            (start + SOON, Status::Warn, "valid until 2027-07-14"),
            (valid.end - HOUR, Status::Warn, "valid until 2027-07-14"),
            (valid.end, Status::Fail, "has ended on 2027-07-14"),
        ] {
            let check = at(now);
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.found.contains(found), "{check:?}");
            let is_told = check.fix.contains("move /state/ca.pem away");
            assert_eq!(is_told, status != Status::Pass, "{check:?}");
        }
    }

    #[test]
    fn a_root_that_is_not_there_yet_is_no_trouble_and_one_that_is_damaged_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        assert_eq!(root(&file).status, Status::Pass);
        ca::Root::load_or_create(&file, SystemTime::now()).unwrap();
        assert_eq!(root(&file).status, Status::Pass);
        std::fs::write(&file, "no certificate").unwrap();
        let check = root(&file);
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains("it has no certificate"), "{check:?}");
    }

    #[test]
    fn a_root_that_was_made_before_the_clock_was_set_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        ca::Root::load_or_create(&file, SystemTime::UNIX_EPOCH + 24 * Duration::from_secs(3600)).unwrap();
        let check = root(&file);
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains("has ended on 1979-12-31"), "{check:?}");
    }
}
