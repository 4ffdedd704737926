//! TLS towards the world; no switch turns verification off.
//!
//! Roots are the host's own and those that the operator names. A [`Connector`] has a resumption store of its
//! own: give each workload one, since sessions are kept by server name only and an upstream could link the users of
//! one store. No 0-RTT.

mod sessions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::addr::HostName;
use crate::policy::Permit;

use super::wire::Wire;
use super::{CertificateFault, Error, Offer, Session, provider};
use sessions::Sessions;

/// A TLS stream to an upstream.
pub type Stream<S> = tokio_rustls::client::TlsStream<Wire<S>>;

/// Plaintext and ciphertext that rustls may hold for one connection, each way.
const BUFFER_LIMIT: usize = 32 * 1024;

/// The certificates that upstreams are verified with. Cheap to clone.
#[derive(Clone)]
pub struct Roots(Arc<RootCertStore>);

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.0.len())
    }
}

impl Roots {
    /// The host's roots and those in the PEM files `extra`. Reads files; call it before the sandbox closes.
    ///
    /// # Errors
    /// If an extra file can't be read or holds no usable certificate, or if there is no root at all.
    pub fn load(extra: &[PathBuf]) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(native.certs);
        for path in extra {
            add_file(&mut store, path)?;
        }
        if store.is_empty() {
            let detail = native
                .errors
                .first()
                .map_or_else(|| "none found".into(), ToString::to_string);
            return Err(Error::NoRoots { detail });
        }
        Ok(Self(Arc::new(store)))
    }

    /// All of them, for the worker, which may open no file: DER trust anchors in [`Self::from_der`]'s form.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn read(extra: &[PathBuf]) -> Result<Vec<Vec<u8>>, Error> {
        let mut store = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        let mut all: Vec<Vec<u8>> = Vec::new();
        for certificate in native.certs {
            if store.add(certificate.clone()).is_ok() {
                all.push(certificate.to_vec());
            }
        }
        for path in extra {
            add_file(&mut store, path)?;
            let unusable = |error: rustls::pki_types::pem::Error| Error::ExtraCa {
                path: path.clone(),
                what: error.to_string(),
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(unusable)? {
                all.push(certificate.map_err(unusable)?.to_vec());
            }
        }
        if all.is_empty() {
            let detail = native
                .errors
                .first()
                .map_or_else(|| "none found".into(), ToString::to_string);
            return Err(Error::NoRoots { detail });
        }
        Ok(all)
    }

    /// The roots that [`Self::read`] found.
    ///
    /// # Errors
    /// If there is none that can be used.
    pub fn from_der(certificates: &[Vec<u8>]) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(
            certificates
                .iter()
                .map(|der| CertificateDer::from(der.as_slice())),
        );
        if store.is_empty() {
            return Err(Error::NoRoots {
                detail: "none was handed over".into(),
            });
        }
        Ok(Self(Arc::new(store)))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Every certificate in the file must be usable: a root that is silently left out is found out in production.
fn add_file(store: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    let unusable = |what: String| Error::ExtraCa {
        path: path.into(),
        what,
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    let before = store.len();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        store
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    if store.len() == before {
        return Err(unusable("it holds no certificate in PEM form".into()));
    }
    Ok(())
}

/// Connects with verification and resumption. Cheap to clone; clones share the sessions.
#[derive(Clone)]
pub struct Connector {
    http1: Arc<ClientConfig>,
    http2_and_http1: Arc<ClientConfig>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector(..)")
    }
}

impl Connector {
    /// A connector with an empty resumption store of its own.
    ///
    /// # Errors
    /// If the crypto library fails.
    pub fn new(roots: &Roots) -> Result<Self, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Setup { source })?
            .with_root_certificates(Arc::clone(&roots.0))
            .with_no_client_auth();
        config.resumption = Resumption::store(Arc::new(Sessions::new()));
        config.enable_early_data = false;
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

    /// Does the handshake on an open connection, within `limit`; the upstream has to prove the permit's host.
    ///
    /// # Errors
    /// [`Error::UpstreamCertificate`] says what the certificate lacks; [`Error::Timeout`], [`Error::Io`],
    /// [`Error::Handshake`] for all else.
    pub async fn connect<S>(
        &self,
        permit: &Permit,
        stream: S,
        offer: Offer,
        limit: Duration,
    ) -> Result<(Stream<S>, Session), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.handshake(&permit.authority().host, stream, offer, limit)
            .await
    }

    async fn handshake<S>(
        &self,
        host: &HostName,
        stream: S,
        offer: Offer,
        limit: Duration,
    ) -> Result<(Stream<S>, Session), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.as_str().to_owned()).map_err(|_no_dns_name| {
            Error::UpstreamCertificate {
                host: host.clone(),
                fault: CertificateFault::WrongName,
            }
        })?;
        let stream = Wire::new(stream);
        let handshake =
            TlsConnector::from(Arc::clone(self.config(offer))).connect_with(name, stream, |connection| {
                connection.set_buffer_limit(Some(BUFFER_LIMIT))
            });
        match tokio::time::timeout(limit, handshake).await {
            Ok(Ok(stream)) => {
                let session = Session::of(stream.get_ref().1);
                Ok((stream, session))
            }
            Ok(Err(error)) => Err(classify(host, error)),
            Err(_elapsed) => Err(Error::Timeout {
                seconds: limit.as_secs(),
            }),
        }
    }

    fn config(&self, offer: Offer) -> &Arc<ClientConfig> {
        match offer {
            Offer::Http1 => &self.http1,
            Offer::Http2AndHttp1 => &self.http2_and_http1,
        }
    }
}

fn classify(host: &HostName, error: io::Error) -> Error {
    match super::tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(why)) => Error::UpstreamCertificate {
            host: host.clone(),
            fault: fault(why),
        },
        Some(source) => Error::Handshake {
            source: source.clone(),
        },
        None => Error::Io { source: error },
    }
}

/// rustls' reasons in the operator's terms.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' list may grow, and what has no name here means the same to the operator"
)]
fn fault(why: &CertificateError) -> CertificateFault {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateFault::NotYetValid
        }
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateFault::WrongName
        }
        CertificateError::Revoked => CertificateFault::Revoked,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::WrongPurpose
        }
        other if other.to_string().contains("NameConstraint") => CertificateFault::WrongPurpose,
        _ => CertificateFault::Malformed,
    }
}
