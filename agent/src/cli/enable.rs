//! `callgate enable` and `disable`: makes systemd services workloads, and undoes it.

pub mod freed;
mod host;
pub mod own;
mod settings;
mod sockets;
pub mod state;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::{NO, WRONG, complain};
use crate::config::Config;
use crate::enroll::reach;
use crate::enroll::unit::{self, Facts, Plan};
use crate::identity::WorkloadName;
use crate::policy::store;

/// Of what is not a service.
pub(super) const CONTAINERS: &str = "Containers are not enabled. One that Podman or Docker starts as root with systemd as its cgroup manager \
becomes a part of a workload by its slice, and trusts the agent by the bundle: podman run --cgroup-parent=callgate-NAME.slice \
--cap-drop=all --security-opt=no-new-privileges -v /run/callgate/trust:/run/callgate/trust:ro -e SSL_CERT_FILE=/run/callgate/trust/ca-bundle.pem IMAGE, or docker run with the same options. The workload names no \
`units`. Start it by a unit with Wants=callgate.service, After=callgate.service and AssertPathExists=/run/callgate/armed/NAME, \
so that it does not run where nothing holds the slice yet, and with RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 \
AF_NETLINK, so that it makes no sockets that pass by every cgroup. Docker's containers are made by containerd.service, to which \
that line goes then; and Docker starts those with a --restart of their own without asking.";

/// What `callgate enable` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The service: billing.service, worker@.service (all instances) or worker@1.service
    #[arg(value_name = "UNIT")]
    pub unit: String,
    /// The workload; without it, the one whose `units` in the policy name this unit
    #[arg(long, short, value_name = "NAME", value_parser = super::exec::parse_workload)]
    pub workload: Option<WorkloadName>,
    /// Change nothing; show the drop-in and what would not work, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Do it also if something is refused
    #[arg(long)]
    pub force: bool,
    /// Leave a service of the host in the unit's reach, like /run/dbus/system_bus_socket
    #[arg(long, value_name = "PATH")]
    pub leave_open: Vec<PathBuf>,
    /// Accept commands that the unit runs with full privileges (`+`), outside of what holds it
    #[arg(long)]
    pub allow_privileged: bool,
    /// One JSON document
    #[arg(long)]
    pub json: bool,
}

/// What `callgate disable` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct DisableArgs {
    /// The service, as it was enabled
    #[arg(value_name = "UNIT")]
    pub unit: String,
}

/// Writes the unit's drop-in and tells systemd. Exit code 1 if the unit would not be held.
///
/// # Errors
/// If systemd can't be asked, or a file not be written.
pub fn run(args: &Args, config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let unit = match host::service_name(&args.unit) {
        Ok(unit) => unit,
        Err(why) => return Ok(wrong(&why)),
    };
    if let Some(unknown) = args.leave_open.iter().find(|path| !reach::is_service(path)) {
        return Ok(wrong(&format!(
            "--leave-open {}: that is not taken from units; what is: {}",
            unknown.display(),
            reach::SERVICES.join(", ")
        )));
    }
    let facts = host::facts(&unit)?;
    if let Some(own) = host::other_name(&unit, &facts) {
        return Ok(wrong(&format!(
            "{unit} is another name of {own}, which is the one to enable"
        )));
    }
    let loaded = store::load_dir(&config.policy_dir);
    let policy = match loaded.policy {
        Ok(policy) => policy,
        Err(found) => {
            super::show(&found, &loaded.sources);
            return Ok(wrong("the policy has errors"));
        }
    };
    let workload = match settings::workload(&policy, &unit, args.workload.as_ref()) {
        Ok(workload) => workload,
        Err(why) => return Ok(wrong(&why)),
    };
    match facts.get("LoadState") {
        "loaded" => {}
        "masked" => {
            complain(&format!(
                "{unit} is masked: it can't start (`systemctl unmask {unit}`)"
            ));
            return Ok(ExitCode::from(NO));
        }
        _ => {
            return Ok(wrong(&format!(
                "systemd has no {unit}: {}",
                host::why_not_loaded(&facts)
            )));
        }
    }
    let accepted = settings::Accepted {
        left_open: args.leave_open.clone(),
        privileged: args.allow_privileged,
    };
    let setup = settings::setup(config, &policy, workload, &facts, accepted)?;
    let mut plan = unit::plan(&facts, workload.name(), &setup);
    plan.findings.extend(settings::of_agent(config, workload, &unit));
    let socket_names: Vec<_> = plan.sockets.iter().map(|(socket, _)| socket.clone()).collect();
    let done = Done {
        unit: &unit,
        workload: workload.name(),
        plan: &plan,
        file: host::file(&unit),
        written: !args.dry_run && (args.force || !plan.is_refused()),
        running: facts.get("ActiveState") == "active",
        armed: setup.marker.exists(),
        outside: sockets::outside(&socket_names, workload.name())?,
    };
    if done.written {
        host::write(&done.file, &plan.drop_in)?;
        sockets::write(&unit, &plan.sockets)?;
        host::reload()?;
        for name in socket_names.iter().chain([&unit]) {
            host::verify(name, workload.name())?;
        }
    }
    done.tell(args, out)?;
    Ok(ExitCode::from(if plan.is_refused() && !args.force {
        NO
    } else {
        0
    }))
}

