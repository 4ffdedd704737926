//! What happens to a connection before its calls are read, and what the kernel is told.

use super::*;

fn routed(policy: &Policy, identity: &Identity, host: &str, port: u16) -> String {
    let host = HostName::parse(host).unwrap();
    let flow = Flow {
        port,
        host: &host,
        scheme: Scheme::Https,
    };
    match route(policy, identity, &flow) {
        Ok(Route::Intercept) => "intercept".to_owned(),
        Ok(Route::Tunnel(permit)) => format!("tunnel {} {}", permit.rule().unwrap(), permit.authority()),
        Err(denial) => format!("refuse {}", denial.reason.code()),
    }
}

#[test]
fn only_what_a_tunnel_names_and_no_other_rule_is_passed_unread() {
    let policy = policy(
        "[[workload]]\nname='w'\n[[workload.allow]]\nhost='api.example.com'\n\
         [[workload.tunnel]]\nname='t'\nhost='pinned.example.com'\n\
         [[workload.tunnel]]\nname='wild'\nhost='*.example.net'\nexe='/usr/bin/app'\n\
         [[workload.deny]]\nhost='not.example.net'",
    );
    let stranger = Identity {
        executable: None,
        ..caller()
    };
    for (host, port, expected) in [
        ("api.example.com", 443, "intercept"),
        ("pinned.example.com", 443, "tunnel t pinned.example.com:443"),
        ("pinned.example.com", 8443, "intercept"),
        ("sub.pinned.example.com", 443, "intercept"),
        ("a.example.net", 443, "tunnel wild a.example.net:443"),
        ("not.example.net", 443, "intercept"),
        ("evil.net", 443, "intercept"),
    ] {
        assert_eq!(routed(&policy, &caller(), host, port), expected, "{host}:{port}");
    }
    assert_eq!(routed(&policy, &stranger, "a.example.net", 443), "intercept");
    let unknown = Identity {
        workload: WorkloadName::parse("x").unwrap(),
        ..caller()
    };
    assert_eq!(
        routed(&policy, &unknown, "pinned.example.com", 443),
        "refuse unknown_workload"
    );
}

#[test]
fn the_kernel_is_told_the_ports_that_rules_name() {
    let policy = policy(
        "[[workload]]\nname='w'\nlisten=[8080]\n[[workload.allow]]\nhost='a.b'\n\
         [[workload.allow]]\nhost='a.b'\nscheme='http'\n[[workload.tunnel]]\nhost='c.d'\nport=5671\n\
         [[workload.deny]]\nhost='*.e.f'\n\
         [[workload.direct]]\ncidr='10.0.5.0/24'\nport=[5432, 6432]\n[[workload.direct]]\ncidr='fd00::1'\nport=443\nforce=true",
    );
    let workload = policy.workload(&caller().workload).unwrap();
    assert_eq!(workload.kernel_ports(), [80, 443, 5671]);
    assert_eq!(workload.listen(), [8080]);
    let direct: Vec<String> = workload
        .direct()
        .iter()
        .map(|d| format!("{} {}", d.cidr, d.port))
        .collect();
    assert_eq!(
        direct,
        ["10.0.5.0/24 5432", "10.0.5.0/24 6432", "fd00::1/128 443"]
    );
    assert!(workload.may_ask(&HostName::parse("c.d").unwrap()));
    assert!(!workload.may_ask(&HostName::parse("x.c.d").unwrap()));
    // Asking would hand the label to the very domain that is denied.
    assert!(!workload.may_ask(&HostName::parse("secret.e.f").unwrap()));
    assert!(!workload.needs().exe && !workload.needs().digest);
}

#[test]
fn a_replaced_policy_has_the_next_generation_and_is_seen() {
    let store = store::PolicyStore::new(policy(""));
    let watch = store.watch();
    assert_eq!(store.current().generation, 1);
    assert!(!watch.has_changed().unwrap());
    assert_eq!(store.replace(policy("[[workload]]\nname='w'")), 2);
    assert!(watch.has_changed().unwrap());
    assert_eq!(store.current().policy.workloads().len(), 1);
}
