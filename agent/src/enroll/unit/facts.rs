//! What systemd says of a unit: the output of `systemctl show`, and the drop-ins that come after ours.

use std::path::{Path, PathBuf};

use super::{DROP_IN, Setup};

/// The properties that are asked for.
pub const PROPERTIES: &[&str] = &[
    "Accept",
    "ActiveState",
    "After",
    "AmbientCapabilities",
    "Before",
    "BindPaths",
    "BindReadOnlyPaths",
    "BusName",
    "CacheDirectory",
    "CapabilityBoundingSet",
    "ConfigurationDirectory",
    "Delegate",
    "DropInPaths",
    "DynamicUser",
    "Environment",
    "EnvironmentFiles",
    "ExecConditionEx",
    "ExecReloadEx",
    "ExecStartEx",
    "ExecStartPostEx",
    "ExecStartPreEx",
    "ExecStopEx",
    "ExecStopPostEx",
    "FragmentPath",
    "IPAddressAllow",
    "IPAddressDeny",
    "Id",
    "JoinsNamespaceOf",
    "Listen",
    "LoadError",
    "LoadState",
    "LogsDirectory",
    "NetworkNamespacePath",
    "OpenFile",
    "PAMName",
    "PrivateNetwork",
    "PrivateTmp",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RestrictAddressFamilies",
    "RootDirectory",
    "RootImage",
    "RuntimeDirectory",
    "Slice",
    "SocketProtocol",
    "StateDirectory",
    "SupplementaryGroups",
    "SystemCallErrorNumber",
    "SystemCallFilter",
    "Transient",
    "TriggeredBy",
    "Type",
    "UnitFileState",
    "User",
];

/// What some versions of systemctl print in the place of an entry with a blank.
const UNPRINTABLE: &str = "[unprintable]";

/// A configuration file of a unit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DropIn {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

impl DropIn {
    /// With lines that go on in the next one joined.
    #[must_use]
    pub fn new(path: PathBuf, text: &str) -> Self {
        let text = joined(text);
        Self { path, text }
    }

    /// Whether systemd reads it after ours: by file name, whatever directory it is in.
    #[must_use]
    pub fn is_after_ours(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name > DROP_IN)
    }

    /// The settings that it makes, as key and value. What stands in sections of no meaning to systemd makes none.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut counts = true;
        let lines = self.text.lines().map(str::trim);
        lines.filter_map(move |line| {
            if let Some(section) = line.strip_prefix('[') {
                counts = SECTIONS.contains(&section.trim_end_matches(']'));
            }
            let is_setting = counts && !line.starts_with(['#', ';', '[']);
            let (key, value) = line.split_once('=').filter(|_| is_setting)?;
            Some((key.trim(), value.trim()))
        })
    }
}

/// Those of services and of their sockets.
const SECTIONS: &[&str] = &["Unit", "Service", "Socket"];

/// systemd.syntax(7): a line that ends with a backslash goes on in the next that is no comment.
fn joined(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    let is_comment = |line: &&str| line.trim_start().starts_with(['#', ';']);
    for line in text.lines().filter(|line| !is_comment(line)) {
        let before = line.trim_end_matches('\\');
        // Two of them are one that is meant.
        match line.strip_suffix('\\') {
            Some(kept) if (line.len() - before.len()) % 2 == 1 => all.extend([kept, " "]),
            Some(_) | None => all.extend([line, "\n"]),
        }
    }
    all
}

/// What is known of a unit.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    unit: String,
    properties: Vec<(String, String)>,
    /// Its drop-ins that are read after ours.
    pub later: Vec<DropIn>,
    /// All files that make it, in systemd's order: for settings that it does not show.
    pub files: Vec<DropIn>,
    /// The limits of the slice that it is in now, as `NAME=VALUE`.
    pub slice_limits: Vec<String>,
    /// The socket units that start it, and whose sockets it gets.
    pub sockets: Vec<Self>,
}

impl Facts {
    /// Reads what `systemctl show` printed of `unit`.
    #[must_use]
    pub fn read(unit: &str, shown: &str) -> Self {
        let properties = shown.lines().filter_map(|line| line.split_once('='));
        Self {
            unit: unit.to_owned(),
            properties: properties
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            later: Vec::new(),
            files: Vec::new(),
            slice_limits: Vec::new(),
            sockets: Vec::new(),
        }
    }

