//! The paths that a unit's settings name, as systemd takes them from its files, and where each leads.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::facts::unquoted;
use super::{Facts, Setup};
use crate::enroll::reach::CREDENTIAL_STORES;

/// Of which the files tell, since systemd does not show them.
const STREAMS: &[&str] = &["StandardInput", "StandardOutput", "StandardError"];
/// Settings that load credentials.
pub(super) const CREDENTIALS: &[&str] = &["LoadCredential", "LoadCredentialEncrypted"];
/// Settings that bring a path of the host's into the unit's view; each entry is `SOURCE:...`.
pub(super) const BROUGHT: &[&str] = &["BindPaths", "BindReadOnlyPaths", "OpenFile"];
/// What can be written though all else is read-only.
pub(super) const WRITABLE: &[&str] = &["ReadWritePaths"];
/// Directories that systemd makes and gives to the unit's user, with where they are.
const DIRECTORIES: &[(&str, &str)] = &[
    ("CacheDirectory", "/var/cache"),
    ("ConfigurationDirectory", "/etc"),
    ("LogsDirectory", "/var/log"),
    ("RuntimeDirectory", "/run"),
    ("StateDirectory", "/var/lib"),
];

/// One entry of a setting.
pub(super) struct Entry<'a> {
    pub(super) setting: &'static str,
    /// As the operator wrote it, or systemd shows it.
    pub(super) value: Cow<'a, str>,
    /// What it may mean.
    pub(super) paths: Vec<PathBuf>,
}

/// The directories that systemd makes and lets the unit write, whatever else is read-only.
pub(super) fn made(facts: &Facts) -> impl Iterator<Item = PathBuf> {
    let is_made = |entry: &Entry<'_>| {
        let kinds = DIRECTORIES.iter().map(|(setting, _)| *setting);
        entry.setting != "ConfigurationDirectory" && kinds.into_iter().any(|kind| kind == entry.setting)
    };
    opened(facts)
        .into_iter()
        .filter(is_made)
        .flat_map(|entry| entry.paths)
}

/// What systemd opens, copies or makes for the unit by itself.
pub(super) fn opened<'a>(facts: &'a Facts) -> Vec<Entry<'a>> {
    let mut all = Vec::new();
    let mut add = |setting, value: Cow<'a, str>, paths| {
        all.push(Entry {
            setting,
            value,
            paths,
        })
    };
    for setting in CREDENTIALS {
        for value in facts.written(setting) {
            add(*setting, value.into(), credential(path_of_credential(value)));
        }
    }
    for setting in STREAMS {
        for value in facts.written(setting) {
            let kinds = ["file:", "append:", "truncate:"];
            let path = kinds.into_iter().find_map(|kind| value.strip_prefix(kind));
            add(*setting, value.into(), path.map(expanded).into_iter().collect());
        }
    }
    for shown in facts.all("EnvironmentFiles") {
        let path = shown.rsplit_once(" (").map_or(shown, |(path, _)| path);
        add("EnvironmentFile", path.into(), vec![path.into()]);
    }
    for (setting, parent) in DIRECTORIES {
        let placed = |name: PathBuf| Path::new(parent).join(name);
        let shown: Vec<_> = facts.entries(setting).map(PathBuf::from).collect();
        for name in &shown {
            add(
                *setting,
                name.to_string_lossy().into_owned().into(),
                vec![placed(name.clone())],
            );
        }
        // Some versions do not show those with blanks.
        for value in facts.written(setting) {
            let names = readings(value, Ends::of(setting));
            let others = names.filter(|name| !shown.contains(name));
            add(*setting, value.into(), others.map(placed).collect());
        }
    }
    all
}

/// Settings with a path that neither systemd nor its files tell: with a blank it does not show it, and what its files say
/// depends on the unit or the host.
pub(super) fn untold(facts: &Facts) -> impl Iterator<Item = (&'static str, &str)> {
    let lists = DIRECTORIES.iter().map(|(setting, _)| setting).chain(WRITABLE);
    let concealed = lists.filter(|setting| facts.conceals(setting));
    // Of these blanks are shown as they are.
    let settings = concealed.chain(BROUGHT);
    let values = settings.flat_map(|setting| facts.written(setting).map(move |value| (*setting, value)));
    values.filter(|(setting, value)| {
        readings(value, Ends::of(setting)).any(|path| {
            let path = path.to_string_lossy();
            path.contains('%') && path.contains(char::is_whitespace)
        })
    })
}

