//! Tests of `tls::upstream`: handshakes with servers whose certificates are right or wrong in one way.

use std::io::Write;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

/// A private CA and its file.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    file: NamedTempFile,
}

fn ca() -> Ca {
    named_ca("test CA")
}

fn named_ca(name: &str) -> Ca {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let certificate = params.self_signed(&key).unwrap();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(certificate.pem().as_bytes()).unwrap();
    Ca {
        issuer: Issuer::new(params, key),
        file,
    }
}

impl Ca {
    fn roots(&self) -> Roots {
        Roots::load(&[self.file.path().into()]).unwrap()
    }

    fn server(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<ServerConfig> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.max_early_data_size = 1024;
        Arc::new(config)
    }
}

async fn connect(connector: &Connector, server: &Arc<ServerConfig>, offer: Offer) -> Result<Session, Error> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serve = async {
        if let Ok(mut stream) = TlsAcceptor::from(Arc::clone(server)).accept(far).await {
            stream.write_all(b"!").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    };
    let host = "a.example".parse().unwrap();
    let ask = async {
        let (mut stream, session) = connector.handshake(&host, near, offer, LIMIT).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"!");
        Ok(session)
    };
    tokio::join!(serve, ask).1
}

#[tokio::test]
async fn a_good_certificate_is_accepted_and_the_protocol_is_the_offered_one() {
    let ca = ca();
    let server = ca.server("a.example", |_| {});
    let connector = Connector::new(&ca.roots()).unwrap();
    assert!(
        connect(&connector, &server, Offer::Http2AndHttp1)
            .await
            .unwrap()
            .http2
    );
    assert!(!connect(&connector, &server, Offer::Http1).await.unwrap().http2);
}

#[tokio::test]
async fn each_fault_of_a_certificate_has_its_name() {
    let ca = ca();
    let connector = Connector::new(&ca.roots()).unwrap();
    let fault = async |server| match connect(&connector, &server, Offer::Http1).await {
        Err(Error::UpstreamCertificate { host, fault }) => {
            assert_eq!(host.as_str(), "a.example");
            fault
        }
        other => panic!("{other:?}"),
    };
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    let expired = ca.server("a.example", |params| params.not_after = (now - day).into());
    assert_eq!(fault(expired).await, CertificateFault::Expired);
    let early = ca.server("a.example", |params| params.not_before = (now + day).into());
    assert_eq!(fault(early).await, CertificateFault::NotYetValid);
    assert_eq!(
        fault(ca.server("b.example", |_| {})).await,
        CertificateFault::WrongName
    );
    let stranger = named_ca("another CA").server("a.example", |_| {});
    assert_eq!(fault(stranger).await, CertificateFault::UnknownIssuer);
    let impostor = named_ca("test CA").server("a.example", |_| {});
    assert_eq!(
        fault(impostor).await,
        CertificateFault::Malformed,
        "its signature is wrong"
    );
    let client = ca.server("a.example", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert_eq!(fault(client).await, CertificateFault::WrongPurpose);
}

#[tokio::test]
async fn sessions_are_resumed_within_a_connector_and_not_across() {
    let ca = ca();
    let server = ca.server("a.example", |_| {});
    let roots = ca.roots();
    let one = Connector::new(&roots).unwrap();
    assert!(!connect(&one, &server, Offer::Http1).await.unwrap().resumed);
    assert!(
        connect(&one.clone(), &server, Offer::Http1)
            .await
            .unwrap()
            .resumed
    );
    let other = Connector::new(&roots).unwrap();
    assert!(!connect(&other, &server, Offer::Http1).await.unwrap().resumed);
}

#[tokio::test]
async fn a_ticket_is_good_for_one_connection_and_a_servers_last_ones_are_kept() {
    let ca = ca();
    let mut server = Arc::unwrap_or_clone(ca.server("a.example", |_| {}));
    server.send_tls13_tickets = sessions::TICKETS + 2;
    let (generous, silent) = (Arc::new(server.clone()), {
        server.send_tls13_tickets = 0;
        Arc::new(server)
    });
    let connector = Connector::new(&ca.roots()).unwrap();
    connect(&connector, &generous, Offer::Http1).await.unwrap();
    for _ in 0..sessions::TICKETS {
        let session = connect(&connector, &silent, Offer::Http1).await.unwrap();
        assert!(session.resumed);
    }
    assert!(!connect(&connector, &silent, Offer::Http1).await.unwrap().resumed);
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_given_up() {
    let connector = Connector::new(&ca().roots()).unwrap();
    let (near, _far) = tokio::io::duplex(4096);
    let host = "a.example".parse().unwrap();
    let error = connector
        .handshake(&host, near, Offer::Http1, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { seconds: 10 }), "{error}");
}

#[tokio::test]
async fn what_is_no_tls_is_a_handshake_error() {
    let connector = Connector::new(&ca().roots()).unwrap();
    let (near, mut far) = tokio::io::duplex(4096);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let host = "a.example".parse().unwrap();
    let error = connector
        .handshake(&host, near, Offer::Http1, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Handshake { .. }), "{error}");
}

#[test]
fn an_extra_ca_file_that_is_missing_or_holds_none_is_an_error() {
    let load = |path: &Path| Roots::load(&[path.into()]).unwrap_err().to_string();
    let missing = load(Path::new("/nonexistent/ca.pem"));
    assert!(missing.contains("/nonexistent/ca.pem"), "{missing}");
    let mut file = NamedTempFile::new().unwrap();
    assert!(load(file.path()).contains("no certificate in PEM form"));
    file.write_all(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    assert!(load(file.path()).contains("can't be used"));
}
