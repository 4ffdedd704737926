//! The compiled policy: workloads, their rules, credentials. Immutable once made.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::header::HeaderName;
use ipnet::IpNet;

use super::diagnostic::{Diagnostic, Source, Span};
use super::index::Index;
use super::matcher::{Account, Conditions, HostPattern, ValueMatcher};
use super::path::Template;
use super::{ClientAuth, CredentialName, Scheme};
use crate::credential::spec::CredentialSpec;
use crate::identity::{Sha256, WorkloadName};

/// Everything that the operator allows, from all files together.
#[derive(Debug)]
pub struct Policy {
    pub(super) workloads: BTreeMap<WorkloadName, Workload>,
    pub(super) credentials: BTreeMap<CredentialName, CredentialSpec>,
    pub(super) warnings: Vec<Diagnostic>,
    pub(super) digest: Sha256,
}

impl Policy {
    /// A policy without any workload: it denies everything.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            workloads: BTreeMap::new(),
            credentials: BTreeMap::new(),
            warnings: Vec::new(),
            digest: Sha256([0; 32]),
        }
    }

    /// Compiles the texts of all files together; their order does not matter.
    ///
    /// # Errors
    /// Every error of every file, sorted by place. Warnings are in [`Policy::warnings`] of the result, and
    /// among the errors when there are any.
    pub fn compile(sources: &[Source]) -> Result<Self, Vec<Diagnostic>> {
        super::compile::compile(sources)
    }

    /// What should be looked at but refuses nothing.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// One workload.
    #[must_use]
    pub fn workload(&self, name: &WorkloadName) -> Option<&Workload> {
        self.workloads.get(name)
    }

    /// All workloads by name.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Workload> {
        self.workloads.values()
    }

    /// One credential's definition.
    #[must_use]
    pub fn credential(&self, name: &CredentialName) -> Option<&CredentialSpec> {
        self.credentials.get(name)
    }

    /// All credentials by name.
    pub fn credentials(&self) -> impl ExactSizeIterator<Item = &CredentialSpec> {
        self.credentials.values()
    }

    /// SHA-256 over all files' texts, sorted by text, so that records can name the policy they were decided by.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        self.digest
    }
}

/// One workload and its rules.
#[derive(Debug)]
pub struct Workload {
    pub(super) name: WorkloadName,
    pub(super) conditions: Conditions,
    pub(super) exec_by: ExecBy,
    pub(super) mode: Mode,
    pub(super) listen: Vec<u16>,
    pub(super) direct: Vec<Direct>,
    /// Sorted by label, so that the order of files and rules never shows.
    pub(super) rules: Vec<Rule>,
    pub(super) index: Index,
    pub(super) needs: Needs,
    pub(super) place: Place,
}

impl Workload {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &WorkloadName {
        &self.name
    }

    /// What every caller must meet.
    #[must_use]
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Who may start commands in it with `callgate exec`, besides root.
    #[must_use]
    pub fn exec_by(&self) -> &ExecBy {
        &self.exec_by
    }

    /// Enforce or observe.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The ports that it may accept connections on.
    #[must_use]
    pub fn listen(&self) -> &[u16] {
        &self.listen
    }

    /// Networks that it may reach past the agent.
    #[must_use]
    pub fn direct(&self) -> &[Direct] {
        &self.direct
    }

    /// Its allows, denies and tunnels, sorted by label.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The TCP ports that some rule names, ascending: connects to others are refused in the kernel. In
    /// `observe` mode also 80 and 443, so that what is not allowed yet is seen.
    #[must_use]
    pub fn kernel_ports(&self) -> Vec<u16> {
        let observed: &[u16] = if self.mode == Mode::Observe {
            &[80, 443]
        } else {
            &[]
        };
        let mut ports: Vec<u16> = self
            .rules
            .iter()
            .filter_map(|rule| rule.port)
            .chain(observed.iter().copied())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Whether a rule lets something through to this name, so that the DNS stub may ask for it. A deny opens nothing:
    /// the question alone carries what its labels say to the name's own servers.
    #[must_use]
    pub fn may_ask(&self, host: &crate::addr::HostName) -> bool {
        self.rules.iter().any(|rule| match rule.kind {
            RuleKind::Deny => false,
            RuleKind::Allow | RuleKind::Tunnel => {
                rule.host.as_ref().is_some_and(|pattern| pattern.matches(host))
            }
        })
    }

    /// What decisions may depend on beside the call itself.
    #[must_use]
    pub fn needs(&self) -> Needs {
        self.needs
    }
}

/// What a workload's decisions may depend on. Asked for each call, so it is found once, whatever the number of rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Needs {
    /// The executable, which then is looked at again for each request.
    pub exe: bool,
    /// Its digest; never without `exe`.
    pub digest: bool,
    /// The request's headers.
    pub headers: bool,
}

impl Needs {
    pub(super) fn of(workload: &Conditions, rules: &[Rule]) -> Self {
        let all = || std::iter::once(workload).chain(rules.iter().map(|rule| &rule.conditions));
        let digest = all().any(|conditions| !conditions.exe_sha256.is_empty());
        Self {
            exe: digest || all().any(|conditions| !conditions.exe.is_empty()),
            digest,
            headers: rules.iter().any(|rule| !rule.headers.is_empty()),
        }
    }
}

/// What happens to a call that is not allowed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It goes out without a credential, and the record says what would have been.
    Observe,
}

/// Who may start commands in a workload, besides root.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ExecBy {
    /// These users.
    pub users: Vec<Account>,
    /// Members of these groups.
    pub groups: Vec<Account>,
}

/// A network that a workload may reach past the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Direct {
    /// The addresses.
    pub cidr: IpNet,
    /// The TCP port.
    pub port: u16,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RuleKind {
    /// Lets calls out.
    Allow,
    /// Refuses calls, whatever allows them.
    Deny,
    /// Passes TLS through unread.
    Tunnel,
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Tunnel => "tunnel",
        })
    }
}

/// One allow, deny or tunnel. An empty list or `None` asks nothing.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it does.
    pub kind: RuleKind,
    /// Its name, or what it says if it has none; what records and refusals show.
    pub label: Arc<str>,
    /// The host; `None` only in a deny.
    pub host: Option<HostPattern>,
    /// The port; `None` only in a deny.
    pub port: Option<u16>,
    /// The scheme; `None` only in a deny.
    pub scheme: Option<Scheme>,
    /// Methods.
    pub methods: Vec<Box<str>>,
    /// Paths.
    pub paths: Vec<Template>,
    /// Query keys.
    pub query: Vec<ValueMatcher<Box<str>>>,
    /// Headers.
    pub headers: Vec<ValueMatcher<HeaderName>>,
    /// What it asks of the caller.
    pub conditions: Conditions,
    /// The credential to put on.
    pub credential: Option<CredentialName>,
    /// What happens to the client's own credentials.
    pub client_auth: ClientAuth,
    /// Whether private addresses may be dialled.
    pub private: bool,
    pub(super) place: Place,
}

/// Where a rule or workload is written.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) source: Source,
    pub(super) span: Span,
    /// Where its credential is named, or the whole if it names none.
    pub(super) credential: Span,
}

impl Rule {
    /// The file that it is written in, and the line.
    #[must_use]
    pub fn written_at(&self) -> (Arc<str>, usize) {
        let place = Diagnostic::error(&self.place.source, self.place.span, "");
        (place.file, place.line)
    }
}
