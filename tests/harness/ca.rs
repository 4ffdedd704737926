//! A throwaway certificate authority for the upstreams of one test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

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

impl Ca {
    /// Makes an authority and writes its certificate to `dir/ca.pem`.
    ///
    /// # Errors
    /// If a key can't be made or a file not written.
    pub fn new(dir: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "upstream test authority");
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
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        let leaf = Leaf {
            certificate: self.dir.join(format!("{host}.pem")),
            key: self.dir.join(format!("{host}.key")),
        };
        fs::write(&leaf.certificate, pem).context("can't write a leaf certificate")?;
        fs::write(&leaf.key, key.serialize_pem()).context("can't write a leaf key")?;
        Ok(leaf)
    }
}
