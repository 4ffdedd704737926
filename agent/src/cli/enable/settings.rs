//! Which workload a unit belongs to, and what its drop-in needs to know of the agent and of this host.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::host;
use crate::config::{Config, DEFAULT_PATH};
use crate::enroll::unit::{self, AGENT_UNIT, Facts, Finding, Setup, Weight};
use crate::enroll::{Layout, Mount, reach, trust};
use crate::identity::WorkloadName;
use crate::policy::matcher::Glob;
use crate::policy::{Policy, Workload};
use crate::supervisor::TRUST_DIR;
use crate::supervisor::view::View;

/// What systemd runs for whoever may write it.
const SYSTEMD_FILES: &[&str] = &["/etc/systemd", "/run/systemd/system", "/run/systemd/transient"];
/// The parent of the slices that units can name.
const PARENT: &str = "callgate.slice";
/// Bytes of a program that are searched for roots of its own.
const MOST_SEARCHED: u64 = 64 << 20;
/// As many links as the kernel follows in one path.
const MOST_LINKS: u32 = 40;
/// Public authorities, as certificates spell them: who names both has a list of roots compiled in. Lists are data alone: nothing
/// else in a program says from which crate they are.
const BUNDLED: [&[u8]; 2] = [b"ISRG Root X1", b"DigiCert Global Root G2"];

/// The workload that is named, or else the one whose `units` name the unit.
pub(super) fn workload<'a>(
    policy: &'a Policy,
    unit: &str,
    named: Option<&WorkloadName>,
) -> Result<&'a Workload, String> {
    if let Some(name) = named {
        let known = || {
            policy
                .workloads()
                .map(|one| one.name().as_str())
                .collect::<Vec<_>>()
        };
        return policy.workload(name).ok_or_else(|| match known().join(", ") {
            none if none.is_empty() => format!("the policy has no workload {name}, nor any other"),
            all => format!("the policy has no workload {name}; there is {all}"),
        });
    }
    let fitting: Vec<&Workload> = policy
        .workloads()
        .filter(|one| names(&one.conditions().units, unit))
        .collect();
    match fitting.as_slice() {
        [one] => Ok(one),
        [] => Err(format!(
            "no workload of the policy names {unit} in its `units`; say which it is with --workload"
        )),
        several => {
            let all: Vec<_> = several.iter().map(|one| one.name().as_str()).collect();
            Err(format!(
                "several workloads of the policy name {unit}: {}; say which it is with --workload",
                all.join(", ")
            ))
        }
    }
}

/// A template is named by whatever names its instances.
fn names(units: &[Glob], unit: &str) -> bool {
    let instance = unit.replace("@.", "@callgate.");
    let template = |glob: &Glob| {
        let prefix = unit.split_once("@.").map(|(name, _)| format!("{name}@"));
        prefix.is_some_and(|prefix| glob.as_str().starts_with(&prefix))
    };
    units
        .iter()
        .any(|glob| glob.matches(unit) || glob.matches(&instance) || template(glob))
}

/// What the operator accepts, by options.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted {
    /// Services of the host that the unit may reach.
    pub(super) left_open: Vec<PathBuf>,
    /// Commands with full privileges.
    pub(super) privileged: bool,
}

