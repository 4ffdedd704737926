//! What is refused at load, where the finding points, and what it advises.

use super::*;

/// `line:column message` of everything that was found in one file.
fn findings(text: &str) -> Vec<String> {
    let found = match Policy::compile(&[Source::new("p", text)]) {
        Ok(policy) => policy.warnings().to_vec(),
        Err(found) => found,
    };
    found.iter().map(ToString::to_string).collect()
}

const HEAD: &str = "[[workload]]\nname = 'w'\n";

#[test]
fn each_fault_is_found_where_it_is() {
    for (text, expected) in [
        (
            "[[workload]]\nunits = []",
            "p:1:1: error: a workload needs `name`",
        ),
        (
            "[[workload]]\nname = 'W'",
            "p:2:9: error: a workload's name is 1 to 48 of a-z",
        ),
        (
            "[[workload]]\nname = 3",
            "p:2:8: error: `name` must be a string, not an integer",
        ),
        (
            "[[workload]]\nname = 'w'\nunit = 'a.service'",
            "p:3:1: error: unknown key `unit` in a workload (did you mean `units`?)",
        ),
        (
            "[workload]\nname = 'w'",
            "`workload` must be a list of tables, written [[workload]], not a table",
        ),
        (
            "wrkload = 1",
            "p:1:1: error: unknown key `wrkload` in a policy file (did you mean `workload`?)",
        ),
        ("x = ", "p:1:5: error: not valid TOML"),
        ("[[workload]]\nname = w", "p:2:8: error: not valid TOML"),
        (
            "[[workload]]\nname = 'a'\nname = 'b'",
            "p:3:1: error: `name` is given twice",
        ),
    ] {
        let found = findings(text);
        assert!(
            found.iter().any(|line| line.contains(expected)),
            "{text}\n{expected}\n{found:#?}"
        );
    }
}

#[test]
fn each_fault_of_a_rule_is_found() {
    for (rule, expected) in [
        (
            "[[workload.allow]]\nhost = 'a.com'\nport = 53",
            "p:5:8: error: port 53 is for names",
        ),
        ("[[workload.allow]]", "an allow rule needs `host`"),
        (
            "[[workload.allow]]\nhost='https://a.b/x'",
            "(a host is a name alone: host = \"a.b\"; paths go into `paths`)",
        ),
        (
            "[[workload.allow]]\nhost='a.b:8443'",
            "(write it as host = \"a.b\" and port = 8443)",
        ),
        (
            "[[workload.allow]]\nhost='10.0.0.1'",
            "(for addresses use [[workload.direct]] with `cidr` and `port`)",
        ),
        (
            "[[workload.allow]]\nhost='api*.b.c'",
            "(a star stands for the first label alone: *.example.com)",
        ),
        (
            "[[workload.allow]]\nhost='*.com'",
            "every name of a whole top-level domain",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nport=0",
            "`port` must be between 1 and 65535",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nport='x'",
            "`port` must be an integer, not a string",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\npath='/x'",
            "did you mean `paths`?",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\npaths='v1'",
            "(did you mean \"/v1\"?)",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\npaths='/a%2e'",
            "(write it as \"/a.\")",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\npaths='/a?b=c'",
            "(use `query = { key = \"value\" }`)",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\npaths=[]",
            "`paths` is an empty list",
        ),
        ("[[workload.allow]]\nhost='a.b'\nmethods='get'", "(write \"GET\")"),
        (
            "[[workload.allow]]\nhost='a.b'\nmethods='GETT'",
            "(did you mean \"GET\"?)",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nmethods='CONNECT'",
            "CONNECT is never passed on",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nscheme='ftp'",
            "`scheme` is \"https\" or \"http\"",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nheaders={'a b'='x'}",
            "\"a b\" is no header name",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nheaders={x=1}",
            "`x` must be a string or a list of strings",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\nclient_auth='keep'",
            "`client_auth` is \"strip\" or \"pass\"",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\ncredential='s'",
            "no credential `s` is defined",
        ),
        (
            "[[workload.allow]]\nhost='a.b'\npaths='/'\nmethods='POST'",
            "warning: this rule allows `POST /`",
        ),
        ("[[workload.deny]]", "this deny names nothing"),
        (
            "[[workload.deny]]\nhost='a.b'\ncredential='s'",
            "a deny lets nothing out",
        ),
        (
            "[[workload.tunnel]]\nhost='a.b'\ncredential='s'",
            "a tunnel is passed unread",
        ),
        (
            "[[workload.tunnel]]\nhost='a.b'\n[[workload.allow]]\nhost='*.b'\n",
            "whole top-level domain",
        ),
        (
            "[[workload.tunnel]]\nhost='a.b.c'\n[[workload.allow]]\nhost='*.b.c'\n",
            "can't be passed unread",
        ),
        (
            "[[workload.direct]]\ncidr='10.0.5.1/24'\nport=5432",
            "(did you mean \"10.0.5.0/24\"?)",
        ),
        (
            "[[workload.direct]]\ncidr='10.0.5.0/24'",
            "a direct rule needs `port`",
        ),
        (
            "[[workload.direct]]\ncidr='10.0.5.0/24'\nport=443",
            "add `force = true`",
        ),
        (
            "[[workload.direct]]\nhost='a'\nport=1",
            "which knows addresses only",
        ),
        (
            "[[workload.allow]]\nname='x'\nhost='a.b'\n[[workload.deny]]\nname='x'\nhost='a.b'",
            "are named `x`",
        ),
    ] {
        let found = findings(&format!("{HEAD}{rule}"));
        assert!(
            found.iter().any(|line| line.contains(expected)),
            "{rule}\n{expected}\n{found:#?}"
        );
    }
}

