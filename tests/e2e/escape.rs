//! A command that `callgate exec` runs, root or not, can't leave its workload, take another's rights, or undo
//! what holds it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result};
use harness::{Output, Upstream, World, require};

use crate::identity::{API, NOBODY, status, workload};

/// By system calls.
mod calls;
/// By files.
mod files;
/// By programs outside that act for others.
mod services;

const TOKEN: &str = "tok_escape_1";

/// `rich` may call the API, `poor` may call nothing there.
fn start() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer(TOKEN, "acme"))?;
    let file = world.secret("token", TOKEN)?;
    let policy = workload("rich", "", "credential = \"token\"")
        + &workload(
            "poor",
            &format!("exec_by = {{ users = [{NOBODY}] }}"),
            "paths = [\"/none\"]",
        )
        + &format!(
            "[credential.token]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
        );
    world.policy("escape.toml", &policy)?;
    world.start_agent()?;
    Ok(world)
}

/// Runs a script in `poor`, as root and as an ordinary user.
fn poor(world: &World, script: &str) -> Result<[Output; 2]> {
    let client = world.workload("poor")?;
    Ok([
        client.clone().run(["sh", "-c", script])?,
        client.user(NOBODY).run(["sh", "-c", script])?,
    ])
}

fn mount(world: &World) -> Result<String> {
    let mount = world.cgroup().parent().context("a cgroup without a mount")?;
    Ok(mount.to_str().context("a path that is not UTF-8")?.to_owned())
}

#[test]
fn a_command_can_not_move_to_another_cgroup() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mount = mount(&world)?;
    let parent = world.workload_parent();
    for target in [
        format!("{mount}{parent}/callgate-rich.slice"),
        mount.clone(),
        format!("/proc/{}/root{mount}", world.agent()?.pid()),
    ] {
        let script = format!(
            "before=$(sed -n s/^0:://p /proc/self/cgroup); echo 0 >{target}/cgroup.procs && exit 9
            mkdir {target}/mine && exit 8; test \"$before\" = \"$(sed -n s/^0:://p /proc/self/cgroup)\" || exit 7
            exec curl -sS -o /dev/null -w '%{{http_code}}\\n' https://{API}/v1"
        );
        for reply in poor(&world, &script)? {
            assert_eq!(
                (reply.code(), status(&reply)),
                (Some(0), 403),
                "{target}: {reply:?}"
            );
        }
    }
    let arrived = world.server(API)?.log()?;
    assert!(arrived.is_empty(), "{arrived:?}");
    // The other workload itself still has its rights.
    let url = format!("https://{API}/v1");
    let reply =
        world
            .workload("rich")?
            .run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", &url])?;
    assert_eq!(status(&reply), 200, "{reply:?}");
    Ok(())
}

#[test]
fn a_command_can_not_have_a_child_made_in_another_cgroup() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mount = mount(&world)?;
    let parent = world.workload_parent();
    let client = world.workload("poor")?;
    for target in [format!("{mount}{parent}/callgate-rich.slice"), mount.clone()] {
        for client in [client.clone(), client.clone().user(NOBODY)] {
            let program = [
                "/usr/bin/python3",
                "-c",
                include_str!("escape/into_cgroup.py"),
                &target,
            ];
            let told = client.run(program)?;
            assert_eq!(
                (told.code(), told.stdout.as_str()),
                (Some(1), ""),
                "{target}: {told:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_command_can_not_mount_or_enter_namespaces() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let (mount, dir) = (mount(&world)?, world.dir().display());
    for attempt in [
        format!("mount -t cgroup2 none {dir}"),
        format!("mount -o remount,rw {mount}"),
        format!("umount {mount}"),
        "unshare -Urm mount -t cgroup2 none /tmp".to_owned(),
        "unshare -UrmC mount -t cgroup2 none /tmp".to_owned(),
        "nsenter -t 1 -m true".to_owned(),
        format!("nsenter -t {} -n true", world.agent()?.pid()),
    ] {
        for reply in poor(&world, &format!("{attempt} 2>&1"))? {
            assert!(reply.code() != Some(0), "{attempt}: {reply:?}");
            assert!(!reply.stdout.contains("not found"), "{attempt}: {reply:?}");
        }
    }
    Ok(())
}

#[test]
fn a_command_can_not_undo_the_kernel_programs() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let pins = world.dir().join("bpf/links");
    let slice = world.cgroup().join("workloads/callgate-poor.slice");
    let link = pins.join(format!("cgroup-{}/cg_connect4", fs::metadata(&slice)?.ino()));
    assert!(link.exists(), "{}", link.display());
    let bpf = "import ctypes, sys\nl = ctypes.CDLL(None, use_errno=True)\nl.syscall(321, 0, 0, 0)\nsys.exit(ctypes.get_errno())";
    for attempt in [
        format!("rm {}", link.display()),
        format!("rm -r {}", pins.display()),
        "echo x >/proc/sys/kernel/core_pattern".to_owned(),
    ] {
        for reply in poor(&world, &attempt)? {
            assert!(reply.code() != Some(0), "{attempt}: {reply:?}");
        }
    }
    for reply in poor(&world, &format!("/usr/bin/python3 -c '{bpf}'"))? {
        assert_eq!(reply.code(), Some(1), "bpf() is not EPERM: {reply:?}");
    }
    assert!(link.exists());
    let shown = world.agent()?.command("status", &["--json"])?.ok()?;
    assert!(
        shown.contains("\"perimeter_intact\":true") || shown.contains("\"perimeter_intact\": true"),
        "{shown}"
    );
    Ok(())
}

#[test]
fn a_command_can_not_look_into_others_or_read_secrets() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    // An unmanaged process without any right, of either user: nothing but the domain keeps others from it.
    let sleeping = ["setpriv", "--bounding-set=-all", "sleep", "60"];
    let mut others = [
        world.unmanaged()?.command(sleeping).spawn()?,
        world.unmanaged()?.user(NOBODY).command(sleeping).spawn()?,
    ];
    let dir = world.dir().display();
    for other in &others {
        let pid = other.id();
        // Outside, its user can.
        let seen = world.unmanaged()?.run(["ls", &format!("/proc/{pid}/root")])?;
        assert_eq!(seen.code(), Some(0), "{seen:?}");
        for attempt in [format!("ls /proc/{pid}/root"), format!("cat /proc/{pid}/environ")] {
            for reply in poor(&world, &attempt)? {
                assert!(reply.code() != Some(0), "{attempt}: {reply:?}");
            }
        }
    }
    for other in &mut others {
        other.kill()?;
        other.wait()?;
    }
    for secret in [
        format!("{dir}/secrets/token"),
        format!("{dir}/state/ca.pem"),
        format!("{dir}/audit/calls.jsonl"),
    ] {
        assert!(
            fs::metadata(&secret)?.len() > 0 || secret.ends_with("jsonl"),
            "{secret}"
        );
        for reply in poor(&world, &format!("cat {secret}"))? {
            assert!(reply.stdout.is_empty(), "{secret}: {reply:?}");
        }
    }
    for reply in poor(
        &world,
        &format!("echo >>{dir}/policy.d/escape.toml || echo >{dir}/policy.d/new.toml"),
    )? {
        assert!(reply.code() != Some(0), "{reply:?}");
    }
    Ok(())
}