/// What the drop-in is made with.
pub(super) fn setup(
    config: &Config,
    policy: &Policy,
    workload: &Workload,
    facts: &Facts,
    accepted: Accepted,
) -> anyhow::Result<Setup> {
    let directory = config.runtime_dir.join(TRUST_DIR);
    let view = View::new(config);
    let hidden = view.hidden(policy);
    let mut fixed = view.fixed(policy);
    fixed.extend(SYSTEMD_FILES.iter().map(PathBuf::from));
    let slice = workload.name().slice();
    let mut neighbours = neighbours(host::services()?, facts, &slice);
    neighbours.push((AGENT_UNIT.to_owned(), config.worker_user.clone()));
    let own = own(config, &hidden);
    let agents = own.iter().chain(&fixed).chain([&directory]).cloned();
    let known = reach::SERVICES.iter().chain(reach::CREDENTIAL_STORES);
    let links = links(agents.chain(known.map(PathBuf::from)).chain(unit::named(facts)));
    Ok(Setup {
        marker: config.runtime_dir.join("armed").join(workload.name().as_str()),
        over: trust::directories(&directory),
        variables: trust::variables_of(&directory),
        trust: directory,
        direct: workload.direct().iter().map(|direct| direct.cidr).collect(),
        listen: workload.listen().to_vec(),
        hidden: hidden.iter().map(|path| covered(path)).collect(),
        fixed,
        left_open: accepted.left_open,
        allow_privileged: accepted.privileged,
        // Where there is none, the agent says so.
        hybrid: Mount::find().is_ok_and(|mount| mount.layout() == Layout::Hybrid),
        own,
        links,
        credentials: credentials()?,
        neighbours,
        bundled: bundled(facts),
    })
}

/// The agent's secrets, and its directories.
fn own(config: &Config, hidden: &[PathBuf]) -> Vec<PathBuf> {
    let agents = [
        &config.state_dir,
        &config.runtime_dir,
        &config.policy_dir,
        &config.file,
    ];
    let mut own: Vec<_> = hidden.iter().chain(agents).cloned().collect();
    if config.file == Path::new(DEFAULT_PATH) {
        own.extend(config.file.parent().map(Path::to_owned));
    }
    own
}

/// Those that lead elsewhere by symbolic links, as these are now.
fn links(paths: impl Iterator<Item = PathBuf>) -> Vec<(PathBuf, PathBuf)> {
    let with_end = paths.map(|path| (real(&path, MOST_LINKS), path));
    with_end
        .filter(|(real, path)| real != path)
        .map(|(real, path)| (path, real))
        .collect()
}

/// Where a path leads, also if nothing is there yet.
fn real(path: &Path, links: u32) -> PathBuf {
    for above in path.ancestors() {
        let Ok(rest) = path.strip_prefix(above) else {
            break;
        };
        if let Ok(real) = fs::canonicalize(above) {
            return real.join(rest);
        }
        if let (Ok(target), Some(left)) = (fs::read_link(above), links.checked_sub(1)) {
            let place = above.parent().unwrap_or(Path::new("/"));
            return real(&place.join(target).join(rest), left);
        }
    }
    path.to_owned()
}

/// Where the agent's unit has its credentials from.
fn credentials() -> anyhow::Result<Vec<String>> {
    Ok(host::shown(AGENT_UNIT)?
        .credentials()
        .map(str::to_owned)
        .collect())
}

