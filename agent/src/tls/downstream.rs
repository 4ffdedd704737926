//! TLS towards the workload.
//!
//! One server configuration per offer, shared by all connections; a connection's own copy differs in its
//! certificate alone (a dozen reference counts, no key work). The ClientHello has been read before
//! (`net::peek`), so the leaf is known; a handshake whose SNI is not exactly the leaf's name fails here.
//!
//! Resumption: tickets are encrypted under one key set for all hosts and workloads. rustls puts the SNI into
//! the ticket and resumes only under the same SNI (RFC 6066 section 3; a test here holds it). A ticket says
//! nothing about the caller: its identity comes from the kernel anew for each connection, so a workload that
//! presents another's ticket gains nothing but a shorter handshake. No 0-RTT: it can be replayed
//! (RFC 8446 section 8).

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::addr::HostName;

use super::leaf::Leaf;
use super::wire::Wire;
use super::{Error, Offer, Session, provider};

/// A TLS stream to a client.
pub type Stream<S> = tokio_rustls::server::TlsStream<Wire<S>>;

/// Plaintext and ciphertext that rustls may hold for one connection, each way.
const BUFFER_LIMIT: usize = 32 * 1024;

/// Why a TLS connection ends before a handshake that could carry an HTTP answer (RFC 8446 section 6.2,
/// RFC 6066 section 3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Alert {
    /// The handshake did not get on in time.
    HandshakeFailure = 40,
    /// Policy refuses the connection before a call could be read.
    AccessDenied = 49,
    /// The ClientHello breaks the format, or is larger than the agent reads.
    DecodeError = 50,
    /// The agent can't serve the name, as it has no certificate for it.
    InternalError = 80,
    /// The ClientHello names no host.
    UnrecognizedName = 112,
}

impl Alert {
    /// The fatal alert as bytes for the wire, to be sent in the clear before closing.
    #[must_use]
    pub fn bytes(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }
}

/// Terminates TLS. Cheap to clone; one ticket key set.
#[derive(Clone)]
pub struct Acceptor {
    http1: Arc<ServerConfig>,
    http2_and_http1: Arc<ServerConfig>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor(..)")
    }
}

impl Acceptor {
    /// TLS 1.2 and 1.3 with a new ticket key set (rotated by itself).
    ///
    /// # Errors
    /// If the crypto library fails.
    pub fn new() -> Result<Self, Error> {
        let setup = |source| Error::Setup { source };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Nothing));
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(setup)?;
        // Stateless tickets alone: a session store would grow with the clients.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        // Client and agent share a CPU, so our order (AES-128 first) is the cheapest for both.
        config.ignore_client_order = true;
        config.max_early_data_size = 0;
        let [http1, http2_and_http1] = Offer::ALL.map(|offer| {
            let mut config = config.clone();
            config.alpn_protocols = offer.protocols();
            Arc::new(config)
        });
        Ok(Self {
            http1,
            http2_and_http1,
        })
    }

    /// Does the handshake as the host of `leaf`, within `limit`.
    ///
    /// # Errors
    /// [`Error::ClientDistrust`] if the client refuses the certificate, [`Error::Timeout`], [`Error::Io`],
    /// [`Error::Handshake`] for all else.
    pub async fn accept<S>(
        &self,
        stream: S,
        leaf: &Leaf,
        offer: Offer,
        limit: Duration,
    ) -> Result<(Stream<S>, Session), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = ServerConfig::clone(self.config(offer));
        config.cert_resolver = Arc::new(Exact {
            host: leaf.host().clone(),
            key: Arc::clone(leaf.certified()),
        });
        let stream = Wire::new(stream);
        let handshake = TlsAcceptor::from(Arc::new(config)).accept_with(stream, |connection| {
            connection.set_buffer_limit(Some(BUFFER_LIMIT))
        });
        match tokio::time::timeout(limit, handshake).await {
            Ok(Ok(stream)) => {
                let session = Session::of(stream.get_ref().1);
                Ok((stream, session))
            }
            Ok(Err(error)) => Err(classify(error)),
            Err(_elapsed) => Err(Error::Timeout {
                seconds: limit.as_secs(),
            }),
        }
    }

    fn config(&self, offer: Offer) -> &Arc<ServerConfig> {
        match offer {
            Offer::Http1 => &self.http1,
            Offer::Http2AndHttp1 => &self.http2_and_http1,
        }
    }
}

/// One leaf, for its own name and no other.
#[derive(Debug)]
struct Exact {
    host: HostName,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Exact {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = HostName::parse(hello.server_name()?).ok()?;
        (asked == self.host).then(|| Arc::clone(&self.key))
    }
}

/// Holds the place in the shared configuration: without a leaf no handshake succeeds.
#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn classify(error: io::Error) -> Error {
    match super::tls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) if is_distrust(*alert) => Error::ClientDistrust {
            alert: format!("{alert:?}"),
        },
        Some(source) => Error::Handshake {
            source: source.clone(),
        },
        None => Error::Io { source: error },
    }
}

/// The alerts by which clients say that they don't accept a certificate (RFC 8446 section 6.2).
fn is_distrust(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    )
}
