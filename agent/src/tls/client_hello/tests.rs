//! Tests of `tls::client_hello`, against hellos that rustls and a hand-written builder make.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::tls::provider;

/// A hello as rustls sends it: TLS records.
fn real_hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn found(sni: Option<&str>) -> ClientHello {
    ClientHello {
        sni: sni.map(|name| name.parse().unwrap()),
        alpn: Alpn::default(),
        ech: false,
    }
}

fn vector8(data: &[u8]) -> Vec<u8> {
    [&[u8::try_from(data.len()).unwrap()], data].concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector16(data)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &vector16(&[&[0], vector16(name).as_slice()].concat()))
}

/// A handshake message with these extensions; `None` leaves the whole block out.
fn hello_message(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(vector8(&[9; 32]));
    body.extend(vector16(&[0x13, 0x01]));
    body.extend(vector8(&[0]));
    if let Some(extensions) = extensions {
        body.extend(vector16(extensions));
    }
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// The message in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|part| [&[22, 3, 1], vector16(part).as_slice()].concat())
        .collect()
}

fn parse_extensions(extensions: &[u8]) -> Hello {
    parse(&records(&hello_message(Some(extensions)), MAX_RECORD))
}

#[test]
fn name_and_protocols_of_a_real_hello_are_found() {
    let bytes = real_hello("API.Example.com", &[b"h2", b"http/1.1"]);
    let alpn = Alpn {
        http1: true,
        http2: true,
        other: false,
    };
    assert_eq!(
        parse(&bytes),
        Hello::Found(ClientHello {
            alpn,
            ..found(Some("api.example.com"))
        })
    );
    assert_eq!(
        parse(&real_hello("a.example", &[])),
        Hello::Found(found(Some("a.example")))
    );
    let other = Hello::Found(ClientHello {
        alpn: Alpn {
            other: true,
            ..Alpn::default()
        },
        ..found(Some("a.b"))
    });
    assert_eq!(parse(&real_hello("a.b", &[b"mqtt"])), other);
}

#[test]
fn an_address_as_name_counts_as_none() {
    assert_eq!(parse(&real_hello("127.0.0.1", &[])), Hello::Found(found(None)));
    assert_eq!(parse_extensions(&sni(b"192.0.2.1")), Hello::Found(found(None)));
    assert_eq!(
        parse(&records(&hello_message(None), 100)),
        Hello::Found(found(None))
    );
}

#[test]
fn every_prefix_of_a_hello_needs_more_and_every_longer_text_gives_the_same() {
    let real = real_hello("api.example.com", &[b"h2"]);
    let split = records(&real[5..], 7);
    for bytes in [real, split] {
        let answer = parse(&bytes);
        assert!(matches!(answer, Hello::Found(_)), "{answer:?}");
        for length in 0..bytes.len() {
            assert_eq!(
                parse(&bytes[..length]),
                Hello::NeedMore,
                "prefix of {length} bytes"
            );
        }
        for more in [b"\0".as_slice(), &[22, 3, 1, 0, 1, 0], &[23, 3, 3, 0, 5]] {
            assert_eq!(parse(&[&bytes, more].concat()), answer);
        }
    }
}

#[test]
fn a_hello_of_post_quantum_size_in_many_records_is_found() {
    let key_shares = extension(51, &[5; 4000]);
    let message = hello_message(Some(&[key_shares, sni(b"pq.example")].concat()));
    for size in [20, 100, 1024, 5000] {
        assert_eq!(
            parse(&records(&message, size)),
            Hello::Found(found(Some("pq.example"))),
            "{size}"
        );
    }
}

#[test]
fn the_ech_extension_is_reported() {
    let hello = parse_extensions(&[sni(b"outer.example"), extension(0xfe0d, &[0; 40])].concat());
    assert_eq!(
        hello,
        Hello::Found(ClientHello {
            ech: true,
            ..found(Some("outer.example"))
        })
    );
}

#[test]
fn other_protocols_are_told_apart_at_the_first_bytes() {
    for bytes in [
        b"GET / HTTP/1.1\r\n".as_slice(),
        b"SSH-2.0-x",
        &[0x80, 0x2e, 1],
        &[22, 2],
        &[21, 3, 3, 0, 2],
    ] {
        assert_eq!(parse(bytes), Hello::NotTls, "{bytes:?}");
    }
}

