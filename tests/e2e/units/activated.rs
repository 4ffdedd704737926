//! Services that get their sockets from systemd: those are the workload's own, as if it had made them.

use harness::audit::matching;
use harness::sandbox::HOST_V4;

use super::*;

const SERVER: &str = include_str!("activated.py");
/// Says something to the service, and prints what it answers.
const ASK: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.settimeout(20)
s.sendall(sys.argv[3].encode())
try:
    print(s.recv(100).decode(), end='')
except ConnectionResetError:
    pass";
/// Takes connections on the ports to which a service tries to lead its sockets, and says so.
const SINK: &str = "import select, socket, sys
sinks = [socket.create_server(('', port)) for port in (7771, 7772)]
said = open(sys.argv[1], 'w', buffering=1)
print('ready', file=said)
select.select(sinks, [], [])
print('ARRIVED', file=said)
select.select([], [], [])";

/// A host whose workload may be reached at 8080, and the program of its service.
fn listening() -> Result<Bed> {
    let bed = host()?;
    listen(&bed)?;
    Ok(bed)
}

pub(super) fn listen(bed: &Bed) -> Result<()> {
    bed.policy(&POLICY.replacen("[[workload]]\n", "[[workload]]\nlisten = [8080]\n", 1))?;
    bed.write("/opt/activated.py", SERVER)
}

pub(super) fn server(bed: &Bed, unit: &str, more: &str) -> Result<()> {
    let run = "ExecStart=/usr/bin/python3 /opt/activated.py";
    bed.unit(unit, &format!("[Service]\nUser=nobody\n{run}{more}\n"))
}

/// Somebody outside says a word to the service.
pub(super) fn ask(bed: &Bed, port: u16, word: &str) -> Result<String> {
    let arguments = [&HOST_V4.to_string(), &port.to_string(), word].map(ToOwned::to_owned);
    let command = ["python3", "-c", ASK].map(ToOwned::to_owned);
    bed.world()
        .outside()?
        .run(command.into_iter().chain(arguments))?
        .ok()
}

/// The service tries to lead the sockets that it was handed elsewhere, in vain; what it said.
pub(super) fn led(bed: &Bed, unit: &str) -> Result<String> {
    let place = bed.world().dir().join("sink");
    let sink = [
        "python3".as_ref(),
        "-c".as_ref(),
        SINK.as_ref(),
        place.as_os_str(),
    ];
    let mut sink = bed.world().outside()?.command(sink).spawn()?;
    let arrived = || std::fs::read_to_string(&place).unwrap_or_default();
    wait::until("the sink", wait::PATIENCE, || {
        arrived().contains("ready").then_some(())
    })?;
    ask(bed, 8080, "lead")?;
    let said = wait::until("the service tried", wait::PATIENCE, || {
        let said = bed.journal(unit).ok()?;
        said.contains("all led").then_some(said)
    })?;
    assert!(!said.contains("CONNECTED"), "{said}");
    assert!(!arrived().contains("ARRIVED"), "{said}");
    sink.kill()?;
    sink.wait()?;
    Ok(said)
}

/// It tries that with those of these names, and each try is refused and on record.
fn lead(bed: &Bed, unit: &str, names: &[(&str, u16)]) -> Result<()> {
    let said = led(bed, unit)?;
    for (name, port) in names {
        assert!(said.contains(&format!("{name} EPERM")), "{said}");
        wait::until("a record of the try", wait::PATIENCE, || {
            let records = bed.records().ok()?;
            let expected = [("workload", "billing".into()), ("decision", "deny".into())];
            let to = format!(":{port}");
            let mut tries = matching(&records, &expected).into_iter();
            tries
                .any(|one| one.text("original_destination").ends_with(&to))
                .then_some(())
        })
        .with_context(|| format!("{name}: {said}\n{:#?}", bed.records()))?;
    }
    Ok(())
}

#[test]
fn a_service_started_by_a_socket_serves_and_calls_and_its_sockets_lead_nowhere_else() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = listening()?;
    let install = "[Install]\nWantedBy=sockets.target\n";
    bed.unit(
        "billing.socket",
        &format!("[Socket]\nListenStream=8080\n{install}"),
    )?;
    server(&bed, "billing.service", "")?;
    bed.systemctl(&["enable", "billing.socket"])?.ok()?;
    let dry = bed.run(["callgate", "enable", "--dry-run", "billing"])?.ok()?;
    assert!(
        dry.contains("note: TriggeredBy: billing.socket gets a drop-in too"),
        "{dry}"
    );
    let said = enable(&bed, "billing")?;
    assert!(
        said.contains("billing.socket.d/50-callgate.conf is written"),
        "{said}"
    );
    bed.systemctl(&["start", "billing.socket"])?.ok()?;
    let cgroup = bed.property("billing.socket", "ControlGroup")?;
    assert!(cgroup.contains("/callgate-billing.slice/"), "{cgroup}");
    for _ in 0..2 {
        let answer = ask(&bed, 8080, "call")?;
        assert_eq!(answer, "200", "{:?}", bed.journal("billing.service"));
    }
    lead(&bed, "billing.service", &[("accepted", 7771), ("listener", 7772)])
}

