//! Children of the service manager that have not become their program yet.
//!
//! The manager puts a child into the unit's cgroup as soon as it has forked, and such a child has all of the manager's
//! descriptors for a moment: sockets of other services, and the agent's own that the manager keeps. They are closed
//! before the program begins; to cut them off would be to cut off their owners.

use std::fs;

use crate::identity::process::HeldProcess;

/// Has forked but not executed anything since (`PF_FORKNOEXEC`, include/linux/sched.h).
const FORKED: u64 = 0x40;
/// Places in /proc/PID/stat of the flags, and of the addresses where code and stack begin (proc(5): 9, 26, 28), counted
/// from the state, which is the third.
const FLAGS: usize = 9 - 3;
const CODE: usize = 26 - 3;
const STACK: usize = 28 - 3;

/// Whether this is one.
pub(super) fn is_managers_child(process: &HeldProcess) -> bool {
    let manager = fs::read_to_string("/proc/1/stat");
    process
        .read("stat")
        .ok()
        .zip(manager.ok())
        .is_some_and(|(process, manager)| is_copy(&process, &manager))
}

/// Whether the first is a copy of the second that has executed nothing. Where the manager's code and stack begin is drawn by
/// lot at each execution, and shown to nobody who may not trace the manager. Any process can say of itself that it begins
/// elsewhere than it does (PR_SET_MM_MAP, kernel/sys.c), and fork; but it has to guess both places, and can try as often as
/// it is looked at.
fn is_copy(process: &str, original: &str) -> bool {
    let places = |stat| Some((field(stat, CODE)?, field(stat, STACK)?));
    field(process, FLAGS).is_some_and(|flags| flags & FORKED != 0)
        && places(process).is_some_and(|(code, stack)| {
            // Less is what those see who may not know.
            code > 1 && stack > 1 && places(original) == Some((code, stack))
        })
}

/// The name before these may hold anything, a parenthesis too.
fn field(stat: &str, place: usize) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(flags: u64, code: u64, stack: u64) -> String {
        let mut fields = vec![0; 50];
        (fields[FLAGS], fields[CODE], fields[STACK]) = (flags, code, stack);
        let rest: Vec<String> = fields[1..].iter().map(u64::to_string).collect();
        format!("1 (a) b) S {}", rest.join(" "))
    }

    #[test]
    fn a_copy_lies_where_its_original_does_and_has_executed_nothing() {
        let manager = stat(0x40_0100, 0x5555_1000, 0x7ffd_2000);
        assert!(is_copy(&stat(0x40_0040, 0x5555_1000, 0x7ffd_2000), &manager));
        for other in [
            stat(0x40_0000, 0x5555_1000, 0x7ffd_2000),
            stat(0x40_0040, 0x5555_2000, 0x7ffd_2000),
            stat(0x40_0040, 0x5555_1000, 0x7ffd_3000),
        ] {
            assert!(!is_copy(&other, &manager), "{other}");
        }
    }

    #[test]
    fn what_is_not_shown_is_no_proof() {
        let hidden = stat(0x40, 1, 0);
        assert!(!is_copy(&hidden, &hidden));
        assert!(!is_copy("", ""));
    }

    #[test]
    fn this_process_has_places_that_root_can_read() {
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(field(&own, CODE).unwrap() > 1 && field(&own, STACK).unwrap() > 1);
    }
}
