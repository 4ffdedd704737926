//! How long reading a ClientHello takes: whole, in small records, and of post-quantum size.

use std::hint::black_box;

use callgate::tls::client_hello::{Hello, parse};
use criterion::{Criterion, criterion_group, criterion_main};

fn vector16(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), data].concat()
}

/// A hello for `api.example.com` with ALPN and a key share of `key_share` bytes.
fn message(key_share: usize) -> Vec<u8> {
    let sni = [&[0], vector16(b"api.example.com").as_slice()].concat();
    let extensions = [
        [0, 51].to_vec(),
        vector16(&vec![5; key_share]),
        [0, 0].to_vec(),
        vector16(&vector16(&sni)),
        [0, 16].to_vec(),
        vector16(&vector16(b"\x02h2\x08http/1.1")),
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vector16(&extensions));
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|part| [&[22, 3, 1], vector16(part).as_slice()].concat())
        .collect()
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client_hello");
    for (name, key_share, record) in [
        ("classic", 36, 16_384),
        ("post_quantum", 1252, 16_384),
        ("records_of_64", 1252, 64),
    ] {
        let bytes = records(&message(key_share), record);
        assert!(matches!(parse(&bytes), Hello::Found(_)));
        group.bench_function(name, |bencher| bencher.iter(|| parse(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(client_hello, benches);
criterion_main!(client_hello);
