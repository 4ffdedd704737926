//! What a managed command must trust to accept the agent's certificates: the host's roots and the agent's.
//!
//! Always both: variables that replace a runtime's bundle would otherwise break all its other TLS. Programs that read
//! no variable find the bundle in the usual places, over which it is mounted for them alone ([`Trust::directories`]).

mod java;
mod places;
mod seen;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use seen::{OwnRoots, Trusted};
pub use watch::Watch;

/// Where distributions keep their roots as one PEM file; the first that exists is the host's.
const HOST_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
];

/// Variables that name a bundle instead of the runtime's own: OpenSSL, Python's requests and pip, curl, git,
/// the AWS tools, cargo, Deno, Ruby, gRPC, Nix, Julia, Composer and Perl. Node adds to its own instead.
/// SSL_CERT_DIR stays as it is: a lone directory would take the host's away from OpenSSL.
const BUNDLE_VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "BUNDLE_SSL_CA_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
    "JULIA_SSL_CA_ROOTS_PATH",
    "COMPOSER_CAFILE",
    "PERL_LWP_SSL_CA_FILE",
];

/// Where distributions keep the roots of Java.
const HOST_JAVA_STORES: &[&str] = &[
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/var/lib/ca-certificates/java-cacerts",
];
/// Options that every Java reads, added to those that are set. Other vendors' Javas have stores in their own directories.
pub const JAVA_OPTIONS: &str = "JAVA_TOOL_OPTIONS";

/// The files below the directory.
const BUNDLE: &str = "ca-bundle.pem";
const JAVA_STORE: &str = "truststore.p12";

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
/// A host bundle is around 250 KB; more than this is no bundle.
const MAX_BUNDLE_BYTES: u64 = 16 << 20;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The agent's own root isn't a certificate.
    #[error("the agent's root is not a PEM certificate")]
    Root,
    /// The host's bundle is no bundle.
    #[error("{} is larger than 16 MiB and is not taken for a bundle of roots", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("can't {act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A bundle that was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trust {
    /// The bundle.
    pub bundle: PathBuf,
    /// How many of the host's roots it holds; 0 on a host without any.
    pub host_roots: usize,
    /// The same as a store for Java.
    pub java_store: PathBuf,
    /// Copies of the host's directories of roots, with the agent's added: (own, host's).
    pub directories: Vec<(PathBuf, PathBuf)>,
    /// The variables that make runtimes read it. What [`JAVA_OPTIONS`] says is to be added to what is there.
    pub env: Vec<(String, String)>,
}

/// Writes `directory/ca-bundle.pem` and `directory/truststore.p12`: the host's roots and `root_pem`, readable by all,
/// each replaced in one step.
///
/// # Errors
/// If the root isn't PEM, or the system refuses.
pub fn write_bundle(root_pem: &str, directory: &Path) -> Result<Trust, TrustError> {
    let host = host_bundle()?;
    let mut trust = write_merged(&host, root_pem, directory)?;
    let read = |path: &Path| fs::read(path).map_err(io_error("read", path));
    let (bundle, store) = (read(&trust.bundle)?, read(&trust.java_store)?);
    let bundles = HOST_BUNDLES.iter().map(|path| (*path, bundle.as_slice()));
    let stores = HOST_JAVA_STORES.iter().map(|path| (*path, store.as_slice()));
    let merged: Vec<_> = bundles.chain(stores).collect();
    for place in places::present() {
        places::copy(&place, &places::copy_of(&place, directory), &merged)?;
    }
    trust.directories = directories(directory);
    Ok(trust)
}

/// The copies of directories that are, or will be, below `directory`: (own, host's).
#[must_use]
pub fn directories(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let pairs = places::present()
        .into_iter()
        .map(|place| (places::copy_of(&place, directory), place));
    pairs.collect()
}

/// A bundle that the agent wrote, beside the host's roots as they are now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Compared {
    /// The host's roots.
    pub host: usize,
    /// Those of them that the bundle lacks.
    pub lacking: usize,
    /// What the bundle has beside them: the agent's root.
    pub own: usize,
}

/// Compares the bundle in `directory` with the host's roots; `None` if there is no bundle.
///
/// # Errors
/// If one of them can't be read.
pub fn compare(directory: &Path) -> Result<Option<Compared>, TrustError> {
    let Some(bundle) = bundle_in(directory)? else {
        return Ok(None);
    };
    let host = host_bundle()?;
    let host: BTreeSet<&str> = certificates(&host).into_iter().collect();
    let bundle: BTreeSet<&str> = certificates(&bundle).into_iter().collect();
    Ok(Some(Compared {
        host: host.len(),
        lacking: host.difference(&bundle).count(),
        own: bundle.difference(&host).count(),
    }))
}

/// The variables that make runtimes read what is in `directory`.
#[must_use]
pub fn variables_of(directory: &Path) -> Vec<(String, String)> {
    variables(&directory.join(BUNDLE), &directory.join(JAVA_STORE))
}

