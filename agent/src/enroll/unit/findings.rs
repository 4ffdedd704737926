//! What can't be held, what will not work, and what else there is to know.

use std::path::{Path, PathBuf};

use super::drop_in::{HOLDING, is_allow_list};
use super::facts::{Command, unquoted};
use super::paths::{BROUGHT, WRITABLE, sources};
use super::{AGENT_UNIT, Facts, Finding, Setup, Weight, reads, socket};
use crate::enroll::reach::{CREDENTIAL_STORES, KEPT, SERVICES};

const BUS: &str = "/run/dbus/system_bus_socket";

/// All of them, in no order.
pub(super) fn of(facts: &Facts, setup: &Setup) -> Vec<Finding> {
    let mut found = Found(Vec::new());
    placement(&mut found, facts);
    network(&mut found, facts, setup);
    for socket in &facts.sockets {
        sockets(&mut found, socket, setup);
    }
    rights(&mut found, facts, setup);
    commands(&mut found, facts, setup);
    reads::refuse(&mut found, facts, setup);
    services(&mut found, facts, setup);
    unnameable(&mut found, setup);
    trust(&mut found, facts, setup);
    later(&mut found, facts, setup);
    found.0
}

pub(super) struct Found(Vec<Finding>);

impl Found {
    pub(super) fn refuse(&mut self, setting: &'static str, text: impl Into<String>) {
        self.add(Weight::Refusal, setting, text.into(), String::new());
    }
    fn warn(&mut self, setting: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.add(Weight::Warning, setting, text.into(), fix.into());
    }
    fn note(&mut self, setting: &'static str, text: impl Into<String>) {
        self.add(Weight::Note, setting, text.into(), String::new());
    }
    fn add(&mut self, weight: Weight, setting: &'static str, text: String, fix: String) {
        self.0.push(Finding {
            weight,
            setting,
            text,
            fix,
        });
    }
}

/// In which cgroup it runs, and when it starts.
fn placement(found: &mut Found, facts: &Facts) {
    let unit = facts.unit();
    if facts.is("Transient") {
        found.refuse(
            "Transient",
            "systemd-run made this unit and it goes when it ends; give systemd-run --slice, or write a unit file",
        );
    }
    let slice = facts.get("Slice");
    let ordinary = matches!(slice, "" | "system.slice" | "-.slice") || slice.starts_with("callgate-");
    if !ordinary && facts.slice_limits.is_empty() {
        found.note(
            "Slice",
            format!("it leaves {slice}, which has no limits of its own"),
        );
    } else if !ordinary {
        found.refuse(
            "Slice",
            format!(
                "it leaves {slice}, whose limits ({}) would hold no more; set them in the unit, then use --force",
                facts.slice_limits.join(", ")
            ),
        );
    }
    if facts.is("Delegate") {
        found.refuse(
            "Delegate",
            "it runs a cgroup tree of its own (a container engine, a service manager), which it may not as a workload; manage what it starts instead (--cgroup-parent=, `callgate exec`)",
        );
    }
    if !facts.get("PAMName").is_empty() {
        found.refuse(
            "PAMName",
            "its processes may be moved into a login session, out of the workload",
        );
    }
    if facts.words("Before").any(|after| after == AGENT_UNIT)
        || facts.words("Before").any(|after| EARLY.contains(&after))
    {
        found.refuse(
            "Before",
            format!("{unit} starts before the agent can: each would wait for the other at boot"),
        );
    }
}

/// What the agent's own start waits for.
pub(super) const EARLY: &[&str] = &[
    "basic.target",
    "local-fs.target",
    "network.target",
    "sysinit.target",
];

fn network(found: &mut Found, facts: &Facts, setup: &Setup) {
    if facts.is("PrivateNetwork") {
        found.refuse(
            "PrivateNetwork",
            "it has a network of its own with no way out, and the agent isn't in there either; nothing is to be managed",
        );
    }
    for setting in ["NetworkNamespacePath", "JoinsNamespaceOf"] {
        if !facts.get(setting).is_empty() {
            let text = "its connections reach the agent only if that listens in its network namespace; elsewhere they are refused";
            found.warn(
                setting,
                text,
                "take the setting out, or see in `callgate status` that its calls come through",
            );
        }
    }
    if facts.denies_ranges() {
        found.note(
            "IPAddressDeny",
            "its own ranges keep holding, but this host's are allowed: that is where the agent listens",
        );
    }
    if !facts.get("IPAddressAllow").is_empty() && !setup.listens() {
        found.note(
            "IPAddressAllow",
            "its own ranges no longer count: the policy says where it may go (`direct` for what is not HTTP)",
        );
    }
}

