//! Address translation in a container's own network: where the kernel programs turn a call round, it leads nowhere else.

use anyhow::Result;
use harness::audit::matching;
use harness::{assert_record, require, wait};

use super::{PATIENT, arrived, direct, host, is_served, managed};
use crate::identity::API;
use crate::netns::{IN_VAIN, TRANSLATE};

#[test]
fn what_is_translated_in_a_containers_network_does_not_get_past_the_agent() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    let bed = host()?;
    bed.run(managed(&["--detach", "--name=long"], "sleep 600", &[]))?
        .ok()?;
    let inside = |script: &str, args: &[&str]| {
        let exec = ["podman", "exec", "long", "sh", "-c", script, "sh"];
        bed.run(exec.iter().chain(args))
    };
    is_served(&inside(PATIENT, &[&format!("https://{API}/before")])?);
    let pid = bed
        .run(["podman", "inspect", "--format={{.State.Pid}}", "long"])?
        .ok()?;
    let enter = ["nsenter", &format!("--net=/proc/{}/ns/net", pid.trim())];
    let in_its_network = |args: &[&str]| bed.run(enter.iter().chain(args))?.ok();
    in_its_network(&["sh", "-ec", TRANSLATE])?;

    // Without a workload it leads out: what is held below is held by nothing else.
    let to_loopback = format!("{API}:443:127.0.0.1");
    let url = format!("https://{API}/by-nobody");
    in_its_network(&["curl", "-sSk", "-m", "5", "--resolve", &to_loopback, &url])?;
    assert_eq!(arrived(&bed, API)?, ["/before", "/by-nobody"]);

    let [option, at, url] = direct(&bed, API, "/translated")?;
    for at in [&at, &to_loopback] {
        let reply = inside(IN_VAIN, &[&option, at, &url])?;
        assert_eq!(reply.code(), Some(9), "{at}: {reply:?}");
    }
    wait::until("a record of what was dropped", wait::PATIENCE, || {
        let records = bed.records().ok()?;
        let expected = [("reason", "egress".into()), ("workload", "billing".into())];
        (!matching(&records, &expected).is_empty()).then_some(())
    })?;
    in_its_network(&["iptables", "-t", "nat", "-F"])?;
    is_served(&inside(PATIENT, &[&format!("https://{API}/after")])?);
    assert_record!(bed, "path" = "/after", "workload" = "billing");
    assert_eq!(arrived(&bed, API)?, ["/before", "/by-nobody", "/after"]);
    Ok(())
}
