//! Where the agent connects: to an address of the name, and to none that a client makes up; the record says which.

use anyhow::Result;
use harness::{Upstream, World, assert_record, require};

use crate::identity::{API, CODE, status, workload};

/// A world with two upstreams, of which the policy names one, and calls to that one at the address of choice.
fn world() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new("other.example.test"))?;
    // The second call shall find the first one's connection.
    world.settings("threads = 1");
    world.policy("address.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    Ok(world)
}

fn call(world: &World, path: &str, address: &str) -> Result<u16> {
    let resolve = format!("{API}:443:{address}");
    let url = format!("https://{API}{path}");
    let curl = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        CODE,
        "--resolve",
        &resolve,
        &url,
    ];
    Ok(status(&world.workload("billing")?.run(curl)?))
}

#[test]
fn an_address_that_is_not_the_names_is_not_connected_to() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let other = world.server("other.example.test")?;
    let (v4, v6) = (other.v4().ip().to_string(), other.v6().ip().to_string());
    for (path, address) in [("/v4", v4), ("/v6", format!("[{v6}]"))] {
        assert_eq!(call(&world, path, &address)?, 403);
        let record = assert_record!(
            world,
            "path" = path,
            "outcome" = "denied",
            "reason" = "address_not_of_name",
            "status" = 403
        );
        assert!(record.field("upstream").is_null(), "{record:?}");
    }
    let own = world.server(API)?.v4().ip().to_string();
    assert_eq!(call(&world, "/own", &own)?, 200);
    // A kept connection to the right place makes the wrong address no better.
    assert_eq!(call(&world, "/kept", "198.51.100.250")?, 403);
    Ok(())
}

#[test]
fn the_record_names_the_address_that_the_connection_leads_to() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let api = world.server(API)?;
    let upstream = api.v4().to_string();
    assert_eq!(call(&world, "/first", &api.v4().ip().to_string())?, 200);
    assert_eq!(call(&world, "/kept", &format!("[{}]", api.v6().ip()))?, 200);
    let kept = assert_record!(world, "path" = "/kept", "upstream" = upstream);
    assert!(kept.text("original_destination").starts_with('['), "{kept:?}");
    Ok(())
}
