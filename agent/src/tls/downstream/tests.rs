//! Tests of `tls::downstream`: real handshakes with rustls clients, in memory.

use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::tls::ca::Root;
use crate::tls::leaf::Leaves;

const LIMIT: Duration = Duration::from_secs(10);

struct Setup {
    root_pem: String,
    leaves: Leaves,
    acceptor: Acceptor,
}

fn setup(hosts: &[&str]) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let root = Root::load_or_create(&dir.path().join("ca.pem"), now).unwrap();
    let leaves = Leaves::new(8).unwrap();
    for host in hosts {
        leaves
            .add_intermediate(root.issue_intermediate(&host.parse().unwrap(), now).unwrap())
            .unwrap();
    }
    Setup {
        root_pem: root.certificate_pem().to_owned(),
        leaves,
        acceptor: Acceptor::new().unwrap(),
    }
}

/// A client that trusts the root; configurations keep their sessions.
fn client(setup: &Setup, version: &'static SupportedProtocolVersion, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(setup.root_pem.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.enable_early_data = true;
    Arc::new(config)
}

type Ends = (io::Result<rustls::HandshakeKind>, Result<Session, Error>);

impl Setup {
    /// One connection of `client` to `name`, served as `host`; bytes go both ways when it stands.
    async fn connect(&self, client: &Arc<ClientConfig>, name: &str, host: &str, offer: Offer) -> Ends {
        let (near, far) = tokio::io::duplex(1 << 16);
        let leaf = self
            .leaves
            .leaf(&host.parse().unwrap(), SystemTime::now())
            .unwrap();
        let server = async {
            let (mut stream, session) = self.acceptor.accept(far, &leaf, offer, LIMIT).await?;
            assert_eq!(stream.read_u8().await.unwrap(), b'?');
            stream.write_all(b"!").await.unwrap();
            stream.shutdown().await.unwrap();
            Ok(session)
        };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let client = async {
            let mut stream = TlsConnector::from(Arc::clone(client)).connect(name, near).await?;
            let kind = stream.get_ref().1.handshake_kind().unwrap();
            stream.write_all(b"?").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            assert_eq!(answer, b"!");
            Ok(kind)
        };
        tokio::join!(client, server)
    }
}

#[tokio::test]
async fn both_versions_and_both_protocols_work() {
    let setup = setup(&["a.example"]);
    for version in [&TLS12, &TLS13] {
        for (offer, alpn, http2) in [
            (
                Offer::Http2AndHttp1,
                [b"h2".as_slice(), b"http/1.1"].as_slice(),
                true,
            ),
            (Offer::Http2AndHttp1, &[b"http/1.1"], false),
            (Offer::Http1, &[b"h2", b"http/1.1"], false),
            (Offer::Http2AndHttp1, &[], false),
        ] {
            let client = client(&setup, version, alpn);
            let (client_end, server_end) = setup.connect(&client, "a.example", "a.example", offer).await;
            client_end.unwrap();
            let session = server_end.unwrap();
            assert_eq!((session.http2, session.resumed), (http2, false));
            assert_eq!(
                session.version,
                if version.version == TLS12.version {
                    "1.2"
                } else {
                    "1.3"
                }
            );
        }
    }
}

