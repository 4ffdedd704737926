//! The settings file that is shipped: every key with its default and what it is for, made from the settings' own types.
//!
//! `cargo xtask manual` writes it to `config/default.toml`.

use serde_json::{Value, json};

use super::{Config, QueryValues, limits};

/// One key of the file.
struct Key {
    name: &'static str,
    /// Lines of comment above it; empty for a key that goes with the one before.
    about: &'static str,
    /// A number, a string or a list of strings, which TOML writes as JSON does.
    value: fn(&Config) -> Value,
}

const fn key(name: &'static str, about: &'static str, value: fn(&Config) -> Value) -> Key {
    Key { name, about, value }
}

const HEAD: &str = "\
# callgate: the agent's settings. Every key is shown with its default; what is left out has that value.
# `callgate check` finds every mistake in this file and in the policy.
";

const ROOT: &[Key] = &[
    key(
        "policy_dir",
        "Rules and credentials: all *.toml files of this directory together.",
        |config| json!(config.policy_dir),
    ),
    key(
        "state_dir",
        "What must outlive a reboot (the CA), and what must not.",
        |config| json!(config.state_dir),
    ),
    key("runtime_dir", "", |config| json!(config.runtime_dir)),
    key(
        "admin_socket",
        "The admin socket. Its default follows runtime_dir.",
        |config| json!(config.admin_socket),
    ),
    key(
        "bpffs_dir",
        "Where BPF links and maps are pinned. Must be on a bpffs. For another directory `systemctl edit callgate` too:\n\
         ReadWritePaths=DIR.",
        |config| json!(config.bpffs_dir),
    ),
    key(
        "cgroup_parent",
        "The parent of all workloads' cgroups, below the cgroup v2 mount.",
        |config| json!(config.cgroup_parent),
    ),
    key(
        "worker_user",
        "The user of the process that talks to the network. Never root.",
        |config| json!(config.worker_user),
    ),
    key("threads", "Data threads; 0 is one for each core.", |config| {
        json!(config.threads)
    }),
    key("log_level", "error, warn, info, debug or trace.", |config| {
        json!(config.log_level.as_str())
    }),
    key(
        "canary_seconds",
        "So often, in seconds, a connect from inside each workload proves that its connections come to the agent.",
        |config| json!(config.canary_interval.as_secs()),
    ),
    key(
        "resolvers",
        "DNS servers, like \"9.9.9.9\" or \"[2620:fe::fe]:53\"; empty for those in /etc/resolv.conf.",
        |config| json!(config.resolvers),
    ),
    key(
        "upstream_ca",
        "PEM files with further roots that upstreams may be verified by, besides the host's.",
        |config| json!(config.upstream_ca),
    ),
];

const AUDIT: &[Key] = &[
    key("file", "Where each call's record goes.", |config| {
        json!(config.audit.file)
    }),
    key(
        "max_size_mib",
        "A new file is begun at this size; so many finished ones are kept.",
        |config| json!(config.audit.max_size / (1024 * 1024)),
    ),
    key("keep", "", |config| json!(config.audit.keep)),
    key(
        "query_values",
        "Values in queries: \"redacted\", or \"plain\" with the secrets that clients may put there.",
        |config| match config.audit.query_values {
            QueryValues::Redacted => json!("redacted"),
            QueryValues::Plain => json!("plain"),
        },
    ),
];

/// The whole file.
#[must_use]
pub fn text() -> String {
    let config = Config::default();
    let mut text = HEAD.to_owned();
    for key in ROOT {
        // A blank line before each group.
        if !key.about.is_empty() {
            text.push('\n');
        }
        line(&mut text, key.about, key.name, &(key.value)(&config));
    }
    text.push_str("\n[audit]\n");
    for key in AUDIT {
        line(&mut text, key.about, key.name, &(key.value)(&config));
    }
    text.push_str("\n# What one peer or workload may use up. Over it comes a clear refusal.\n[limits]\n");
    for limit in limits::ALL {
        line(
            &mut text,
            limit.about,
            limit.key,
            &json!(limit.of(&config.limits)),
        );
    }
    text
}

fn line(text: &mut String, about: &str, name: &str, value: &Value) {
    for words in about.lines() {
        text.push_str(&format!("# {words}\n"));
    }
    text.push_str(&format!("{name} = {value}\n"));
}
