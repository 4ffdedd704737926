//! The checks of what the settings name: policy, the worker's user, the agent's root, resolvers, room for records, and
//! whose programs run for the workloads' cgroups.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use nix::sys::statvfs::statvfs;

use super::{Check, clock, commands};
use crate::cli::enable::own;
use crate::config::Config;
use crate::dns::resolver;
use crate::ebpf::{self, Other};
use crate::enroll::Mount;
use crate::policy::{Diagnostic, Policy, store};

/// A resolver that takes longer slows every call down.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Below this much room (bytes) a busy host writes its last records within minutes.
const LITTLE_ROOM: u64 = 64 << 20;

/// All of them. They take as long as the slowest resolver.
#[must_use]
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let loaded = store::load_dir(&config.policy_dir).policy;
    vec![
        policy(&config.policy_dir, &loaded),
        commands::check(loaded.as_ref().ok()),
        worker_user(&config.worker_user),
        clock::root(&config.root_file()),
        resolvers(&config.resolvers),
        room(&config.audit.file),
        programs(config),
        places(own::unwritable(config)),
    ]
}

fn places(unwritable: Vec<own::Unwritable>) -> Check {
    const NAME: &str = "places to write";
    if unwritable.is_empty() {
        return Check::pass(NAME, "the agent's service may write where the settings say");
    }
    let (what, fixes): (Vec<_>, Vec<_>) = unwritable.into_iter().map(|one| (one.what, one.fix)).unzip();
    Check::fail(NAME, what.join("; "), &fixes.join("; "))
}

fn policy(dir: &Path, loaded: &Result<Policy, Vec<Diagnostic>>) -> Check {
    const NAME: &str = "policy";
    match loaded {
        Ok(policy) => {
            let (workloads, warnings) = (policy.workloads().count(), policy.warnings().len());
            let found = format!("{workloads} workloads in {}", dir.display());
            match warnings {
                0 => Check::pass(NAME, found),
                _ => Check::warn(
                    NAME,
                    format!("{found}, with {warnings} things to look at"),
                    "`callgate check` shows them",
                ),
            }
        }
        Err(found) => Check::fail(
            NAME,
            format!("{} errors in {}", found.len(), dir.display()),
            "`callgate check` shows each with its line",
        ),
    }
}

fn worker_user(name: &str) -> Check {
    const NAME: &str = "worker user";
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => Check::fail(
            NAME,
            format!("{name} is root"),
            "set `worker_user` to a user without rights",
        ),
        Ok(Some(user)) => Check::pass(NAME, format!("{name} ({})", user.uid)),
        Ok(None) => Check::fail(
            NAME,
            format!("there is no user {name:?}"),
            "useradd --system --shell /usr/sbin/nologin callgate, or set `worker_user`",
        ),
        Err(errno) => Check::fail(
            NAME,
            format!("{name}: {errno}"),
            "see why users can't be looked up",
        ),
    }
}

/// Asks each for the root's name servers, which any resolver knows.
fn resolvers(named: &[SocketAddr]) -> Check {
    const NAME: &str = "resolvers";
    const FIX: &str = "name resolvers that answer in `resolvers`, or repair /etc/resolv.conf";
    let servers = match resolver::Settings::of_host(named) {
        Ok(settings) => settings.resolvers,
        Err(error) => return Check::fail(NAME, error.to_string(), FIX),
    };
    if servers.is_empty() {
        return Check::warn(NAME, "none: only names of /etc/hosts are known", FIX);
    }
    let asked: Vec<_> = std::thread::scope(|scope| {
        let each = |server: SocketAddr| (server, scope.spawn(move || ask(server)));
        let threads: Vec<_> = servers.iter().copied().map(each).collect();
        let answer = |(server, thread): (_, std::thread::ScopedJoinHandle<'_, _>)| (server, thread.join());
        threads.into_iter().map(answer).collect()
    });
    let silent: Vec<_> = asked
        .into_iter()
        .filter_map(|(server, answer)| match answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{server}: {error}")),
            Err(_panic) => Some(format!("{server}: not asked")),
        })
        .collect();
    if silent.is_empty() {
        let all: Vec<_> = servers.iter().map(ToString::to_string).collect();
        Check::pass(NAME, all.join(", "))
    } else {
        Check::warn(NAME, silent.join("; "), FIX)
    }
}

