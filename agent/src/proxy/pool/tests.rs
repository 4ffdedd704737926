//! What is kept, and what goes.

use std::convert::Infallible;

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::task::LocalSet;

use super::*;
use crate::addr::HostName;

fn key(host: &str, workload: &str) -> Key {
    Key {
        workload: WorkloadName::parse(workload).unwrap(),
        netns_cookie: 1,
        authority: Authority {
            host: HostName::parse(host).unwrap(),
            port: 443,
        },
        scheme: Scheme::Https,
        roots: 0,
        credential: None,
        versions: Versions::Http1,
        public: true,
    }
}

fn peer(last: u8) -> UpstreamAddr {
    UpstreamAddr(([192, 0, 2, last], 443).into())
}

/// Calls a host once and keeps the connection; the far end is there for as long as the answer lives.
async fn call(pool: &Pool, key: &Key, to: UpstreamAddr) -> (Lease, Option<DuplexStream>) {
    let mut far = None;
    let dial = async || {
        let (near, end) = tokio::io::duplex(1024);
        far = Some(end);
        let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok::<_, Infallible>(Dialled::Http1(sender))
    };
    let lease = pool.lease(key, to, dial).await.unwrap();
    (lease, far)
}

fn pool(kept_per_workload: usize) -> Pool {
    Pool::new(PoolLimits {
        idle: Duration::from_secs(50),
        kept_per_workload,
    })
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_calls_ever_new_hosts_keeps_the_latest_connections_only() {
    let checked = async {
        let (pool, mut ends) = (pool(3), Vec::new());
        let (lease, end) = call(&pool, &key("api.example", "other"), peer(1)).await;
        pool.give_back(lease);
        ends.push(end);
        for n in 0..10 {
            let (lease, end) = call(&pool, &key(&format!("n{n}.example"), "busy"), peer(n)).await;
            pool.give_back(lease);
            ends.push(end);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let idle = |entry: &Rc<Entry>| entry.exclusive.borrow().len();
        let of = |workload: &str| {
            let shares = pool.shares.borrow();
            let share = &shares[&WorkloadName::parse(workload).unwrap()];
            share.entries.values().map(idle).sum::<usize>()
        };
        assert_eq!((of("busy"), of("other")), (3, 1));
        for (n, kept) in [(6, false), (7, true), (9, true)] {
            let (lease, _end) = call(&pool, &key(&format!("n{n}.example"), "busy"), peer(n)).await;
            assert_eq!(lease.reused(), kept, "{n}");
        }
    };
    LocalSet::new().run_until(checked).await;
}

#[tokio::test]
async fn a_kept_connection_says_where_it_leads() {
    let checked = async {
        let pool = pool(3);
        let key = key("api.example", "billing");
        let (lease, _end) = call(&pool, &key, peer(1)).await;
        assert_eq!(lease.peer(), peer(1));
        pool.give_back(lease);
        let private = Key {
            public: false,
            ..key.clone()
        };
        let (other, _far) = call(&pool, &private, peer(2)).await;
        assert!(
            !other.reused(),
            "what a rule with `private` opened is for such rules"
        );
        let other_roots = Key {
            roots: 1,
            ..key.clone()
        };
        let (other, _far) = call(&pool, &other_roots, peer(4)).await;
        assert!(!other.reused(), "other roots have verified it");
        let (again, _none) = call(&pool, &key, peer(3)).await;
        assert!(again.reused());
        assert_eq!(again.peer(), peer(1));
    };
    LocalSet::new().run_until(checked).await;
}

#[tokio::test(start_paused = true)]
async fn as_many_are_kept_as_calls_were_under_way_at_once_and_fewer_after_a_while() {
    let checked = async {
        let (pool, key) = (pool(3), key("api.example", "busy"));
        let (mut leases, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..16 {
            let (lease, end) = call(&pool, &key, peer(1)).await;
            leases.push(lease);
            ends.push(end);
        }
        for lease in leases {
            pool.give_back(lease);
        }
        let mut again = Vec::new();
        for _ in 0..16 {
            let (lease, _none) = call(&pool, &key, peer(1)).await;
            assert!(lease.reused());
            again.push(lease);
        }
        for lease in again {
            pool.give_back(lease);
        }
        let kept = || pool.shares.borrow()[&key.workload].counts.kept.get();
        let mut after_each = vec![kept()];
        for _ in 0..6 {
            pool.sweep();
            after_each.push(kept());
        }
        assert_eq!(after_each, [16, 12, 9, 6, 4, 3, 3]);
    };
    LocalSet::new().run_until(checked).await;
}

#[tokio::test]
async fn a_call_over_the_upstreams_number_of_streams_gets_a_connection_of_its_own() {
    let checked = async {
        let pool = pool(3);
        let key = Key {
            versions: Versions::Http2First,
            ..key("api.example", "billing")
        };
        let limits = crate::proxy::Limits::from(crate::channel::Limits::default());
        let lease = async || {
            let dial = async || {
                let (near, far) = tokio::io::duplex(64 * 1024);
                tokio::task::spawn_local(async move {
                    let mut one = h2::server::Builder::new();
                    let serving = one.max_concurrent_streams(1).handshake::<_, bytes::Bytes>(far);
                    let mut serving = serving.await.unwrap();
                    while serving.accept().await.is_some() {}
                });
                let requests = http2::connect(near, &limits).await.unwrap();
                while requests.limit() > 1 {
                    tokio::task::yield_now().await;
                }
                Ok::<_, Infallible>(Dialled::Http2(requests))
            };
            pool.lease(&key, peer(1), dial).await.unwrap()
        };
        let (first, second) = (lease().await, lease().await);
        assert!(!first.reused() && !second.reused());
        drop(first);
        assert!(lease().await.reused());
    };
    LocalSet::new().run_until(checked).await;
}
