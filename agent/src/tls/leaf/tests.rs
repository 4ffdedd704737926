//! Tests of `tls::leaf`: the cache, and what rustls and OpenSSL make of the chains.

#![expect(
    clippy::unwrap_in_result,
    reason = "helpers hand back the answer under test; what else fails is the test's own fault"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};
use tempfile::TempDir;

use super::*;
use crate::tls::ca::Root;

struct Setup {
    dir: TempDir,
    root: Root,
    now: SystemTime,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let root = Root::load_or_create(&dir.path().join("ca.pem"), now).unwrap();
    Setup { dir, root, now }
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

impl Setup {
    fn leaves(&self, capacity: usize, hosts: &[&str]) -> Leaves {
        let leaves = Leaves::new(capacity).unwrap();
        for name in hosts {
            leaves
                .add_intermediate(self.root.issue_intermediate(&host(name), self.now).unwrap())
                .unwrap();
        }
        leaves
    }

    /// A leaf for `name` below an intermediate that is for `real`, as a broken or stolen worker could mint.
    fn forged(&self, real: &str, name: &str) -> Leaf {
        let leaves = self.leaves(4, &[real]);
        let from = leaves.find(&host(real)).unwrap();
        leaves.mint(&host(name), &from, self.now).unwrap()
    }

    fn rustls_verdict(&self, leaf: &Leaf, name: &str, at: SystemTime) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.root.certificate_pem().as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .unwrap();
        let [end, rest @ ..] = leaf.key.cert.as_slice() else {
            panic!("no chain")
        };
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(end, rest, &name, &[], at).map(|_| ())
    }

    /// `openssl verify` in its strict mode, which Python 3.13 uses too.
    fn openssl_verdict(&self, leaf: &Leaf, name: &str) -> Result<(), String> {
        let file = |name: &str| self.dir.path().join(name);
        fs::write(file("root.crt"), self.root.certificate_pem()).unwrap();
        fs::write(file("leaf.crt"), pem(&leaf.key.cert[0])).unwrap();
        fs::write(file("intermediate.crt"), pem(&leaf.key.cert[1])).unwrap();
        let output = Command::new("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-purpose",
                "sslserver",
                "-verify_hostname",
                name,
                "-no-CAfile",
            ])
            .args(["-no-CApath", "-no-CAstore", "-trusted"])
            .arg(file("root.crt"))
            .arg("-untrusted")
            .args([file("intermediate.crt"), file("leaf.crt")])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into())
        }
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

