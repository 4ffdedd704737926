//! Socket units whose service becomes a workload: their sockets are made within it.
//!
//! Programs follow the cgroup that made a socket, and systemd makes those of a socket unit by a helper in that unit's own
//! cgroup. So a socket unit in the workload's slice gives sockets that are the workload's own, as are the connections
//! that are accepted on them, whoever accepts. Left where it was, what it hands in would be seen by no program.

use crate::identity::WorkloadName;

use super::findings::EARLY;
use super::{AGENT_UNIT, Facts, Setup, drop_in};

/// The only protocols of a workload's sockets, as `systemctl show` has them: unset, TCP and UDP.
const PROTOCOLS: &[&str] = &["", "0", "6", "17"];

/// The drop-ins of those that need one.
pub(super) fn drop_ins(facts: &Facts, workload: &WorkloadName, setup: &Setup) -> Vec<(String, String)> {
    let sockets = facts.sockets.iter().filter(|socket| takes_connections(socket));
    sockets
        .map(|socket| {
            let head = head(socket, facts.unit(), workload, setup);
            (socket.unit().to_owned(), head + &drop_in::hold(socket, setup))
        })
        .collect()
}

/// The usual order of socket units is given up: the agent starts after all of those, and makes what these need.
fn head(socket: &Facts, service: &str, workload: &WorkloadName, setup: &Setup) -> String {
    format!(
        "{first}: its sockets are made within the workload {workload}. Written by `callgate enable`, removed by\n\
         # `callgate disable`.\n\
         [Unit]\n\
         # Not before basic.target, as other sockets: the agent starts after that.\n\
         DefaultDependencies=no\n\
         Requires=sysinit.target\n\
         Conflicts=shutdown.target\n\
         Before=shutdown.target\n\
         Wants={AGENT_UNIT}\n\
         After=sysinit.target {AGENT_UNIT}\n\
         # There while the kernel holds the workload. Without it the socket would be nobody's.\n\
         AssertPathExists={marker}\n\
         \n\
         [Socket]\n\
         Slice={slice}\n",
        first = first(socket.unit(), service),
        marker = drop_in::plain(&setup.marker),
        slice = workload.slice(),
    )
}

fn first(socket: &str, service: &str) -> String {
    format!("# For {service}, which {socket} starts")
}

/// Whether this is the text of the drop-in that `service` needs at `socket`.
#[must_use]
pub fn is_for(text: &str, socket: &str, service: &str) -> bool {
    text.strip_prefix(&first(socket, service))
        .is_some_and(|rest| rest.starts_with(':'))
}

/// Whether it makes sockets of the network.
#[must_use]
pub fn takes_connections(socket: &Facts) -> bool {
    listens(socket).any(|(address, _)| is_network(address))
}

/// Commands that run with full privileges, as setting and line: of a socket unit systemd does not show it.
pub(super) fn privileged(socket: &Facts) -> impl Iterator<Item = (&'static str, &str)> {
    let commands = ["ExecStartPre", "ExecStartPost", "ExecStopPre", "ExecStopPost"];
    let lines = commands
        .into_iter()
        .flat_map(|setting| socket.written(setting).map(move |line| (setting, line)));
    lines.filter(|(_, line)| {
        let is_prefix = |letter: &char| "@-:+!|".contains(*letter);
        takes_connections(socket) && line.chars().take_while(is_prefix).any(|letter| letter == '+')
    })
}

/// Its network addresses that nobody will reach.
pub(super) fn closed<'a>(socket: &'a Facts, setup: &'a Setup) -> impl Iterator<Item = &'a str> {
    let closed = |(address, kind): &(&str, &str)| {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let open = port.is_some_and(|port: u16| setup.listen.contains(&port));
        is_network(address) && !(open && *kind == "(Stream)")
    };
    listens(socket).filter(closed).map(|(address, _)| address)
}

/// Why its sockets can't be made within a workload.
pub(super) fn obstacles(socket: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((address, _)) = listens(socket).find(|(address, _)| address.starts_with("vsock:")) {
        found.push(format!(
            "{address} is for virtual machines, past all programs; take that line out"
        ));
    }
    if !takes_connections(socket) {
        return found;
    }
    if socket.is("Transient") {
        found.push("systemd-run made it and it goes when it ends; write a unit file".to_owned());
    }
    if !PROTOCOLS.contains(&socket.get("SocketProtocol")) {
        found.push("only TCP and UDP sockets can be made in a workload (SocketProtocol=)".to_owned());
    }
    // Part of the usual order, which it gives up.
    let usual = |unit: &&str| *unit != "sockets.target";
    if socket
        .words("Before")
        .filter(usual)
        .any(|unit| unit == AGENT_UNIT || EARLY.contains(&unit))
    {
        found.push("it starts before the agent can: each would wait for the other at boot".to_owned());
    }
    for (key, value) in socket.later.iter().flat_map(super::DropIn::settings) {
        if key == "DefaultDependencies" {
            found.push(format!(
                "a later drop-in sets {key}={value}, and it would wait for the agent while the agent waits for it; take that line out"
            ));
        }
    }
    found
}