/// A socket unit whose sockets it gets.
fn sockets(found: &mut Found, facts: &Facts, setup: &Setup) {
    const SETTING: &str = "TriggeredBy";
    let unit = facts.unit();
    for why in socket::obstacles(facts) {
        found.refuse(SETTING, format!("{unit}: {why}"));
    }
    if !socket::takes_connections(facts) {
        return;
    }
    found.note(
        SETTING,
        format!("{unit} gets a drop-in too: systemd then makes its sockets within the workload, after the agent has started"),
    );
    if setup.hybrid {
        found.warn(
            SETTING,
            format!("{unit}: beside cgroups of version 1 systemd makes its sockets itself, outside of the workload: for up to half a second after they are handed in they could be led elsewhere"),
            "boot with systemd.unified_cgroup_hierarchy=1",
        );
    }
    for address in socket::closed(facts, setup) {
        found.warn(
            SETTING,
            format!("{unit}: nobody reaches it at {address}, since the policy's `listen` does not have that port, or the socket is for datagrams"),
            "put the port into the workload's `listen`; datagrams don't come in at all",
        );
    }
}

fn rights(found: &mut Found, facts: &Facts, setup: &Setup) {
    if facts.is_root() {
        found.warn(
            "User",
            "it runs as root, which owns the host's files whatever capabilities are taken from it",
            "set User= or DynamicUser=yes",
        );
    }
    let lost = |property| -> Vec<String> {
        let kept: Vec<String> = KEPT.iter().map(ToString::to_string).collect();
        let held = facts.words(property).map(str::to_ascii_uppercase);
        held.filter(|name| !kept.contains(name)).collect()
    };
    let ambient = lost("AmbientCapabilities");
    if !ambient.is_empty() {
        let text = format!("it loses {}, which it asks for by name", ambient.join(", "));
        found.warn("AmbientCapabilities", text, "take them out of the unit");
    }
    let bounding = lost("CapabilityBoundingSet");
    // All of them is what a unit has that says nothing.
    if !bounding.is_empty() && bounding.len() <= 24 {
        let text = format!("it loses {}, which it asks for by name", bounding.join(", "));
        found.warn("CapabilityBoundingSet", text, "take them out of the unit");
    }
    for (other, user) in &setup.neighbours {
        if !facts.is("DynamicUser") && user == facts.user() {
            found.warn(
                "User",
                format!("{other} is not of this workload and runs as {user} too: each can take over the other (ptrace), and its rights"),
                "give each a user of its own, or set DynamicUser=yes",
            );
        }
    }
    for (setting, path) in all(facts, WRITABLE) {
        // Of two settings the one for the longer path counts.
        let undoes = |fixed: &PathBuf| setup.lies_in(&path, fixed) && !setup.lies_in(fixed, &path);
        if setup.lies_in(&path, Path::new(KERNELS)) || setup.fixed.iter().any(undoes) {
            let text = format!("{} could undo what holds it", path.display());
            found.refuse(setting, text);
        }
    }
}

/// Neither in the mounts nor with the rights of the unit, a command can do all that root can: write itself into another
/// cgroup, read the agent's secrets, ask systemd.
fn privileged(found: &mut Found, setup: &Setup, setting: &'static str, what: &str) {
    let text = format!(
        "{what}, as root without what holds the unit: it could leave the workload and read the agent's secrets"
    );
    if setup.allow_privileged {
        let fix = "take the setting out, or do what it does in a unit of its own";
        found.warn(setting, text, fix);
    } else {
        found.refuse(
            setting,
            format!("{text}; take that out, or accept it with `--allow-privileged`"),
        );
    }
}

