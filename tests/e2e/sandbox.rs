//! What the other tests stand on: a sandbox that is one, an upstream that tells callers apart, and no remains.

use std::fs;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use harness::{Upstream, World, launch, require, wait};

const API: &str = "api.example.test";

#[test]
fn an_unmanaged_client_reaches_the_upstream_and_is_told_401() -> Result<()> {
    require!(Root, CgroupV2);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("right", "acme"))?;
    let url = format!("https://{API}/v1/charges");
    let bare = world
        .unmanaged()?
        .run(["curl", "-sS", "-w", "%{http_code}", &url])?;
    assert!(bare.clone().ok()?.ends_with("401"), "{bare:?}");
    let known = world
        .unmanaged()?
        .run(["curl", "-sS", "-H", "Authorization: Bearer right", &url])?;
    assert!(known.clone().ok()?.contains(r#""account":"acme""#), "{known:?}");
    let log = wait::until("two lines in the access log", wait::PATIENCE, || {
        world.server(API).ok()?.log().ok().filter(|log| log.len() == 2)
    })?;
    assert_eq!((log[0].status, log[1].status), (401, 200));
    assert_eq!(log[1].authorization, "Bearer right");
    assert_eq!(log[0].protocol, "HTTP/2.0");
    Ok(())
}

#[test]
fn both_families_and_plain_http_reach_the_upstream() -> Result<()> {
    require!(Root, CgroupV2);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).plain())?;
    for family in ["-4", "-6"] {
        let reply = world
            .unmanaged()?
            .run(["curl", "-sS", family, &format!("http://{API}/x")])?;
        assert!(reply.clone().ok()?.contains(r#""path":"/x""#), "{reply:?}");
    }
    Ok(())
}

#[test]
fn there_is_no_way_out_of_the_sandbox() -> Result<()> {
    require!(Root, CgroupV2);
    let _world = World::new()?;
    let elsewhere: SocketAddr = "198.51.100.1:443".parse()?;
    assert!(TcpStream::connect_timeout(&elsewhere, Duration::from_secs(1)).is_err());
    assert!(UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", elsewhere).is_err());
    Ok(())
}

#[test]
fn a_client_runs_in_its_cgroup_as_its_user() -> Result<()> {
    require!(Root, CgroupV2);
    let world = World::new()?;
    let reply = world
        .unmanaged()?
        .user(65534)
        .run(["sh", "-c", "cat /proc/self/cgroup; id -u"])?
        .ok()?;
    let cgroup = reply.lines().find_map(|line| line.strip_prefix("0::"));
    assert_eq!(
        cgroup,
        Some(world.workload_parent().replace("/workloads", "/clients").as_str())
    );
    assert!(reply.ends_with("65534\n"), "{reply}");
    Ok(())
}

#[test]
fn dropping_a_world_ends_its_processes_and_leaves_nothing() -> Result<()> {
    require!(Root, CgroupV2);
    let home = fs::read_link("/proc/thread-self/ns/net")?;
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let mut running = world.unmanaged()?.command(["sleep", "600"]).spawn()?;
    let (dir, cgroup) = (world.dir().to_owned(), world.cgroup().to_owned());
    assert!(dir.exists() && cgroup.exists());
    drop(world);
    assert!(!launch::wait_for(&mut running, wait::PATIENCE)?.success());
    assert!(!dir.exists() && !cgroup.exists());
    assert_eq!(fs::read_link("/proc/thread-self/ns/net")?, home);
    assert!(!fs::read_to_string("/proc/thread-self/mountinfo")?.contains("callgate-"));
    Ok(())
}
