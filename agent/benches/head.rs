//! What is done to each request's head before and after the decision: `cargo bench -p callgate --bench head`.

#![expect(
    clippy::expect_used,
    reason = "a benchmark whose own input is wrong has nothing to measure"
)]

use std::hint::black_box;

use callgate::http::headers::{clean_request, clean_response, form};
use callgate::policy::NormalPath;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

const PATHS: [(&str, &str); 3] = [
    ("normalise/short", "/v1/charges"),
    (
        "normalise/with an id",
        "/v1/charges/ch_3MmlLrLkdIwHu7ix0snN0B15/refunds",
    ),
    ("normalise/refused", "/v1/%2e%2e/admin"),
];

/// As a client library sends them.
const REQUEST: [(&str, &str); 8] = [
    ("host", "api.example.com"),
    ("user-agent", "python-requests/2.32.3"),
    ("accept", "*/*"),
    ("accept-encoding", "gzip, deflate, br"),
    ("connection", "keep-alive"),
    ("content-type", "application/json"),
    ("content-length", "57"),
    ("authorization", "Bearer of-the-client"),
];
const RESPONSE: [(&str, &str); 7] = [
    ("server", "nginx"),
    ("date", "Wed, 25 Nov 2026 10:00:00 GMT"),
    ("content-type", "application/json"),
    ("content-length", "203"),
    ("connection", "keep-alive"),
    ("set-cookie", "session=1"),
    ("cache-control", "no-cache, no-store"),
];

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let named = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    fields.iter().map(named).collect()
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head");
    for (name, path) in PATHS {
        group.bench_function(name, |bencher| {
            bencher.iter(|| NormalPath::parse(black_box(path)).is_ok())
        });
    }
    let (mut parts, ()) = Request::get("/v1/charges")
        .body(())
        .expect("a good request")
        .into_parts();
    parts.headers = headers(&REQUEST);
    let form = form(&parts).expect("an ordinary form");
    group.bench_function("scrub/request", |bencher| {
        let fresh = || parts.headers.clone();
        bencher.iter_batched_ref(
            fresh,
            |headers| clean_request(headers, &form),
            BatchSize::SmallInput,
        );
    });
    let answer = headers(&RESPONSE);
    group.bench_function("scrub/answer", |bencher| {
        let fresh = || answer.clone();
        bencher.iter_batched_ref(
            fresh,
            |headers| clean_response(headers, &form, true),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(steps, benches);
criterion_main!(steps);