/// systemd.syntax(7).
fn is_yes(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "1" | "yes" | "y" | "true" | "t" | "on"
    )
}

/// Where cgroups, pins and other things are by which the kernel takes orders.
const KERNELS: &str = "/sys";

/// What systemd starts for it, and for its socket units.
fn commands(found: &mut Found, facts: &Facts, setup: &Setup) {
    const PLUS: &str = "runs with full privileges (\"+\")";
    for Command { setting, path, .. } in facts.commands().filter(Command::is_privileged) {
        privileged(found, setup, setting, &format!("{path} {PLUS}"));
    }
    for socket in &facts.sockets {
        for (setting, line) in socket::privileged(socket) {
            privileged(
                found,
                setup,
                setting,
                &format!("{}: {line} {PLUS}", socket.unit()),
            );
        }
    }
    if facts.written("PermissionsStartOnly").any(is_yes) {
        let text = "all commands but ExecStart= run with full privileges";
        privileged(found, setup, "PermissionsStartOnly", text);
    }
    for Command { setting, path, .. } in facts.commands().filter(Command::keeps_root) {
        let user = facts.user();
        found.warn(
            setting,
            format!("{path} runs as root, not as {user} (\"!\"), though within all that holds the unit"),
            "take the \"!\" off, or do what it does elsewhere",
        );
    }
    let snap = facts
        .commands()
        .find(|command| command.path.starts_with("/snap/"));
    if let Some(Command { setting, path, .. }) = snap {
        found.refuse(
            setting,
            format!("{path} is a snap: it is moved into a cgroup of its own when it starts"),
        );
    }
}

/// What acts for whoever asks, and how the unit gets there.
fn services(found: &mut Found, facts: &Facts, setup: &Setup) {
    let needs_bus = facts.get("Type") == "dbus" || !facts.get("BusName").is_empty();
    if needs_bus && !Facts::keeps(setup, BUS) {
        found.refuse(
            "BusName",
            format!("it is a service on D-Bus, which is out of a workload's reach: systemd would start anything for it there; `--leave-open {BUS}` leaves it to the unit"),
        );
    }
    for path in &setup.left_open {
        let text = format!(
            "{} stays in its reach: what answers there may act for it outside of the workload",
            path.display()
        );
        let fix = format!(
            "`callgate enable {}` without `--leave-open` takes it away",
            facts.unit()
        );
        found.warn("InaccessiblePaths", text, fix);
    }
    for (setting, source) in all(facts, BROUGHT) {
        if let Some(what) = brought(setup, setting, &source) {
            found.refuse(setting, format!("{} brings {what}", source.display()));
        }
    }
    for group in facts
        .words("SupplementaryGroups")
        .filter(|group| GROUPS.contains(group))
    {
        found.note(
            "SupplementaryGroups",
            format!("group {group} gives it nothing more: the socket is out of its reach"),
        );
    }
}

/// The paths of several settings.
fn all<'a>(
    facts: &'a Facts,
    settings: &'a [&'static str],
) -> impl Iterator<Item = (&'static str, PathBuf)> + 'a {
    let of = |setting: &'static str| {
        sources(facts, setting)
            .into_iter()
            .map(move |path| (setting, path))
    };
    settings.iter().copied().flat_map(of)
}

/// Groups that rule over all of the host through a socket.
const GROUPS: &[&str] = &["docker", "incus", "libvirt", "lxd", "podman"];

/// Paths of the agent's that no line of a drop-in can hold.
fn unnameable(found: &mut Found, setup: &Setup) {
    for path in setup.hidden.iter().chain(&setup.fixed) {
        if path.to_string_lossy().contains(char::is_control) {
            let text = format!("{path:?} can't be taken from it: its name has a control character");
            found.refuse("InaccessiblePaths", text);
        }
    }
}

