//! As installed: with no more rights than its unit gives, the agent can still prove that a connection went past it.

use anyhow::Result;
use harness::{Bed, Upstream, World, assert_record, require, wait};
use serde_json::Value;

use crate::identity::{API, workload};

/// Detaches the programs at connect() of all workloads, over and over for a while: BPF_OBJ_GET, BPF_LINK_DETACH
/// (include/uapi/linux/bpf.h).
const DETACH: &str = r#"
import ctypes, os, pathlib, time
libc = ctypes.CDLL(None, use_errno=True)
bpf = lambda command, attributes: libc.syscall(321, command, attributes, len(attributes))
until, detached = time.monotonic() + 4, 0
while time.monotonic() < until:
    for pin in pathlib.Path("/sys/fs/bpf/callgate/links").rglob("*connect4*"):
        path = ctypes.create_string_buffer(os.fsencode(pin))
        link = bpf(7, ctypes.addressof(path).to_bytes(8, "little") + bytes(8))
        if link >= 0:
            detached += bpf(34, link.to_bytes(4, "little")) == 0
            os.close(link)
    time.sleep(0.005)
print(detached)
"#;

#[test]
fn a_canary_that_gets_past_the_agent_is_told_as_that_under_the_installed_unit() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let bed = Bed::installed(world)?;
    bed.sh("echo 'canary_seconds = 1' >/etc/callgate/callgate.toml")?
        .ok()?;
    bed.policy(&workload("billing", "", ""))?;
    bed.systemctl(&["restart", "callgate"])?.ok()?;
    let detached = bed.run(["python3", "-c", DETACH])?.ok()?;
    assert_ne!(detached.trim(), "0", "nothing was detached");
    assert_record!(
        bed,
        "error.kind" = "canary",
        "workload" = "billing",
        "error.message" =
            "NOT CAPTURED: a connection from inside the workload went where it was dialled, past the agent"
    );
    wait::until("the canary's return", wait::PATIENCE, || {
        let said = bed.run(["callgate", "status", "--json"]).ok()?;
        let status: Value = serde_json::from_str(&said.stdout).ok()?;
        (said.code() == Some(0) && status["canaries"].as_array()?.is_empty()).then_some(())
    })
}
