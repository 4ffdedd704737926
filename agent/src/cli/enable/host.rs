//! systemd as this host runs it: asking it, its directories, its drop-ins.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::enroll::unit::{DROP_IN, Facts, PROPERTIES};
use crate::identity::WorkloadName;

/// Where the operator's units and drop-ins are.
const UNITS: &str = "/etc/systemd/system";
/// An instance that nobody starts, to see what a template says.
const INSTANCE: &str = "callgate-looks";
/// Limits of a slice, with the values that limit nothing.
const LIMITS: &[(&str, &str)] = &[
    ("AllowedCPUs", ""),
    ("CPUQuotaPerSecUSec", "infinity"),
    ("IPAddressDeny", ""),
    ("MemoryHigh", "infinity"),
    ("MemoryMax", "infinity"),
    ("MemorySwapMax", "infinity"),
    ("TasksMax", "infinity"),
];

/// The unit's whole name, if it can be one of a service.
pub(super) fn service_name(text: &str) -> Result<String, String> {
    let name = match text.rsplit_once('.') {
        Some((_, "service")) => text.to_owned(),
        Some((_, kind @ ("scope" | "slice" | "socket" | "timer" | "target" | "mount" | "path"))) => {
            return Err(format!("{text} is a {kind}; only services can be enabled"));
        }
        Some(_) | None => format!("{text}.service"),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    if name.len() > 255 || !name.bytes().all(plain) || name.starts_with(['.', '@', '-']) {
        return Err(format!("{text:?} can't name a systemd unit"));
    }
    if name == crate::enroll::unit::AGENT_UNIT {
        return Err("the agent can't manage itself".to_owned());
    }
    Ok(name)
}

/// What systemd says of it, and of the socket units that start it.
pub(super) fn facts(unit: &str) -> anyhow::Result<Facts> {
    let mut facts = shown(unit)?;
    facts.sockets = super::sockets::of(unit, &facts)?;
    let slice = facts.get("Slice").to_owned();
    if !slice.is_empty() {
        facts.slice_limits = limits(&slice)?;
    }
    Ok(facts)
}

/// What systemd says of a unit alone.
pub(super) fn shown(unit: &str) -> anyhow::Result<Facts> {
    let shown = systemctl(["show", "--property", &PROPERTIES.join(","), "--", &of_all(unit)])?;
    let mut facts = Facts::read(unit, &shown);
    facts.later = super::later(&facts)?;
    facts.files = super::files(&facts)?;
    Ok(facts)
}

/// A template's instance that stands for all.
fn of_all(unit: &str) -> String {
    unit.replace("@.", &format!("@{INSTANCE}."))
}

/// The template's name, if this is its instance that stands for all.
pub(super) fn of_template(unit: &str) -> String {
    unit.replace(&format!("@{INSTANCE}."), "@.")
}

fn limits(slice: &str) -> anyhow::Result<Vec<String>> {
    let names: Vec<_> = LIMITS.iter().map(|(name, _)| *name).collect();
    let shown = systemctl(["show", "--property", &names.join(","), "--", slice])?;
    let set = shown.lines().filter(|line| {
        let known = |(name, none): &(&str, &str)| line.split_once('=') == Some((*name, *none));
        !LIMITS.iter().any(known)
    });
    Ok(set.map(str::to_owned).collect())
}

/// The services that are loaded, and those that are enabled as workloads: name, user and slice of each, in one question.
pub(super) fn services() -> anyhow::Result<Vec<Facts>> {
    let enabled = enabled()?.into_iter().map(|(unit, _)| unit);
    let names = ["*.service".to_owned()]
        .into_iter()
        .chain(enabled.filter(|unit| !unit.contains("@.")));
    let arguments = ["show", "--property", "Id,User,Slice,DynamicUser", "--"].map(str::to_owned);
    let shown = systemctl(arguments.into_iter().chain(names))?;
    Ok(shown.split("\n\n").map(|block| Facts::read("", block)).collect())
}

/// The unit's own name, if systemd takes the given one for another name of it.
pub(super) fn other_name(unit: &str, facts: &Facts) -> Option<String> {
    let own = of_template(facts.get("Id"));
    (!own.is_empty() && own != unit).then_some(own)
}

/// The unit, or the instances of a template, that run now, each with its cgroup.
pub(super) fn running(unit: &str) -> anyhow::Result<Vec<(String, String)>> {
    let instances = pattern(unit);
    let shown = systemctl(["show", "--property", "Id,ControlGroup", "--", &instances])?;
    let blocks = shown.split("\n\n").map(|block| Facts::read(unit, block));
    let placed = blocks.map(|facts| (facts.get("Id").to_owned(), facts.get("ControlGroup").to_owned()));
    Ok(placed.filter(|(_, cgroup)| !cgroup.is_empty()).collect())
}

/// The unit, or all instances of a template, as systemctl takes them.
pub(super) fn pattern(unit: &str) -> String {
    unit.replace("@.", "@*.")
}

/// All units of a kind that there are files of, each with the services that it starts.
pub(super) fn triggers(kind: &str) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let files = systemctl(["list-unit-files", "--no-legend", "--full", &format!("*{kind}")])?;
    let names = files
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next());
    let instances: Vec<_> = names.map(of_all).collect();
    if instances.is_empty() {
        return Ok(Vec::new());
    }
    let arguments = ["show", "--property", "Id,Triggers", "--"].map(str::to_owned);
    let shown = systemctl(arguments.into_iter().chain(instances))?;
    let blocks = shown.split("\n\n").map(|block| Facts::read("", block));
    Ok(blocks
        .map(|facts| {
            let started = facts.words("Triggers").map(of_template).collect();
            (of_template(facts.get("Id")), started)
        })
        .collect())
}