/// What must not be in its reach and comes along with a path that is mounted elsewhere, or that systemd opens for it.
fn brought(setup: &Setup, setting: &str, source: &Path) -> Option<String> {
    let services = SERVICES.iter().filter(|path| !Facts::keeps(setup, path));
    if let Some(service) = services.map(Path::new).find(|path| setup.lies_in(path, source)) {
        return Some(format!(
            "a service ({}) into its reach that would act for it outside of the workload",
            service.display()
        ));
    }
    let stores = CREDENTIAL_STORES.iter().map(Path::new);
    let hidden = setup.hidden.iter().map(PathBuf::as_path);
    let fixed = setup.fixed.iter().map(PathBuf::as_path);
    let fixed = fixed.filter(|_| setting != "BindReadOnlyPaths");
    let mut taken = hidden.chain(stores).chain(fixed).chain([Path::new(KERNELS)]);
    let found = taken.find(|path| setup.overlap(path, source))?;
    Some(format!("back what is taken from it ({})", found.display()))
}

fn trust(found: &mut Found, facts: &Facts, setup: &Setup) {
    for setting in ["RootDirectory", "RootImage"] {
        if !matches!(facts.get(setting), "" | "/") {
            found.warn(
                setting,
                "its own root is shown the agent's certificates where this host has them; if programs there look elsewhere, they don't trust the agent",
                "put the host's roots where programs in there look, or bind the bundle over that place",
            );
        }
    }
    for path in &setup.bundled {
        found.warn(
            "ExecStart",
            format!(
                "{} seems to bring roots of its own and may not trust the agent",
                path.display()
            ),
            "if its calls fail, use the program's own setting for a bundle, or a `tunnel` rule",
        );
    }
    if facts.all("EnvironmentFiles").any(|file| !file.is_empty()) {
        found.note(
            "EnvironmentFile",
            "what its files set goes before the drop-in's variables; they must not name another bundle of roots",
        );
    }
    for entry in facts.entries("Environment") {
        let Some((name, value)) = entry.split_once('=') else {
            continue;
        };
        let ours = setup
            .variables
            .iter()
            .find(|(own, _)| own == name && own != crate::enroll::trust::JAVA_OPTIONS);
        if let Some((_, own)) = ours.filter(|(_, own)| own != value) {
            found.note(
                "Environment",
                format!("{name} becomes {own}; {value} no longer counts"),
            );
        }
    }
    if is_allow_list(facts.get("SystemCallFilter")) {
        found.note(
            "SystemCallFilter",
            "calls that its list allows and a workload may not make fail with an error",
        );
    }
}

/// Drop-ins that are read after ours and undo it.
fn later(found: &mut Found, facts: &Facts, setup: &Setup) {
    let all = facts.sockets.iter().chain([facts]);
    for facts in all.clone().filter(|facts| facts.conceals("DropInPaths")) {
        let text = format!(
            "{}: a drop-in of it has a blank in its file's name, so systemd does not say where it is, nor can it be looked at; rename it",
            facts.unit()
        );
        found.refuse("DropInPaths", text);
    }
    for drop_in in all.flat_map(|facts| &facts.later) {
        for (key, value) in drop_in.settings() {
            if let Some(setting) = undone(key, value, setup) {
                found.refuse(
                    setting,
                    format!("{} is read after the drop-in and sets {key}={value}; take that line out, or rename the file to come before {}", drop_in.path.display(), super::DROP_IN),
                );
            }
        }
    }
}

fn undone(key: &str, value: &str, setup: &Setup) -> Option<&'static str> {
    let emptied = [
        "BindReadOnlyPaths",
        "Environment",
        "InaccessiblePaths",
        "ReadOnlyPaths",
    ];
    let known = HOLDING.iter().copied().find(|setting| *setting == key);
    let known = known.filter(|setting| !(setup.listens() && setting.starts_with("IPAddress")));
    // After a list of what is denied, one of what is allowed only takes from that.
    let allows = key == "SystemCallFilter" && !value.starts_with('~');
    known
        .or_else(|| allows.then_some("SystemCallFilter"))
        .or_else(|| {
            emptied
                .into_iter()
                .find(|setting| *setting == key && value.is_empty())
        })
        .or_else(|| {
            let names = unquoted(value);
            let ours = |entry: &String| {
                let name = entry.split('=').next().unwrap_or_default();
                setup.variables.iter().any(|(own, _)| own == name)
            };
            (key == "Environment" && names.iter().any(ours)).then_some("Environment")
        })
}
