//! Tests of `net::frames`.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;

const LIMITS: FrameLimits = FrameLimits {
    resets: 3,
    idle_frames: 5,
    window: Duration::from_secs(10),
    head: Duration::from_secs(15),
};

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

fn reset(stream: u8) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

/// What the server reads of these bytes, and what it says of them.
async fn served(bytes: &[u8], piece: usize) -> (io::Result<Vec<u8>>, Option<Abuse>) {
    let (mut near, far) = duplex(64);
    let mut frames = Frames::new(far, LIMITS);
    let tally = frames.tally();
    let mut got = Vec::new();
    let reading = async {
        let read = frames.read_to_end(&mut got).await;
        frames.shutdown().await.unwrap();
        read
    };
    let (read, ()) = tokio::join!(reading, async {
        for part in bytes.chunks(piece) {
            near.write_all(part).await.unwrap();
        }
        near.shutdown().await.unwrap();
        drop(near.read_to_end(&mut Vec::new()).await);
    });
    (read.map(|_| got), tally.abuse())
}

#[tokio::test(start_paused = true)]
async fn frames_pass_unchanged_in_whatever_pieces_they_come() {
    let mut bytes = vec![b'P'; PREFACE];
    for _ in 0..50 {
        bytes.extend(frame(HEADERS, 4, 1, &[RST_STREAM; 40]));
        bytes.extend(frame(DATA, 0, 1, b"payload"));
        bytes.extend(frame(8, 0, 0, &[0, 0, 1, 0]));
    }
    bytes.extend([reset(1), reset(3), reset(5)].concat());
    for piece in [1, 5, 9, 64, 4096] {
        let (got, flood) = served(&bytes, piece).await;
        assert_eq!((got.unwrap(), flood), (bytes.clone(), None), "{piece}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_reset_too_many_ends_the_connection_with_enhance_your_calm() {
    let (mut near, far) = duplex(4096);
    let mut frames = Frames::new(far, LIMITS);
    let tally = frames.tally();
    near.write_all(&[b'P'; PREFACE]).await.unwrap();
    for stream in [1, 3, 5, 7] {
        near.write_all(&frame(HEADERS, 5, stream, b"block"))
            .await
            .unwrap();
        near.write_all(&reset(stream)).await.unwrap();
    }
    let (mut said, mut got) = (Vec::new(), Vec::new());
    let (read, _) = tokio::join!(frames.read_to_end(&mut got), async {
        // Goes on sending, and still gets the words.
        near.write_all(&frame(DATA, 0, 7, b"more")).await.unwrap();
        near.read_to_end(&mut said).await.unwrap();
        near.shutdown().await.unwrap();
    });
    read.unwrap_err();
    assert_eq!(tally.abuse(), Some(Abuse::Resets));
    assert_eq!(
        said,
        [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, ENHANCE_YOUR_CALM]
    );
}

#[tokio::test(start_paused = true)]
async fn frames_without_a_call_are_a_flood_of_their_own_and_old_ones_are_forgotten() {
    // PRIORITY, SETTINGS, PING.
    for kind in [2, 4, 6, DATA, 200] {
        let flood = vec![frame(kind, 0, 1, b""); 6].concat();
        let bytes = [vec![b'P'; PREFACE], flood].concat();
        assert_eq!(served(&bytes, 64).await.1, Some(Abuse::IdleFrames), "{kind}");
    }
    let (mut near, far) = duplex(4096);
    let mut frames = Frames::new(far, LIMITS);
    near.write_all(&[b'P'; PREFACE]).await.unwrap();
    let mut buffer = [0; 4096];
    for stream in 0..20 {
        near.write_all(&reset(stream)).await.unwrap();
        assert_ne!(frames.read(&mut buffer).await.unwrap(), 0);
        tokio::time::advance(Duration::from_secs(4)).await;
    }
    assert_eq!(frames.tally().abuse(), None);
}

/// What of `opened` requests was rejected when the library had sent `frames` and handed `served` of them over.
async fn rejected(opened: u8, frames: &[Vec<u8>], served: u64) -> (Vec<Rejection>, u64) {
    let (mut near, far) = duplex(4096);
    let mut watched = Frames::new(far, LIMITS);
    let tally = watched.tally();
    near.write_all(&[b'P'; PREFACE]).await.unwrap();
    for nth in 0..opened {
        near.write_all(&frame(HEADERS, END_STREAM, 2 * nth + 1, b"begun"))
            .await
            .unwrap();
        near.write_all(&frame(CONTINUATION, END_HEADERS, 2 * nth + 1, b"block"))
            .await
            .unwrap();
        // Trailers open nothing.
        near.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, b"end"))
            .await
            .unwrap();
    }
    near.write_all(&frame(HEADERS, END_STREAM, 201, b"half a head"))
        .await
        .unwrap();
    assert_ne!(watched.read(&mut [0; 4096]).await.unwrap(), 0);
    watched.write_all(&frames.concat()).await.unwrap();
    let rejections = tally.rejections(served).collect();
    assert_eq!(tally.rejections(served).count(), 0, "each is told once");
    (rejections, tally.unserved(served))
}

