//! Hosts that mount cgroup v2 in other ways than most, on which the agent works all the same, and kernels that lack
//! something, on which it says what.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result};
use harness::cgroup::mount_point;
use harness::{Upstream, World, assert_record, require, wait};

use crate::audit::call;
use crate::identity::{API, workload};

const LACKING: Option<i32> = Some(3);

fn start() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("layout.toml", &workload("billing", "", ""))?;
    Ok(world)
}

/// The script that takes away what the host has mounted.
fn without_the_hosts_own() -> Result<String> {
    let own = mount_point()?;
    Ok(format!("umount -l {own:?}\n"))
}

/// The agent captures a call in this view of the host, before and after a restart, and lets its workloads go.
fn captures(mut world: World, view: &str) -> Result<()> {
    world.agent_view(view);
    for path in ["/first", "/second"] {
        world.start_agent()?;
        assert_eq!(call(&world, path)?, 200);
        let record = assert_record!(world, "path" = path, "workload" = "billing");
        let cgroup = record.text("cgroup.path");
        let slice = format!("{}/callgate-billing.slice/exec-", world.workload_parent());
        assert!(cgroup.starts_with(&slice), "{cgroup}");
        assert!(record.text("exe.path").ends_with("/curl"), "{record:?}");
        world.stop_agent()?;
    }
    Ok(())
}

#[test]
fn a_hierarchy_mounted_elsewhere_is_found() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let place = world.dir().join("my groups");
    let view = without_the_hosts_own()? + &format!("mkdir -p {place:?}\nmount -t cgroup2 none {place:?}");
    captures(world, &view)
}

#[test]
fn a_hybrid_layout_works() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let view = without_the_hosts_own()?
        + "mount -t tmpfs none /sys/fs/cgroup\ncd /sys/fs/cgroup\nmkdir unified first\n"
        + "mount -t cgroup -o none,name=callgate-test none first\nmount -t cgroup2 none unified\ncd /";
    captures(world, &view)
}

#[test]
fn a_mount_that_another_hides_is_passed_over() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let (seen, hidden, above) = (
        world.dir().join("seen"),
        world.dir().join("hidden"),
        world.dir().join("above"),
    );
    let below = above.join("below");
    let view = without_the_hosts_own()?
        + &format!(
            "mkdir -p {seen:?} {hidden:?} {below:?}\nmount -t cgroup2 none {seen:?}\n\
             mount -t cgroup2 none {hidden:?}\nmount -t tmpfs none {hidden:?}\n\
             mount -t cgroup2 none {below:?}\nmount -t tmpfs none {above:?}"
        );
    captures(world, &view)
}

#[test]
fn a_part_of_the_hierarchy_is_not_taken_for_the_whole() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let (whole, part) = (world.dir().join("whole"), world.dir().join("part"));
    let own = world
        .cgroup()
        .strip_prefix(mount_point()?)
        .context("a cgroup")?
        .to_owned();
    let view = without_the_hosts_own()?
        + &format!(
            "mkdir -p {whole:?} {part:?}\nmount -t cgroup2 none {whole:?}\nmount --bind {:?} {part:?}",
            whole.join(own)
        );
    captures(world, &view)
}

#[test]
fn a_kernel_without_type_information_is_refused_with_the_remedy() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    world.write_config()?;
    world.agent_view("mount -t tmpfs none /sys/kernel/btf");
    for verb in ["run", "doctor"] {
        let refused = world.callgate(verb, &[])?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert_eq!(refused.code(), LACKING, "{verb}: {said}");
        for word in ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"] {
            assert!(said.contains(word), "{verb}: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_kernel_without_a_hook_is_refused_with_the_remedy() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent, Strace);
    let mut world = start()?;
    world.write_config()?;
    for verb in ["run", "doctor"] {
        let config = world.config();
        let binary = harness::agent::binary()?;
        // The kernel's answer to a program type that it does not know, to the first that is asked for.
        let fault = [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=bpf",
            "-e",
            "inject=bpf:error=EINVAL:when=1",
        ];
        let rest = [
            binary.as_os_str(),
            verb.as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
        ];
        let args = fault.iter().map(AsRef::as_ref).chain(rest);
        let refused = world.agent_place()?.run(args)?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert_eq!(refused.code(), LACKING, "{verb}: {said}");
        for word in ["cgroup/sock_create programs", "Linux 6.1 or later"] {
            assert!(said.contains(word), "{verb}: {said}");
        }
    }
    world.agent_view("true");
    world.start_agent()?;
    assert_eq!(call(&world, "/with-it")?, 200);
    Ok(())
}

/// A program under strace(1), to whose first tries of a socket option the kernel answers as where a module is missing.
fn without_policies(binary: &Path, verb: &str, config: &Path) -> Vec<OsString> {
    let fault = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=setsockopt",
        "-e",
        "inject=setsockopt:error=EINVAL:when=1..2",
    ];
    let rest = [
        binary.as_os_str(),
        verb.as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
    ];
    let all = fault.iter().map(AsRef::as_ref).chain(rest);
    all.map(OsStr::to_owned).collect()
}

#[test]
fn a_module_that_is_not_loaded_is_named_by_doctor_and_agent_which_goes_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent, Strace);
    let world = start()?;
    world.write_config()?;
    let (config, binary) = (world.config(), harness::agent::binary()?);
    let has = world.callgate("doctor", &[])?.stdout;
    assert!(has.contains("IPsec policies"), "{has}");
    // Where modprobe(8) is not: it would find the module on most machines.
    let place = world.agent_place()?.with_env("PATH", "/usr/bin:/bin");
    let doctor = place.run(without_policies(&binary, "doctor", &config))?;
    for word in ["the kernel has no module xfrm_user", "CONFIG_XFRM_USER"] {
        assert!(doctor.stdout.contains(word), "{doctor:?}");
    }
    let log = world.dir().join("without-module.log");
    let mut agent = world
        .agent_place()?
        .command(without_policies(&binary, "run", &config))
        .stderr(File::create(&log)?)
        .spawn()
        .context("can't start strace")?;
    let said = wait::until("the agent says what is missing", wait::PATIENCE, || {
        let said = fs::read_to_string(&log).ok()?;
        said.contains("modprobe xfrm_user").then_some(said)
    });
    let served = wait::until("the agent serves", wait::PATIENCE, || {
        (world.callgate("status", &[]).ok()?.code() == Some(0)).then_some(())
    });
    agent.kill().and_then(|()| agent.wait())?;
    served.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    said.map(drop)
}
