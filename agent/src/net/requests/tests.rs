//! One head at a time, whatever comes in one piece.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    bytes: 1024,
    fields: 10,
};

/// What each read gives until the end, and whether it stands for a request that was refused.
async fn reads(input: &[u8]) -> Vec<(String, Option<Cause>)> {
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(input).await.unwrap();
    drop(far);
    let notice = Notice::default();
    let mut requests = Requests::new(near, LIMITS, notice.clone());
    let mut all = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = requests.read(&mut buffer).await.unwrap();
        if count == 0 {
            return all;
        }
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        all.push((text, notice.take_refused().map(|refused| refused.cause)));
    }
}

fn texts(reads: &[(String, Option<Cause>)]) -> Vec<&str> {
    reads.iter().map(|(text, _)| text.as_str()).collect()
}

#[tokio::test]
async fn requests_in_one_piece_are_read_one_by_one() {
    let one = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let two = "POST /2 HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
    let three = "POST /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = "2\r\nab\r\n0\r\n\r\n";
    let input = [one, two, "abc", three, chunks, one].concat();
    let all = reads(input.as_bytes()).await;
    assert_eq!(texts(&all), [one, two, "abc", three, chunks, one]);
    assert!(all.iter().all(|(_, refused)| refused.is_none()));
}

#[tokio::test]
async fn a_stand_in_comes_behind_the_requests_before_it_and_nothing_after_it() {
    let one = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let bad = "GET /2 HTTP/1.1\nHost: a\n\n";
    let all = reads([one, bad, one].concat().as_bytes()).await;
    assert_eq!(texts(&all), [one, std::str::from_utf8(STAND_IN).unwrap()]);
    assert!(matches!(all[1].1, Some(Cause::Fault(Fault::Malformed(_)))));
    let cut = reads(b"GET /1 HTTP/1.1\r\nHos").await;
    assert_eq!(cut[0].1, Some(Cause::Closed));
}

#[tokio::test]
async fn behind_a_switch_everything_passes() {
    let (near, mut far) = duplex(1024);
    let notice = Notice::default();
    let mut requests = Requests::new(near, LIMITS, notice.clone());
    let mut buffer = [0; 64];
    far.write_all(b"GET / HTTP/1.1\r\n\r\nframe").await.unwrap();
    assert_eq!(requests.read(&mut buffer).await.unwrap(), 18);
    notice.switched();
    assert_eq!(requests.read(&mut buffer).await.unwrap(), 5);
    far.write_all(b"\nmore").await.unwrap();
    assert_eq!(requests.read(&mut buffer).await.unwrap(), 5);
}

/// How long a shutdown in the middle of a body takes.
async fn lingered(requests: &mut Requests<tokio::io::DuplexStream>) -> Duration {
    let mut buffer = [0; 64];
    while requests.read(&mut buffer).await.unwrap() == buffer.len() {}
    let start = Instant::now();
    requests.shutdown().await.unwrap();
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_is_read_on_but_not_for_ever() {
    let head = b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\nbody";
    let (near, mut silent) = duplex(1024);
    silent.write_all(head).await.unwrap();
    let mut requests = Requests::new(near, LIMITS, Notice::default());
    assert_eq!(lingered(&mut requests).await, LINGER_IDLE);

    let (near, mut chatty) = duplex(1024);
    chatty.write_all(head).await.unwrap();
    let mut requests = Requests::new(near, LIMITS, Notice::default());
    let talk = tokio::spawn(async move {
        while chatty.write_all(b"more").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let took = lingered(&mut requests).await;
    assert!((LINGER..=LINGER + LINGER_IDLE).contains(&took), "{took:?}");
    drop(requests);
    talk.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn between_two_requests_nobody_waits_for_the_client() {
    let (near, mut far) = duplex(1024);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut requests = Requests::new(near, LIMITS, Notice::default());
    assert_eq!(lingered(&mut requests).await, Duration::ZERO);
}
