//! Each case whole and byte by byte.

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    bytes: 256,
    fields: 4,
};

/// The head's answer, which must not depend on how the bytes come in.
fn head(bytes: &[u8]) -> Result<Option<Head>, Fault> {
    let whole = HeadReader::default().read(bytes, LIMITS);
    let mut reader = HeadReader::default();
    let mut parts = Ok(None);
    for length in 0..=bytes.len() {
        parts = reader.read(&bytes[..length], LIMITS);
        if parts != Ok(None) {
            break;
        }
        // A head that comes byte by byte must not be searched again for each of them.
        assert_eq!(reader.searched, length);
    }
    assert_eq!(whole, parts, "{:?}", String::from_utf8_lossy(bytes));
    whole
}

#[test]
fn a_head_ends_where_it_ends_and_says_what_follows() {
    for (text, length, framing) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET", 27, Framing::Length(0)),
        ("\r\nGET / HTTP/1.0\r\n\r\n", 20, Framing::Length(0)),
        (
            "POST / HTTP/1.1\r\nContent-Length: 12 \r\n\r\n",
            40,
            Framing::Length(12),
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n0",
            47,
            Framing::Chunked,
        ),
    ] {
        assert_eq!(
            head(text.as_bytes()),
            Ok(Some(Head {
                bytes: length,
                framing
            })),
            "{text:?}"
        );
    }
    assert_eq!(head(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
}

#[test]
fn what_two_parsers_read_differently_is_a_fault() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: +3",
        "Content-Length: 3, 3",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "A: b\r\n folded",
        "A: b\nB: c",
        "A: b\rc",
        "A: b\0c",
        "no colon",
        ": nameless",
    ] {
        let text = format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n");
        assert!(
            matches!(head(text.as_bytes()), Err(Fault::Malformed(_))),
            "{fields:?}"
        );
    }
    for line in [
        "GET / HTTP/1.2",
        "GET  / HTTP/1.1",
        "GET /",
        "GET /a#b",
        "GET /<",
        "GET http://[",
        "GET / a HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /\t HTTP/1.1",
        " GET / HTTP/1.1",
    ] {
        let text = format!("{line}\r\n\r\n");
        assert!(
            matches!(head(text.as_bytes()), Err(Fault::Malformed(_))),
            "{line:?}"
        );
    }
}

#[test]
fn a_head_over_the_limits_is_too_large() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(300));
    assert_eq!(head(long.as_bytes()), Err(Fault::TooLarge));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5));
    assert_eq!(head(many.as_bytes()), Err(Fault::TooLarge));
}

/// Where a chunked body ends, however it comes in.
fn chunked(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let whole = ChunkReader::default().read(bytes);
    let mut reader = ChunkReader::default();
    let mut parts = Ok(None);
    for index in 0..bytes.len() {
        parts = reader
            .read(&bytes[index..=index])
            .map(|end| end.map(|end| end + index));
        if parts != Ok(None) {
            break;
        }
    }
    assert_eq!(whole, parts, "{:?}", String::from_utf8_lossy(bytes));
    whole
}

#[test]
fn a_chunked_body_ends_after_its_trailers() {
    for (text, end) in [
        ("0\r\n\r\nGET", Some(5)),
        ("3\r\nabc\r\n0\r\n\r\n", Some(13)),
        ("A;x=y\r\n0123456789\r\n0\r\nA: b\r\nC: d\r\n\r\n?", Some(36)),
        ("3\r\nabc\r\n0\r\n", None),
        ("ffffff\r\nabc", None),
    ] {
        assert_eq!(chunked(text.as_bytes()), Ok(end), "{text:?}");
    }
    for text in [
        "3\nabc",
        "3 \r\n",
        "\r\n",
        "g\r\n",
        "0x3\r\n",
        "3\r\nabcd\r\n",
        "0\r\nA: b\n\n",
        "1000000000000000\r\n",
    ] {
        assert!(chunked(text.as_bytes()).is_err(), "{text:?}");
    }
}
