//! A call over HTTP/2 against the library's own server: what is sent, what comes, and what an early end of either means.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use h2::RecvStream;
use h2::server::{self, SendResponse};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;

const MOMENT: Duration = Duration::from_secs(5);

type Streams = server::Connection<DuplexStream, Bytes>;
type Stream = (Request<RecvStream>, SendResponse<Bytes>);

/// Both ends of a connection over which the upstream takes so many streams at once.
async fn connected(streams: u32) -> (Requests, Streams) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serving = async {
        let mut builder = server::Builder::new();
        builder.max_concurrent_streams(streams);
        builder.handshake(far).await.unwrap()
    };
    let limits = Limits::from(crate::channel::Limits::default());
    let (requests, serving) = tokio::join!(connect(near, &limits), serving);
    (requests.unwrap(), serving)
}

async fn locally<R>(test: impl Future<Output = R>) -> R {
    let local = LocalSet::new();
    timeout(MOMENT, local.run_until(test)).await.unwrap()
}

fn request<B>(method: Method, body: B) -> Request<B> {
    let uri = "https://api.example/v1";
    Request::builder().method(method).uri(uri).body(body).unwrap()
}

fn get() -> Request<Empty<Bytes>> {
    request(Method::GET, Empty::new())
}

/// Hands over each stream, and goes on serving the connection.
fn serve(mut serving: Streams) -> mpsc::UnboundedReceiver<Stream> {
    let (sender, streams) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        while let Some(Ok(stream)) = serving.accept().await {
            sender.send(stream).unwrap();
        }
    });
    streams
}

async fn all(mut body: RecvStream) -> Result<usize, h2::Error> {
    let mut count = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        count += data.len();
    }
    Ok(count)
}

fn reason<B>(error: &SendError<B>) -> Option<Reason> {
    match error {
        SendError::Failed(Failed::Http2(error)) => error.reason(),
        SendError::Failed(Failed::Http1(_)) | SendError::Unsent(_) => None,
    }
}