#[test]
fn a_template_of_which_each_connection_starts_an_instance_serves_and_calls() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = listening()?;
    bed.unit("worker.socket", "[Socket]\nListenStream=8080\nAccept=yes\n")?;
    server(
        &bed,
        "worker@.service",
        " each\nStandardInput=socket\nStandardOutput=journal",
    )?;
    let said = enable(&bed, "worker@.service")?;
    assert!(
        said.contains("worker.socket.d/50-callgate.conf is written"),
        "{said}"
    );
    bed.systemctl(&["start", "worker.socket"])?.ok()?;
    for _ in 0..2 {
        assert_eq!(ask(&bed, 8080, "call")?, "200", "{:?}", bed.journal("worker@*"));
    }
    lead(&bed, "worker@*", &[("accepted", 7771)])
}

#[test]
fn a_socket_that_listened_before_is_named_until_it_is_made_anew_and_goes_back_with_disable() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = listening()?;
    bed.unit(
        "billing.socket",
        "[Socket]\nListenStream=8080\nListenDatagram=8081\n",
    )?;
    server(&bed, "billing.service", "")?;
    bed.systemctl(&["start", "billing.socket"])?.ok()?;
    let said = enable(&bed, "billing")?;
    assert!(said.contains("nobody reaches it at [::]:8081"), "{said}");
    let fix = "systemctl stop billing.service billing.socket; systemctl start billing.socket";
    assert!(said.contains(fix), "{said}");
    let doctor = bed.run(["callgate", "doctor"])?;
    assert_eq!(doctor.code(), Some(3), "{doctor:?}");
    assert!(
        doctor.stdout.contains("billing.socket makes its sockets outside"),
        "{doctor:?}"
    );
    bed.sh(fix)?.ok()?;
    let doctor = bed.run(["callgate", "doctor"])?;
    assert!(!doctor.stdout.contains("outside of the workload"), "{doctor:?}");

    let told = bed.run(["callgate", "disable", "billing"])?.ok()?;
    assert!(told.contains(fix), "{told}");
    assert!(!bed.exists("/etc/systemd/system/billing.socket.d")?);
    bed.sh(fix)?.ok()?;
    assert_eq!(
        bed.property("billing.socket", "ControlGroup")?,
        "/system.slice/billing.socket"
    );
    // Nobody puts the token on for it now.
    assert_eq!(ask(&bed, 8080, "call")?, "401");
    Ok(())
}

#[test]
fn a_socket_starts_with_the_agent_at_boot_and_not_without_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = listening()?;
    bed.unit("billing.socket", "[Socket]\nListenStream=8080\n")?;
    server(&bed, "billing.service", "")?;
    enable(&bed, "billing")?;
    // As at a boot: nothing is armed, and sockets.target asks for it.
    bed.systemctl(&["stop", "callgate.service"])?.ok()?;
    bed.run(["rm", "-r", "/run/callgate", "/sys/fs/bpf/callgate"])?
        .ok()?;
    bed.systemctl(&["add-wants", "sockets.target", "billing.socket"])?
        .ok()?;
    bed.systemctl(&["start", "multi-user.target", "sockets.target"])?
        .ok()?;
    let cycles = bed.run(["journalctl", "--no-pager", "--grep=ordering cycle"])?;
    assert!(!cycles.stdout.contains("ordering cycle"), "{cycles:?}");
    wait::until("the socket listens", wait::PATIENCE, || {
        let state = bed.property("billing.socket", "ActiveState").ok()?;
        (state == "active").then_some(())
    })?;
    assert_eq!(ask(&bed, 8080, "call")?, "200");

    bed.systemctl(&["stop", "billing.service", "billing.socket", "callgate.service"])?
        .ok()?;
    bed.run(["rm", "-r", "/run/callgate"])?.ok()?;
    bed.systemctl(&["mask", "--runtime", "callgate.service"])?.ok()?;
    let alone = bed.systemctl(&["start", "billing.socket"])?;
    assert!(!alone.status.success(), "{alone:?}");
    Ok(())
}

#[test]
fn a_socket_of_a_workload_listens_on_when_the_package_goes() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = listening()?;
    bed.unit("billing.socket", "[Socket]\nListenStream=8080\n")?;
    server(&bed, "billing.service", "")?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.socket"])?.ok()?;
    let purged = bed.run(["dpkg", "--purge", "callgate"])?.ok()?;
    assert!(!bed.exists("/etc/systemd/system/billing.socket.d")?);
    assert_eq!(slices(&bed)?, "", "{purged}");
    assert_eq!(ask(&bed, 8080, "call")?, "401");
    // Where it was made it stays until it is made anew, and the operator knows how.
    let fix = "systemctl stop billing.service billing.socket; systemctl start billing.socket";
    assert!(purged.contains(fix), "{purged}");
    bed.sh(fix)?.ok()?;
    assert_eq!(
        bed.property("billing.socket", "ControlGroup")?,
        "/system.slice/billing.socket"
    );
    assert_eq!(ask(&bed, 8080, "call")?, "401");
    Ok(())
}
