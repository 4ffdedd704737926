//! A WebSocket once both sides have agreed: bytes both ways until they close.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::net::splice::{self, Counts};

use super::body::DownloadBody;
use super::finish::Finish;
use super::tunnel;

/// A valid `101` of the upstream, and the client's side of the switch.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) response: Response<Incoming>,
    pub(super) client: OnUpgrade,
}

/// Passes the `101` on and splices behind it.
pub(super) fn relay(switched: Switched, finish: Finish) -> Response<DownloadBody> {
    let Switched { mut response, client } = switched;
    let upstream = hyper::upgrade::on(&mut response);
    tokio::task::spawn_local(pass(client, upstream, finish));
    response.map(|_body| DownloadBody::Own(Full::<Bytes>::default()))
}

async fn pass(client: OnUpgrade, upstream: OnUpgrade, mut finish: Finish) {
    let switched = async { tokio::try_join!(client, upstream) };
    let (client, upstream) = match finish.registration().unless_ended(switched).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return finish.broken(&error),
        Err(end) => return finish.cut(end),
    };
    let counts = Counts::default();
    let splicing = splice::splice(
        TokioIo::new(client),
        TokioIo::new(upstream),
        finish.limits().tunnel_patience(),
        &counts,
    );
    let ended = finish.registration().unless_ended(splicing).await;
    finish.add(counts.up(), counts.down());
    match ended {
        Ok(Ok(())) => finish.complete(),
        Ok(Err(error)) => finish.fail(tunnel::of_splice(&error)),
        Err(end) => finish.cut(end),
    }
}
