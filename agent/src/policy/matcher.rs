//! One matcher for each thing that a rule can name.
//!
//! Each has a narrow reading for what allows and a wide one for what denies; unknown facts go the safe way.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::spelling;
use crate::addr::{HostName, HostNameError};
use crate::identity::{Identity, Sha256};

/// Whether something holds, as far as is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// The facts are missing.
    Unknown,
}

impl Holds {
    /// An allow takes only what is certain.
    #[must_use]
    pub fn for_allow(self) -> bool {
        self == Self::Yes
    }

    /// A deny takes all but what is certainly not meant.
    #[must_use]
    pub fn for_deny(self) -> bool {
        self != Self::No
    }

    fn of(fact: bool) -> Self {
        if fact { Self::Yes } else { Self::No }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }
}

/// The host that a rule names: exact, or `*.` and a name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HostPattern {
    /// This name alone.
    Exact(HostName),
    /// Names below this one: exactly one label deeper for what allows (as certificates have it), any
    /// number for a deny.
    Below(HostName),
}

impl HostPattern {
    /// Reads `api.example.com` or `*.example.com`.
    ///
    /// # Errors
    /// If what remains after `*.` is no host name.
    pub fn parse(text: &str) -> Result<Self, HostNameError> {
        match text.strip_prefix("*.") {
            Some(name) => HostName::parse(name).map(Self::Below),
            None => HostName::parse(text).map(Self::Exact),
        }
    }

    /// As an allow or a tunnel reads it.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(name) => host
                .as_str()
                .split_once('.')
                .is_some_and(|(_, parent)| parent == name.as_str()),
        }
    }

    /// As a deny reads it.
    #[must_use]
    pub fn matches_wider(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(name) => host
                .as_str()
                .strip_suffix(name.as_str())
                .is_some_and(|front| front.ends_with('.')),
        }
    }

    /// Whether some name matches both as allows read them.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), b) | (b, Self::Exact(a)) => b.matches(a),
            (Self::Below(a), Self::Below(b)) => a == b,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// A text in which `*` stands for any run of characters, none included.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Glob(Box<str>);

impl Glob {
    /// Every text is a glob.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Whether it stands for one text only.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// The glob as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Letter for letter.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        matches_glob(self.0.as_bytes(), text.as_bytes(), |a, b| a == b)
    }

    /// Without regard to ASCII letter case.
    #[must_use]
    pub fn matches_wider(&self, text: &str) -> bool {
        matches_glob(self.0.as_bytes(), text.as_bytes(), |a, b| {
            a.eq_ignore_ascii_case(&b)
        })
    }
}

/// Linear but for the last star, which may move: at most pattern times text steps, never exponential.
fn matches_glob(pattern: &[u8], text: &[u8], same: fn(u8, u8) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&expected) if same(expected, byte) => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star_p, star_t)) = star else {
                    return false;
                };
                star = Some((star_p, star_t + 1));
                p = star_p + 1;
                t = star_t + 1;
            }
        }
    }
    pattern.get(p..).unwrap_or(&[]).iter().all(|b| *b == b'*')
}

/// A named value (header or query key) and what it may be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ValueMatcher<N> {
    /// The header's or key's name.
    pub name: N,
    /// One of these.
    pub values: Vec<Glob>,
}

impl<N: PartialEq> ValueMatcher<N> {
    fn allows(&self, value: &str) -> bool {
        self.values.iter().any(|glob| glob.matches(value))
    }

    fn denies(&self, value: &str) -> bool {
        self.values.iter().any(|glob| glob.matches_wider(value))
    }

    /// Whether no single value satisfies both.
    pub(crate) fn excludes(&self, other: &Self) -> bool {
        let is_one = |glob: &Glob| glob.is_exact() && !glob.as_str().contains(',');
        self.name == other.name
            && self.values.iter().chain(&other.values).all(is_one)
            && !self.values.iter().any(|value| other.values.contains(value))
    }
}

impl ValueMatcher<HeaderName> {
    /// There by its own name, and every value of it is one that is named: in a list (RFC 9110 section 5.6.1) every
    /// member, unless the value is named to the letter, or by a pattern that has commas itself.
    #[must_use]
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let whole = |value: &str| {
            let meant = |glob: &&Glob| glob.is_exact() || glob.as_str().contains(',');
            self.values.iter().filter(meant).any(|glob| glob.matches(value))
        };
        let named =
            |value: &str| whole(value) || value.split(',').all(|member| self.allows(member.trim_ascii()));
        headers.contains_key(&self.name)
            && self
                .values_in(headers)
                .all(|value| value.to_str().is_ok_and(named))
    }

    /// Any value of it is one that is named, or can't be read; or has a member, or a part between semicolons, that is.
    #[must_use]
    pub fn matches_wider(&self, headers: &HeaderMap) -> bool {
        let within =
            |value: &str, between: &[char]| value.split(between).any(|part| self.denies(part.trim_ascii()));
        let named = |value: &str| self.denies(value) || within(value, &[',']) || within(value, &[',', ';']);
        self.values_in(headers)
            .any(|value| value.to_str().map_or(true, named))
    }

    /// The values under every spelling of the name.
    fn values_in<'h>(&self, headers: &'h HeaderMap) -> impl Iterator<Item = &'h HeaderValue> {
        headers
            .iter()
            .filter(|(name, _)| spelling::is_one_header(self.name.as_str(), name.as_str()))
            .map(|(_, value)| value)
    }
}