/// The paths that a setting names, in front of the first colon of each entry if it has several parts. systemd shows them
/// with their blanks as they are, and so without telling where one ends, or not at all; its files tell that.
pub(super) fn sources(facts: &Facts, setting: &str) -> Vec<PathBuf> {
    let ends = Ends::of(setting);
    let shown = facts.all(setting).flat_map(|shown| {
        let entries: Vec<String> = match ends {
            Ends::Colon => vec![shown.to_owned()],
            Ends::Blank => unquoted(shown),
            Ends::Either => shown.split_ascii_whitespace().map(str::to_owned).collect(),
        };
        entries.into_iter().map(move |entry| {
            let parted = entry.split(':').next().filter(|_| ends != Ends::Blank);
            PathBuf::from(parted.unwrap_or(&entry).trim_start_matches(['-', '+']))
        })
    });
    let written = facts.written(setting).flat_map(|value| readings(value, ends));
    let mut all = Vec::new();
    for path in shown.chain(written) {
        if !all.contains(&path) {
            all.push(path);
        }
    }
    all
}

/// All of a unit's paths that are looked at, for whoever finds out where they lead.
#[must_use]
pub fn named(facts: &Facts) -> Vec<PathBuf> {
    let opened = opened(facts).into_iter().flat_map(|entry| entry.paths);
    let settings = BROUGHT.iter().chain(WRITABLE);
    opened
        .chain(settings.flat_map(|setting| sources(facts, setting)))
        .collect()
}

/// systemd.exec(5): "ID:PATH", or "ID" for a file of that name in a store.
pub(super) fn path_of_credential(value: &str) -> &str {
    value.split_once(':').map_or(value, |(_, path)| path)
}

/// Where a credential may lie: its path, or the stores for its name.
pub(super) fn credential(source: &str) -> Vec<PathBuf> {
    let source = expanded(source);
    if source.is_absolute() {
        return vec![source];
    }
    let stores = CREDENTIAL_STORES.iter().map(Path::new);
    stores.map(|store| store.join(&source)).collect()
}

/// "/var/run/docker.sock" is "/run/docker.sock".
fn of_run(path: &Path) -> PathBuf {
    path.strip_prefix("/var/run")
        .map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest))
}

impl Setup {
    /// The path, and where it leads if links are followed.
    pub(super) fn ways(&self, path: &Path) -> Vec<PathBuf> {
        let plain = of_run(path);
        let is_it = |named: &PathBuf| *named == path || *named == plain;
        let link = self.links.iter().find(|(named, _)| is_it(named));
        let real = link.map(|(_, real)| real.clone());
        [plain].into_iter().chain(real).collect()
    }

    /// Whether one of the two lies in the other.
    pub(super) fn overlap(&self, one: &Path, other: &Path) -> bool {
        self.lies_in(one, other) || self.lies_in(other, one)
    }

    /// Whether the first leads into the second.
    pub(super) fn ends_in(&self, path: &Path, directory: &Path) -> bool {
        // A link to what lies in there leads in; one in there that leads out does not.
        let directories = self.ways(directory);
        let end = self.ways(path).pop();
        end.is_some_and(|end| directories.iter().any(|directory| end.starts_with(directory)))
    }

    /// Whether the first is the second, or below it.
    pub(super) fn lies_in(&self, one: &Path, other: &Path) -> bool {
        let others = self.ways(other);
        let ways = self.ways(one);
        ways.iter()
            .any(|way| others.iter().any(|other| way.starts_with(other)))
    }
}

/// The specifiers for directories (systemd.unit(5)), as the service manager of the host sets them.
fn expanded(path: &str) -> PathBuf {
    let pairs = [
        ("%C", "/var/cache"),
        ("%E", "/etc"),
        ("%L", "/var/log"),
        ("%S", "/var/lib"),
        ("%T", "/tmp"),
        ("%t", "/run"),
        ("%%", "%"),
    ];
    let plain = path.trim_matches('"').to_owned();
    let expand = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    pairs.into_iter().fold(plain, expand).into()
}

/// What a backslash does.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Escapes {
    /// Takes the next letter as it is.
    Plain,
    /// As in C, and "\s" is a blank.
    OfC,
}

/// What ends a path in the value of a setting.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Ends {
    /// A blank outside of quotes.
    Blank,
    /// A colon. Quotes mean nothing.
    Colon,
    /// Either; what follows the colon is another part.
    Either,
}

impl Ends {
    fn of(setting: &str) -> Self {
        match setting {
            "OpenFile" => Self::Colon,
            "ReadOnlyPaths" => Self::Blank,
            _ if WRITABLE.contains(&setting) => Self::Blank,
            _ => Self::Either,
        }
    }
}

/// The paths of a value, as any version of systemd may read it: they differ in whether "\x20" is a blank.
fn readings(value: &str, ends: Ends) -> impl Iterator<Item = PathBuf> {
    let all = [Escapes::Plain, Escapes::OfC].into_iter();
    all.flat_map(move |escapes| first_parts(value, escapes, ends))
}