/// Removes the unit's drop-in and tells systemd. Exit code 1 if there is none.
///
/// # Errors
/// If the file can't be removed, or systemd not be told.
pub fn disable(args: &DisableArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let unit = match host::service_name(&args.unit) {
        Ok(unit) => unit,
        Err(why) => return Ok(wrong(&why)),
    };
    let file = host::file(&unit);
    if !host::remove(&file)? {
        complain(&format!("{unit} is not enabled: there is no {}", file.display()));
        return Ok(ExitCode::from(NO));
    }
    let names = sockets::written_for(&unit)?;
    let of_sockets: Vec<_> = names.iter().map(|name| host::file(name)).collect();
    for file in &of_sockets {
        host::remove(file)?;
    }
    host::reload()?;
    for file in [&file].into_iter().chain(&of_sockets) {
        writeln!(out, "{} is removed", file.display())?;
    }
    let freed = freed::Freed::look(unit.clone(), names)?;
    let back = freed.back().unwrap_or_else(|| {
        format!("{unit}, if it runs, stays held until it is restarted: systemctl try-restart {unit}")
    });
    writeln!(out, "{back}")?;
    Ok(ExitCode::SUCCESS)
}

/// Removes the drop-ins of all units and tells systemd; gives the units.
///
/// # Errors
/// As [`disable`].
pub fn disable_all() -> anyhow::Result<Vec<freed::Freed>> {
    let mut units = Vec::new();
    for (unit, _slice) in host::enabled()? {
        let sockets = sockets::written_for(&unit)?;
        units.push((unit, sockets));
    }
    let sockets = host::drop_ins(".socket")?.into_iter().map(|(socket, _)| socket);
    let services = units.iter().map(|(unit, _)| unit.clone());
    let all: Vec<_> = services.chain(sockets).collect();
    for unit in &all {
        host::remove(&host::file(unit))?;
    }
    if !all.is_empty() {
        host::reload()?;
    }
    let looked = units.into_iter();
    looked
        .map(|(unit, sockets)| freed::Freed::look(unit, sockets))
        .collect()
}

/// The units that are enabled for a workload, for whoever lets go of it.
///
/// # Errors
/// If the units' directory can't be read.
pub fn enabled_for(workload: &WorkloadName) -> anyhow::Result<Vec<String>> {
    let all = host::enabled()?;
    let of_it = all.into_iter().filter(|(_, slice)| *slice == workload.slice());
    Ok(of_it.map(|(unit, _)| unit).collect())
}

struct Done<'a> {
    unit: &'a str,
    workload: &'a WorkloadName,
    plan: &'a Plan,
    file: PathBuf,
    written: bool,
    running: bool,
    armed: bool,
    /// Its socket units that listen as before.
    outside: Vec<String>,
}

