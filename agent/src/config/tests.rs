//! The settings' defaults, the shipped file, and what is refused.

use super::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    let found = Config::parse(&Source::new("callgate.toml", text));
    found.map_err(|found| found.iter().map(ToString::to_string).collect())
}

#[test]
fn the_shipped_file_is_made_from_the_types() {
    assert_eq!(DEFAULT_FILE, shipped::text(), "out of date: cargo xtask manual");
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    assert_eq!(parse(DEFAULT_FILE), Ok(Config::default()));
    assert_eq!(parse(""), Ok(Config::default()));
}

#[test]
fn the_shipped_file_shows_every_key() {
    for table in ["", "[audit]\n", "[limits]\n"] {
        let errors = parse(&format!("{table}zzzzzz = 1")).unwrap_err();
        let (_, keys) = errors[0].split_once("the keys here are ").unwrap();
        for key in keys.trim_end_matches(')').split(", ") {
            let shown = [format!("\n{key} = "), format!("\n[{key}]\n")];
            assert!(shown.iter().any(|line| DEFAULT_FILE.contains(line)), "{key}");
        }
    }
}

#[test]
fn each_line_of_the_shipped_file_is_read() {
    let changes = [
        ("\"/etc/callgate/policy.d\"", "\"/x\""),
        ("\"/var/lib/callgate\"", "\"/x\""),
        ("\"/run/callgate\"", "\"/x\""),
        ("\"/run/callgate/admin.sock\"", "\"/x\""),
        ("\"/sys/fs/bpf/callgate\"", "\"/x\""),
        ("\"callgate.slice\"", "\"x/y.slice\""),
        ("\"callgate\"", "\"nobody\""),
        ("\"info\"", "\"debug\""),
        ("resolvers = []", "resolvers = [\"::1\"]"),
        ("upstream_ca = []", "upstream_ca = \"/x.pem\""),
        ("\"/var/log/callgate/audit.jsonl\"", "\"/x\""),
        ("\"redacted\"\n", "\"plain\"\n"),
    ];
    for (old, new) in changes {
        let config = parse(&DEFAULT_FILE.replacen(old, new, 2)).unwrap_or_else(|e| panic!("{old} {e:?}"));
        assert_ne!(config, Config::default(), "{old}");
    }
    let numbers = DEFAULT_FILE
        .lines()
        .filter_map(|line| Some((line, line.split_once(" = ")?.1.parse::<u64>().ok()?)));
    for (line, number) in numbers {
        let changed = line.replace(&number.to_string(), &(number + 1).to_string());
        let config = parse(&DEFAULT_FILE.replace(&format!("{line}\n"), &format!("{changed}\n"))).unwrap();
        assert_ne!(config, Config::default(), "{line}");
    }
}

#[test]
fn each_limit_sets_the_field_of_its_name_and_no_other() {
    let stem = |name: &str, units: &[&str]| {
        let cut = units.iter().find_map(|unit| name.strip_suffix(unit));
        cut.unwrap_or(name).to_owned()
    };
    let default = Limits::default();
    for limit in limits::ALL {
        let mut changed = default.clone();
        limit.set(&mut changed, limit.of(&default) + 1);
        assert_eq!(limit.of(&changed), limit.of(&default) + 1);
        let [before, after] = [&default, &changed].map(|limits| format!("{limits:?}").replace(", ", "\n"));
        let differs = before
            .lines()
            .zip(after.lines())
            .filter(|(before, after)| before != after);
        let fields: Vec<_> = differs
            .filter_map(|(line, _)| line.trim_start_matches("Limits { ").split_once(':'))
            .map(|(field, _)| stem(field, &["_size", "_timeout"]))
            .collect();
        assert_eq!(fields, [stem(limit.key, &["_kib", "_mib", "_seconds"])]);
    }
}

