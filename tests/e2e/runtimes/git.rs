//! git against its own HTTP backend: a large repository goes up and comes down, on a credential that git does not have.

use anyhow::Result;
use harness::{Scripted, require};

use super::*;

pub(super) const HOST: &str = "git.example.test";
pub(super) const SERVER: &str = include_str!("git.py");

/// The rows that this file runs.
pub(super) const ROWS: &[&str] = &["git"];

/// Pushes 24 MiB that don't compress, from one of git's large buffers on in chunks.
const PUSH: &str = r#"
set -e
mkdir "$HOME/WAY"
cd "$HOME/WAY"
git init -q -b main pushed
cd pushed
git config user.name test
git config user.email test@example.test
for n in 1 2 3 4 5 6; do head -c 4194304 /dev/urandom > "large$n"; done
for n in $(seq 400); do echo "$n" > "small$n"; done
git add .
git commit -qm everything
git push -q https://git.example.test/large.git main:WAY
"#;

/// Clones them again, without what was pushed in other ways.
const CLONE: &str = r#"
set -e
cd "$HOME/WAY"
git clone -q --single-branch -b WAY https://git.example.test/large.git cloned
[ "$(git -C pushed rev-parse HEAD)" = "$(git -C cloned rev-parse HEAD)" ]
git -C cloned fsck --strict --no-progress
git -C cloned fetch -q
echo all is there
"#;

#[test]
fn git_pushes_and_clones_a_large_repository() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let mut server: Option<Scripted> = None;
    let host = Host::new(&[HOST], "", |world| {
        server = Some(world.scripted_by(SERVER, HOST, Some(HOST))?);
        Ok(())
    })?;
    for way in WAYS {
        let branch = format!("{way:?}");
        host.run(*way, &PUSH.replace("WAY", &branch))?.ok()?;
        let told = host.run(*way, &CLONE.replace("WAY", &branch))?.ok()?;
        assert!(told.contains("all is there"), "{told}");
    }
    promises(ROWS, "yes")?;
    let server = server.context("it was started")?;
    let arrived = server.arrived()?;
    let whole = |bytes: u64| bytes > 24 << 20;
    let pushed = arrived.iter().filter(|one| whole(one.body));
    assert_eq!(pushed.count(), WAYS.len(), "{arrived:?}");
    for one in &arrived {
        assert_eq!(one.fields("authorization"), [format!("Bearer {TOKEN}")]);
    }
    let records = wait::until("a record of each call", wait::PATIENCE, || {
        let mut records = host.0.records().ok()?;
        records.retain(|one| one.text("authority") == format!("{HOST}:443"));
        (records.len() >= arrived.len()).then_some(records)
    })?;
    assert_eq!(records.len(), arrived.len(), "{records:?}");
    called_by(&records, WAYS, None)?;
    for record in &records {
        let outcome = ["outcome", "status", "credential.name"].map(|name| record.text(name));
        assert_eq!(outcome, ["completed", "200", "api"], "{record:?}");
    }
    for direction in ["bytes_up", "bytes_down"] {
        let large = records
            .iter()
            .filter(|one| one.field(direction).as_u64().is_some_and(whole));
        assert_eq!(large.count(), WAYS.len(), "{direction}: {records:?}");
    }
    Ok(())
}
