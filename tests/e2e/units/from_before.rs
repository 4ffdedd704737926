//! Sockets that a unit has from before it is enrolled.

use std::fs;

use super::*;

/// The first addresses outside, which are the API's too.
const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:113::a"];
const SCRIPT: &str = "/opt/from_before.py";
const ENROLLED: &str = "/opt/enrolled";
/// One of each kind, by each family.
const SOCKETS: usize = 4;

#[test]
fn sockets_from_before_lead_nowhere_any_more_from_the_moment_a_unit_is_enabled() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let arrived = bed.world().dir().join("arrived");
    let log = arrived.to_str().context("a path")?;
    // It would call whoever is named last, if somebody listened there.
    let sink = ["python3", "-c", include_str!("../handed/sink.py"), log];
    let sink = sink.iter().chain(&OUTSIDE).chain(&["127.0.0.1"]);
    let _sink = bed.world().outside()?.command(sink).spawn()?;
    let count = |word: &str| {
        let said = fs::read_to_string(&arrived).unwrap_or_default();
        said.lines().filter(|line| line.starts_with(word)).count()
    };
    let arrive = |word: &str, times: usize| {
        wait::until(word, wait::PATIENCE, || (count(word) == times).then_some(()))
            .with_context(|| bed.journal("billing.service").unwrap_or_default())
    };
    arrive("ready", 1)?;
    bed.write(SCRIPT, include_str!("from_before.py"))?;
    let script = |who| [&["/usr/bin/python3", SCRIPT, who, ENROLLED], OUTSIDE.as_slice()].concat();
    let command = script("unit").join(" ");
    bed.unit(
        "billing.service",
        &format!("[Service]\nUser=nobody\nExecStart={command}\n"),
    )?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    arrive("unit before", SOCKETS)?;

    enable(&bed, "billing")?;
    bed.run(["touch", ENROLLED])?.ok()?;
    wait::until("the unit has sent all", wait::PATIENCE, || {
        let said = bed.journal("billing.service").ok()?;
        said.contains("all sent").then_some(())
    })?;
    // What another process sends after that does arrive.
    bed.run(["timeout", "3"].into_iter().chain(script("other")))?;
    arrive("other after", 20 * SOCKETS)?;
    assert_eq!(count("unit after"), 0, "{}", bed.journal("billing.service")?);
    Ok(())
}
