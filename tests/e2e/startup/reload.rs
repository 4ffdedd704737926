//! A reload that is refused changes nothing and is told everywhere; one whose credential is broken is taken, and
//! says so.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result};
use harness::{assert_record, require};

use super::{BAD_POLICY, OVERLAP, POLICY_FAULTS, assert_says, large};
use crate::audit::{agent_status, call, start};
use crate::identity::{API, workload};

const NO: Option<i32> = Some(1);

#[test]
fn a_refused_reload_keeps_the_policy_and_is_told_until_one_is_taken() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let bad = world.dir().join("policy.d/bad.toml");
    let faults: Vec<&str> = POLICY_FAULTS.iter().flat_map(|(at, what)| [*at, *what]).collect();
    let cases: [(&str, Vec<u8>, Vec<&str>); 4] = [
        ("many faults", BAD_POLICY.into(), faults),
        (
            "no text",
            b"a = \"\xff\"".to_vec(),
            vec!["bad.toml:1:6", "not UTF-8"],
        ),
        ("too large", large(), vec!["bad.toml:1:1", "larger than 4 MiB"]),
        (
            "overlap",
            OVERLAP.into(),
            vec!["bad.toml:10:17", "different credentials"],
        ),
    ];
    for (what, content, words) in cases {
        fs::write(&bad, content)?;
        let before = world.agent()?.log().len();
        let reload = world.callgate("reload", &[])?;
        assert_says(&reload, NO, &words);
        assert_says(
            &reload,
            NO,
            &["the last good policy (generation 1) stays in force"],
        );
        let log = world.agent()?.log();
        let told = log.get(before..).context("the log shrank")?;
        assert!(
            told.contains("ERROR") && told.contains(words[0]),
            "{what}: {told}"
        );
        let status = world.callgate("status", &[])?;
        assert_says(
            &status,
            NO,
            &["reload      REFUSED", words[0], "policy      generation 1"],
        );
        let (_, document) = agent_status(&world)?;
        let error = document["reload_error"].as_str().unwrap_or_default();
        assert!(error.contains(words[0]), "{what}: {document}");
        let path = format!("/{}", what.replace(' ', "-"));
        assert_eq!(call(&world, &path)?, 200);
        assert_record!(world, "path" = path.as_str(), "policy.generation" = 1);
    }
    fs::remove_file(&bad)?;
    let (policies, elsewhere) = (world.dir().join("policy.d"), world.dir().join("elsewhere"));
    fs::rename(&policies, &elsewhere)?;
    let gone = ["policy.d", "the policy directory can't be read"];
    assert_says(&world.callgate("reload", &[])?, NO, &gone);
    assert_says(&world.callgate("status", &[])?, NO, &gone);
    assert_eq!(call(&world, "/without-directory")?, 200);
    fs::rename(&elsewhere, &policies)?;
    assert_says(
        &world.callgate("reload", &[])?,
        Some(0),
        &["generation 2 in force"],
    );
    assert_says(
        &world.callgate("status", &[])?,
        Some(0),
        &["policy      generation 2"],
    );
    Ok(())
}

#[test]
fn a_credential_broken_at_reload_is_told_and_refuses_its_calls_alone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let secret = world.secret("token", "tok_startup_1")?;
    fs::set_permissions(&secret, Permissions::from_mode(0o644))?;
    let with_token = workload("billing", "", "paths = [\"/with\"]\n  credential = \"token\"")
        + &format!(
            "\n  [[workload.allow]]\n  host = \"{API}\"\n  private = true\n  paths = [\"/without\"]\n"
        )
        + &format!(
            "[credential.token]\nhosts = [\"{API}\"]\nscheme = \"bearer\"\nsource = {{ file = {secret:?} }}\n"
        );
    world.policy("audit.toml", &with_token)?;
    let words = ["credential `token` has no value", "mode 0644", "chmod 0600"];
    assert_says(&world.callgate("check", &[])?, Some(2), &words);
    assert_says(
        &world.callgate("check", &[])?,
        Some(2),
        &["audit.toml:", "source = { file"],
    );
    let reload = world.callgate("reload", &[])?;
    assert_says(&reload, Some(0), &["generation 2 in force"]);
    assert_says(&reload, Some(0), &words);
    let log = world.agent()?.log();
    assert!(
        log.lines()
            .any(|line| line.contains("WARN") && line.contains("mode 0644")),
        "{log}"
    );
    assert_says(&world.callgate("status", &[])?, NO, &["token", "mode 0644"]);
    assert_eq!(call(&world, "/without")?, 200);
    assert_eq!(call(&world, "/with")?, 503);
    fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    assert_says(
        &world.callgate("reload", &[])?,
        Some(0),
        &["generation 3 in force"],
    );
    crate::audit::call_until(&world, "/with?", 200)?;
    assert_says(&world.callgate("status", &[])?, Some(0), &["ready"]);
    Ok(())
}
