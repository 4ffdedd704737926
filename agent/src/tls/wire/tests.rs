//! What a stream below TLS reads at once, holds and gives out, and by which call it writes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A stream that counts how often it is read.
struct Counting<S>(S, usize);

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1 += 1;
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

#[tokio::test]
async fn a_large_record_is_one_read_and_comes_in_order_in_whatever_pieces() {
    let record: Vec<u8> = (0..16_406_usize).map(|at| (at % 251) as u8).collect();
    for piece in [1, 5, 4096, 65_536] {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(Counting(far, 0));
        let mut came = Vec::new();
        for _ in 0..3 {
            near.write_all(&record).await.unwrap();
            let before = (came.len(), wire.stream.1);
            while came.len() < before.0 + record.len() {
                let mut buf = vec![0; piece];
                let count = wire.read(&mut buf).await.unwrap();
                came.extend_from_slice(&buf[..count]);
            }
            assert_eq!(wire.stream.1 - before.1, 1, "in pieces of {piece}");
            assert!(wire.held.is_empty(), "nothing is held any more");
        }
        assert_eq!(came, record.repeat(3));
        drop(near);
        assert_eq!(wire.read(&mut [0]).await.unwrap(), 0);
    }
}

/// A stream that has broken.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

#[tokio::test]
async fn what_came_before_an_error_is_given_out_first() {
    let bytes = [7; 6000];
    let mut wire = Wire::new(bytes.as_slice().chain(Broken));
    let mut buf = [0; 4096];
    assert_eq!(wire.read(&mut buf).await.unwrap(), 4096);
    assert_eq!(wire.read(&mut buf).await.unwrap(), 6000 - 4096);
    let error = wire.read(&mut buf).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A stream that notes how it is written to, and takes all.
#[derive(Default)]
struct Noting(Vec<(&'static str, usize)>);

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.push(("one", bytes.len()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = bytes.iter().map(|piece| piece.len()).sum();
        self.0.push(("list", count));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_lone_piece_is_written_by_itself_and_several_as_a_list() {
    let mut wire = Wire::new(Noting::default());
    assert!(wire.is_write_vectored());
    let pieces = [[1; 10], [2; 10]];
    let [first, second] = pieces.each_ref().map(|piece| IoSlice::new(piece));
    assert_eq!(wire.write_vectored(&[first]).await.unwrap(), 10);
    assert_eq!(wire.write_vectored(&[first, second]).await.unwrap(), 20);
    assert_eq!(wire.write(&pieces[0]).await.unwrap(), 10);
    assert_eq!(wire.stream.0, [("one", 10), ("list", 20), ("one", 10)]);
}
