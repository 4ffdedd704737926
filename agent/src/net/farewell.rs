//! Last words on a connection that is about to be closed.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// How long the peer has to take them.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much of what the peer still sends is read.
const MOST: u64 = 256 * 1024;

/// Sends `words` and closes. What the peer still sends is read and thrown away for a moment: a socket that is
/// closed with unread bytes answers with a reset, which takes the words with it (RFC 9293 section 3.10.4).
pub async fn send<S>(mut stream: S, words: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MOST), &mut tokio::io::sink()).await
    };
    match timeout(PATIENCE, said).await {
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a peer was gone before it could be told why"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test(start_paused = true)]
    async fn the_peer_gets_the_words_although_it_goes_on_sending() {
        let (mut near, far) = duplex(16);
        let sending = async {
            near.write_all(&[0; 4096]).await.unwrap();
            let mut got = Vec::new();
            near.read_to_end(&mut got).await.unwrap();
            got
        };
        let (got, ()) = tokio::join!(sending, send(far, b"alert"));
        assert_eq!(got, b"alert");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_not_waited_for() {
        let (_near, far) = duplex(2);
        send(far, b"alert").await;
    }
}