fn ask(server: SocketAddr) -> std::io::Result<()> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::root(), RecordType::NS));
    let id = question.id;
    let bytes = question.to_vec().map_err(std::io::Error::other)?;
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.send(&bytes)?;
    let until = Instant::now() + ANSWER_LIMIT;
    let mut answer = [0; 1232];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut answer)?;
        let bytes = answer.get(..length).unwrap_or_default();
        if Message::from_vec(bytes).is_ok_and(|message| message.id == id) {
            return Ok(());
        }
    }
}

fn room(audit_file: &Path) -> Check {
    const NAME: &str = "room for records";
    const FIX: &str =
        "make room, or set `audit.file` to a larger disk: calls that can't be recorded are refused";
    let on = audit_file
        .ancestors()
        .skip(1)
        .find(|dir| dir.exists())
        .unwrap_or(audit_file);
    match statvfs(on) {
        Ok(found) => {
            let free = found.blocks_available().saturating_mul(found.fragment_size());
            let said = format!("{} MiB free for {}", free >> 20, audit_file.display());
            if free < LITTLE_ROOM {
                Check::warn(NAME, said, FIX)
            } else {
                Check::pass(NAME, said)
            }
        }
        Err(errno) => Check::fail(NAME, format!("{}: {errno}", on.display()), FIX),
    }
}

/// Programs of others, where they could change what ours decided.
fn programs(config: &Config) -> Check {
    const NAME: &str = "other programs";
    let mount = match Mount::find() {
        Ok(mount) => mount,
        // The check of cgroups says it.
        Err(error) => return Check::warn(NAME, format!("not looked at: {error}"), "mount cgroup v2"),
    };
    match ebpf::others(mount.path(), &config.cgroup_parent, &config.bpffs_dir) {
        Ok(found) => of_others(&found.into_iter().collect::<Vec<_>>()),
        Err(error) => Check::warn(
            NAME,
            format!("not looked at: {error}"),
            "run `callgate doctor` as root",
        ),
    }
}

fn of_others(found: &[Other]) -> Check {
    const NAME: &str = "other programs";
    let list = |others: &mut dyn Iterator<Item = &Other>| {
        let each = others.map(|other| format!("{} ({}, id {})", name(other), other.hook, other.id));
        each.collect::<Vec<_>>().join(", ")
    };
    let changing = list(&mut found.iter().filter(|other| !other.only_filters()));
    if !changing.is_empty() {
        return Check::warn(
            NAME,
            format!("may change connections of workloads after ours: {changing}"),
            "see whose they are (`bpftool prog show id N`), and detach them from the workloads' ancestors",
        );
    }
    let filters = list(&mut found.iter());
    match filters.is_empty() {
        true => Check::pass(NAME, "none on the workloads' cgroups"),
        false => Check::pass(NAME, format!("only filters: {filters}")),
    }
}

fn name(other: &Other) -> &str {
    if other.name.is_empty() {
        "unnamed"
    } else {
        &other.name
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn other(hook: &'static str) -> Other {
        Other {
            id: 7,
            name: "cil_sock4_connect".to_owned(),
            hook,
        }
    }

    #[test]
    fn programs_that_only_filter_are_named_and_pass() {
        assert_eq!(of_others(&[]).status, Status::Pass);
        let check = of_others(&[other("egress")]);
        assert_eq!(check.status, Status::Pass);
        assert!(
            check.found.contains("cil_sock4_connect (egress, id 7)"),
            "{check:?}"
        );
    }

    #[test]
    fn a_program_that_may_turn_connections_is_warned_about() {
        let check = of_others(&[other("egress"), other("connect4")]);
        assert_eq!(check.status, Status::Warn);
        assert!(
            check.found.contains("connect4") && !check.found.contains("egress"),
            "{check:?}"
        );
    }

    #[test]
    fn a_resolver_that_says_nothing_is_named() {
        // Bound and never read.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = socket.local_addr().unwrap();
        let check = resolvers(&[server]);
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains(&server.to_string()), "{check:?}");
    }

    #[test]
    fn root_is_no_user_for_the_worker() {
        assert_eq!(worker_user("root").status, Status::Fail);
        assert_eq!(worker_user("there-is-nobody").status, Status::Fail);
    }
}
