//! Finds the rules that a call could meet without looking at the others: by host, then along the path.

use std::collections::HashMap as StdHashMap;

use foldhash::fast::RandomState;

use super::Scheme;
use super::matcher::HostPattern;
use super::model::{Rule, RuleKind};
use super::path::{NormalPath, Segment, folded_segment};
use crate::addr::HostName;

/// Looked up by what callers send, filled by the operator alone: no caller can make keys collide.
type HashMap<K, V> = StdHashMap<K, V, RandomState>;

/// A rule's place in its workload's list.
pub(super) type RuleId = usize;

/// The rules of one workload by host and path.
#[derive(Debug, Default)]
pub(super) struct Index {
    allow: ByHost,
    deny: ByHost,
    /// Denies that name no host.
    deny_any_host: ByPath,
    tunnel: ByHost,
}

#[derive(Debug, Default)]
struct ByHost {
    exact: HashMap<Box<str>, ByPath>,
    below: HashMap<Box<str>, ByPath>,
}

/// Rules along a tree of path segments.
#[derive(Debug, Default)]
pub(super) struct ByPath {
    root: Node,
    /// Rules that name no path: the least specific.
    any: Vec<RuleId>,
    /// Where they apply, each port and scheme once.
    origins: Vec<Origin>,
}

/// A rule's port and scheme, where it names them.
type Origin = (Option<u16>, Option<Scheme>);

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Self>,
    one: Option<Box<Self>>,
    rest: Vec<RuleId>,
    here: Vec<RuleId>,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (id, rule) in rules.iter().enumerate() {
            let by_host = match rule.kind {
                RuleKind::Allow => &mut index.allow,
                RuleKind::Deny => &mut index.deny,
                RuleKind::Tunnel => &mut index.tunnel,
            };
            let by_path = match &rule.host {
                Some(host) => by_host.entry(host),
                None => &mut index.deny_any_host,
            };
            by_path.insert(id, rule);
        }
        index
    }

    /// The allows for this host: those that name it exactly, then those by wildcard.
    pub(super) fn allows(&self, host: &HostName) -> [Option<&ByPath>; 2] {
        self.allow.one_label(host)
    }

    /// The tunnels for this host.
    pub(super) fn tunnels(&self, host: &HostName) -> impl Iterator<Item = RuleId> {
        self.tunnel
            .one_label(host)
            .into_iter()
            .flatten()
            .flat_map(|by_path| by_path.any.iter().copied())
    }

    /// The denies for this host, at any depth below a wildcard, and those for every host.
    pub(super) fn denies<'i>(&'i self, host: &'i HostName) -> impl Iterator<Item = &'i ByPath> {
        let mut parent = host.as_str();
        let below = std::iter::from_fn(move || {
            parent = parent.split_once('.')?.1;
            Some(self.deny.below.get(parent))
        });
        let below = below.take(if self.deny.below.is_empty() { 0 } else { usize::MAX });
        let exact = self.deny.exact.get(host.as_str());
        exact
            .into_iter()
            .chain(below.flatten())
            .chain(std::iter::once(&self.deny_any_host))
    }
}

impl ByHost {
    fn entry(&mut self, host: &HostPattern) -> &mut ByPath {
        let (map, name) = match host {
            HostPattern::Exact(name) => (&mut self.exact, name),
            HostPattern::Below(name) => (&mut self.below, name),
        };
        map.entry(name.as_str().into()).or_default()
    }

    fn one_label(&self, host: &HostName) -> [Option<&ByPath>; 2] {
        let below = host
            .as_str()
            .split_once('.')
            .and_then(|(_, parent)| self.below.get(parent));
        [self.exact.get(host.as_str()), below]
    }
}

impl ByPath {
    fn insert(&mut self, id: RuleId, rule: &Rule) {
        let origin = (rule.port, rule.scheme);
        if !self.origins.contains(&origin) {
            self.origins.push(origin);
        }
        if rule.paths.is_empty() {
            self.any.push(id);
        }
        for template in &rule.paths {
            match rule.kind {
                RuleKind::Deny => self.root.insert(&template.folded_segments(), id),
                RuleKind::Allow | RuleKind::Tunnel => self.root.insert(template.segments(), id),
            }
        }
    }

    /// The ports and schemes of the rules here.
    pub(super) fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Every rule here, whatever its path.
    pub(super) fn all(&self, found: &mut impl FnMut(RuleId)) {
        self.any.iter().copied().for_each(&mut *found);
        self.root.all(found);
    }

    /// Calls `found` for each allow whose path matches, the most specific first, until it says stop.
    pub(super) fn narrow(&self, path: &NormalPath, found: &mut impl FnMut(RuleId) -> bool) -> bool {
        let rest = path.as_str().get(1..);
        self.root.narrow(rest, found) || self.any.iter().any(|id| found(*id))
    }

    /// Calls `found` for each deny whose path matches in some wider form.
    pub(super) fn wide(&self, path: &NormalPath, found: &mut impl FnMut(RuleId)) {
        self.any.iter().copied().for_each(&mut *found);
        if self.root.is_empty() {
            return;
        }
        let path = path.as_str();
        self.root
            .wide(path.strip_suffix('/').unwrap_or(path).get(1..), found);
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.one.is_none() && self.rest.is_empty() && self.here.is_empty()
    }

    fn insert(&mut self, segments: &[Segment], id: RuleId) {
        let mut node = self;
        for segment in segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::One => node.one.get_or_insert_default(),
                Segment::Rest => return push_once(&mut node.rest, id),
            };
        }
        push_once(&mut node.here, id);
    }

    fn all(&self, found: &mut impl FnMut(RuleId)) {
        self.here.iter().chain(&self.rest).copied().for_each(&mut *found);
        for child in self.literals.values().chain(self.one.as_deref()) {
            child.all(found);
        }
    }

    fn narrow(&self, rest: Option<&str>, found: &mut impl FnMut(RuleId) -> bool) -> bool {
        let Some(rest) = rest else {
            return self.here.iter().any(|id| found(*id));
        };
        let (segment, rest) = split_segment(rest);
        if self
            .literals
            .get(segment)
            .is_some_and(|child| child.narrow(rest, found))
        {
            return true;
        }
        !segment.is_empty()
            && (self.one.as_ref().is_some_and(|child| child.narrow(rest, found))
                || self.rest.iter().any(|id| found(*id)))
    }

    fn wide(&self, rest: Option<&str>, found: &mut impl FnMut(RuleId)) {
        let Some(rest) = rest else {
            self.here.iter().copied().for_each(found);
            return;
        };
        let (segment, rest) = split_segment(rest);
        let segment = folded_segment(segment);
        if let Some(child) = self.literals.get(&*segment) {
            child.wide(rest, found);
        }
        if !segment.is_empty() {
            if let Some(child) = &self.one {
                child.wide(rest, found);
            }
            self.rest.iter().copied().for_each(found);
        }
    }
}

fn split_segment(rest: &str) -> (&str, Option<&str>) {
    rest.split_once('/')
        .map_or((rest, None), |(segment, rest)| (segment, Some(rest)))
}

fn push_once(ids: &mut Vec<RuleId>, id: RuleId) {
    if ids.last() != Some(&id) {
        ids.push(id);
    }
}
