//! A throwaway certificate authority for the upstreams of one test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// The authority; its certificate is in [`Ca::certificate`].
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
    dir: PathBuf,
}

/// A server's certificate and key, as PEM files.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What can be wrong with a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flaw {
    /// Past its end.
    Expired,
    /// Before its start.
    NotYetValid,
    /// Signed by nobody else.
    SelfSigned,
    /// Not for servers.
    ForClients,
}

impl Ca {
    /// Makes an authority and writes its certificate to `dir/ca.pem`.
    ///
    /// # Errors
    /// If a key can't be made or a file not written.
    pub fn new(dir: &Path) -> Result<Self> {
        Self::named(dir, "upstream test authority")
    }

    /// As [`Ca::new`], for one beside others: who verifies finds an issuer by its name.
    ///
    /// # Errors
    /// As [`Ca::new`].
    pub fn named(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = dir.join("ca.pem");
        fs::write(&certificate, params.self_signed(&key)?.pem()).context("can't write the test CA")?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
            dir: dir.to_owned(),
        })
    }

    /// The authority's own certificate (PEM file).
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Issues a certificate for one DNS name.
    ///
    /// # Errors
    /// If the name is none, or a file can't be written.
    pub fn issue(&self, host: &str) -> Result<Leaf> {
        self.issue_flawed(host, None)
    }

    /// As [`Ca::issue`], with something wrong with it.
    ///
    /// # Errors
    /// As [`Ca::issue`].
    pub fn issue_flawed(&self, host: &str, flaw: Option<Flaw>) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        match flaw {
            Some(Flaw::Expired) => params.not_after = date_time_ymd(2020, 1, 1),
            Some(Flaw::NotYetValid) => params.not_before = date_time_ymd(2099, 1, 1),
            Some(Flaw::ForClients) => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Some(Flaw::SelfSigned) | None => {}
        }
        let certificate = match flaw {
            Some(Flaw::SelfSigned) => params.self_signed(&key)?,
            _signed => params.signed_by(&key, &self.issuer)?,
        };
        let pem = certificate.pem();
        let leaf = Leaf {
            certificate: self.dir.join(format!("{host}.pem")),
            key: self.dir.join(format!("{host}.key")),
        };
        fs::write(&leaf.certificate, pem).context("can't write a leaf certificate")?;
        fs::write(&leaf.key, key.serialize_pem()).context("can't write a leaf key")?;
        Ok(leaf)
    }
}