/// Services outside of the slice, with the user that each runs as. Of root's only workloads: the host's own are many, and
/// root is warned about anyway.
fn neighbours(services: Vec<Facts>, facts: &Facts, slice: &str) -> Vec<(String, String)> {
    let own = facts.unit();
    let instances = own.split_once("@.").map(|(name, _)| format!("{name}@"));
    let is_own = |id: &str| id == own || instances.as_ref().is_some_and(|prefix| id.starts_with(prefix));
    let outside = services.iter().filter(|other| {
        let is_workload = WorkloadName::of_slice(other.get("Slice")).is_some();
        other.get("Slice") != slice && !is_own(other.get("Id")) && (is_workload || !other.is_root())
    });
    let named = outside.map(|other| (other.get("Id").to_owned(), other.user().to_owned()));
    named.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Its directory, where that is root's alone.
fn covered(path: &Path) -> PathBuf {
    let closed = path.parent().filter(|parent| reach::is_roots_alone(parent));
    match closed {
        Some(parent) if !path.is_dir() => parent.to_owned(),
        Some(_) | None => path.to_owned(),
    }
}

/// What stands in the way on the agent's side.
pub(super) fn of_agent(config: &Config, workload: &Workload, unit: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut refuse = |setting, text| {
        findings.push(Finding {
            weight: Weight::Refusal,
            setting,
            text,
            fix: String::new(),
        });
    };
    if config.cgroup_parent.trim_matches('/') != PARENT {
        refuse(
            "Slice",
            format!(
                "the agent's cgroup_parent is {:?}, where systemd makes no slices; units need {PARENT:?}",
                config.cgroup_parent
            ),
        );
    }
    let units = &workload.conditions().units;
    if !units.is_empty() && !names(units, unit) {
        let name = workload.name();
        refuse(
            "Slice",
            format!(
                "the `units` of workload {name} don't name {unit}: it would be held, and everything denied"
            ),
        );
    }
    findings
}

fn bundled(facts: &Facts) -> Vec<PathBuf> {
    let programs = facts
        .commands()
        .filter(|command| command.setting == "ExecStart")
        .map(|command| Path::new(command.path));
    programs
        .filter(|path| has_roots(path))
        .map(Path::to_owned)
        .collect()
}

fn has_roots(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else {
        return false;
    };
    let mut bytes = Vec::new();
    let read = file.take(MOST_SEARCHED).read_to_end(&mut bytes);
    let names = |root: &[u8]| memchr::memmem::find(&bytes, root).is_some();
    read.is_ok() && BUNDLED.into_iter().all(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Source;

    const POLICY: &str = r#"
[[workload]]
name = "billing"
units = ["billing.service", "worker@*.service"]

[[workload]]
name = "mail"
units = ["mail.service", "shared.service"]

[[workload]]
name = "other"
units = ["shared.service"]

[[workload]]
name = "open"
"#;

    fn policy() -> Policy {
        Policy::compile(&[Source {
            name: "p".into(),
            text: POLICY.into(),
        }])
        .unwrap()
    }

    #[test]
    fn the_workload_is_the_one_whose_units_name_the_unit() {
        let policy = policy();
        let of = |unit: &str| workload(&policy, unit, None).map(|one| one.name().to_string());
        for unit in ["billing.service", "worker@.service", "worker@7.service"] {
            assert_eq!(of(unit).unwrap(), "billing", "{unit}");
        }
        assert!(of("web.service").unwrap_err().contains("--workload"));
        assert!(of("shared.service").unwrap_err().contains("mail, other"));
    }

    #[test]
    fn a_workload_that_is_named_must_be_there_and_mean_the_unit() {
        let policy = policy();
        let named = |name: &str| WorkloadName::parse(name).unwrap();
        let unknown = workload(&policy, "x.service", Some(&named("nobody"))).unwrap_err();
        assert!(unknown.contains("billing"), "{unknown}");
        let config = Config::default();
        let said = |name: &str, unit: &str| {
            let workload = workload(&policy, unit, Some(&named(name))).unwrap();
            of_agent(&config, workload, unit)
        };
        assert_eq!(said("open", "x.service"), []);
        assert_eq!(said("billing", "worker@.service"), []);
        assert!(said("billing", "x.service")[0].text.contains("everything denied"));
    }

    #[test]
    fn a_program_with_roots_of_its_own_is_known_by_the_authorities_that_it_names() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("program");
        fs::write(
            &file,
            b"\x7fELF\0\0U\x04\x03\x13\x0cISRG Root X10\x82U\x04\x03\x13\x17DigiCert Global Root G2\0",
        )
        .unwrap();
        assert!(has_roots(&file));
        fs::write(&file, b"\x7fELF\0a comment about ISRG Root X1\0").unwrap();
        assert!(!has_roots(&file) && !has_roots(&place.path().join("none")));
    }

    #[test]
    fn links_are_followed_to_what_is_not_there_yet() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("there", root.join("link")).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let of = |name: &str| links([root.join(name)].into_iter());
        let led = |name: &str, end: &str| assert_eq!(of(name), [(root.join(name), root.join(end))]);
        led("link/a/b", "there/a/b");
        fs::create_dir(root.join("there")).unwrap();
        led("link/a/b", "there/a/b");
        led("link", "there");
        assert_eq!(of("there/a"), []);
        assert!(of("loop").iter().all(|(_, real)| real.starts_with(&root)));
    }
}