#[test]
fn each_fault_of_a_condition_or_credential_is_found() {
    let credential = "[credential.s]\nhosts='a.b'\nscheme='bearer'\nsource={file='/s'}\n";
    for (text, expected) in [
        (
            format!("{HEAD}units='billing'"),
            "(did you mean \"billing.service\"?)",
        ),
        (
            format!("{HEAD}units='billing.servce'"),
            "(did you mean \"billing.service\"?)",
        ),
        (format!("{HEAD}units='a/b.service'"), "is no unit name"),
        (format!("{HEAD}exe='bin/x'"), "`exe` is no absolute, plain path"),
        (
            format!("{HEAD}exe='/bin/../x'"),
            "`exe` is no absolute, plain path",
        ),
        (format!("{HEAD}exe_sha256='ab'"), "64 hexadecimal digits"),
        (format!("{HEAD}user=-1"), "-1 is no user or group id"),
        (format!("{HEAD}exec_by={{user='x'}}"), "(did you mean `users`?)"),
        (
            format!("{HEAD}mode='obs'"),
            "`mode` is \"enforce\" or \"observe\"",
        ),
        (
            format!("{HEAD}mode='observe'"),
            "warning: the workload `w` only observes",
        ),
        (
            format!("{HEAD}{HEAD}"),
            "p:4:9: error: the workload `w` is defined twice",
        ),
        (
            credential.replace("'a.b'", "'*.b'"),
            "a credential's hosts have no wildcards",
        ),
        (credential.replace("'a.b'", "'https://a.b/'"), "(write \"a.b\")"),
        (credential.replace("'a.b'", "'a.b:x'"), "no valid port"),
        (
            credential.replace("bearer", "baerer"),
            "(did you mean \"bearer\"?)",
        ),
        (
            credential.replace("'bearer'", "'basic'"),
            "a credential needs `username`",
        ),
        (
            credential.replace("'bearer'", "'header'\nname='Host'"),
            "a credential can't go into `host`",
        ),
        (
            credential.replace("{file='/s'}", "{}"),
            "exactly one of `file`, `systemd`, `exec`",
        ),
        (
            credential.replace("{file='/s'}", "{file='/s', exec='/x'}"),
            "exactly one of",
        ),
        (
            credential.replace("{file='/s'}", "{file='s'}"),
            "\"s\" is no absolute path",
        ),
        (format!("{credential}token='x'"), "a policy holds no secrets"),
        (
            format!("{credential}{HEAD}[[workload.allow]]\nhost='c.d'\ncredential='s'"),
            "the credential `s` may not be sent to c.d:443",
        ),
        (
            format!("{credential}{HEAD}[[workload.allow]]\nhost='*.a.b'\ncredential='s'"),
            "every name that *.a.b stands for",
        ),
        (
            format!(
                "{}{HEAD}[[workload.allow]]\nhost='a.b'\npaths='/v2/x'\ncredential='s'",
                credential.replace("'a.b'", "'a.b/v1/'")
            ),
            "may not be sent to a.b:443/v2/x",
        ),
        (
            format!(
                "{credential}{HEAD}[[workload.allow]]\nhost='a.b'\ncredential='s'\n[[workload.direct]]\ncidr='10.0.0.0/8'\nport=443\nforce=true"
            ),
            "warning: the direct rule for 10.0.0.0/8 port 443 goes past",
        ),
    ] {
        let found = findings(&text);
        assert!(
            found.iter().any(|line| line.contains(expected)),
            "{text}\n{expected}\n{found:#?}"
        );
    }
}

