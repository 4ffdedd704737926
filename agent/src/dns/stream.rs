//! Questions over TCP (RFC 7766): each message behind its length, several under way at once, answers as they come.
//!
//! The same questions and answers as over UDP ([`super::stub`]); this is the way for clients that ask by TCP only, or
//! again after an answer that was too long for a datagram.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::resolver::Resolver;
use super::stub::{self, MAX_QUESTION, Rules};

/// A message's length goes before it, in this many bytes (RFC 1035 section 4.2.2).
const LENGTH: usize = 2;
/// How long a client may leave the connection without a whole question ("a few seconds", RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// How long it may not take an answer.
const STALL: Duration = Duration::from_secs(10);
/// Questions of one connection that are worked on at once; the next are read when one is answered.
const PIPELINED: usize = 16;
/// Questions that one connection may ask; a client that has more opens another.
const QUESTIONS: usize = 1000;

/// Why a connection was broken off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Not DNS.
    #[error("what came on port 53 is no DNS question of at most {MAX_QUESTION} bytes")]
    NoQuestion,
    /// The client left within a question, or takes no answers.
    #[error("the client broke off: {0}")]
    Io(#[from] io::Error),
}

/// Answers the questions of one connection until the client ends it, it is idle for too long, or `closing` is done
/// and nothing is under way. `turns` are the workload's questions at once, over UDP too.
///
/// # Errors
/// See [`Broken`].
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite,
    resolver: &Resolver,
    rules: &dyn Rules,
    turns: &Semaphore,
    closing: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut closing = std::pin::pin!(closing);
    let mut received = Received::default();
    let mut under_way = FuturesUnordered::new();
    let (mut asked, mut ended) = (0, false);
    let mut idle_at = Instant::now() + IDLE;
    loop {
        while under_way.len() < PIPELINED && asked < QUESTIONS {
            let Some(question) = received.take()? else { break };
            asked += 1;
            under_way.push(answer(question, resolver, rules, turns));
        }
        if (ended || asked == QUESTIONS) && under_way.is_empty() {
            writer.shutdown().await?;
            let whole = asked == QUESTIONS || received.bytes.is_empty();
            return if whole {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            };
        }
        let (idle, may_read) = (under_way.is_empty(), !ended && !received.is_full());
        tokio::select! {
            read = reader.read_buf(&mut received.bytes), if may_read => ended = read? == 0,
            Some(reply) = under_way.next(), if !idle => {
                let sent = timeout(STALL, writer.write_all(&framed(&reply)?)).await;
                sent.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
                idle_at = Instant::now() + IDLE;
            }
            () = tokio::time::sleep_until(idle_at), if idle => return Ok(writer.shutdown().await?),
            () = &mut closing, if idle => return Ok(writer.shutdown().await?),
        }
    }
}

async fn answer(question: Message, resolver: &Resolver, rules: &dyn Rules, turns: &Semaphore) -> Message {
    // It is never closed; without a turn the answer only comes sooner.
    let _turn = turns.acquire().await.ok();
    stub::answer(&question, resolver, rules).await
}

fn framed(reply: &Message) -> io::Result<Vec<u8>> {
    let message = reply.to_vec().map_err(io::Error::other)?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), message.as_slice()].concat())
}

/// What has come in and is not asked yet.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
}

