//! From the file to the settings, with every error at once.

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::file::{FileAudit, FileConfig};
use super::{Audit, Config};
use crate::policy::reader::Spanned;
use crate::policy::{Diagnostic, Source};

/// Fills in the defaults and checks what types and ranges don't say; faults are added to `found`.
pub fn validate(source: &Source, file: FileConfig, found: &mut Vec<Diagnostic>) -> Config {
    let mut check = Check { source, found };
    let mut config = Config::default();
    let runtime_dir_given = set_paths(&mut check, &file, &mut config);
    if runtime_dir_given && !file.paths.iter().any(|(key, _)| *key == "admin_socket") {
        config.admin_socket = config.runtime_dir.join("admin.sock");
    }
    if let Some(parent) = &file.cgroup_parent {
        config.cgroup_parent = check.cgroup(parent).unwrap_or(config.cgroup_parent);
    }
    if let Some(user) = file.worker_user {
        config.worker_user = check.worker_user(user).unwrap_or(config.worker_user);
    }
    config.threads = file.threads.map_or(config.threads, to_usize);
    let canary = file.canary_seconds.map(Duration::from_secs);
    config.canary_interval = canary.unwrap_or(config.canary_interval);
    config.log_level = file.log_level.unwrap_or(config.log_level);
    let resolvers = file.resolvers.unwrap_or_default();
    config.resolvers = resolvers.iter().filter_map(|text| check.resolver(text)).collect();
    let upstream_ca = file.upstream_ca.unwrap_or_default();
    config.upstream_ca = upstream_ca
        .iter()
        .filter_map(|text| check.absolute("upstream_ca", text))
        .collect();
    config.audit = audit(&mut check, file.audit);
    for (limit, number) in file.limits {
        limit.set(&mut config.limits, number);
    }
    config
}

/// Says whether `runtime_dir` was given, which the admin socket's default follows.
fn set_paths(check: &mut Check<'_>, file: &FileConfig, config: &mut Config) -> bool {
    let mut runtime_dir_given = false;
    for (key, text) in &file.paths {
        let Some(path) = check.absolute(key, text) else {
            continue;
        };
        match *key {
            "policy_dir" => config.policy_dir = path,
            "state_dir" => config.state_dir = path,
            "runtime_dir" => {
                runtime_dir_given = true;
                config.runtime_dir = path;
            }
            "admin_socket" => config.admin_socket = check.socket(text, path),
            _ => config.bpffs_dir = path,
        }
    }
    runtime_dir_given
}

fn audit(check: &mut Check<'_>, file: FileAudit) -> Audit {
    let default = Audit::default();
    Audit {
        file: file
            .file
            .and_then(|text| check.absolute("file", &text))
            .unwrap_or(default.file),
        max_size: file
            .max_size_mib
            .map_or(default.max_size, |mib| mib * 1024 * 1024),
        keep: file
            .keep
            .and_then(|keep| u32::try_from(keep).ok())
            .unwrap_or(default.keep),
        query_values: file.query_values.unwrap_or(default.query_values),
    }
}

/// Numbers were checked against ranges that fit.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

struct Check<'a> {
    source: &'a Source,
    found: &'a mut Vec<Diagnostic>,
}

impl Check<'_> {
    fn error(&mut self, text: &Spanned<String>, message: String, help: &str) {
        self.found
            .push(Diagnostic::error(self.source, text.span, message).help(help));
    }

    fn absolute(&mut self, key: &str, text: &Spanned<String>) -> Option<PathBuf> {
        let path = Path::new(&text.value);
        let plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if path.is_absolute() && plain && !text.value.contains('\0') {
            return Some(path.to_owned());
        }
        self.error(
            text,
            format!("`{key}` must be an absolute path"),
            "begin it with '/' and leave out '..'",
        );
        None
    }

    /// sun_path holds 108 bytes with the NUL at the end (unix(7)).
    fn socket(&mut self, text: &Spanned<String>, path: PathBuf) -> PathBuf {
        if text.value.len() > 107 {
            self.error(
                text,
                "`admin_socket` is longer than 107 bytes".to_owned(),
                "the kernel takes no longer one",
            );
        }
        path
    }

    fn cgroup(&mut self, text: &Spanned<String>) -> Option<String> {
        let path = text.value.strip_prefix('/').unwrap_or(&text.value);
        let good = !path.is_empty()
            && path
                .split('/')
                .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
        if good {
            return Some(path.to_owned());
        }
        let message = format!("`cgroup_parent` is no cgroup path: {:?}", text.value);
        self.error(
            text,
            message,
            "name a directory below the cgroup v2 mount, like \"callgate.slice\"",
        );
        None
    }

    fn worker_user(&mut self, text: Spanned<String>) -> Option<String> {
        let name = &text.value;
        if name.is_empty() || name == "root" || name == "0" || name.contains([':', '/', ' ', '\0', '\n']) {
            let message = format!("`worker_user` can't be {name:?}");
            self.error(
                &text,
                message,
                "name a user that owns nothing else: the worker reads what the network sends",
            );
            return None;
        }
        Some(text.value)
    }

    fn resolver(&mut self, text: &Spanned<String>) -> Option<SocketAddr> {
        let address = text.value.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        let address = address.or_else(|_no_bare_address| text.value.parse::<SocketAddr>());
        if address.is_err() {
            let message = format!("`resolvers`: {:?} is no address", text.value);
            self.error(text, message, "write 9.9.9.9, 9.9.9.9:53 or [2620:fe::fe]:53");
        }
        address.ok()
    }
}