    /// The unit's name, as the operator gave it.
    #[must_use]
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// A property; empty if it has none.
    #[must_use]
    pub fn get<'a>(&'a self, name: &'a str) -> &'a str {
        self.all(name).next().unwrap_or_default()
    }

    /// Whether systemd shows a property at all; of a list of address families it does only where one is set.
    #[must_use]
    pub fn shows(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// All values of a property that is shown several times.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.properties.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The entries of a list of texts: those with blanks are shown in quotes, or not at all.
    pub fn entries<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> {
        self.all(name).flat_map(unquoted)
    }

    /// Whether a list has entries that are not shown.
    #[must_use]
    pub(super) fn conceals(&self, name: &str) -> bool {
        self.entries(name).any(|entry| entry == UNPRINTABLE)
    }

    /// The words of a property.
    pub fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.all(name).flat_map(str::split_ascii_whitespace)
    }

    /// Whether a property is set to yes.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.get(name) == "yes"
    }

    /// Whether its processes run as root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        !self.is("DynamicUser") && matches!(self.get("User"), "" | "root" | "0")
    }

    /// The user that its processes run as.
    #[must_use]
    pub fn user(&self) -> &str {
        match self.get("User") {
            "" => "root",
            user => user,
        }
    }

    /// Whether this is a service that runs an agent with these settings and sees no home directories; `usual` are those
    /// of an agent that is told none.
    #[must_use]
    pub fn hides_homes_from(&self, config: &Path, usual: &str) -> bool {
        matches!(self.get("ProtectHome"), "yes" | "tmpfs") && self.runs_with(config, usual)
    }

    /// Whether this is a service that runs an agent with these settings.
    #[must_use]
    pub fn runs_with(&self, config: &Path, usual: &str) -> bool {
        let settings = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let named = words.find_map(|word| word.strip_prefix("--config"));
            let named = named.map(|rest| rest.strip_prefix('=').or_else(|| words.next()));
            named.flatten().unwrap_or(usual).to_owned()
        };
        let mut lines = self
            .all("ExecStartEx")
            .filter_map(|shown| shown.split_once("argv[]=")?.1.split(" ; ").next());
        lines.any(|line| Path::new(&settings(line)) == config)
    }

    /// What its files set, for a setting that adds to a list: an empty value begins anew.
    pub(super) fn written<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let mut list = Vec::new();
        for (_, value) in self
            .files
            .iter()
            .flat_map(DropIn::settings)
            .filter(|(name, _)| *name == key)
        {
            if value.is_empty() {
                list.clear();
            } else {
                list.push(value);
            }
        }
        list.into_iter()
    }

    /// Whether it keeps ranges of addresses out by itself, whatever our drop-in says.
    pub(super) fn denies_ranges(&self) -> bool {
        let is_ours = |file: &&DropIn| file.path.file_name().is_some_and(|name| name == DROP_IN);
        if !self.files.iter().any(|file| is_ours(&file)) {
            return !self.get("IPAddressDeny").is_empty();
        }
        let others = self.files.iter().filter(|file| !is_ours(file));
        let mut denied = others.flat_map(DropIn::settings);
        denied.any(|(key, value)| key == "IPAddressDeny" && !value.is_empty())
    }

    /// Whether it may do without one of the host's services that are taken from it.
    #[must_use]
    pub(super) fn keeps(setup: &Setup, path: &str) -> bool {
        setup.left_open.iter().any(|open| open.as_os_str() == path)
    }

    /// The programs that it runs, with their flags: `path=... ; argv[]=... ; flags=...`.
    pub fn commands(&self) -> impl Iterator<Item = Command<'_>> {
        let kinds = PROPERTIES.iter().filter(|name| name.starts_with("Exec"));
        kinds.flat_map(|kind| self.all(kind).map(move |shown| Command::read(kind, shown)))
    }
}

