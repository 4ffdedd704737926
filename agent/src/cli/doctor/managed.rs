//! The checks of what runs in the workloads: whom the processes trust, and whether they hold sockets that were not made
//! there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::Check;
use crate::cli::safe::Safe;
use crate::config::Config;
use crate::ebpf::foreign::{self, Standing};
use crate::ebpf::{self, Pinned};
use crate::enroll::trust::{OwnRoots, Trusted};
use crate::enroll::{self, Mount};
use crate::identity::WorkloadName;
use crate::identity::members::{self, Member};
use crate::identity::process::ProcessError;
use crate::supervisor::{TRUST_DIR, canary};

/// For the looks at all workloads, each by itself: one process may see its files on a file system that never answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is on its way into its program is something else a moment later.
const MOMENT: Duration = Duration::from_millis(100);
/// Processes that are named one by one.
const NAMED: usize = 5;

/// Two for each workload in which something runs. Nothing while there is none, or no cgroup v2, which another check says.
#[must_use]
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let occupied = Mount::find().and_then(|mount| enroll::occupied(&mount, &config.cgroup_parent));
    let Ok(occupied) = occupied else {
        return Vec::new();
    };
    let occupied: Vec<_> = occupied.into_iter().map(Occupied::new).collect();
    let mut checks = trust(&config.runtime_dir.join(TRUST_DIR), &occupied);
    checks.extend(sockets(config, &occupied));
    checks
}

/// A workload in which processes run.
#[derive(Clone, Debug)]
struct Occupied {
    name: WorkloadName,
    directory: PathBuf,
}

impl Occupied {
    fn new((name, directory): (WorkloadName, PathBuf)) -> Self {
        Self { name, directory }
    }

    /// Those that are there now, but for the agent's own canaries.
    fn members(&self) -> impl Iterator<Item = Member> {
        let slice = self.directory.file_name().unwrap_or_default();
        let pids = members::processes(&self.directory).into_iter();
        let members = pids.filter_map(|pid| Member::open(pid, slice));
        members.filter(|member| !is_canary(member, slice))
    }
}

fn is_canary(member: &Member, slice: &OsStr) -> bool {
    let cgroup = member.process().cgroup();
    cgroup.is_ok_and(|cgroup| cgroup.is_some_and(|path| enroll::is_in_room(&path, slice, canary::ROOM)))
}

const TRUST: &str = "trust";

fn trust(directory: &Path, occupied: &[Occupied]) -> Vec<Check> {
    // Why there are none is said of the roots themselves.
    let Ok(Some(own)) = OwnRoots::written_to(directory) else {
        return Vec::new();
    };
    let looks: Vec<_> = occupied.iter().map(|workload| look(&own, workload)).collect();
    let deadline = Instant::now() + PATIENCE;
    let told = |(workload, look): (&Occupied, mpsc::Receiver<Trusting>)| {
        let left = deadline.saturating_duration_since(Instant::now());
        match look.recv_timeout(left) {
            Ok(trusting) => of_trust(&workload.name, &trusting),
            Err(RecvTimeoutError::Timeout) => unanswered(&workload.name),
            Err(RecvTimeoutError::Disconnected) => broken_off(&workload.name),
        }
    };
    occupied.iter().zip(looks).map(told).collect()
}

/// Looks from a thread of its own. It is left behind if it hangs; only where not even a signal ends what it waits for does
/// the doctor stay until it ends.
fn look(own: &OwnRoots, workload: &Occupied) -> mpsc::Receiver<Trusting> {
    let (sender, receiver) = mpsc::channel();
    let (own, workload) = (own.clone(), workload.clone());
    thread::spawn(move || sender.send(look_at_trust(&own, &workload)));
    receiver
}

/// What is said of the processes of one workload.
#[derive(Debug, Default)]
struct Trusting {
    in_place: usize,
    by_variable: usize,
    not: Vec<String>,
    /// That could not be looked into.
    unseen: usize,
}