/// Addresses with their kinds, as `systemctl show` has them: `[::]:80 (Stream)`, one in each line.
fn listens(socket: &Facts) -> impl Iterator<Item = (&str, &str)> {
    socket.all("Listen").filter_map(|shown| shown.rsplit_once(' '))
}

/// Neither a path, an abstract name, a virtual machine's, nor one of the kernel's.
fn is_network(address: &str) -> bool {
    let port = address.rsplit_once(':').map(|(_, port)| port);
    !address.starts_with(['/', '@'])
        && !address.starts_with("vsock:")
        && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::{Finding, Plan, Weight, plan};
    use super::*;

    fn planned(shown: &str) -> Plan {
        let mut facts = Facts::read("billing.service", "User=billing\n");
        facts.sockets = vec![Facts::read("billing.socket", shown)];
        let setup = Setup {
            marker: "/run/callgate/armed/billing".into(),
            listen: vec![8080],
            ..Setup::default()
        };
        plan(&facts, &WorkloadName::parse("billing").unwrap(), &setup)
    }

    fn worst(plan: &Plan) -> Option<&Finding> {
        plan.findings.first()
    }

    #[test]
    fn a_socket_of_the_network_is_made_in_the_slice_once_the_agent_runs() {
        let plan = planned("Listen=[::]:8080 (Stream)\nListen=/run/x (Stream)\nBefore=sockets.target\n");
        let (unit, text) = &plan.sockets[0];
        assert_eq!(unit, "billing.socket");
        for line in [
            "DefaultDependencies=no",
            "After=sysinit.target callgate.service",
            "AssertPathExists=/run/callgate/armed/billing",
            "[Socket]",
            "Slice=callgate-billing.slice",
            "NoNewPrivileges=yes",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert_eq!(worst(&plan).map(|found| found.weight), Some(Weight::Note));
        assert!(is_for(text, "billing.socket", "billing.service"));
        assert!(!is_for(text, "billing.socket", "bill.service"));
    }

    #[test]
    fn where_systemd_makes_the_sockets_outside_of_the_slice_it_is_said() {
        let warned = |hybrid, shown: &str| {
            let mut facts = Facts::read("billing.service", "User=billing\n");
            facts.sockets = vec![Facts::read("billing.socket", shown)];
            let setup = Setup {
                hybrid,
                listen: vec![8080],
                ..Setup::default()
            };
            let plan = plan(&facts, &WorkloadName::parse("billing").unwrap(), &setup);
            let mut warnings = plan.findings.into_iter();
            warnings.find(|found| found.weight == Weight::Warning)
        };
        let network = "Listen=[::]:8080 (Stream)\n";
        let found = warned(true, network).unwrap();
        assert!(found.text.contains("outside of the workload"), "{found:?}");
        assert!(found.fix.contains("unified_cgroup_hierarchy"), "{found:?}");
        assert_eq!(warned(false, network), None);
        assert_eq!(warned(true, "Listen=/run/x (Stream)\n"), None);
    }

    #[test]
    fn a_command_of_its_own_with_full_privileges_is_refused() {
        let mut facts = Facts::read("billing.service", "User=billing\n");
        let mut socket = Facts::read("billing.socket", "Listen=[::]:8080 (Stream)\n");
        let text = "[Socket]\nExecStartPre=-+/bin/prepare\nExecStartPost=/bin/a + b\n";
        socket.files = vec![super::super::DropIn::new("/x/billing.socket".into(), text)];
        facts.sockets = vec![socket];
        let plan = plan(
            &facts,
            &WorkloadName::parse("billing").unwrap(),
            &Setup::default(),
        );
        let refused: Vec<_> = plan
            .findings
            .iter()
            .filter(|found| found.weight == Weight::Refusal)
            .collect();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].text.contains("-+/bin/prepare"), "{refused:?}");
    }

    #[test]
    fn a_socket_of_the_host_alone_stays_where_it_is() {
        for local in [
            "/run/billing.sock (Stream)",
            "@name:1 (Datagram)",
            "route 1361 (Netlink)",
            "/run/f (FIFO)",
        ] {
            let plan = planned(&format!("Listen={local}\n"));
            assert!(plan.sockets.is_empty() && plan.findings.is_empty(), "{plan:?}");
        }
    }

    #[test]
    fn what_nobody_reaches_is_named_and_what_no_program_sees_is_refused() {
        for closed in ["[::]:9090 (Stream)", "0.0.0.0:8080 (Datagram)"] {
            let plan = planned(&format!("Listen={closed}\n"));
            let found = worst(&plan).unwrap();
            assert_eq!(found.weight, Weight::Warning);
            assert!(found.text.contains("nobody reaches"), "{found:?}");
        }
        for refused in [
            "Listen=vsock:2:1234 (Stream)\n",
            "Listen=[::]:8080 (Stream)\nSocketProtocol=132\n",
            "Listen=[::]:8080 (Stream)\nBefore=sysinit.target\n",
            "Listen=[::]:8080 (Stream)\nTransient=yes\n",
        ] {
            assert!(planned(refused).is_refused(), "{refused}");
        }
    }
}
