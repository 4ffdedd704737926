//! TLS on both sides; the one crypto provider.
//!
//! No other module names rustls: streams leave here as the aliases [`downstream::Stream`] and
//! [`upstream::Stream`], what was negotiated as a [`Session`].
//!
//! Resumption binds nothing but the TLS session. Who calls is taken from the kernel for each connection and
//! policy is asked for each request, so a ticket carries no rights; see [`downstream`] and [`upstream`].

pub mod ca;
pub mod client_hello;
pub mod downstream;
pub mod leaf;
pub mod upstream;
pub mod wire;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, ProtocolVersion, SupportedCipherSuite};

use crate::addr::HostName;

/// Which application protocols one handshake offers or accepts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Offer {
    /// `http/1.1` alone.
    Http1,
    /// `h2`, else `http/1.1`.
    Http2AndHttp1,
}

impl Offer {
    const ALL: [Self; 2] = [Self::Http1, Self::Http2AndHttp1];

    /// ALPN names (RFC 7301), the preferred one first.
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// What a handshake ended with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Session {
    /// HTTP/2 was agreed on; otherwise HTTP/1.1 (also when there was no ALPN).
    pub http2: bool,
    /// An earlier session was resumed.
    pub resumed: bool,
    /// `"1.2"` or `"1.3"`.
    pub version: &'static str,
}

impl Session {
    fn of(connection: &rustls::CommonState) -> Self {
        Self {
            http2: connection.alpn_protocol() == Some(b"h2"),
            resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "1.2",
                _ => "1.3",
            },
        }
    }
}

/// The certificate of an upstream was refused because of this.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum CertificateFault {
    /// Past its end.
    #[error("it has expired")]
    Expired,
    /// Before its start.
    #[error("it is not valid yet (is this host's clock right?)")]
    NotYetValid,
    /// No configured root stands for it.
    #[error("no trusted root has issued it, or its chain is incomplete (name a private CA in `upstream_ca`)")]
    UnknownIssuer,
    /// Made for other names.
    #[error("it is for another name")]
    WrongName,
    /// Taken back by its issuer.
    #[error("it has been revoked")]
    Revoked,
    /// Not made for servers, or a name constraint forbids it.
    #[error("it may not be used for this")]
    WrongPurpose,
    /// Unreadable, badly signed, or signed in a way that is no longer safe.
    #[error("it is malformed, or its signature is wrong or of an unsupported kind")]
    Malformed,
}

/// What can go wrong with certificates and handshakes. Never holds key material.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root's file can't be read or made.
    #[error("the CA file {path} can't be {action}: {source}")]
    RootFile {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The root's file could have been read or changed by somebody else.
    #[error("the CA file {path} is not safe: {what}; check who had access, then fix it or make a new CA")]
    RootUnsafe {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The root's file holds something else.
    #[error("the CA file {path} is damaged: {what}; restore it, or move it away to have a new CA made")]
    RootDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A certificate could not be made.
    #[error("no certificate could be made for {subject}: {source}")]
    Mint {
        /// Whom it was for.
        subject: String,
        /// The library's answer.
        source: rcgen::Error,
    },
    /// There is no intermediate for the host yet, or it is about to end.
    #[error("there is no valid intermediate certificate for {host}")]
    NoIntermediate {
        /// The host.
        host: HostName,
    },
    /// The crypto library refused a configuration or key.
    #[error("TLS can't be set up: {source}")]
    Setup {
        /// The library's answer.
        source: rustls::Error,
    },
    /// The system's random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// A file of extra roots can't be used.
    #[error("the CA file {path} can't be used: {what}")]
    ExtraCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing to verify upstreams with.
    #[error("this host has no trusted root certificates (install ca-certificates): {detail}")]
    NoRoots {
        /// What loading said.
        detail: String,
    },
    /// The handshake did not end in time.
    #[error("the TLS handshake did not end within {seconds} s")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// The connection broke during the handshake.
    #[error("the connection broke during the TLS handshake: {source}")]
    Io {
        /// The system's answer.
        source: std::io::Error,
    },
    /// The client does not trust the agent's certificate.
    #[error(
        "the client refused the agent's certificate (alert {alert}): it does not use the workload's trust bundle, or pins its own; a `tunnel` rule passes it unread"
    )]
    ClientDistrust {
        /// The TLS alert that the client sent.
        alert: String,
    },
    /// The upstream's certificate does not prove the name.
    #[error("the certificate of {host} was refused: {fault}")]
    UpstreamCertificate {
        /// The name that it had to prove.
        host: HostName,
        /// Why it does not.
        fault: CertificateFault,
    },
    /// The other side broke the protocol or has nothing in common with us.
    #[error("the TLS handshake failed: {source}")]
    Handshake {
        /// The library's answer.
        source: rustls::Error,
    },
}

impl Error {
    /// Whether the other side speaks none of the protocols that it was offered (RFC 7301 section 3.2).
    #[must_use]
    pub fn is_no_common_protocol(&self) -> bool {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
        matches!(self, Self::Handshake { source } if *source == alert)
    }

    /// Whether the two sides could not agree, rather than that something of ours is missing.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::Io { .. }
                | Self::ClientDistrust { .. }
                | Self::UpstreamCertificate { .. }
                | Self::Handshake { .. }
        )
    }
}

/// The one provider of both sides: aws-lc-rs, AES-128-GCM first (the cheapest per byte on hosts with AES
/// instructions, and as safe), forward secrecy only.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(rank);
        Arc::new(provider)
    }))
}

/// Stable sort: within a rank the provider's own order stays.
fn rank(suite: &SupportedCipherSuite) -> usize {
    let order = [
        [CipherSuite::TLS13_AES_128_GCM_SHA256; 2],
        [
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        [
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
    ];
    order
        .iter()
        .position(|rank| rank.contains(&suite.suite()))
        .unwrap_or(order.len())
}

/// The TLS error that tokio-rustls wraps into an IO error, if it is one.
fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
