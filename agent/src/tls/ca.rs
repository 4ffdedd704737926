//! The interception CA and its name-constrained intermediates.
//!
//! The root's key lives in one file and in the supervisor's memory, nowhere else: [`Root`] has no way to
//! give it out. What the worker gets is an [`Intermediate`], good for one DNS name (and, as X.509 has no
//! narrower form, the names below it: RFC 5280 section 4.2.1.10), with all addresses excluded.

mod file;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    SerialNumber,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::addr::HostName;

use super::Error;

/// Certificates start this long before they are made: a client's clock may be behind ours.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// How long a root is good for.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long an intermediate is good for.
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The root: it signs intermediates, and nothing else. Only the supervisor has one.
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Root(..)")
    }
}

impl Root {
    /// Reads the root from `path`, or makes one there (mode 0600) if there is none.
    ///
    /// Of several processes that do this at once, one makes it and all read the same.
    ///
    /// # Errors
    /// If the file or its directory can be written by somebody else, the file can be read by somebody else
    /// or belongs to another user than the one that the process runs as (root, for the supervisor), if it
    /// is damaged, or if the file system fails.
    pub fn load_or_create(path: &Path, now: SystemTime) -> Result<Self, Error> {
        if let Some(pem) = file::read(path)? {
            return Self::from_pem(path, &pem);
        }
        let pem = make_root(now)?;
        file::create(path, &pem)?;
        // Another process may have been first: what lies there counts.
        match file::read(path)? {
            Some(pem) => Self::from_pem(path, &pem),
            None => Err(Error::RootDamaged {
                path: path.into(),
                what: "it vanished after it was made".into(),
            }),
        }
    }

    /// The root's certificate, for trust bundles. Ends with a newline.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a new intermediate for `host` with a key of its own.
    ///
    /// # Errors
    /// If the crypto library fails.
    pub fn issue_intermediate(&self, host: &HostName, now: SystemTime) -> Result<Intermediate, Error> {
        let mint = |source| Error::Mint {
            subject: host.to_string(),
            source,
        };
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(mint)?);
        let expires = now + INTERMEDIATE_LIFE;
        let certificate = intermediate_params(host, now, expires)?
            .signed_by(&*key, &self.issuer)
            .map_err(mint)?;
        Ok(Intermediate {
            host: host.clone(),
            certificate_der: certificate.der().to_vec(),
            key_pkcs8: KeyBytes(Zeroizing::new(key.serialize_der())),
            expires: unix_seconds(expires),
        })
    }

    fn from_pem(path: &Path, pem: &str) -> Result<Self, Error> {
        let damaged = |what: String| Error::RootDamaged {
            path: path.into(),
            what,
        };
        let certificate_pem = file::certificate_part(pem)
            .ok_or_else(|| damaged("it has no certificate".into()))?
            .to_owned();
        let key = file::key_part(pem).ok_or_else(|| damaged("it has no private key".into()))?;
        let key = KeyPair::from_pem(key).map_err(|error| damaged(format!("its private key: {error}")))?;
        if !file::belongs(&certificate_pem, &key) {
            return Err(damaged("its certificate is for another key".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|error| damaged(format!("its certificate: {error}")))?;
        Ok(Self {
            issuer,
            certificate_pem,
        })
    }
}

/// From when to when the root in this file is good, whoever owns it; `None` if there is none. Its key is not looked at.
///
/// # Errors
/// If the file can't be read, or has no certificate.
pub fn validity(path: &Path) -> Result<Option<Range<SystemTime>>, Error> {
    let damaged = |what: String| Error::RootDamaged {
        path: path.into(),
        what,
    };
    let Some(pem) = file::look(path)? else {
        return Ok(None);
    };
    let pem = file::certificate_part(&pem).ok_or_else(|| damaged("it has no certificate".into()))?;
    let valid = file::validity(pem).map_err(|error| damaged(format!("its certificate: {error}")))?;
    Ok(Some(valid))
}

/// A CA certificate for one host, with its key. Travels from the supervisor to the worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Intermediate {
    /// The only name that it may sign for.
    pub host: HostName,
    /// The certificate, DER.
    pub certificate_der: Vec<u8>,
    /// The private key, PKCS#8 DER.
    pub key_pkcs8: KeyBytes,
    /// When it ends: seconds since the Unix epoch.
    pub expires: u64,
}

/// Private key bytes: wiped when dropped, never shown.
#[derive(Clone)]
pub struct KeyBytes(Zeroizing<Vec<u8>>);

impl KeyBytes {
    /// The bytes, for the signer alone.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(..)")
    }
}

impl Serialize for KeyBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = KeyBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("key bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<KeyBytes, E> {
                Ok(KeyBytes(Zeroizing::new(bytes.to_vec())))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<KeyBytes, E> {
                Ok(KeyBytes(Zeroizing::new(bytes)))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// A new root as PEM: certificate, then key.
fn make_root(now: SystemTime) -> Result<Zeroizing<String>, Error> {
    let mint = |source| Error::Mint {
        subject: "the root".into(),
        source,
    };
    let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(mint)?);
    let mut params = dated(now, now + ROOT_LIFE)?;
    // Two roots with one name but other keys confuse path building: the serial makes the name unique.
    let tag: String = random_serial()?[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = named(&format!("callgate local CA {tag}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&*key).map_err(mint)?;
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new(format!("{}{}", certificate.pem(), *key)))
}

fn intermediate_params(
    host: &HostName,
    now: SystemTime,
    expires: SystemTime,
) -> Result<CertificateParams, Error> {
    let mut params = dated(now, expires)?;
    params.distinguished_name = named(&common_name("callgate CA for ", host));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(host.as_str().to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    Ok(params)
}

/// Parameters with a random serial and a back-dated start.
pub(super) fn dated(now: SystemTime, expires: SystemTime) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    params.not_before = (now - BACKDATE).into();
    params.not_after = expires.into();
    Ok(params)
}

/// A common name of at most 64 characters (X.520 ub-common-name): long hosts are cut; names are proven by
/// the subject alternative name alone.
pub(super) fn common_name(prefix: &str, host: &HostName) -> String {
    let room = 64 - prefix.len();
    let host = host.as_str();
    format!("{prefix}{}", host.get(..room).unwrap_or(host))
}

pub(super) fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// 127 random bits, positive and never zero (RFC 5280 section 4.1.2.2).
fn random_serial() -> Result<[u8; 16], Error> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_unspecified| Error::Random)?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}

/// Seconds since the epoch; a clock before it counts as the epoch, where every certificate has ended.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