#[tokio::test]
async fn a_client_with_no_protocol_in_common_is_refused() {
    let setup = setup(&["a.example"]);
    let client = client(&setup, &TLS13, &[b"h2"]);
    let (_, server_end) = setup
        .connect(&client, "a.example", "a.example", Offer::Http1)
        .await;
    let error = server_end.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Handshake {
                source: rustls::Error::NoApplicationProtocol
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn another_server_name_than_the_leafs_gets_no_handshake() {
    let setup = setup(&["a.example"]);
    for version in [&TLS12, &TLS13] {
        let client = client(&setup, version, &[]);
        for name in ["b.example", "sub.a.example", "127.0.0.1"] {
            let (client_end, server_end) = setup.connect(&client, name, "a.example", Offer::Http1).await;
            assert!(
                client_end.is_err() && matches!(server_end, Err(Error::Handshake { .. })),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn sessions_are_resumed_for_the_same_name_across_offers() {
    let setup = setup(&["a.example"]);
    for version in [&TLS12, &TLS13] {
        let client = client(&setup, version, &[b"h2", b"http/1.1"]);
        let first = setup
            .connect(&client, "a.example", "a.example", Offer::Http1)
            .await;
        assert!(!first.1.unwrap().resumed);
        let second = setup
            .connect(&client, "a.example", "a.example", Offer::Http2AndHttp1)
            .await;
        assert_eq!(second.0.unwrap(), rustls::HandshakeKind::Resumed);
        let session = second.1.unwrap();
        assert!(session.resumed && session.http2, "{session:?}");
    }
}

/// A client that leaves Nagle's algorithm on (RFC 9293 section 3.7.4) holds its request back until its end of the handshake
/// is acknowledged: by the ticket, or by the kernel after 40 ms.
#[tokio::test]
async fn a_ticket_is_sent_before_any_answer() {
    let setup = setup(&["a.example"]);
    let (near, far) = tokio::io::duplex(1 << 16);
    let leaf = setup
        .leaves
        .leaf(&"a.example".parse().unwrap(), SystemTime::now());
    let leaf = leaf.unwrap();
    let accepted = setup.acceptor.accept(far, &leaf, Offer::Http1, LIMIT);
    let connector = TlsConnector::from(client(&setup, &TLS13, &[]));
    let connected = connector.connect(ServerName::try_from("a.example").unwrap(), near);
    let (connected, accepted) = tokio::join!(connected, accepted);
    let (mut client, _server) = (connected.unwrap(), accepted.unwrap());
    let nothing = tokio::time::timeout(Duration::from_millis(20), client.read_u8()).await;
    assert!(nothing.is_err(), "no answer: {nothing:?}");
    assert_eq!(client.get_ref().1.tls13_tickets_received(), 1);
}

/// Hands out one server's sessions for every name, as a client would that tries to carry them over.
#[derive(Debug)]
struct AnyName(rustls::client::ClientSessionMemoryCache);

impl rustls::client::ClientSessionStore for AnyName {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(one_name(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&one_name())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one_name());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(one_name(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one_name())
    }
}

fn one_name() -> ServerName<'static> {
    ServerName::try_from("any.example").unwrap()
}

#[tokio::test]
async fn a_ticket_of_one_host_resumes_nothing_at_another() {
    let setup = setup(&["a.example", "b.example"]);
    for version in [&TLS12, &TLS13] {
        let mut client = ClientConfig::clone(&client(&setup, version, &[]));
        let store = Arc::new(AnyName(rustls::client::ClientSessionMemoryCache::new(8)));
        client.resumption = rustls::client::Resumption::store(store);
        let client = Arc::new(client);
        let connect = |host| setup.connect(&client, host, host, Offer::Http1);
        assert!(!connect("a.example").await.1.unwrap().resumed);
        assert!(connect("a.example").await.1.unwrap().resumed, "the store works");
        let carried = connect("b.example").await;
        assert!(!carried.1.unwrap().resumed, "{:?}", version.version);
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_is_told_apart() {
    let setup = setup(&["a.example"]);
    let mut config = ClientConfig::clone(&client(&setup, &TLS13, &[]));
    let stranger = self::setup(&[]);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(stranger.root_pem.as_bytes()).unwrap())
        .unwrap();
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap();
    config.dangerous().set_certificate_verifier(verifier);
    let (client_end, server_end) = setup
        .connect(&Arc::new(config), "a.example", "a.example", Offer::Http1)
        .await;
    assert!(client_end.is_err());
    let error = server_end.unwrap_err();
    assert!(matches!(error, Error::ClientDistrust { .. }), "{error}");
    assert!(error.to_string().contains("tunnel"), "{error}");
}

#[tokio::test]
async fn no_early_data_is_offered() {
    let setup = setup(&["a.example"]);
    let client = client(&setup, &TLS13, &[]);
    setup
        .connect(&client, "a.example", "a.example", Offer::Http1)
        .await
        .0
        .unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let mut connection = rustls::ClientConnection::new(client, name).unwrap();
    assert!(connection.early_data().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_given_up() {
    let setup = setup(&["a.example"]);
    let (_near, far) = tokio::io::duplex(1024);
    let leaf = setup
        .leaves
        .leaf(&"a.example".parse().unwrap(), SystemTime::now())
        .unwrap();
    let error = setup
        .acceptor
        .accept(far, &leaf, Offer::Http1, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { seconds: 10 }), "{error}");
}

#[tokio::test]
async fn a_client_that_hangs_up_is_an_io_error() {
    let setup = setup(&["a.example"]);
    let (near, far) = tokio::io::duplex(1024);
    drop(near);
    let leaf = setup
        .leaves
        .leaf(&"a.example".parse().unwrap(), SystemTime::now())
        .unwrap();
    let error = setup
        .acceptor
        .accept(far, &leaf, Offer::Http1, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn clients_read_our_alerts() {
    use rustls::client::UnbufferedClientConnection;
    let setup = setup(&[]);
    for (alert, read) in [
        (Alert::AccessDenied, AlertDescription::AccessDenied),
        (Alert::InternalError, AlertDescription::InternalError),
        (Alert::UnrecognizedName, AlertDescription::UnrecognisedName),
    ] {
        let name = ServerName::try_from("a.example").unwrap();
        let mut connection = UnbufferedClientConnection::new(client(&setup, &TLS13, &[]), name).unwrap();
        let mut bytes = alert.bytes();
        // The first call hands out the ClientHello; the alert is read once that has been taken.
        let error = loop {
            let status = connection.process_tls_records(&mut bytes);
            match status.state {
                Ok(rustls::unbuffered::ConnectionState::EncodeTlsData(mut hello)) => {
                    hello.encode(&mut [0; 4096]).unwrap();
                }
                Ok(rustls::unbuffered::ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, rustls::Error::AlertReceived(read));
    }
}

/// The whole way in over TCP: peek, leaf, replayed handshake, one HTTP answer, for a client that is not rustls.
#[tokio::test]
async fn an_openssl_client_verifies_the_chain_and_reads_the_answer() {
    if std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_err()
    {
        return;
    }
    let setup = setup(&["a.example"]);
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), &setup.root_pem).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = tokio::process::Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &address,
            "-servername",
            "a.example",
            "-verify_hostname",
            "a.example",
        ])
        .args([
            "-x509_strict",
            "-verify_return_error",
            "-alpn",
            "http/1.1",
            "-quiet",
            "-ign_eof",
            "-CAfile",
        ])
        .arg(roots.path())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (detected, replay) = crate::net::peek::peek(stream, Default::default()).await.unwrap();
        let crate::net::peek::Detected::Tls(hello) = detected else {
            panic!("{detected:?}")
        };
        let leaf = setup.leaves.leaf(&hello.sni.unwrap(), SystemTime::now()).unwrap();
        let (mut stream, session) = setup
            .acceptor
            .accept(replay, &leaf, Offer::Http1, LIMIT)
            .await
            .unwrap();
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        session
    };
    let (output, session) = tokio::time::timeout(LIMIT, async { tokio::join!(client, server) })
        .await
        .unwrap();
    let output = output.unwrap();
    assert!(output.stdout.starts_with(b"HTTP/1.1 204"), "{output:?}");
    assert!(!session.resumed && session.version == "1.3");
}

#[tokio::test]
async fn our_cipher_order_counts() {
    let setup = setup(&["a.example"]);
    for version in [&TLS12, &TLS13] {
        let mut theirs = rustls::crypto::aws_lc_rs::default_provider();
        theirs
            .cipher_suites
            .sort_by_key(|suite| !format!("{suite:?}").contains("AES_256"));
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(setup.root_pem.as_bytes()).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(theirs))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(1 << 16);
        let leaf = setup
            .leaves
            .leaf(&"a.example".parse().unwrap(), SystemTime::now())
            .unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let client = TlsConnector::from(Arc::new(config)).connect(name, near);
        let (client, server) = tokio::join!(client, setup.acceptor.accept(far, &leaf, Offer::Http1, LIMIT));
        server.unwrap();
        let suite = client.unwrap().get_ref().1.negotiated_cipher_suite().unwrap();
        assert!(format!("{suite:?}").contains("AES_128_GCM"), "{suite:?}");
    }
}