impl Done<'_> {
    fn tell(&self, args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
        if args.json {
            return self.tell_machine(out);
        }
        for finding in &self.plan.findings {
            let (weight, setting) = (finding.weight.as_str(), finding.setting);
            let fix = Some(&finding.fix).filter(|fix| !fix.is_empty());
            let fix = fix.map(|fix| format!("; {fix}")).unwrap_or_default();
            writeln!(out, "{weight}: {setting}: {}{fix}", finding.text)?;
        }
        if args.dry_run {
            let verb = if self.plan.is_refused() {
                "would not be"
            } else {
                "would be"
            };
            writeln!(
                out,
                "{} {verb} written:\n\n{}",
                self.file.display(),
                self.plan.drop_in
            )?;
            for (socket, text) in &self.plan.sockets {
                writeln!(out, "{} {verb} written:\n\n{text}", host::file(socket).display())?;
            }
            return self.tell_of_running(out);
        }
        if !self.written {
            writeln!(
                out,
                "{} is not enabled; `--force` does it all the same",
                self.unit
            )?;
            return Ok(());
        }
        let of_sockets = self.plan.sockets.iter().map(|(socket, _)| host::file(socket));
        for file in [self.file.clone()].into_iter().chain(of_sockets) {
            writeln!(out, "{} is written", file.display())?;
        }
        if !self.armed {
            writeln!(
                out,
                "the agent does not hold the workload {} yet, and {} does not start before: `callgate reload`, or `systemctl start callgate`",
                self.workload, self.unit
            )?;
        }
        if !self.running && self.outside.is_empty() {
            writeln!(out, "{} is managed from its next start on", self.unit)?;
        }
        self.tell_of_running(out)
    }

    /// What runs as before, and what to do about it. systemd makes no sockets anew while their service runs.
    fn tell_of_running(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let (unit, sockets) = (host::pattern(self.unit), self.outside.join(" "));
        if !sockets.is_empty() {
            writeln!(
                out,
                "{sockets}: its sockets were made outside of the workload and stay so until: systemctl stop {unit} {sockets}; systemctl start {sockets}"
            )?;
        } else if self.running {
            writeln!(out, "{}", self.of_running())?;
        }
        Ok(())
    }

    /// systemd applies filters of addresses to what runs, everything else at the next start.
    fn of_running(&self) -> String {
        let now = if self.plan.drop_in.contains("\nIPAddressDeny=any\n") {
            "runs, and reaches nothing but this host from now on; it is managed once it is restarted"
        } else {
            "runs unmanaged until it is restarted"
        };
        format!("{unit} {now}: systemctl restart {unit}", unit = self.unit)
    }

    fn tell_machine(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let findings = self.plan.findings.iter().map(|finding| {
            serde_json::json!({
                "level": finding.weight.as_str(),
                "setting": finding.setting,
                "message": finding.text,
                "fix": finding.fix,
            })
        });
        let document = serde_json::json!({
            "unit": self.unit,
            "workload": self.workload,
            "ok": !self.plan.is_refused(),
            "written": self.written,
            "restart_needed": self.written && self.running,
            "armed": self.armed,
            "file": self.file,
            "drop_in": self.plan.drop_in,
            "sockets": self.plan.sockets.iter().map(|(socket, text)| serde_json::json!({
                "unit": socket,
                "file": host::file(socket),
                "drop_in": text,
            })).collect::<Vec<_>>(),
            "sockets_outside": self.outside,
            "findings": findings.collect::<Vec<_>>(),
        });
        writeln!(out, "{document:#}").context("can't write the result")
    }
}

fn wrong(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(WRONG)
}

/// The drop-ins of a unit that systemd reads after ours.
fn later(facts: &Facts) -> anyhow::Result<Vec<unit::DropIn>> {
    let paths = facts.entries("DropInPaths").map(PathBuf::from);
    let after = paths.filter(|path| unit::DropIn::is_after_ours(path));
    after.map(|path| read(&path)).collect()
}

/// All files that make a unit.
fn files(facts: &Facts) -> anyhow::Result<Vec<unit::DropIn>> {
    let fragment = [facts.get("FragmentPath").to_owned()]
        .into_iter()
        .filter(|path| !path.is_empty());
    let all = fragment.chain(facts.entries("DropInPaths"));
    all.map(|path| read(Path::new(&path))).collect()
}

/// One that is gone says nothing. Comments may be in any encoding.
fn read(path: &Path) -> anyhow::Result<unit::DropIn> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read.with_context(|| format!("can't read {}", path.display()))?,
    };
    Ok(unit::DropIn::new(
        path.to_owned(),
        &String::from_utf8_lossy(&bytes),
    ))
}
