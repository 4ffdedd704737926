//! Client processes: managed ones, started by `callgate exec` as an operator would, and unmanaged ones.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::agent;
use crate::launch::{self, Output, Place};

/// Where clients of one kind run.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    prefix: Vec<OsString>,
}

impl Client {
    pub(crate) fn unmanaged(place: Place) -> Self {
        Self {
            place,
            prefix: Vec::new(),
        }
    }

    pub(crate) fn managed(place: Place, config: &Path, workload: &str) -> Result<Self> {
        let prefix = vec![
            agent::binary()?.into(),
            "exec".into(),
            "--config".into(),
            config.into(),
            "--workload".into(),
            workload.into(),
            "--".into(),
        ];
        Ok(Self { place, prefix })
    }

    /// With this option of `callgate exec`.
    #[must_use]
    pub fn exec_option(mut self, option: &str) -> Self {
        // The last of the prefix is `--`.
        let at = self.prefix.len().saturating_sub(1);
        self.prefix.insert(at, option.into());
        self
    }

    /// With this variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.place = self.place.with_env(key, value);
        self
    }

    /// In the network namespace that this file stands for.
    #[must_use]
    pub fn in_netns(mut self, file: &Path) -> Self {
        self.place = self.place.in_netns(file);
        self
    }

    /// As this user (group of the same number). For a managed client it is the user that asks for the workload.
    #[must_use]
    pub fn user(mut self, uid: u32) -> Self {
        self.place = self.place.as_user(uid);
        self
    }

    /// The command that starts `args`, for tests that feed it or let it run on.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.place.command(self.prefix.iter().cloned().chain(args))
    }

    /// Runs `args` to its end.
    ///
    /// # Errors
    /// If it can't be started or runs too long; not if it fails.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        launch::finish(self.command(args))
    }
}