fn write_merged(host: &str, root_pem: &str, directory: &Path) -> Result<Trust, TrustError> {
    let own = certificates(root_pem);
    if own.is_empty() {
        return Err(TrustError::Root);
    }
    let host = certificates(host);
    let mut text = String::new();
    for certificate in host.iter().chain(&own) {
        text.push_str(certificate);
        text.push('\n');
    }
    super::make_directory(directory).map_err(io_error("make", directory))?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory, readable).map_err(io_error("open up", directory))?;
    let bundle = directory.join(BUNDLE);
    replace(&bundle, text.as_bytes())?;
    let java_store = directory.join(JAVA_STORE);
    let roots: Vec<_> = host.iter().chain(&own).filter_map(|pem| der(pem)).collect();
    replace(&java_store, &java::store(roots.iter().map(Vec::as_slice)))?;
    Ok(Trust {
        env: variables(&bundle, &java_store),
        bundle,
        java_store,
        directories: Vec::new(),
        host_roots: host.len(),
    })
}

fn variables(bundle: &Path, java_store: &Path) -> Vec<(String, String)> {
    let bundle = bundle.to_string_lossy();
    let java = format!(
        "-Djavax.net.ssl.trustStore={} -Djavax.net.ssl.trustStoreType=PKCS12",
        java_store.display()
    );
    let bundles = BUNDLE_VARIABLES.iter().map(|name| (*name, bundle.to_string()));
    bundles
        .chain([(JAVA_OPTIONS, java)])
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// What a PEM block holds; `None` for what is no base64.
fn der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.strip_prefix(BEGIN)?.strip_suffix(END)?;
    let text: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(text).ok()
}

/// The bundle that the agent wrote to `directory`, if it did.
fn bundle_in(directory: &Path) -> Result<Option<String>, TrustError> {
    let path = directory.join(BUNDLE);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(io_error("read", &path)),
    }
}

fn host_bundle() -> Result<String, TrustError> {
    for path in HOST_BUNDLES.iter().map(Path::new) {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("examine", path)(error)),
            Ok(found) if found.len() > MAX_BUNDLE_BYTES => {
                return Err(TrustError::TooLarge {
                    path: path.to_owned(),
                });
            }
            Ok(_) => {
                let bytes = fs::read(path).map_err(io_error("read", path))?;
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
    Ok(String::new())
}

/// The PEM blocks of certificates, without the comments between them; never anything else that stands there.
fn certificates(pem: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let Some((body, tail)) = after.split_once(END) else {
            break;
        };
        let start = pem.len() - after.len() - BEGIN.len();
        let whole = pem.get(start..start + BEGIN.len() + body.len() + END.len());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"+/=\r\n \t".contains(&b);
        found.extend(whole.filter(|_| body.bytes().all(plain)));
        rest = tail;
    }
    found
}

/// Written aside and renamed, so that no reader ever sees half a bundle.
fn replace(path: &Path, content: &[u8]) -> Result<(), TrustError> {
    let aside = path.with_added_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &aside)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&aside)
        .map_err(io_error("make", &aside))?;
    // The mode above is cut by the umask; every managed user must be able to read this.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.set_permissions(readable)
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", &aside))?;
    fs::rename(&aside, path).map_err(io_error("replace", path))
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError + use<> {
    let path = path.to_owned();
    move |source| TrustError::Io { act, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const HOST: &str = "# A root\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\
        -----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n\
        -----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----";
    const OWN: &str = "-----BEGIN CERTIFICATE-----\nCCCC\n-----END CERTIFICATE-----\n";

    #[test]
    fn the_bundle_holds_the_hosts_roots_and_ours_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("trust");
        let trust = write_merged(HOST, OWN, &place).unwrap();
        let text = fs::read_to_string(&trust.bundle).unwrap();
        assert_eq!(trust.host_roots, 2);
        assert_eq!(text.matches(BEGIN).count(), 3);
        assert!(text.find("AAAA") < text.find("BBBB") && text.find("BBBB") < text.find("CCCC"));
        assert!(!text.contains("SECRET") && !text.contains('#'));
        assert_eq!(
            fs::metadata(&trust.bundle).unwrap().permissions().mode() & 0o777,
            0o644
        );
        let value = trust.bundle.to_str().unwrap();
        assert!(
            trust
                .env
                .contains(&("SSL_CERT_FILE".to_owned(), value.to_owned()))
        );
        let store = fs::read(&trust.java_store).unwrap();
        for held in ["AAAA", "BBBB", "CCCC"] {
            let held = STANDARD.decode(held).unwrap();
            assert!(store.windows(held.len()).any(|bytes| bytes == held), "{held:?}");
        }
    }

    #[test]
    fn writing_again_replaces_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let first = write_merged(HOST, OWN, directory.path()).unwrap();
        let second = write_merged("", OWN, directory.path()).unwrap();
        assert_eq!(first.bundle, second.bundle);
        assert_eq!(second.host_roots, 0);
        assert_eq!(first.java_store, second.java_store);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_root_that_is_no_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for root in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA",
            "-----BEGIN CERTIFICATE-----\n\u{1}\n-----END CERTIFICATE-----",
        ] {
            assert!(
                matches!(write_merged(HOST, root, directory.path()), Err(TrustError::Root)),
                "{root}"
            );
        }
    }

    #[test]
    fn the_hosts_own_bundle_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let trust = write_bundle(OWN, directory.path()).unwrap();
        let present = HOST_BUNDLES.iter().any(|path| Path::new(path).exists());
        assert_eq!(present, trust.host_roots > 0);
    }
}