#[tokio::test]
async fn an_answer_comes_with_its_length_and_trailers() {
    locally(async {
        let (mut requests, serving) = connected(10).await;
        let mut streams = serve(serving);
        let upstream = async {
            let (request, mut answer) = streams.recv().await.unwrap();
            assert!(request.body().is_end_stream());
            assert!(!request.headers().contains_key(header::CONTENT_LENGTH));
            let head = Response::builder()
                .header("content-length", "5")
                .body(())
                .unwrap();
            let mut body = answer.send_response(head, false).unwrap();
            body.send_data("hello".into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().unwrap());
            body.send_trailers(trailers).unwrap();
        };
        let (answer, ()) = tokio::join!(requests.send(get()), upstream);
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.body().size_hint().exact(), Some(5));
        let whole = answer.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["x-sum"], "1");
        assert_eq!(whole.to_bytes(), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_body_larger_than_all_windows_is_sent_to_its_end_with_its_length() {
    const SIZE: usize = 3_000_000;
    locally(async {
        let (mut requests, serving) = connected(10).await;
        let mut streams = serve(serving);
        let upstream = async {
            let (request, mut answer) = streams.recv().await.unwrap();
            assert_eq!(request.headers()[header::CONTENT_LENGTH], SIZE.to_string());
            // The answer's head first: the body goes on beside it.
            let mut body = answer.send_response(Response::new(()), false).unwrap();
            let count = all(request.into_body()).await.unwrap();
            body.send_data(count.to_string().into(), true).unwrap();
        };
        let calling = async {
            let body = Full::new(Bytes::from(vec![7; SIZE]));
            let answer = requests.send(request(Method::POST, body)).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        };
        let (answer, ()) = tokio::join!(calling, upstream);
        assert_eq!(answer, SIZE.to_string());
    })
    .await;
}

#[tokio::test]
async fn a_post_without_a_body_says_so() {
    locally(async {
        let (mut requests, serving) = connected(10).await;
        let mut streams = serve(serving);
        let upstream = async {
            let (request, mut answer) = streams.recv().await.unwrap();
            assert_eq!(request.headers()[header::CONTENT_LENGTH], "0");
            answer.send_response(Response::new(()), true).unwrap();
        };
        let post = request(Method::POST, Empty::<Bytes>::new());
        let (answer, ()) = tokio::join!(requests.send(post), upstream);
        assert!(answer.unwrap().body().is_end_stream());
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_no_more_resets_the_stream_and_its_body() {
    locally(async {
        let (mut requests, serving) = connected(10).await;
        let mut streams = serve(serving);
        // A body of which nothing comes.
        let endless = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let post = request(Method::POST, endless);
        let (request, mut answer) = {
            let mut sending = Box::pin(requests.send(post));
            tokio::select! {
                _ = &mut sending => panic!("there was no answer"),
                stream = streams.recv() => stream.unwrap(),
            }
        };
        let gone = poll_fn(|cx| answer.poll_reset(cx)).await.unwrap();
        assert_eq!(gone, Reason::CANCEL);
        assert_eq!(
            all(request.into_body()).await.unwrap_err().reason(),
            Some(Reason::CANCEL)
        );
        assert!(!requests.is_closed(), "the others go on");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_ends_what_is_still_sent() {
    locally(async {
        let (mut requests, serving) = connected(10).await;
        let mut streams = serve(serving);
        let endless = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let upstream = async {
            let (request, mut answer) = streams.recv().await.unwrap();
            answer.send_response(Response::new(()), true).unwrap();
            request
        };
        let (answer, left) = tokio::join!(requests.send(request(Method::POST, endless)), upstream);
        drop(answer.unwrap());
        let error = all(left.into_body()).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_whole_one_whatever_the_upstream_calls_it() {
    for (reason, told) in [
        (Reason::CANCEL, Reason::CANCEL),
        (Reason::INTERNAL_ERROR, Reason::INTERNAL_ERROR),
        (Reason::NO_ERROR, Reason::INTERNAL_ERROR),
        (Reason::REFUSED_STREAM, Reason::INTERNAL_ERROR),
    ] {
        locally(async {
            let (mut requests, serving) = connected(10).await;
            let (mut streams, begun) = (serve(serving), Notify::new());
            let upstream = async {
                let (_request, mut answer) = streams.recv().await.unwrap();
                let mut body = answer.send_response(Response::new(()), false).unwrap();
                body.send_data("half".into(), false).unwrap();
                begun.notified().await;
                body.send_reset(reason);
            };
            let calling = async {
                let answer = requests.send(get()).await;
                begun.notify_one();
                answer
            };
            let (answer, ()) = tokio::join!(calling, upstream);
            let error = answer.unwrap().into_body().collect().await.unwrap_err();
            assert_eq!(error.reason(), Some(told), "{reason}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_is_whole_where_only_the_request_is_not_wanted_to_its_end() {
    for (length, whole) in [("4", true), ("5", false)] {
        locally(async {
            let (mut requests, serving) = connected(10).await;
            let mut streams = serve(serving);
            let endless =
                StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
            let upstream = async {
                let (_request, mut answer) = streams.recv().await.unwrap();
                let head = Response::builder()
                    .header("content-length", length)
                    .body(())
                    .unwrap();
                let mut body = answer.send_response(head, false).unwrap();
                body.send_data("half".into(), whole).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                body.send_reset(Reason::NO_ERROR);
            };
            let (answer, ()) = tokio::join!(requests.send(request(Method::POST, endless)), upstream);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let collected = answer.unwrap().into_body().collect().await;
            assert_eq!(collected.is_ok(), whole, "{collected:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_whose_connection_ends_in_its_middle_breaks_off_however_politely() {
    locally(async {
        let (mut requests, mut serving) = connected(10).await;
        let upstream = async {
            let (_request, mut answer) = serving.accept().await.unwrap().unwrap();
            let mut body = answer.send_response(Response::new(()), false).unwrap();
            body.send_data("half".into(), false).unwrap();
            serving.graceful_shutdown();
            let polite = timeout(Duration::from_millis(50), serving.accept()).await;
            assert!(polite.is_err(), "it waits for the stream's end");
            drop(serving);
            body
        };
        let (answer, _body) = tokio::join!(requests.send(get()), upstream);
        let collected = answer.unwrap().into_body().collect().await;
        assert!(collected.is_err(), "{collected:?}");
    })
    .await;
}

#[tokio::test]
async fn a_refused_stream_is_told_from_a_broken_one() {
    for refused in [Reason::REFUSED_STREAM, Reason::PROTOCOL_ERROR] {
        locally(async {
            let (mut requests, serving) = connected(10).await;
            let mut streams = serve(serving);
            let upstream = async { streams.recv().await.unwrap().1.send_reset(refused) };
            let (answer, ()) = tokio::join!(requests.send(get()), upstream);
            assert_eq!(reason(&answer.unwrap_err()), Some(refused));
        })
        .await;
    }
}

#[tokio::test]
async fn a_connection_that_the_upstream_ends_takes_no_more_and_gives_the_request_back() {
    locally(async {
        let (mut requests, mut serving) = connected(10).await;
        assert!(!requests.is_closed());
        serving.graceful_shutdown();
        let _streams = serve(serving);
        while !requests.is_closed() {
            tokio::task::yield_now().await;
        }
        let sent = requests.send(get()).await;
        assert!(matches!(sent, Err(SendError::Unsent(_))));
    })
    .await;
}

#[tokio::test]
async fn the_upstreams_limit_is_known_once_it_has_said_so() {
    locally(async {
        let (requests, serving) = connected(1).await;
        let _streams = serve(serving);
        while requests.limit() != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_more_of_a_body_goes_out_behind_a_call_that_was_left() {
    const SIZE: usize = 200_000;
    for has_answered in [false, true] {
        locally(async {
            let (mut requests, serving) = connected(10).await;
            let mut streams = serve(serving);
            let post = request(Method::POST, Full::new(Bytes::from(vec![7; SIZE])));
            let mut sending = Box::pin(requests.send(post));
            let arrived = async {
                let (request, mut answer) = streams.recv().await.unwrap();
                let body = has_answered.then(|| answer.send_response(Response::new(()), false).unwrap());
                (request, answer, body)
            };
            let (request, _answer, _body) = if has_answered {
                let (answer, arrived) = tokio::join!(&mut sending, arrived);
                drop(answer.unwrap());
                arrived
            } else {
                tokio::select! {
                    _ = &mut sending => panic!("there was no answer"),
                    arrived = arrived => arrived,
                }
            };
            drop(sending);
            let error = all(request.into_body()).await.unwrap_err();
            assert_eq!(error.reason(), Some(Reason::CANCEL));
        })
        .await;
    }
}

#[tokio::test]
async fn an_upload_that_has_come_to_its_end_is_sent_to_its_end_behind_the_answer() {
    const SIZE: usize = 200_000;
    locally(async {
        let (mut requests, serving) = connected(10).await;
        let mut streams = serve(serving);
        let upstream = async {
            let (request, mut answer) = streams.recv().await.unwrap();
            answer.send_response(Response::new(()), true).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            all(request.into_body()).await
        };
        let calling = async {
            let body = Full::new(Bytes::from(vec![7; SIZE]));
            drop(requests.send(request(Method::POST, body)).await.unwrap());
        };
        let ((), sent) = tokio::join!(calling, upstream);
        assert_eq!(sent.unwrap(), SIZE);
    })
    .await;
}

#[tokio::test]
async fn the_last_handle_that_goes_ends_the_connection() {
    locally(async {
        let (requests, mut serving) = connected(10).await;
        let other = requests.clone();
        drop(requests);
        let early = timeout(Duration::from_millis(20), serving.accept()).await;
        assert!(early.is_err());
        drop(other);
        assert!(serving.accept().await.is_none());
    })
    .await;
}