/// systemd.syntax(7): the words of a value, each up to its first colon, without quotes, escapes and signs in front.
fn first_parts(value: &str, escapes: Escapes, ends: Ends) -> Vec<PathBuf> {
    let mut bytes = value.bytes();
    let words = ends != Ends::Colon;
    let (mut parts, mut part, mut quote, mut over) = (Vec::new(), Vec::new(), None, false);
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                let meant = escaped(&mut bytes, escapes);
                part.extend(meant.filter(|_| !over));
            }
            _ if quote == Some(byte) => quote = None,
            b'"' | b'\'' if words && quote.is_none() => quote = Some(byte),
            b':' if ends != Ends::Blank && quote.is_none() => over = true,
            _ if words && quote.is_none() && byte.is_ascii_whitespace() => {
                parts.push(std::mem::take(&mut part));
                over = false;
            }
            _ if over => {}
            _ => part.push(byte),
        }
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts.into_iter().map(path).collect()
}

fn path(part: Vec<u8>) -> PathBuf {
    match String::from_utf8(part) {
        Ok(text) => expanded(text.trim_start_matches(['-', '+'])),
        Err(other) => OsString::from_vec(other.into_bytes()).into(),
    }
}

/// The byte that is meant by what follows a backslash.
fn escaped(bytes: &mut std::str::Bytes<'_>, escapes: Escapes) -> Option<u8> {
    let first = bytes.next()?;
    if escapes == Escapes::Plain {
        return Some(first);
    }
    let (digits, radix) = match first {
        b'a' => return Some(0x07),
        b'b' => return Some(0x08),
        b'f' => return Some(0x0c),
        b'n' => return Some(b'\n'),
        b'r' => return Some(b'\r'),
        b's' => return Some(b' '),
        b't' => return Some(b'\t'),
        b'v' => return Some(0x0b),
        b'x' => (bytes.by_ref().take(2).collect::<Vec<_>>(), 16),
        b'0'..=b'7' => {
            let rest = bytes.by_ref().take(2);
            ([first].into_iter().chain(rest).collect(), 8)
        }
        other => return Some(other),
    };
    u8::from_str_radix(&String::from_utf8_lossy(&digits), radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(value: &str, escapes: Escapes) -> Vec<PathBuf> {
        first_parts(value, escapes, Ends::Either)
    }

    #[test]
    fn quoted_and_escaped_blanks_and_colons_belong_to_a_path() {
        for value in [
            r#""/srv/a b":/x /c"#,
            r"/srv/a\ b:/x /c:/d:rbind",
            r"-'/srv/a b' /c",
            r#"/srv/"a b" +/c"#,
        ] {
            assert_eq!(
                paths(value, Escapes::Plain),
                [Path::new("/srv/a b"), Path::new("/c")],
                "{value}"
            );
        }
        assert_eq!(paths(r"/a\:b:/x", Escapes::Plain), [Path::new("/a:b")]);
        assert_eq!(
            paths(r#"%S/callgate:"/x y""#, Escapes::Plain),
            [Path::new("/var/lib/callgate")]
        );
        for value in [r"/srv/a\x20b:/x", r"/srv/a\sb", r"/srv/a\040b"] {
            assert_eq!(paths(value, Escapes::OfC), [Path::new("/srv/a b")], "{value}");
        }
        assert_eq!(paths(r"/end\", Escapes::OfC), [Path::new("/end")]);
        assert_eq!(paths(r"/end\x", Escapes::OfC), [Path::new("/end")]);
    }

    #[test]
    fn what_ends_a_path_depends_on_the_setting() {
        let of = |setting: &str, value: &str| first_parts(value, Escapes::Plain, Ends::of(setting));
        let odd = r#"/a b:/c"#;
        assert_eq!(of("OpenFile", odd), [Path::new("/a b")]);
        assert_eq!(of("ReadWritePaths", odd), [Path::new("/a"), Path::new("b:/c")]);
        assert_eq!(of("StateDirectory", odd), [Path::new("/a"), Path::new("b")]);
    }

    #[test]
    fn a_path_overlaps_where_either_leads() {
        let setup = Setup {
            links: vec![
                ("/srv/link".into(), "/etc/callgate".into()),
                ("/data".into(), "/mnt/data".into()),
            ],
            ..Setup::default()
        };
        assert!(setup.overlap("/srv/link".as_ref(), "/etc/callgate/secrets".as_ref()));
        assert!(setup.overlap("/mnt/data/x".as_ref(), "/data".as_ref()));
        assert!(!setup.overlap("/srv/other".as_ref(), "/etc/callgate".as_ref()));
        assert!(setup.lies_in("/var/run/x/y".as_ref(), "/run/x".as_ref()));
    }
}
