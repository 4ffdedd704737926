//! Tests of `net::splice`.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

struct Ends {
    client: DuplexStream,
    upstream: DuplexStream,
    inner: (DuplexStream, DuplexStream),
}

fn ends(size: usize) -> Ends {
    let (client, near) = duplex(size);
    let (upstream, far) = duplex(size);
    Ends {
        client,
        upstream,
        inner: (near, far),
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted() {
    let Ends {
        mut client,
        mut upstream,
        inner,
    } = ends(1000);
    let counts = Counts::default();
    let up = vec![1; 100_000];
    let down = vec![2; 70_001];
    let copy = splice(inner.0, inner.1, Patience::default(), &counts);
    let (mut client_read, mut client_write) = tokio::io::split(&mut client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(&mut upstream);
    let send_up = async {
        client_write.write_all(&up).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let send_down = async {
        upstream_write.write_all(&down).await.unwrap();
        upstream_write.shutdown().await.unwrap();
    };
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let (result, (), (), read_up, read_down) = tokio::join!(
        copy,
        send_up,
        send_down,
        upstream_read.read_to_end(&mut got_up),
        client_read.read_to_end(&mut got_down)
    );
    result.unwrap();
    assert_eq!((read_up.unwrap(), read_down.unwrap()), (100_000, 70_001));
    assert!(got_up == up && got_down == down);
    assert_eq!((counts.up(), counts.down()), (100_000, 70_001));
}

#[tokio::test]
async fn one_side_may_close_while_the_other_goes_on() {
    let Ends {
        mut client,
        mut upstream,
        inner,
    } = ends(64);
    let counts = Counts::default();
    let talk = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        upstream.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        upstream.write_all(b"late answer").await.unwrap();
        drop(upstream);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "late answer");
    };
    let (result, ()) = tokio::join!(splice(inner.0, inner.1, Patience::default(), &counts), talk);
    result.unwrap();
}

#[tokio::test]
async fn bytes_held_back_by_the_sink_are_flushed() {
    let Ends {
        mut client,
        mut upstream,
        inner,
    } = ends(64);
    let counts = Counts::default();
    let buffered = tokio::io::BufWriter::new(inner.1);
    let talk = async {
        client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        upstream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        drop((client, upstream));
    };
    let (_ended, ()) = tokio::join!(splice(inner.0, buffered, Patience::default(), &counts), talk);
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_ends() {
    let Ends {
        mut client,
        upstream: _upstream,
        inner,
    } = ends(64);
    let counts = Counts::default();
    let start = Instant::now();
    let later = async {
        sleep_until(start + Duration::from_secs(200)).await;
        client.write_all(b"x").await.unwrap();
        std::future::pending::<()>().await;
    };
    let error = tokio::select! {
        result = splice(inner.0, inner.1, Patience::default(), &counts) => result.unwrap_err(),
        () = later => unreachable!("never ends"),
    };
    assert!(matches!(error, SpliceError::Idle { seconds: 300 }), "{error}");
    assert_eq!(start.elapsed().as_secs(), 500);
    assert_eq!(counts.up(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_read_ends_the_tunnel_though_the_other_way_is_busy() {
    let Ends {
        mut client,
        mut upstream,
        inner,
    } = ends(64);
    let counts = Counts::default();
    let start = Instant::now();
    client.write_all(&[1; 64]).await.unwrap();
    let keep_busy = async {
        loop {
            upstream.write_all(b"y").await.unwrap();
            client.read_u8().await.unwrap();
            // The upstream never reads; its 64 bytes are full, more wait.
            tokio::time::sleep(Duration::from_secs(1)).await;
            if start.elapsed().as_secs() == 2 {
                client.write_all(&[1; 64]).await.unwrap();
            }
        }
    };
    let error = tokio::select! {
        result = splice(inner.0, inner.1, Patience::default(), &counts) => result.unwrap_err(),
        () = keep_busy => unreachable!("never ends"),
    };
    assert!(
        matches!(
            error,
            SpliceError::Stalled {
                side: "upstream",
                seconds: 60
            }
        ),
        "{error}"
    );
    assert!(start.elapsed().as_secs() <= 125, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_broken_side_is_named() {
    let Ends {
        mut client,
        upstream,
        inner,
    } = ends(64);
    drop(upstream);
    client.write_all(b"x").await.unwrap();
    let counts = Counts::default();
    let error = splice(inner.0, inner.1, Patience::default(), &counts)
        .await
        .unwrap_err();
    assert!(
        matches!(error, SpliceError::Io { side: "upstream", .. }),
        "{error}"
    );
    assert_eq!(counts.up(), 0);
}
