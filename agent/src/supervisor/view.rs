//! What a command that root runs in a workload must not see or change, though root owns it.

use std::path::{Path, PathBuf};

use crate::config::{Config, DEFAULT_PATH};
use crate::credential::spec::{CredentialSource, CredentialSpec};
use crate::policy::Policy;

/// The agent's own share of it; policy adds the rest.
#[derive(Debug)]
pub struct View {
    hidden: Vec<PathBuf>,
    fixed: Vec<PathBuf>,
}

impl View {
    /// Of an agent with these settings.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut hidden = vec![
            config.state_dir.clone(),
            config.bpffs_dir.clone(),
            config.audit.file.clone(),
        ];
        // systemd's, for the agent's unit.
        hidden.extend(std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from));
        let mut fixed = vec![
            config.policy_dir.clone(),
            config.file.clone(),
            config.runtime_dir.clone(),
        ];
        fixed.extend(config.upstream_ca.iter().cloned());
        if config.file == Path::new(DEFAULT_PATH) {
            // It need not be there yet.
            fixed.extend(config.file.parent().map(Path::to_owned));
        }
        // After an upgrade its path leads nowhere, and the new one is another's.
        fixed.extend(std::env::current_exe().ok());
        Self { hidden, fixed }
    }

    /// The agent's files and the secrets of all workloads.
    #[must_use]
    pub fn hidden(&self, policy: &Policy) -> Vec<PathBuf> {
        let secret = |spec: &CredentialSpec| match &spec.source {
            CredentialSource::File { path } => Some(path.clone()),
            CredentialSource::Systemd { .. } | CredentialSource::Exec { .. } => None,
        };
        let secrets = policy.credentials().filter_map(secret);
        self.hidden.iter().cloned().chain(secrets).collect()
    }

    /// What the agent reads and runs.
    #[must_use]
    pub fn fixed(&self, policy: &Policy) -> Vec<PathBuf> {
        let helper = |spec: &CredentialSpec| match &spec.source {
            CredentialSource::Exec { command, .. } => command.first().map(PathBuf::from),
            CredentialSource::File { .. } | CredentialSource::Systemd { .. } => None,
        };
        let helpers = policy.credentials().filter_map(helper);
        self.fixed.iter().cloned().chain(helpers).collect()
    }
}