#[test]
fn every_fault_comes_at_once_with_its_place() {
    let found = parse(
        "policy_dir = 'x'\nstate_dir = 3\nthreds = 1\nworker_user = 'root'\ncgroup_parent = '../x'\n\
         log_level = 'inf'\nresolvers = ['1.1.1.1', 'dns.example']\nthreads = -1\n[audit]\nquery_values = 'all'\n\
         [limits]\nh2_streams = 0\nidle_second = 1\n[[workload]]\nname = 'w'",
    )
    .unwrap_err();
    let expected = [
        "callgate.toml:1:15: error: `policy_dir` must be an absolute path",
        "callgate.toml:2:13: error: `state_dir` must be a string, not an integer",
        "callgate.toml:3:1: error: unknown key `threds` in callgate.toml (did you mean `threads`?)",
        "callgate.toml:4:16: error: `worker_user` can't be \"root\"",
        "callgate.toml:5:18: error: `cgroup_parent` is no cgroup path",
        "callgate.toml:6:14: error: `log_level` is one of error, warn, info, debug, trace, not \"inf\" (did you mean \"info\"?)",
        "callgate.toml:7:26: error: `resolvers`: \"dns.example\" is no address",
        "callgate.toml:8:11: error: `threads` must be between 0 and 1024",
        "callgate.toml:10:17: error: `query_values` is one of redacted, plain, not \"all\"",
        "callgate.toml:12:14: error: `h2_streams` must be between 1 and 10000",
        "callgate.toml:13:1: error: unknown key `idle_second` in `limits` (did you mean `idle_seconds`?)",
        "callgate.toml:14:3: error: unknown key `workload` in callgate.toml (rules and credentials go into files of `policy_dir`)",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn the_admin_socket_follows_the_runtime_directory() {
    let config = parse("runtime_dir = '/x'").unwrap();
    assert_eq!(config.admin_socket, Path::new("/x/admin.sock"));
}

#[test]
fn a_named_file_that_is_not_there_is_an_error() {
    let faulty = Config::load(Path::new("/nonexistent/callgate.toml")).unwrap_err();
    assert!(faulty.found[0].message.contains("can't be read"), "{faulty:?}");
}

/// The names of a struct's fields, as its source has them.
fn fields(source: &str, name: &str) -> Vec<String> {
    let (_, body) = source
        .split_once(&format!("pub struct {name} {{\n"))
        .unwrap_or_else(|| panic!("no struct {name}"));
    let (body, _) = body.split_once("\n}").unwrap();
    let field = |line: &str| Some(line.trim().strip_prefix("pub ")?.split_once(':')?.0.to_owned());
    body.lines().filter_map(field).collect()
}

/// All sources of the agent but tests and these files.
fn sources(without: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = String::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                dirs.push(path);
            } else if !without.iter().any(|file| name.starts_with(file)) && !name.ends_with("tests.rs") {
                all.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    all
}

fn unread(fields: &[String], sources: &str) -> Vec<String> {
    let read = |field: &String| {
        sources.match_indices(&format!(".{field}")).any(|(at, found)| {
            let next = sources[at + found.len()..].chars().next().unwrap_or(' ');
            !next.is_alphanumeric() && next != '_' && next != '('
        })
    };
    fields.iter().filter(|field| !read(field)).cloned().collect()
}

/// A setting that nothing obeys misleads whoever relies on it.
#[test]
fn every_setting_is_read_by_something_that_obeys_it() {
    let config = include_str!("../config.rs");
    let outside = sources(&["config.rs", "config/", "main.rs"]);
    for name in ["Config", "Audit", "Limits"] {
        let fields = fields(config, name);
        assert!(fields.len() > 3, "{name}: {fields:?}");
        assert_eq!(unread(&fields, &outside), [""; 0], "{name}");
    }
}

/// What is handed on to the worker has to be obeyed there.
#[test]
fn every_setting_that_is_handed_to_the_worker_is_read_there() {
    let channel = include_str!("../channel.rs");
    let below = sources(&["config.rs", "config/", "channel", "supervisor", "cli"]);
    for name in ["Start", "Limits"] {
        assert_eq!(unread(&fields(channel, name), &below), [""; 0], "{name}");
    }
}