#[test]
fn two_allows_that_tie_with_different_credentials_are_refused() {
    let with = |one: &str, two: &str| {
        findings(&format!(
            "{HEAD}[[workload.allow]]\nname='one'\nhost='a.b'\ncredential='s'\n{one}\n\
             [[workload.allow]]\nname='two'\nhost='a.b'\ncredential='t'\n{two}\n\
             [credential.s]\nhosts='a.b'\nscheme='bearer'\nsource={{file='/s'}}\n\
             [credential.t]\nhosts='a.b'\nscheme='bearer'\nsource={{file='/t'}}\n"
        ))
    };
    for (one, two) in [
        ("", ""),
        ("paths='/a/{x}'", "paths=['/b', '/a/{y}']"),
        ("methods=['GET','PUT']", "methods=['PUT']"),
        ("headers={x='1*'}", "headers={x='2'}"),
        ("headers={x='1'}", "headers={y='2'}"),
        ("exe='/a'", "user='x'"),
    ] {
        let found = with(one, two);
        assert!(
            found
                .iter()
                .any(|line| line.contains("name different credentials")),
            "{one} {two} {found:#?}"
        );
    }
    for (one, two) in [
        ("paths='/a/{x}'", "paths='/a/b'"),
        ("paths='/a/{x}'", "paths='/{x}/b'"),
        ("methods='GET'", "methods='PUT'"),
        ("headers={x='1'}", "headers={x=['2', '3']}"),
        ("query={x='1'}", "query={x='2'}"),
        ("exe='/a'", "exe='/b'"),
        ("port=443", "port=443\npaths='/x'"),
    ] {
        assert_eq!(with(one, two), [""; 0], "{one} {two}");
    }
}

#[test]
fn faults_of_all_files_come_at_once() {
    let sources = [
        Source::new("a.toml", "[[workload]]\nname = 'w'\nunits = 'x'\nmode = 3\n"),
        Source::new("b.toml", "this is not toml"),
        Source::new(
            "c.toml",
            "[[workload]]\nname = 'w'\n[[workload.allow]]\nhost = ''\n",
        ),
        Source::new("d.toml", &"#".repeat(parse::MAX_FILE + 1)),
    ];
    let found = Policy::compile(&sources).unwrap_err();
    let places: Vec<(&str, usize)> = found.iter().map(|f| (&*f.file, f.line)).collect();
    assert_eq!(
        places,
        [
            ("a.toml", 3),
            ("a.toml", 4),
            ("b.toml", 1),
            ("c.toml", 2),
            ("c.toml", 4),
            ("d.toml", 1)
        ]
    );
}

#[test]
fn odd_toml_is_refused_without_a_panic() {
    for text in [
        "a.b = 1\n[[a]]\nx = 1\n",
        "workload.x = 1\n[[workload]]\nname = 'w'\n",
        "[[workload]]\nallow.x = 1\n[[workload.allow]]\nhost = 'a.b'\n",
        "[a]\nb.c = 1\n[[a.b]]\nd = 1\n",
        "[[workload]]\n[workload.allow]\nhost = 1\n[[workload.allow]]\n",
        "x = 1979-05-27",
        "x = \"abc",
        "\u{feff}x = 1",
        &"[".repeat(100_000),
        &format!("x = {}", "[".repeat(100_000)),
    ] {
        assert!(
            Policy::compile(&[Source::new("p", text)]).is_err(),
            "{:.60}",
            text
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_finding_beside_the_others() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), "x = 1").unwrap();
    std::fs::write(dir.path().join("b.toml"), b"ok = 1\nbad = '\xff'").unwrap();
    std::fs::write(dir.path().join("c.toml"), vec![b'#'; 10 * 1024 * 1024]).unwrap();
    std::fs::create_dir(dir.path().join("d.toml")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("e.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::fs::write(dir.path().join(".hidden.toml"), "x = 1").unwrap();
    std::fs::write(dir.path().join("notes.txt"), "x = 1").unwrap();
    let found = store::load_dir(dir.path()).policy.unwrap_err();
    let lines: String = found.iter().map(|f| format!("{f}\n")).collect();
    for expected in [
        "a.toml:1:1: error: unknown key `x`",
        "b.toml:2:8: error: the file is not UTF-8: byte 14 is wrong",
        "c.toml:1:1: error: the file is larger than 4 MiB",
        "d.toml:1:1: error: the file can't be read: not a regular file",
        "e.toml:1:1: error: the file can't be read: not a regular file",
    ] {
        assert!(lines.contains(expected), "{expected}\n{lines}");
    }
    assert_eq!(found.len(), 5);
    assert!(store::load_dir(&dir.path().join("none")).policy.is_err());
}

#[test]
fn the_shipped_example_is_good_and_says_nothing_to_look_at() {
    let policy = policy(include_str!("../../../dist/policy.example.toml"));
    assert_eq!(policy.warnings(), []);
    assert_eq!((policy.workloads().len(), policy.credentials().len()), (2, 2));
}