#[test]
fn a_leaf_is_minted_once_and_then_kept() {
    let setup = setup();
    let leaves = setup.leaves(4, &["a.example"]);
    let first = leaves.leaf(&host("a.example"), setup.now).unwrap();
    let second = leaves
        .leaf(&host("a.example"), setup.now + Duration::from_secs(3600))
        .unwrap();
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn a_leaf_is_minted_anew_before_it_ends() {
    let setup = setup();
    let leaves = setup.leaves(4, &["a.example"]);
    let first = leaves.leaf(&host("a.example"), setup.now).unwrap();
    let later = setup.now + LEAF_LIFE - LEAF_RENEW;
    let second = leaves.leaf(&host("a.example"), later).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(second.expires(), later + LEAF_LIFE);
}

#[test]
fn no_leaf_outlives_its_intermediate_and_none_is_minted_after_it() {
    let setup = setup();
    let leaves = setup.leaves(4, &["a.example"]);
    let name = host("a.example");
    let end = UNIX_EPOCH + Duration::from_secs(unix(setup.now + INTERMEDIATE_LIFE));
    let late = end - Duration::from_secs(3600);
    let leaf = leaves.leaf(&name, late).unwrap();
    assert_eq!(leaf.expires(), end);
    assert!(
        Arc::ptr_eq(
            &leaf,
            &leaves.leaf(&name, late + Duration::from_secs(60)).unwrap()
        ),
        "kept near the end"
    );
    assert!(matches!(
        leaves.leaf(&name, end),
        Err(Error::NoIntermediate { .. })
    ));
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_clock_that_was_ahead_leaves_nothing_behind() {
    let setup = setup();
    let leaves = setup.leaves(4, &["a.example"]);
    let name = host("a.example");
    let ahead = leaves
        .leaf(&name, setup.now + Duration::from_secs(3 * 3600))
        .unwrap();
    let put_right = leaves.leaf(&name, setup.now).unwrap();
    assert!(!Arc::ptr_eq(&ahead, &put_right));
    setup.rustls_verdict(&put_right, "a.example", setup.now).unwrap();
    assert!(!leaves.needs(&name, setup.now - Duration::from_secs(60)));
    assert!(leaves.needs(&name, setup.now - Duration::from_secs(3600)));
}

#[test]
fn an_intermediate_is_asked_for_when_missing_and_before_it_ends() {
    let setup = setup();
    let leaves = setup.leaves(4, &["a.example"]);
    assert!(!leaves.needs(&host("a.example"), setup.now));
    assert!(leaves.needs(&host("b.example"), setup.now));
    assert!(leaves.needs(&host("sub.a.example"), setup.now));
    assert!(leaves.needs(
        &host("a.example"),
        setup.now + INTERMEDIATE_LIFE - INTERMEDIATE_RENEW
    ));
    assert!(matches!(
        leaves.leaf(&host("b.example"), setup.now),
        Err(Error::NoIntermediate { .. })
    ));
}

#[test]
fn a_full_store_lets_the_longest_unused_go() {
    let setup = setup();
    let leaves = setup.leaves(2, &["a.example", "b.example"]);
    leaves.leaf(&host("a.example"), setup.now).unwrap();
    leaves
        .add_intermediate(
            setup
                .root
                .issue_intermediate(&host("c.example"), setup.now)
                .unwrap(),
        )
        .unwrap();
    assert!(!leaves.needs(&host("a.example"), setup.now));
    assert!(leaves.needs(&host("b.example"), setup.now));
    assert!(!leaves.needs(&host("c.example"), setup.now));
}

#[test]
fn rustls_accepts_the_exact_name_alone() {
    let setup = setup();
    let leaf = setup
        .leaves(4, &["api.example.com"])
        .leaf(&host("api.example.com"), setup.now)
        .unwrap();
    let verdict = |name| setup.rustls_verdict(&leaf, name, setup.now);
    verdict("api.example.com").unwrap();
    for other in [
        "example.com",
        "other.example.com",
        "sub.api.example.com",
        "127.0.0.1",
    ] {
        let error = verdict(other).unwrap_err();
        assert!(
            matches!(error, rustls::Error::InvalidCertificate(_)),
            "{other}: {error}"
        );
    }
}

#[test]
fn a_client_whose_clock_is_behind_accepts_the_leaf() {
    let setup = setup();
    let leaf = setup
        .leaves(4, &["a.example"])
        .leaf(&host("a.example"), setup.now)
        .unwrap();
    let behind = setup.now - Duration::from_secs(50 * 60);
    setup.rustls_verdict(&leaf, "a.example", behind).unwrap();
    let ended = setup
        .rustls_verdict(&leaf, "a.example", leaf.expires() + Duration::from_secs(60))
        .unwrap_err();
    assert!(ended.to_string().contains("expired"), "{ended}");
}

#[test]
fn an_intermediate_can_not_speak_for_another_name() {
    let setup = setup();
    for name in ["other.example.com", "example.com", "evil-api.example.com"] {
        let leaf = setup.forged("api.example.com", name);
        let error = setup.rustls_verdict(&leaf, name, setup.now).unwrap_err();
        let rustls::Error::InvalidCertificate(CertificateError::Other(_)) = error else {
            panic!("{name}: {error}");
        };
        assert!(
            error.to_string().contains("NameConstraintViolation"),
            "{name}: {error}"
        );
    }
}

#[test]
fn openssl_agrees_in_its_strict_mode() {
    let setup = setup();
    assert!(Path::new(setup.dir.path()).exists());
    let leaf = setup
        .leaves(4, &["api.example.com"])
        .leaf(&host("api.example.com"), setup.now)
        .unwrap();
    assert_eq!(setup.openssl_verdict(&leaf, "api.example.com"), Ok(()));
    let error = setup.openssl_verdict(&leaf, "other.example.com").unwrap_err();
    assert!(error.contains("hostname mismatch"), "{error}");
    let forged = setup.forged("api.example.com", "other.example.com");
    let error = setup.openssl_verdict(&forged, "other.example.com").unwrap_err();
    assert!(error.contains("permitted subtree violation"), "{error}");
}
