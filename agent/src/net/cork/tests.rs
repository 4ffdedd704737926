//! What a cork holds back, and when it lets go.

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

/// A pipe that notes how much each write brought.
#[derive(Debug)]
struct Noted {
    stream: DuplexStream,
    writes: Rc<RefCell<Vec<usize>>>,
}

impl AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.writes.borrow_mut().push(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Pipe {
    corked: Corked<Noted>,
    cork: Cork<Noted>,
    far: DuplexStream,
    writes: Rc<RefCell<Vec<usize>>>,
}

fn pipe(room: usize) -> Pipe {
    let (near, far) = duplex(room);
    let writes = Rc::default();
    let (corked, cork) = cork(Noted {
        stream: near,
        writes: Rc::clone(&writes),
    });
    Pipe {
        corked,
        cork,
        far,
        writes,
    }
}

/// Drives a writer as a connection's task does.
async fn drive<T>(cork: &Cork<Noted>, writer: impl Future<Output = T>) -> T {
    let mut writer = pin!(writer);
    poll_fn(|cx| cork.poll(cx, |cx| writer.as_mut().poll(cx))).await
}

#[tokio::test]
async fn many_flushed_writes_are_one() {
    let Pipe {
        mut corked,
        cork,
        mut far,
        writes,
    } = pipe(1 << 20);
    let mut written = [0; 30];
    let (read, ()) = tokio::join!(
        far.read_exact(&mut written),
        drive(&cork, async {
            for _ in 0..10 {
                corked.write_all(b"one").await.unwrap();
                corked.flush().await.unwrap();
            }
            tokio::task::yield_now().await;
        })
    );
    assert_eq!(read.unwrap(), 30);
    assert_eq!(&written[..6], b"oneone");
    assert_eq!(*writes.borrow(), [30]);
}

#[tokio::test]
async fn a_peer_that_takes_nothing_holds_the_writer_up_and_loses_nothing() {
    let Pipe {
        mut corked,
        cork,
        mut far,
        ..
    } = pipe(1000);
    let sent: Vec<u8> = (0..5 * CAPACITY).map(|at| (at % 251) as u8).collect();
    let mut came = Vec::new();
    let mut writing = Box::pin(drive(&cork, async {
        for part in sent.chunks(7_001) {
            corked.write_all(part).await.unwrap();
        }
        corked.shutdown().await.unwrap();
    }));
    let early = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx))).await;
    assert!(early.is_pending());
    let held = cork.0.borrow().held.len();
    assert!(held <= CAPACITY, "{held} bytes are held");
    let (read, ()) = tokio::join!(far.read_to_end(&mut came), writing);
    assert_eq!(read.unwrap(), sent.len());
    assert_eq!(came, sent);
}

#[tokio::test]
async fn a_write_longer_than_all_that_may_be_held_is_taken_in_parts() {
    let Pipe { mut corked, .. } = pipe(1);
    let taken = corked.write(&[0; CAPACITY + 1]).await.unwrap();
    assert_eq!(taken, CAPACITY);
}

#[tokio::test]
async fn a_send_that_fails_is_told_to_who_wrote() {
    let Pipe {
        mut corked,
        cork,
        far,
        ..
    } = pipe(10);
    drop(far);
    let told = drive(&cork, async {
        corked.write_all(b"lost").await.unwrap();
        corked.flush().await.unwrap();
        tokio::task::yield_now().await;
        corked.read(&mut [0; 1]).await
    })
    .await;
    assert_eq!(told.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let Pipe {
        mut corked,
        cork,
        mut far,
        ..
    } = pipe(CAPACITY);
    drive(&cork, async {
        corked.write_all(&[1; 5000]).await.unwrap();
        tokio::task::yield_now().await;
    })
    .await;
    far.read_exact(&mut [0; 5000]).await.unwrap();
    assert_eq!(cork.0.borrow().held.capacity(), 0);
}