impl ValueMatcher<Box<str>> {
    /// There, and every value of it is one that is named. What makes the query ambiguous is no match: a `;`, which some
    /// servers read as `&`, an encoding that can't be read, the key in another spelling or one that may take its place.
    #[must_use]
    pub fn matches(&self, query: &str) -> bool {
        if query.contains(';') {
            return false;
        }
        let own = spelling::parameter(&self.name);
        let mut found = false;
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(decoded) = decode_form(key) else {
                return false;
            };
            if *decoded == *self.name {
                found = true;
                let is_clear = behind_bracket(value).is_none();
                if !is_clear || !decode_form(value).is_some_and(|value| self.allows(&value)) {
                    return false;
                }
            } else if spelling::may_be(key, &own) || spelling::may_replace(key, &own) {
                return false;
            }
        }
        found
    }

    /// Any value of it, in any spelling of the key and with `;` read as `&` too, is one that is named, with blanks around
    /// it too, or can't be read.
    #[must_use]
    pub fn matches_wider(&self, query: &str) -> bool {
        let own = spelling::parameter(&self.name);
        let named = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_form(key).is_none() || spelling::may_be(key, &own))
                && std::iter::once(value).chain(behind_bracket(pair)).any(|value| {
                    decode_form(value).is_none_or(|value| self.denies(&value) || self.denies(trimmed(&value)))
                })
        };
        query.split('&').any(named) || (query.contains(';') && query.split(['&', ';']).any(named))
    }
}

/// The value of `key[=]=value` for Node's qs, which has keys end at the first `]=`.
fn behind_bracket(pair: &str) -> Option<&str> {
    let ends = ["]=", "%5D=", "%5d="].into_iter();
    ends.filter_map(|end| pair.split_once(end))
        .min_by_key(|(key, _)| key.len())
        .map(|(_, value)| value)
}

/// As Laravel has every value: without blanks, NULs and what nobody sees around it.
fn trimmed(value: &str) -> &str {
    let is_blank =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\u{200b}' | '\u{200e}' | '\u{feff}');
    value.trim_matches(is_blank)
}

/// `application/x-www-form-urlencoded`; `None` if malformed or not UTF-8.
fn decode_form(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    use std::borrow::Cow;
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let well_formed = text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits.iter().take(2).all(u8::is_ascii_hexdigit)
    });
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8().ok()?;
    well_formed.then(|| Cow::Owned(decoded.into_owned()))
}

/// A user, by name or number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Account {
    /// By its name in the host's user database.
    Name(Arc<str>),
    /// By its number.
    Id(u32),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

/// What a workload or a rule asks of the caller. All that are given must hold; an empty list asks nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Conditions {
    /// systemd units; `*` as in `worker@*.service`.
    pub units: Vec<Glob>,
    /// Users.
    pub users: Vec<Account>,
    /// Paths of executables.
    pub exe: Vec<PathBuf>,
    /// Digests of executables.
    pub exe_sha256: Vec<Sha256>,
    /// Container ids, whole or their first 12 or more digits.
    pub containers: Vec<Arc<str>>,
}

impl Conditions {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the caller meets all of them.
    #[must_use]
    pub fn hold(&self, caller: &Identity) -> Holds {
        if self.is_empty() {
            return Holds::Yes;
        }
        self.by_name(caller).map_or(Holds::Yes, |(_, worst)| worst)
    }

    /// The first condition that does not hold for sure, by its key in the policy: `No` before `Unknown`.
    #[must_use]
    pub fn by_name(&self, caller: &Identity) -> Option<(&'static str, Holds)> {
        let exe = caller.executable.as_ref();
        let checks = [
            (
                "units",
                one_of(&self.units, caller.unit.as_ref(), |glob, unit| glob.matches(unit)),
            ),
            ("user", self.user(caller)),
            (
                "exe",
                one_of(&self.exe, exe.and_then(|exe| exe.path.as_ref()), |path, exe| {
                    path == exe
                }),
            ),
            (
                "exe_sha256",
                one_of(&self.exe_sha256, exe.and_then(|exe| exe.sha256), |a, b| *a == b),
            ),
            (
                "container",
                one_of(&self.containers, caller.container.as_ref(), |a, b| {
                    b.starts_with(&**a)
                }),
            ),
        ];
        let all = checks.iter().fold(Holds::Yes, |all, (_, holds)| all.and(*holds));
        checks
            .into_iter()
            .find(|(_, holds)| *holds == all && all != Holds::Yes)
    }

    fn user(&self, caller: &Identity) -> Holds {
        let mut unknown = false;
        for account in &self.users {
            match (account, &caller.user) {
                (Account::Id(id), _) if *id == caller.uid => return Holds::Yes,
                (Account::Name(name), Some(user)) if name == user => return Holds::Yes,
                (Account::Name(_), None) => unknown = true,
                (Account::Id(_) | Account::Name(_), _) => {}
            }
        }
        if unknown {
            Holds::Unknown
        } else {
            Holds::of(self.users.is_empty())
        }
    }

    /// Whether no caller meets both, as far as the texts show.
    pub(crate) fn exclude(&self, other: &Self) -> bool {
        let globs = |all: &[Glob]| all.iter().all(Glob::is_exact);
        (globs(&self.units) && globs(&other.units) && disjoint(&self.units, &other.units))
            || disjoint(&self.exe, &other.exe)
            || disjoint(&self.exe_sha256, &other.exe_sha256)
    }
}

fn one_of<C, F: Copy>(wanted: &[C], fact: Option<F>, is: impl Fn(&C, F) -> bool) -> Holds {
    match fact {
        _ if wanted.is_empty() => Holds::Yes,
        None => Holds::Unknown,
        Some(fact) => Holds::of(wanted.iter().any(|wanted| is(wanted, fact))),
    }
}

fn disjoint<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    !a.is_empty() && !b.is_empty() && !a.iter().any(|x| b.contains(x))
}

#[cfg(test)]
mod tests;
