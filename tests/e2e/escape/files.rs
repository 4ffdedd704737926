//! Files of the agent and of other workloads that root owns: a command can't read, change or replace them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use harness::{Upstream, World, require};

use super::{poor, start};
use crate::identity::{API, status, workload};

#[test]
fn a_command_can_not_read_systemd_credentials_of_others() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("tok_unit", "acme"))?;
    let dir = world.dir().join("creds");
    fs::create_dir(&dir)?;
    let secret = dir.join("stripe");
    fs::write(&secret, "tok_unit")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o400))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o500))?;
    world.agent_env("CREDENTIALS_DIRECTORY", &dir.display().to_string());
    let policy = workload("rich", "", "credential = \"token\"")
        + &workload("poor", "", "paths = [\"/none\"]")
        + &format!(
            "[credential.token]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ systemd = \"stripe\" }}\n"
        );
    world.policy("a.toml", &policy)?;
    world.start_agent()?;
    let read = format!(
        "cat {0} || ls {1}/stripe || echo x >>{0}",
        secret.display(),
        dir.display()
    );
    let reply = world.workload("poor")?.run(["sh", "-c", &read])?;
    assert!(reply.code() != Some(0) && reply.stdout.is_empty(), "{reply:?}");
    let url = format!("https://{API}/v1");
    let curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", &url];
    let reply = world.workload("rich")?.run(curl)?;
    assert_eq!(status(&reply), 200, "{reply:?}");
    Ok(())
}

#[test]
fn a_command_can_not_change_or_replace_what_the_agent_reads() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let dir = world.dir().display().to_string();
    let binary = harness::agent::binary()?;
    let listed = |dir: &Path| -> Result<BTreeSet<_>> {
        let names = fs::read_dir(dir)?.map(|entry| entry.map(|one| one.file_name()));
        Ok(names.collect::<Result<_, _>>()?)
    };
    let run = world.dir().join("run");
    let before = (listed(world.dir())?, listed(&run)?);
    let config = fs::read(world.config())?;
    for attempt in [
        format!("echo '# planted' >>{dir}/callgate.toml"),
        format!("echo >{dir}/mine && mv {dir}/mine {dir}/callgate.toml || {{ rm {dir}/mine; exit 1; }}"),
        format!("rm {dir}/callgate.toml"),
        format!("mv {dir} {dir}.old"),
        format!("mv {dir}/policy.d {dir}/old"),
        format!("mv {dir}/state {dir}/old"),
        format!("mv {dir}/secrets {dir}/old"),
        format!("touch {dir}/run/planted"),
        format!("rm -r {dir}/run/*"),
        format!("file=$(ls {dir}/upstream/*.pem) && echo >>$file"),
        format!("echo >>{}", binary.display()),
        format!("mv {0} {0}.old && mv {0}.old {0}", binary.display()),
    ] {
        let [root, _nobody] = poor(&world, &attempt)?;
        assert!(root.code() != Some(0), "{attempt}: {root:?}");
    }
    assert_eq!((listed(world.dir())?, listed(&run)?), before);
    assert_eq!(fs::read(world.config())?, config);
    world.reload()
}