/// Why there is no such unit.
pub(super) fn why_not_loaded(facts: &Facts) -> String {
    let (state, error) = (facts.get("LoadState"), facts.get("LoadError"));
    // D-Bus name and message, the latter quoted.
    match error.split_once(' ') {
        Some((_, message)) => message.trim_matches('"').to_owned(),
        None => format!("it is {state}"),
    }
}

/// Where our drop-in of a unit is.
pub(super) fn file(unit: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d")).join(DROP_IN)
}

/// Writes it aside and renames it, so that systemd never reads half of it.
pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("can't write {}", file.display());
    let directory = file.parent().unwrap_or(Path::new(UNITS));
    fs::create_dir_all(directory).with_context(failed)?;
    // Not ".conf": systemd passes it over.
    let aside = file.with_extension("new");
    let mut new = fs::File::create(&aside).with_context(failed)?;
    new.set_permissions(fs::Permissions::from_mode(0o644))
        .and_then(|()| new.write_all(text.as_bytes()))
        .and_then(|()| new.sync_all())
        .and_then(|()| fs::rename(&aside, file))
        .with_context(failed)
}

/// Removes it, and its directory if nothing else is in there; says whether there was one.
pub(super) fn remove(file: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        removed => removed.with_context(|| format!("can't remove {}", file.display()))?,
    }
    let Some(directory) = file.parent() else {
        return Ok(true);
    };
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
            Err(error).with_context(|| format!("can't remove {}", directory.display()))
        }
        Ok(()) | Err(_) => Ok(true),
    }
}

/// Has systemd read its files again.
pub(super) fn reload() -> anyhow::Result<()> {
    systemctl(["daemon-reload"]).map(drop)
}

/// Sees that systemd took the drop-in: the slice is what holds the unit.
pub(super) fn verify(unit: &str, workload: &WorkloadName) -> anyhow::Result<()> {
    let facts = shown(unit)?;
    if facts.get("Slice") == workload.slice() {
        return Ok(());
    }
    bail!(
        "systemd keeps {unit} in {}; another drop-in sets it: {}",
        facts.get("Slice"),
        facts.get("DropInPaths")
    )
}

/// All services with a drop-in of ours, with the slice that it names.
pub(super) fn enabled() -> anyhow::Result<Vec<(String, String)>> {
    let services = drop_ins(".service")?.into_iter();
    let with_slice = services.filter_map(|(unit, text)| {
        let slice = text.lines().find_map(|line| line.strip_prefix("Slice="))?;
        Some((unit, slice.to_owned()))
    });
    Ok(with_slice.collect())
}

/// All units of a kind with a drop-in of ours, with its text.
pub(super) fn drop_ins(kind: &str) -> anyhow::Result<Vec<(String, String)>> {
    let entries = match fs::read_dir(UNITS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("can't list {UNITS}"))?,
    };
    let found = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let unit = name.to_str()?.strip_suffix(".d")?.to_owned();
        let text = fs::read_to_string(entry.path().join(DROP_IN)).ok()?;
        unit.ends_with(kind).then_some((unit, text))
    });
    Ok(found.collect())
}

fn systemctl<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
    let output = Command::new("systemctl")
        .args(args)
        .env("SYSTEMD_COLORS", "0")
        .env("SYSTEMD_PAGER", "")
        .env("LC_ALL", "C")
        .output()
        .context("can't start systemctl: units are systemd's")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("systemctl: {}", said.trim());
    }
    String::from_utf8(output.stdout).context("systemctl's answer is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_services_are_units_that_can_be_enabled() {
        assert_eq!(service_name("billing").unwrap(), "billing.service");
        assert_eq!(service_name("worker@1.service").unwrap(), "worker@1.service");
        assert_eq!(service_name("my.api").unwrap(), "my.api.service");
        for wrong in [
            "x.socket",
            "../x.service",
            "a/b",
            "",
            "x y",
            "callgate",
            "--help.service",
        ] {
            assert!(service_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_drop_in_goes_with_its_directory_and_leaves_others() {
        let units = tempfile::tempdir().unwrap();
        let file = units.path().join("x.service.d").join(DROP_IN);
        assert!(!remove(&file).unwrap());
        write(&file, "a").unwrap();
        write(&file, "b").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "b");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(remove(&file).unwrap());
        assert!(!file.parent().unwrap().exists());
        write(&file, "c").unwrap();
        fs::write(file.with_file_name("own.conf"), "").unwrap();
        assert!(remove(&file).unwrap());
        assert!(file.with_file_name("own.conf").exists());
    }
}
