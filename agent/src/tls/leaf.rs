//! Leaf certificates, minted for an exact name and cached.
//!
//! All leaves of one process share one key pair, made at its start and held only in its memory: minting then
//! costs one signature, and a leaf's key is no better guarded for being one of many in the same memory.
//! The names are never copied from an upstream's certificate: a leaf that covered more than the asked name
//! would let HTTP/2 clients put other hosts' requests on the connection (RFC 9113 section 9.1.1).

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};

use crate::addr::HostName;

use super::ca::{Intermediate, common_name, dated, named};
use super::{Error, provider};

/// How long a leaf is good for.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A leaf with less than this left is minted again.
pub const LEAF_RENEW: Duration = Duration::from_secs(8 * 3600);
/// An intermediate with less than this left is asked for again, while it still signs.
pub const INTERMEDIATE_RENEW: Duration = Duration::from_secs(3 * 24 * 3600);

/// A minted leaf with its chain and key, ready for a handshake.
#[derive(Clone)]
pub struct Leaf {
    host: HostName,
    key: Arc<CertifiedKey>,
    expires: SystemTime,
}

impl Leaf {
    /// The one name that it is for.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }
    /// When it ends.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaf({})", self.host)
    }
}

/// Intermediates by host and the leaves minted from them: bounded, the longest unused goes first.
///
/// A hit costs a read lock and a map lookup. An evicted host costs its next connection one question to the
/// supervisor, nothing more.
pub struct Leaves {
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    capacity: usize,
    hosts: RwLock<HashMap<HostName, Arc<Host>>>,
    /// Counts uses, to know the longest unused.
    uses: AtomicU64,
}

struct Host {
    issuer: Issuer<'static, KeyPair>,
    intermediate: CertificateDer<'static>,
    expires: SystemTime,
    leaf: ArcSwapOption<Leaf>,
    used: AtomicU64,
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl Leaves {
    /// An empty store for at most `capacity` hosts, with a new leaf key.
    ///
    /// # Errors
    /// If the crypto library fails.
    pub fn new(capacity: usize) -> Result<Self, Error> {
        let mint = |source| Error::Mint {
            subject: "leaf keys".into(),
            source,
        };
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(mint)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing_key = provider()
            .key_provider
            .load_private_key(der)
            .map_err(|source| Error::Setup { source })?;
        Ok(Self {
            leaf_key,
            signing_key,
            capacity: capacity.max(1),
            hosts: RwLock::default(),
            uses: AtomicU64::new(0),
        })
    }

    /// Whether an intermediate for `host` should be fetched: there is none, or it ends soon.
    ///
    /// In the second case [`Self::leaf`] still works, so the fetch may go on beside the call.
    #[must_use]
    pub fn needs(&self, host: &HostName, now: SystemTime) -> bool {
        self.find(host)
            .is_none_or(|found| found.expires < now + INTERMEDIATE_RENEW)
    }

    /// Takes an intermediate in; one that was there for the same host goes, with its leaf.
    ///
    /// # Errors
    /// If its key or certificate can't be read.
    pub fn add_intermediate(&self, intermediate: Intermediate) -> Result<(), Error> {
        let mint = |source| Error::Mint {
            subject: intermediate.host.to_string(),
            source,
        };
        let der = PrivatePkcs8KeyDer::from(intermediate.key_pkcs8.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map_err(mint)?;
        let certificate = CertificateDer::from(intermediate.certificate_der);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(mint)?;
        let host = Host {
            issuer,
            intermediate: certificate,
            expires: UNIX_EPOCH + Duration::from_secs(intermediate.expires),
            leaf: ArcSwapOption::empty(),
            used: AtomicU64::new(self.tick()),
        };
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= self.capacity && !hosts.contains_key(&intermediate.host) {
            evict(&mut hosts);
        }
        hosts.insert(intermediate.host, Arc::new(host));
        Ok(())
    }

    /// The leaf for exactly this name, from the cache or minted now.
    ///
    /// # Errors
    /// [`Error::NoIntermediate`] if there is none that still holds; [`Error::Mint`] if signing fails.
    pub fn leaf(&self, host: &HostName, now: SystemTime) -> Result<Arc<Leaf>, Error> {
        let missing = || Error::NoIntermediate { host: host.clone() };
        let found = self.find(host).ok_or_else(missing)?;
        if found.expires <= now {
            return Err(missing());
        }
        found.used.store(self.tick(), Ordering::Relaxed);
        if let Some(leaf) = &*found.leaf.load()
            && leaf.expires > now + LEAF_RENEW.min(remaining(&found, now))
        {
            return Ok(Arc::clone(leaf));
        }
        // Two threads may mint at once; both leaves are good and one stays.
        let leaf = Arc::new(self.mint(host, &found, now)?);
        found.leaf.store(Some(Arc::clone(&leaf)));
        Ok(leaf)
    }

    fn mint(&self, host: &HostName, from: &Host, now: SystemTime) -> Result<Leaf, Error> {
        let mint = |source| Error::Mint {
            subject: host.to_string(),
            source,
        };
        let expires = from.expires.min(now + LEAF_LIFE);
        let certificate = leaf_params(host, now, expires)?
            .signed_by(&self.leaf_key, &from.issuer)
            .map_err(mint)?;
        let chain = vec![certificate.der().clone(), from.intermediate.clone()];
        let key = Arc::new(CertifiedKey::new(chain, Arc::clone(&self.signing_key)));
        Ok(Leaf {
            host: host.clone(),
            key,
            expires,
        })
    }

    fn find(&self, host: &HostName) -> Option<Arc<Host>> {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).map(Arc::clone)
    }

    fn tick(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }
}

/// Half of what the intermediate has left, so that near its end a leaf is not minted for every connection.
fn remaining(host: &Host, now: SystemTime) -> Duration {
    host.expires.duration_since(now).unwrap_or_default() / 2
}

/// Linear, but only when a new host comes to a full store.
fn evict(hosts: &mut HashMap<HostName, Arc<Host>>) {
    let oldest = hosts
        .iter()
        .min_by_key(|(_, host)| host.used.load(Ordering::Relaxed))
        .map(|(name, _)| name.clone());
    if let Some(name) = oldest {
        hosts.remove(&name);
    }
}

fn leaf_params(host: &HostName, now: SystemTime, expires: SystemTime) -> Result<CertificateParams, Error> {
    let name = rcgen::string::Ia5String::try_from(host.as_str()).map_err(|source| Error::Mint {
        subject: host.to_string(),
        source,
    })?;
    let mut params = dated(now, expires)?;
    params.distinguished_name = named(&common_name("", host));
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
