//! The kernel side alone: every way to connect, what the accepted socket then says, and what is refused.

mod world;

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use world::in_world;

macro_rules! worlds {
    ($($name:ident)+) => {$(
        #[test]
        fn $name() {
            in_world(stringify!($name), cases::$name);
        }
    )+};
}

worlds! {
    a_redirected_connection_carries_its_callers_facts
}

mod cases {
    use super::*;
    use world::World;

    pub(super) fn a_redirected_connection_carries_its_callers_facts(world: &mut World) -> Result<()> {
        world.serve(7, "one")?;
        let line = world.one(&["tcp", "192.0.2.1:443"])?;
        assert!(
            line.starts_with("ok ") && line.contains("peer=192.0.2.1:443 workload=7 dst=192.0.2.1:443"),
            "{line}"
        );
        let seen = world.take_seen();
        let [Some(origin)] = seen.as_slice() else {
            panic!("{seen:?}")
        };
        let pid: u32 = line
            .split_once("pid=")
            .and_then(|(_, rest)| rest.split(' ').next())
            .context("pid")?
            .parse()?;
        assert_eq!(origin.tgid(), Some(pid));
        assert_eq!(origin.cgroup_id(), std::fs::metadata(world.cgroup("one"))?.ino());
        let exe = std::fs::metadata(env!("CARGO_BIN_EXE_probe"))?;
        assert_eq!(origin.exe(), Some((exe.dev(), exe.ino())));
        assert_eq!(
            (origin.comm(), origin.uid(), origin.protocol()),
            (b"probe".as_slice(), 0, 6)
        );
        assert!(origin.start_time().is_some_and(|start| start < origin.stamp()));
        assert!(origin.exec_id().is_some());
        assert!(world.programs.pins_intact());
        Ok(())
    }
}
