//! What waits for what comes behind it, and what does not.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;

use super::*;

const TICKET: [u8; 200] = record();

/// An encrypted record of 200 bytes in all.
const fn record() -> [u8; 200] {
    let mut record = [ENCRYPTED; 200];
    (record[3], record[4]) = (0, 195);
    record
}
const MOMENT: Duration = Duration::from_millis(20);

/// A stream that keeps a ticket back, and the client's end.
async fn with_ticket(room: usize) -> (Late<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(room);
    let mut late = Late::new(near);
    late.write_all(&TICKET).await.unwrap();
    late.flush().await.unwrap();
    late.shook_hands();
    (late, far)
}

async fn came(far: &mut DuplexStream) -> Vec<u8> {
    let mut buf = vec![0; 1024];
    match timeout(MOMENT, far.read(&mut buf)).await {
        Ok(count) => buf[..count.unwrap()].to_vec(),
        Err(_elapsed) => Vec::new(),
    }
}

#[tokio::test]
async fn a_ticket_goes_out_with_the_first_answer_and_not_before() {
    let (mut late, mut far) = with_ticket(4096).await;
    late.flush().await.unwrap();
    assert!(came(&mut far).await.is_empty());
    late.write_all(b"answer").await.unwrap();
    assert_eq!(came(&mut far).await, [&TICKET[..], b"answer"].concat());
    late.write_all(b"next").await.unwrap();
    assert_eq!(came(&mut far).await, b"next");
    assert_eq!(late.held.capacity(), 0);
}

#[tokio::test]
async fn a_list_of_pieces_goes_behind_it_too() {
    let (mut late, mut far) = with_ticket(4096).await;
    let pieces = [IoSlice::new(b"one"), IoSlice::new(b"two")];
    assert_eq!(late.write_vectored(&pieces).await.unwrap(), 6);
    assert_eq!(came(&mut far).await, [&TICKET[..], b"onetwo"].concat());
}

#[tokio::test]
async fn it_goes_out_when_the_connection_is_closed_without_an_answer() {
    let (mut late, mut far) = with_ticket(4096).await;
    late.shutdown().await.unwrap();
    assert_eq!(came(&mut far).await, TICKET);
}

#[tokio::test]
async fn whoever_flushes_or_goes_on_waits_for_a_reader_that_is_slow() {
    let (mut late, mut far) = with_ticket(100).await;
    late.write_all(b"answer").await.unwrap();
    assert!(timeout(MOMENT, late.flush()).await.is_err());
    assert!(timeout(MOMENT, late.write_all(b"more")).await.is_err());
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        all
    });
    late.write_all(b"more").await.unwrap();
    drop(late);
    assert_eq!(reading.await.unwrap(), [&TICKET[..], b"answer", b"more"].concat());
}

#[tokio::test]
async fn the_rest_of_a_flight_that_was_cut_short_goes_at_once() {
    let (near, mut far) = duplex(1000);
    let mut late = Late::new(near);
    let mut flight = vec![22; 1000];
    flight.extend_from_slice(&TICKET);
    assert_eq!(late.write(&flight).await.unwrap(), 1000);
    assert_eq!(came(&mut far).await.len(), 1000);
    late.write_all(&TICKET).await.unwrap();
    assert_eq!(came(&mut far).await, TICKET);
}

#[tokio::test]
async fn handshakes_alerts_and_what_comes_later_go_at_once() {
    let mut flight = vec![ENCRYPTED; 1000];
    flight[0] = 22;
    let alert = [ENCRYPTED, 3, 3, 0, 19];
    let alert = [&alert[..], &[7; 19]].concat();
    let ticket_and_alert = [&TICKET[..], &alert].concat();
    for bytes in [flight, vec![21, 3, 3, 0, 2, 2, 40], alert, ticket_and_alert] {
        let (near, mut far) = duplex(4096);
        let mut late = Late::new(near);
        late.write_all(&bytes).await.unwrap();
        assert_eq!(came(&mut far).await, bytes);
    }
    let (near, mut far) = duplex(4096);
    let mut late = Late::new(near);
    late.shook_hands();
    late.write_all(&TICKET).await.unwrap();
    assert_eq!(came(&mut far).await, TICKET);
}