/// The entries of a list as `systemctl show` prints them: blanks between, quotes around those that hold some.
pub(super) fn unquoted(shown: &str) -> Vec<String> {
    let (mut entries, mut entry, mut quote, mut escaped) = (Vec::new(), String::new(), None, false);
    for letter in shown.chars() {
        match letter {
            _ if escaped => {
                entry.push(letter);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' | '\'' if quote == Some(letter) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(letter),
            ' ' if quote.is_none() => entries.extend(Some(std::mem::take(&mut entry))),
            _ => entry.push(letter),
        }
    }
    entries.push(entry);
    entries.retain(|entry| !entry.is_empty());
    entries
}

/// One of its commands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Command<'a> {
    /// Which setting: `ExecStart`.
    pub setting: &'static str,
    /// The program.
    pub path: &'a str,
    /// `privileged`, `no-setuid` and others.
    pub flags: &'a str,
}

impl<'a> Command<'a> {
    /// Whether the unit's user does not count for it ("!").
    pub(super) fn keeps_root(&self) -> bool {
        self.flags
            .split_ascii_whitespace()
            .any(|flag| flag == "no-setuid")
    }

    /// Whether neither the unit's user nor its confinement counts for it ("+").
    pub(super) fn is_privileged(&self) -> bool {
        self.flags
            .split_ascii_whitespace()
            .any(|flag| flag == "privileged")
    }

    fn read(kind: &'static str, shown: &'a str) -> Self {
        let fields = shown.trim_matches(['{', '}', ' ']).split(" ; ");
        let named = |name| {
            fields
                .clone()
                .filter_map(move |field| field.trim().strip_prefix(name))
        };
        Self {
            setting: kind.strip_suffix("Ex").unwrap_or(kind),
            path: named("path=").next().unwrap_or_default(),
            // Behind the arguments, which may hold the same words.
            flags: named("flags=").last().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = "/etc/callgate/callgate.toml";

    #[test]
    fn a_file_is_read_as_systemd_reads_it() {
        let settings = |text: &str| -> Vec<(String, String)> {
            let file = DropIn::new("/x.conf".into(), text);
            let all = file.settings();
            all.map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        };
        let one = |value: &str| vec![("A".to_owned(), value.to_owned())];
        assert_eq!(settings("[Service]\nA=b \\\n# why\n  c\n"), one("b    c"));
        assert_eq!(settings("[Service]\nA=b\\\\\n; c\n"), one("b\\\\"));
        assert_eq!(settings("[Service]\nA=b\\"), one("b"));
        assert_eq!(settings("[X-Own]\nA=\n[Socket]\n A = b \r\n"), one("b"));
        assert_eq!(settings("[Unit]\nA=b\n[Install]\nA=\n"), one("b"));
    }

    #[test]
    fn arguments_that_look_like_flags_are_none() {
        let shown = "ExecStartEx={ path=/bin/x ; argv[]=/bin/x a ; flags= ; b ; flags=privileged ; start_time=[n/a] }\n";
        let facts = Facts::read("x.service", shown);
        assert!(facts.commands().all(|command| command.is_privileged()));
        assert_eq!(facts.commands().count(), 1);
    }

    #[test]
    fn only_a_service_with_these_settings_and_no_homes_hides_them() {
        let hides = |homes: &str, options: &str, config: &str| {
            let shown = format!(
                "ProtectHome={homes}\nExecStartEx={{ path=/usr/bin/callgate ; argv[]=/usr/bin/callgate run{options} ; flags=no-setuid ; pid=0 }}\n"
            );
            Facts::read("callgate.service", &shown).hides_homes_from(Path::new(config), USUAL)
        };
        assert!(hides("yes", " --user callgate-agent", USUAL));
        assert!(hides("tmpfs", " --config /srv/a.toml", "/srv/a.toml"));
        assert!(hides("yes", " --config=/srv/a.toml", "/srv/a.toml"));
        assert!(!hides("yes", " --config /srv/a.toml", USUAL));
        assert!(!hides("yes", "", "/srv/b.toml"));
        assert!(!hides("no", "", USUAL));
        assert!(!hides("read-only", "", USUAL));
        let absent = Facts::read("callgate.service", "ProtectHome=no\nLoadState=not-found\n");
        assert!(!absent.hides_homes_from(Path::new(USUAL), USUAL));
    }
}