impl Received {
    /// The next whole question.
    fn take(&mut self) -> Result<Option<Message>, Broken> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 || length > MAX_QUESTION {
            return Err(Broken::NoQuestion);
        }
        let Some(message) = rest.get(..length) else {
            return Ok(None);
        };
        let question = Message::from_vec(message).map_err(|_malformed| Broken::NoQuestion)?;
        self.bytes.drain(..LENGTH + length);
        Ok(Some(question))
    }

    /// Holds a question of any length; more is read when that is answered.
    fn is_full(&self) -> bool {
        self.bytes.len() >= LENGTH + MAX_QUESTION
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::RecordType;
    use tokio::io::DuplexStream;

    use super::super::stub::tests::{Only, ask, resolver};
    use super::*;

    fn question(id: u16, name: &str) -> Vec<u8> {
        let mut question = ask(name, RecordType::A);
        question.metadata.id = id;
        framed(&question).unwrap()
    }

    async fn reply(client: &mut DuplexStream) -> Message {
        let length = client.read_u16().await.unwrap();
        let mut message = vec![0; length.into()];
        client.read_exact(&mut message).await.unwrap();
        Message::from_vec(&message).unwrap()
    }

    /// Serves `client` while it acts.
    async fn while_served<T>(
        act: impl AsyncFnOnce(DuplexStream) -> T,
        closing: impl Future<Output = ()>,
    ) -> (Result<(), Broken>, T) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (resolver, rules, turns) = (resolver(), Only::default(), Semaphore::new(1));
        tokio::join!(serve(server, &resolver, &rules, &turns, closing), act(client))
    }

    #[tokio::test(start_paused = true)]
    async fn questions_in_one_piece_or_in_bytes_are_all_answered_and_the_end_is_clean() {
        let act = async |mut client: DuplexStream| {
            let two = [question(1, "api.example.com."), question(2, "other.example.com.")].concat();
            client.write_all(&two).await.unwrap();
            let mut replies = [reply(&mut client).await, reply(&mut client).await];
            replies.sort_by_key(|reply| reply.metadata.id);
            assert_eq!(replies[0].answers.len(), 1);
            assert_eq!(replies[1].metadata.response_code, ResponseCode::NXDomain);
            for byte in question(3, "api.example.com.") {
                client.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(reply(&mut client).await.metadata.id, 3);
            // More than are worked on at once.
            let many: Vec<u8> = (0..100).flat_map(|id| question(id, "api.example.com.")).collect();
            client.write_all(&many).await.unwrap();
            client.shutdown().await.unwrap();
            for _ in 0..100 {
                reply(&mut client).await;
            }
        };
        let (served, ()) = while_served(act, pending()).await;
        served.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_question_breaks_the_connection_off() {
        for bytes in [
            b"\0\0".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"\0\x03abc".to_vec(),
            vec![0xff; 4096],
        ] {
            let act = async |mut client: DuplexStream| {
                client.write_all(&bytes).await.unwrap();
                client.read_to_end(&mut Vec::new()).await.unwrap()
            };
            let (served, answered) = while_served(act, pending()).await;
            assert!(matches!(served, Err(Broken::NoQuestion)), "{bytes:?} {served:?}");
            assert_eq!(answered, 0);
        }
        let act = async |mut client: DuplexStream| client.write_all(b"\0\x20abc").await.unwrap();
        let (served, ()) = while_served(act, pending()).await;
        assert!(matches!(served, Err(Broken::Io(_))), "{served:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_and_a_worker_that_drains_end_it() {
        let silent = async |mut client: DuplexStream| {
            // Half a question does not lengthen the wait.
            client.write_all(b"\0").await.unwrap();
            client.read_to_end(&mut Vec::new()).await.unwrap()
        };
        let began = Instant::now();
        let (served, _) = while_served(silent, pending()).await;
        served.unwrap();
        assert_eq!(began.elapsed().as_secs(), IDLE.as_secs());
        let began = Instant::now();
        let act = async |mut client: DuplexStream| client.read_to_end(&mut Vec::new()).await.unwrap();
        while_served(act, std::future::ready(())).await.0.unwrap();
        assert!(began.elapsed() < IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_connection_asks_so_much_and_no_more() {
        let act = async |client: DuplexStream| {
            let (mut reader, mut writer) = tokio::io::split(client);
            let ask = async {
                for id in 0..=u16::try_from(QUESTIONS).unwrap() {
                    if writer.write_all(&question(id, "api.example.com.")).await.is_err() {
                        break;
                    }
                }
                writer
            };
            let count = async {
                let mut count = 0;
                while let Ok(length) = reader.read_u16().await {
                    reader.read_exact(&mut vec![0; length.into()]).await.unwrap();
                    count += 1;
                }
                count
            };
            tokio::join!(ask, count).1
        };
        let (served, count) = while_served(act, pending()).await;
        served.unwrap();
        assert_eq!(count, QUESTIONS);
    }
}