impl Trusting {
    /// Counts a process; gives it back if it trusts nobody.
    fn see(&mut self, own: &OwnRoots, member: Member) -> Option<Member> {
        match own.trusted_by(member.process()) {
            Ok(Trusted::InPlace) => self.in_place += 1,
            Ok(Trusted::By(_)) => self.by_variable += 1,
            Ok(Trusted::Not) => return Some(member),
            Err(ProcessError::Gone { .. }) => {}
            Err(ProcessError::Read { .. }) => self.unseen += 1,
        }
        None
    }
}

fn look_at_trust(own: &OwnRoots, workload: &Occupied) -> Trusting {
    let mut trusting = Trusting::default();
    let mut not: Vec<_> = workload
        .members()
        .filter_map(|member| trusting.see(own, member))
        .collect();
    if !not.is_empty() {
        thread::sleep(MOMENT);
        let again = not.into_iter();
        not = again.filter_map(|member| trusting.see(own, member)).collect();
    }
    trusting.not = not.iter().map(called).collect();
    trusting
}

fn of_trust(name: &WorkloadName, trusting: &Trusting) -> Check {
    let Trusting {
        in_place,
        by_variable,
        not,
        unseen,
    } = trusting;
    if *unseen > 0 {
        let found = format!("{name}: {unseen} of its processes can't be looked into");
        return Check::warn(TRUST, found, "run `callgate doctor` as root");
    }
    if not.is_empty() {
        let found = format!(
            "{name}: its processes trust the agent's root ({in_place} find it among the host's, {by_variable} by a variable)"
        );
        return Check::pass(TRUST, found);
    }
    let found = format!(
        "{name}: {} of {} processes do not have the agent's root where programs look for roots: {}",
        not.len(),
        not.len() + in_place + by_variable,
        listed(not)
    );
    Check::warn(
        TRUST,
        found,
        "restart them, a unit by systemctl once it is enabled and a command by `callgate exec`; what clears its environment or has a root directory of its own must be given the bundle (README, \"Runtimes\")",
    )
}

fn unanswered(name: &WorkloadName) -> Check {
    let found = format!("{name}: not looked at: that took more than {PATIENCE:?}");
    Check::warn(TRUST, found, "see which file system of its processes hangs")
}

fn broken_off(name: &WorkloadName) -> Check {
    let found = format!("{name}: not looked at: the look broke off");
    Check::warn(TRUST, found, "report what the doctor printed of it")
}

const SOCKETS: &str = "sockets";

fn sockets(config: &Config, occupied: &[Occupied]) -> Vec<Check> {
    if occupied.is_empty() {
        return Vec::new();
    }
    let pinned = match ebpf::pinned(&config.bpffs_dir) {
        Ok(Some(pinned)) => pinned,
        Ok(None) => {
            let found = format!(
                "workloads run, and nothing holds them: there are no programs below {}",
                config.bpffs_dir.display()
            );
            return vec![Check::fail(SOCKETS, found, "start the agent")];
        }
        Err(error) => {
            let found = format!("not looked at: {error}");
            return vec![Check::warn(
                SOCKETS,
                found,
                "run `callgate doctor` as root, with the version that runs",
            )];
        }
    };
    let of = |workload: &Occupied| look_at_sockets(&pinned, workload);
    occupied.iter().filter_map(of).collect()
}

/// `None` if its cgroup is gone by now.
fn look_at_sockets(pinned: &Pinned, workload: &Occupied) -> Option<Check> {
    let name = &workload.name;
    let id = fs::metadata(&workload.directory).ok()?.ino();
    let Some(number) = pinned.numbers.get(&id) else {
        let found = format!("{name}: processes run in its cgroup, which no program holds");
        return Some(Check::fail(
            SOCKETS,
            found,
            "`callgate reload`; if that does not help, the agent's log says what goes wrong",
        ));
    };
    let mut found = Foreign::default();
    for member in workload.members() {
        found.see(pinned, &member, *number);
    }
    Some(of_sockets(name, &found))
}

/// Sockets that were made elsewhere, by who holds them.
#[derive(Debug, Default)]
struct Foreign {
    cut_off: BTreeMap<String, usize>,
    open: BTreeMap<String, usize>,
    blind: bool,
}

