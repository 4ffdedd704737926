//! What a handshake costs beside the handshake itself: a leaf from the cache, a new leaf, a new intermediate.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use callgate::addr::HostName;
use callgate::tls::ca::{Intermediate, Root};
use callgate::tls::leaf::{LEAF_LIFE, Leaves};
use criterion::{Criterion, criterion_group, criterion_main};

struct Setup {
    root: Root,
    leaves: Leaves,
    intermediate: Intermediate,
    host: HostName,
    now: SystemTime,
}

fn setup() -> Result<Setup> {
    let dir = tempfile::tempdir()?;
    let now = SystemTime::now();
    let root = Root::load_or_create(&dir.path().join("ca.pem"), now)?;
    let host = HostName::parse("api.example.com")?;
    let intermediate = root.issue_intermediate(&host, now)?;
    let leaves = Leaves::new(1024)?;
    leaves.add_intermediate(intermediate.clone())?;
    Ok(Setup {
        root,
        leaves,
        intermediate,
        host,
        now,
    })
}

fn benches(criterion: &mut Criterion) {
    let Ok(Setup {
        root,
        leaves,
        intermediate,
        host,
        now,
    }) = setup()
    else {
        return;
    };
    let mut group = criterion.benchmark_group("leaf");
    group.bench_function("cached", |bencher| bencher.iter(|| leaves.leaf(&host, now)));
    let mut turn = 0;
    group.bench_function("minted", |bencher| {
        bencher.iter(|| {
            // Each call is a leaf's life after the one before, so none is in the cache.
            turn = (turn + 1) % 28;
            leaves.leaf(&host, now + turn * LEAF_LIFE.min(Duration::from_secs(24 * 3600)))
        });
    });
    group.bench_function("intermediate_added", |bencher| {
        bencher.iter(|| leaves.add_intermediate(intermediate.clone()));
    });
    group.bench_function("intermediate_issued", |bencher| {
        bencher.iter(|| root.issue_intermediate(&host, now));
    });
    group.finish();
}

criterion_group!(leaf, benches);
criterion_main!(leaf);