#[tokio::test(start_paused = true)]
async fn requests_that_the_library_rejects_by_itself_are_told_apart() {
    let reset = |stream, code| frame(RST_STREAM, 0, stream, &[0, 0, 0, code]);
    let answer = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, b"head");
    let all = [
        answer(1),
        reset(3, 7),
        answer(5),
        reset(5, 1),
        reset(7, 1),
        reset(9, 8),
    ];
    assert_eq!(
        rejected(6, &all, 3).await.0,
        [Rejection::Refused, Rejection::Malformed, Rejection::TooLarge]
    );
    // A request that was served, and whose body then broke the protocol.
    assert_eq!(rejected(1, &[reset(1, 1)], 1).await.0, []);
    // Or was refused in a bare answer.
    assert_eq!(rejected(1, &[answer(1)], 1).await.0, []);
    // What is missing because the library gave up.
    let given_up = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(rejected(2, &[reset(1, 1), given_up], 0).await, (vec![], 2));
    // Behind GOAWAY nothing is a request.
    let (mut near, far) = duplex(4096);
    let mut watched = Frames::new(far, LIMITS);
    watched
        .write_all(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]))
        .await
        .unwrap();
    let late = [
        vec![b'P'; PREFACE],
        frame(HEADERS, 5, 1, b""),
        frame(HEADERS, 5, 3, b""),
    ]
    .concat();
    near.write_all(&late).await.unwrap();
    assert_ne!(watched.read(&mut [0; 4096]).await.unwrap(), 0);
    assert_eq!(watched.tally().unserved(1), 0);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_can_not_send_says_nothing_of_rejections() {
    let (mut near, far) = duplex(64);
    let mut watched = Frames::new(far, LIMITS);
    let tally = watched.tally();
    near.write_all(&[vec![b'P'; PREFACE], frame(HEADERS, 5, 1, b"")].concat())
        .await
        .unwrap();
    assert_ne!(watched.read(&mut [0; 4096]).await.unwrap(), 0);
    let written = tokio::time::timeout(Duration::from_secs(1), watched.write_all(&[0; 100])).await;
    written.unwrap_err();
    assert_eq!((tally.rejections(0).count(), tally.unserved(0)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_however_it_drips_and_bodies_have_none() {
    let drip = |bytes: Vec<u8>| async move {
        let (mut near, far) = duplex(4096);
        let mut watched = Frames::new(far, LIMITS);
        near.write_all(&[b'P'; PREFACE]).await.unwrap();
        let tally = watched.tally();
        let start = Instant::now();
        let dripping = async {
            for byte in bytes {
                drop(near.write_all(&[byte]).await);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop(near);
        };
        let mut got = Vec::new();
        let reading = async {
            drop(watched.read_to_end(&mut got).await);
            start.elapsed().as_secs()
        };
        let ((), after) = tokio::join!(dripping, reading);
        (tally.abuse(), after)
    };
    let long = vec![0; 200];
    let slow = drip([&[0, 0, 200, HEADERS, END_HEADERS, 0, 0, 0, 1], long.as_slice()].concat()).await;
    // Nine bytes say what it is; then its time, and the moment for our last words.
    assert_eq!(slow, (Some(Abuse::SlowHead), 8 + 15 + 1));
    let continued = frame(HEADERS, 0, 1, b"");
    let continued = drip([continued, frame(CONTINUATION, END_HEADERS, 1, &long)].concat()).await;
    assert_eq!(continued, (Some(Abuse::SlowHead), 8 + 15 + 1));
    let body = drip([frame(HEADERS, END_HEADERS, 1, b"four"), frame(DATA, 0, 1, &long)].concat()).await;
    assert_eq!(body, (None, 13 + 209));
}
