//! What explain prints and how it exits.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ExplainArgs,
}

/// Runs explain on the shipped example; gives the exit code, what was printed and the errors.
fn explained(words: &[&str]) -> (ExitCode, String, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("a.toml"),
        include_str!("../../../dist/policy.example.toml"),
    )
    .unwrap();
    std::fs::write(dir.path().join("callgate.conf"), "").unwrap();
    let config = dir.path().join("callgate.conf");
    let all = [
        "explain",
        "--policy-dir",
        dir.path().to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
    ];
    let cli = Cli::parse_from(all.iter().chain(words));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(&cli.args, &mut out, &mut err).unwrap();
    (
        code,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

const BILLING: [&str; 4] = ["--workload", "billing", "--unit", "billing.service"];

#[test]
fn allowed_refused_and_wrong_input_exit_with_0_1_and_2() {
    for (words, code, printed) in [
        (
            ["POST", "https://api.stripe.com/v1/charges"],
            0,
            "credential  stripe",
        ),
        (
            ["GET", "api.stripe.com/v1/charges?x=1"],
            0,
            "rule        charges  (",
        ),
        (["GET", "https://pinned.example.com/"], 0, "passed through unread"),
        (
            ["POST", "https://api.stripe.com/v1/charges/1/refund"],
            1,
            "reason      deny_rule",
        ),
        (
            ["GET", "https://api.stripe.com/v1/charges/../x"],
            1,
            "ambiguous_path: the path has a '.' or '..' segment",
        ),
        (["GET", "https://evil.net"], 1, "host_not_allowed"),
    ] {
        let (exit, out, _) = explained(&[&BILLING[..], &words].concat());
        assert_eq!(exit, ExitCode::from(code), "{words:?} {out}");
        assert!(out.contains(printed), "{words:?} {out}");
    }
    for (words, printed) in [
        (
            &["-w", "biling", "GET", "https://a.b"][..],
            "did you mean \"billing\"?",
        ),
        (&["-w", "billing", "GET", "ftp://a.b"], "the scheme is \"ftp\""),
        (&["-w", "billing", "GET", "https://1.2.3.4/"], "IP address"),
        (
            &["-w", "billing", "GET", "https://a.b", "-H", "x"],
            "write KEY:VALUE",
        ),
    ] {
        let (exit, _, err) = explained(words);
        assert_eq!(exit, ExitCode::from(2), "{words:?}");
        assert!(err.contains(printed), "{words:?} {err}");
    }
}

#[test]
fn the_query_is_explained_as_it_is_sent() {
    for (url, query) in [
        ("https://a.b/c?_method=DELETE&x=1", "x=1"),
        ("https://a.b/c?x=%31&;", "x=%31&;"),
    ] {
        let cli = Cli::parse_from(["explain", "-w", "billing", "POST", url]);
        assert_eq!(describe(&cli.args).unwrap().query, query);
    }
}

#[test]
fn unknown_facts_are_named() {
    let (exit, out, _) = explained(&["-w", "billing", "GET", "https://api.stripe.com/v1/charges"]);
    assert_eq!(exit, ExitCode::from(1));
    assert!(
        out.contains("the workload asks for `units`, which is unknown here"),
        "{out}"
    );
}

#[test]
fn json_says_the_same() {
    let words = ["--json", "-w", "assistant", "--exe", "/usr/bin/curl", "GET"];
    let url = "https://api.github.com/repos/a/b/issues?state=open";
    let (exit, out, _) = explained(&[&words[..], &[url]].concat());
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(exit, ExitCode::SUCCESS);
    assert_eq!(document["decision"], "allow");
    assert_eq!(document["credential"], "github");
    assert_eq!(document["considered"][0]["matched"], true);
}
