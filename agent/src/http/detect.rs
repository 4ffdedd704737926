//! Sans-IO protocol detection; unknown is an answer, not a default.
//!
//! Pure. As with the ClientHello, an answer other than [`Protocol::NeedMore`] is final.

/// The connection preface of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest registered method has 17 letters (UPDATEREDIRECTREF).
const MAX_METHOD: usize = 24;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// A TLS handshake record.
    Tls,
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface in the clear.
    Http2,
    /// None of these.
    Unknown,
    /// So far it may be several things.
    NeedMore,
}

/// Says what the first bytes of a connection are.
///
/// HTTP/1 needs the whole request line: "SSH-2.0-x y" too begins like a method and a blank.
#[must_use]
pub fn detect(bytes: &[u8]) -> Protocol {
    match bytes {
        [] | [0x16] => Protocol::NeedMore,
        [0x16, 3, ..] => Protocol::Tls,
        _ if bytes.starts_with(HTTP2_PREFACE) => Protocol::Http2,
        _ if HTTP2_PREFACE.starts_with(bytes) => Protocol::NeedMore,
        _ => http1(bytes),
    }
}

fn http1(bytes: &[u8]) -> Protocol {
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    if method == bytes.len() && method <= MAX_METHOD {
        return Protocol::NeedMore;
    }
    if method == 0 || method > MAX_METHOD || bytes.get(method) != Some(&b' ') {
        return Protocol::Unknown;
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return Protocol::NeedMore;
    };
    // A bare LF is let through to the HTTP layer, whose refusal the client can read.
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
        Protocol::Http1
    } else {
        Protocol::Unknown
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_protocols_are_told_apart() {
        for (bytes, protocol) in [
            (b"\x16\x03\x01\x02\x00".as_slice(), Protocol::Tls),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Protocol::Http1),
            (b"M-SEARCH * HTTP/1.0\n", Protocol::Http1),
            (HTTP2_PREFACE, Protocol::Http2),
            (b"PRI / HTTP/1.1\r\n", Protocol::Http1),
            (b"", Protocol::NeedMore),
            (b"\x16", Protocol::NeedMore),
            (b"GET /a", Protocol::NeedMore),
            (b"PRI * HT", Protocol::NeedMore),
            (b"\x16\x02", Protocol::Unknown),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", Protocol::Unknown),
            (b"GET /\r\n", Protocol::Unknown),
            (b"EHLO example\r\n", Protocol::Unknown),
            (b"\r\nGET / HTTP/1.1\r\n", Protocol::Unknown),
            (b" GET / HTTP/1.1\r\n", Protocol::Unknown),
            (b"GET\t/ HTTP/1.1\r\n", Protocol::Unknown),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAA", Protocol::Unknown),
        ] {
            assert_eq!(detect(bytes), protocol, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_an_answer(text in "(\\x16\\x03|GET |PRI \\* |SSH-)?[ -~\r\n]{0,60}") {
            let bytes = text.as_bytes();
            let mut last = Protocol::NeedMore;
            for length in 0..=bytes.len() {
                let answer = detect(&bytes[..length]);
                prop_assert!(last == Protocol::NeedMore || answer == last);
                last = answer;
            }
        }
    }
}