impl Foreign {
    fn see(&mut self, pinned: &Pinned, member: &Member, number: u32) {
        for (descriptor, _) in member.sockets() {
            let socket = match member.descriptor(descriptor) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::PERM) => {
                    self.blind = true;
                    return;
                }
                // Closed meanwhile.
                Err(_) => continue,
            };
            let holders = match pinned.marks.standing(&socket, number, pinned.listen(number)) {
                Ok(Standing::Own) => continue,
                Ok(Standing::LetIn) if foreign::is_kept_from_dialling(&socket) => continue,
                Ok(Standing::Harmless) => &mut self.cut_off,
                Ok(Standing::LetIn | Standing::Foreign) => &mut self.open,
                // Another file has its number by now.
                Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => continue,
                Err(_) => {
                    self.blind = true;
                    continue;
                }
            };
            *holders.entry(called(member)).or_default() += 1;
        }
    }
}

fn of_sockets(name: &WorkloadName, found: &Foreign) -> Check {
    if !found.open.is_empty() {
        let text = format!(
            "{name}: sockets that were made before their process came here, or elsewhere, and that no program sees: {}",
            counted(&found.open)
        );
        return Check::fail(
            SOCKETS,
            text,
            "a running agent cuts such off within a second; if they stay, its log says why: end these processes",
        );
    }
    if found.blind {
        let text = format!("{name}: not all sockets of its processes can be looked at");
        return Check::warn(SOCKETS, text, "run `callgate doctor` as root");
    }
    if !found.cut_off.is_empty() {
        let text = format!(
            "{name}: sockets that were made before their process came here, or elsewhere, and are cut off: {}",
            counted(&found.cut_off)
        );
        return Check::warn(
            SOCKETS,
            text,
            "restart these processes in the workload, so that they make their own",
        );
    }
    Check::pass(
        SOCKETS,
        format!("{name}: all of its processes' sockets are its own"),
    )
}

/// A process as an operator looks for it: number and name, which it gave itself.
fn called(member: &Member) -> String {
    let name = member.process().read("comm").unwrap_or_default();
    format!("{} ({})", member.process().pid(), Safe(name.trim_end()))
}

fn counted(holders: &BTreeMap<String, usize>) -> String {
    let each = holders
        .iter()
        .map(|(holder, count)| format!("{count} of {holder}"));
    listed(&each.collect::<Vec<_>>())
}

fn listed(all: &[String]) -> String {
    let (named, rest) = all.split_at(all.len().min(NAMED));
    match rest.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn billing() -> WorkloadName {
        WorkloadName::parse("billing").unwrap()
    }

    #[test]
    fn one_process_without_the_root_is_enough_to_be_named() {
        let mut trusting = Trusting {
            in_place: 2,
            by_variable: 1,
            ..Trusting::default()
        };
        assert_eq!(of_trust(&billing(), &trusting).status, Status::Pass);
        trusting.not = (1..=7).map(|pid| format!("{pid} (sleep)")).collect();
        let check = of_trust(&billing(), &trusting);
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("7 of 10 processes"), "{check:?}");
        assert!(check.found.ends_with("5 (sleep) and 2 more"), "{check:?}");
        trusting.unseen = 1;
        assert!(of_trust(&billing(), &trusting).fix.contains("as root"));
    }

    #[test]
    fn a_socket_that_nothing_sees_outweighs_those_that_are_cut_off() {
        let mut found = Foreign::default();
        assert_eq!(of_sockets(&billing(), &found).status, Status::Pass);
        found.cut_off.insert("7 (nc)".to_owned(), 2);
        let check = of_sockets(&billing(), &found);
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("2 of 7 (nc)"), "{check:?}");
        found.blind = true;
        assert!(of_sockets(&billing(), &found).found.contains("can be looked at"));
        found.open.insert("8 (nc)".to_owned(), 1);
        assert_eq!(of_sockets(&billing(), &found).status, Status::Fail);
    }
}
