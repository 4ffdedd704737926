//! What SECURITY.md says of `exe` rules: they take the kernel's word for what a process runs. One that may make a user
//! namespace, as a unit's may, can change that word for itself; a command of `callgate exec` can't. Its workload no
//! process changes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use harness::{Upstream, World, assert_record, require};

const HOST: &str = "plain.example.test";
const PROBE: &str = env!("CARGO_BIN_EXE_probe");

fn rule(workload: &str, exe: &Path) -> String {
    format!(
        "[[workload]]\nname = \"{workload}\"\n[[workload.allow]]\nhost = {HOST:?}\nscheme = \"http\"\nprivate = true\nexe = {exe:?}\n"
    )
}

#[test]
fn a_process_in_a_user_namespace_of_its_own_passes_for_another_program_but_not_under_exec() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(HOST).plain())?;
    let file = world.dir().join("allowed");
    fs::copy("/bin/true", &file).context("can't copy /bin/true")?;
    let policy = rule("billing", &file) + &rule("other", Path::new("/usr/bin/none"));
    world.policy("disguise.toml", &policy)?;
    world.start_agent()?;
    let allowed = file.to_str().context("a path that is not UTF-8")?;
    // As a unit's process: in the cgroup, without what `exec` adds.
    let within = |workload: &str, arguments: &[&str]| -> Result<String> {
        let cgroup = world
            .cgroup()
            .join(format!("workloads/callgate-{workload}.slice"));
        let cgroup = cgroup.to_str().context("a path that is not UTF-8")?;
        let call = [PROBE, cgroup, "disguised", HOST];
        world.unmanaged()?.run(call.iter().chain(arguments))?.ok()
    };
    let itself = within("billing", &["/itself"])?;
    assert_eq!(itself.trim(), format!("ok 403 {PROBE}"));
    let passed = within("billing", &["/disguised", allowed])?;
    assert_eq!(passed.trim(), format!("ok 200 {allowed}"));
    assert_record!(
        world,
        "path" = "/disguised",
        "workload" = "billing",
        "exe.path" = allowed,
        "status" = 200
    );
    let elsewhere = within("other", &["/elsewhere", allowed])?;
    assert_eq!(elsewhere.trim(), format!("ok 403 {allowed}"));
    let call = [PROBE, "-", "disguised", HOST, "/exec", allowed];
    let refused = world.workload("billing")?.run(call)?.ok()?;
    assert_eq!(refused.trim(), format!("err {}", libc::EPERM));
    Ok(())
}