#[test]
fn too_large_is_said_before_the_bytes_are_there() {
    assert_eq!(parse(&[22, 3, 1, 0x40, 0, 1, 1, 0, 1]), Hello::TooLarge);
    let message = hello_message(Some(&extension(51, &[5; 600])));
    assert_eq!(parse(&records(&message, 1)), Hello::TooLarge, "one byte a record");
    let big = [1, 1, 0, 0]
        .into_iter()
        .chain([0; MAX_HELLO])
        .collect::<Vec<u8>>();
    assert!(matches!(parse(&records(&big, MAX_RECORD)), Hello::Malformed));
}

#[test]
fn broken_formats_are_refused() {
    let server_name = |list: &[u8]| extension(0, &vector16(list));
    let name = vector16(b"a.example");
    let two = [[&[0], name.as_slice()].concat(), [&[0], name.as_slice()].concat()].concat();
    for (what, extensions) in [
        ("two names", server_name(&two)),
        ("no name", server_name(&[])),
        (
            "another kind of name",
            server_name(&[&[1], name.as_slice()].concat()),
        ),
        ("extension twice", [sni(b"a.example"), sni(b"b.example")].concat()),
        ("NUL in the name", sni(b"a.example\0.evil")),
        ("not ASCII", sni("bücher.example".as_bytes())),
        ("wildcard", sni(b"*.example")),
        ("empty name", sni(b"")),
        (
            "bytes after the list",
            extension(
                0,
                &[vector16(&[&[0], name.as_slice()].concat()), vec![0]].concat(),
            ),
        ),
        ("empty ALPN", extension(16, &vector16(&[]))),
        ("empty protocol", extension(16, &vector16(&vector8(b"")))),
        ("cut extension", vec![0, 0, 0]),
        ("extension over the end", vec![0, 0, 0, 9, 1]),
    ] {
        assert_eq!(parse_extensions(&extensions), Hello::Malformed, "{what}");
    }
}

#[test]
fn broken_records_are_refused() {
    let hello = records(&hello_message(Some(&sni(b"a.example"))), 20);
    let mut alert_between = hello.clone();
    alert_between[25] = 21;
    for (what, bytes) in [
        ("empty record", [22, 3, 1, 0, 0].to_vec()),
        ("overlong record", [22, 3, 1, 0x40, 1].to_vec()),
        ("another handshake message", [22, 3, 1, 0, 4, 2].to_vec()),
        ("another record type between", alert_between),
        ("bytes after the extensions", {
            let mut message = hello_message(Some(&[]));
            message.push(0);
            message[3] += 1;
            records(&message, 500)
        }),
    ] {
        assert_eq!(parse(&bytes), Hello::Malformed, "{what}");
    }
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_that_more_bytes_never_change(
        start in prop_oneof![Just(vec![]), Just(vec![22, 3, 1]), Just(vec![22, 3, 1, 0, 60, 1, 0, 0, 56])],
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, bytes].concat();
        let mut last = Hello::NeedMore;
        for length in 0..=bytes.len() {
            let answer = parse(&bytes[..length]);
            prop_assert!(last == Hello::NeedMore || answer == last);
            last = answer;
        }
    }

    #[test]
    fn a_flipped_byte_never_changes_the_answer_later(at in 0usize..250, to in any::<u8>()) {
        let mut bytes = records(&real_hello("api.example.com", &[b"h2"])[5..], 40);
        let at = at % bytes.len();
        bytes[at] = to;
        let mut last = Hello::NeedMore;
        for length in 0..=bytes.len() {
            let answer = parse(&bytes[..length]);
            prop_assert!(last == Hello::NeedMore || answer == last);
            last = answer;
        }
    }

    #[test]
    fn cutting_into_records_never_changes_what_is_found(size in 10usize..600) {
        let whole = real_hello("api.example.com", &[b"http/1.1"]);
        prop_assert_eq!(parse(&records(&whole[5..], size)), parse(&whole));
    }
}
