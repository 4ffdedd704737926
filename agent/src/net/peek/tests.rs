//! Tests of `net::peek`.

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn sized(bytes: usize) -> Limits {
    Limits {
        bytes,
        ..Limits::default()
    }
}

fn failure<S: std::fmt::Debug>(peeked: Result<(Detected, Replay<S>), Unread<S>>) -> PeekError {
    peeked.unwrap_err().error
}

/// A ClientHello for `a.example`, by hand: SNI alone.
fn hello() -> Vec<u8> {
    let sni = [0, 0, 0, 14, 0, 12, 0, 0, 9].into_iter().chain(*b"a.example");
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0, 0, 18]);
    body.extend(sni);
    let length = u8::try_from(body.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], body.as_slice()].concat()
}

/// Sends the pieces one by one, each after the one before it was read.
async fn send(mut to: DuplexStream, pieces: Vec<Vec<u8>>) -> DuplexStream {
    for piece in pieces {
        to.write_all(&piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    to
}

#[tokio::test]
async fn a_hello_in_pieces_is_found_and_replayed_with_what_follows() {
    for size in [1, 2, 7, 50, 4096] {
        let (near, far) = duplex(4096);
        let bytes = [hello(), b"rest".to_vec()].concat();
        let pieces = bytes.chunks(size).map(<[u8]>::to_vec).collect();
        let read = async {
            let (detected, mut replay) = peek(far, Limits::default()).await.unwrap();
            let Detected::Tls(hello) = detected else {
                panic!("{detected:?}")
            };
            assert_eq!(hello.sni.unwrap().as_str(), "a.example");
            let mut all = Vec::new();
            replay.read_to_end(&mut all).await.unwrap();
            assert!(replay.prefix.is_none(), "the prefix's memory is gone");
            all
        };
        let (_, all) = tokio::join!(async { drop(send(near, pieces).await) }, read);
        assert_eq!(all, bytes, "pieces of {size}");
    }
}

#[tokio::test]
async fn protocols_in_the_clear_are_told_apart() {
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\n\r\n".as_slice(), Detected::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detected::Http2),
        (b"\0\0\0\x09", Detected::Unknown),
    ] {
        let (mut near, far) = duplex(4096);
        near.write_all(bytes).await.unwrap();
        let (detected, replay) = peek(far, Limits::default()).await.unwrap();
        assert_eq!(detected, expected);
        assert_eq!(replay.prefix(), bytes);
    }
}

#[tokio::test]
async fn writes_pass_through_while_the_prefix_waits() {
    let (mut near, far) = duplex(64);
    let mut replay = Replay::new(BytesMut::from("abcdef".as_bytes()), far);
    replay.write_all(b"xyz").await.unwrap();
    let mut got = [0; 3];
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"xyz");
    near.write_all(b"gh").await.unwrap();
    let mut parts = Vec::new();
    for _ in 0..4 {
        let mut small = [0; 2];
        let count = replay.read(&mut small).await.unwrap();
        parts.push(small[..count].to_vec());
    }
    assert_eq!(parts, [b"ab", b"cd", b"ef", b"gh"]);
}

#[tokio::test]
async fn too_much_is_refused_at_the_limit() {
    let (near, far) = duplex(1 << 17);
    let _near = send(near, vec![[b"GET /".as_slice(), &[b'a'; 9000]].concat()]).await;
    assert!(matches!(
        failure(peek(far, sized(8192)).await),
        PeekError::TooLarge { limit: 8192 }
    ));
    let (near, far) = duplex(64);
    let _near = send(near, vec![vec![22, 3, 1, 0x40, 0, 1, 1, 0, 1]]).await;
    assert!(matches!(
        failure(peek(far, Limits::default()).await),
        PeekError::TooLarge { .. }
    ));
}

#[tokio::test]
async fn broken_tls_and_an_early_close_are_told_apart() {
    let (mut near, far) = duplex(64);
    near.write_all(&[22, 3, 1, 0, 0]).await.unwrap();
    assert!(matches!(
        failure(peek(far, Limits::default()).await),
        PeekError::Malformed
    ));
    for (bytes, sent) in [(b"".as_slice(), 0), (b"GET", 3), (&[22, 3, 1, 1, 0], 5)] {
        let (mut near, far) = duplex(64);
        near.write_all(bytes).await.unwrap();
        drop(near);
        assert!(
            matches!(failure(peek(far, Limits::default()).await), PeekError::Closed { bytes } if bytes == sent)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_after_5_seconds_and_half_a_hello_after_10() {
    let start = Instant::now();
    let (_near, far) = duplex(64);
    let error = failure(peek(far, Limits::default()).await);
    assert!(
        matches!(error, PeekError::DetectionTimeout { seconds: 5, bytes: 0 }),
        "{error}"
    );
    assert_eq!(start.elapsed().as_secs(), 5);
    let start = Instant::now();
    let (mut near, far) = duplex(64);
    near.write_all(&[22, 3, 1, 1, 0, 1]).await.unwrap();
    let error = failure(peek(far, Limits::default()).await);
    assert!(
        matches!(
            error,
            PeekError::HelloTimeout {
                seconds: 10,
                bytes: 6
            }
        ),
        "{error}"
    );
    assert_eq!(start.elapsed().as_secs(), 10);
}
