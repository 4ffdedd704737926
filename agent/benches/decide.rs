//! One decision, the path's normal form included: `cargo bench -p callgate --bench decide`. The target is 1 µs at 10,000
//! rules.

#![expect(
    clippy::expect_used,
    reason = "a benchmark whose own input is wrong has nothing to measure"
)]

use std::fmt::Write;
use std::hint::black_box;

use callgate::addr::{Authority, HostName};
use callgate::identity::{Cgroup, Identity, WorkloadName};
use callgate::policy::{Call, NormalPath, Policy, Scheme, Source, decide};
use criterion::{Bencher, Criterion, criterion_group, criterion_main};

/// One workload with 100 hosts, and so many rules for each, of three paths; one in ten denies.
fn policy(rules: usize) -> Policy {
    let mut text = "[[workload]]\nname = 'w'\n".to_owned();
    for host in 0..100 {
        for rule in 0..rules {
            let kind = if rule % 10 == 0 { "deny" } else { "allow" };
            let name = format!("h{host}-r{rule}");
            let paths = format!("['/v1/r{rule}', '/v1/r{rule}/{{id}}', '/v1/r{rule}/{{id}}/x/{{rest..}}']");
            write!(text, "[[workload.{kind}]]\nname='{name}'\nhost='h{host}.example.com'\nmethods=['GET','POST']\npaths={paths}\n")
                .expect("a string takes all");
        }
    }
    Policy::compile(&[Source::new("bench.toml", &text)]).expect("the policy is good")
}

fn caller() -> Identity {
    Identity {
        workload: WorkloadName::parse("w").expect("a good name"),
        cgroup: Cgroup { id: 1, path: None },
        unit: None,
        invocation: None,
        container: None,
        uid: 1000,
        gid: 1000,
        user: None,
        process: None,
        executable: None,
        netns_cookie: 1,
    }
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    let large = policy(100);
    for (name, host, path) in [
        ("allowed", "h50.example.com", "/v1/r55/ch_1/x/a/b/c"),
        ("denied", "h50.example.com", "/V1/R50/ch_1;x"),
        ("no rule", "h50.example.com", "/v2/other"),
        ("no host", "other.example.com", "/v1/r55"),
    ] {
        group.bench_function(name, |bencher| ask(bencher, &large, host, path));
    }
    drop(large);
    for rules in [1, 10, 100] {
        let policy = policy(rules);
        let path = format!("/v1/r{}/ch_1", rules / 2);
        let name = format!("at {} rules", rules * 100);
        group.bench_function(name, |bencher| ask(bencher, &policy, "h50.example.com", &path));
    }
    group.finish();
}

fn ask(bencher: &mut Bencher<'_>, policy: &Policy, host: &str, path: &str) {
    let caller = caller();
    let authority = Authority::new(HostName::parse(host).expect("a good name"), 443);
    let headers = http::HeaderMap::new();
    bencher.iter(|| {
        let path = NormalPath::parse(black_box(path)).expect("a good path");
        let call = Call {
            scheme: Scheme::Https,
            authority: &authority,
            method: "GET",
            path: &path,
            query: "",
            headers: &headers,
        };
        black_box(decide(policy, &caller, &call))
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
