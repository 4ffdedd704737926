//! The root's file: who may own it, how it comes to be, and its two parts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ParsedCertificate;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use zeroize::Zeroizing;

use crate::tls::Error;

/// A root's file is about 1 KiB; anything much larger is not ours.
const MAX_SIZE: u64 = 64 * 1024;
const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const END_CERTIFICATE: &str = "-----END CERTIFICATE-----";
const BEGIN_KEY: &str = "-----BEGIN PRIVATE KEY-----";
const END_KEY: &str = "-----END PRIVATE KEY-----";

/// Reads the file after checking its owner and mode on the open descriptor; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    check(path, &file.metadata().map_err(failed(path, "examined"))?)?;
    check_directory(path)?;
    content(path, file).map(Some)
}

/// Reads the file whoever owns it: for who looks, and signs nothing with it.
pub(super) fn look(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    open(path)?.map(|file| content(path, file)).transpose()
}

fn open(path: &Path) -> Result<Option<File>, Error> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "opened")(error)),
    }
}

fn content(path: &Path, file: File) -> Result<Zeroizing<String>, Error> {
    let mut pem = Zeroizing::new(String::with_capacity(4096));
    file.take(MAX_SIZE)
        .read_to_string(&mut pem)
        .map_err(failed(path, "read"))?;
    Ok(pem)
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::RootFile {
        path: path.into(),
        action,
        source,
    }
}

/// Makes the file, whole or not at all; one that is there already stays.
pub(super) fn create(path: &Path, pem: &str) -> Result<(), Error> {
    let parent = parent(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&parent)
        .map_err(failed(path, "given a directory"))?;
    check_directory(path)?;
    let temporary = parent.join(format!(".ca.{}.{}", std::process::id(), unique()?));
    let written = write_new(&temporary, pem)
        .and_then(|()| match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        })
        .and_then(|()| File::open(&parent)?.sync_all());
    // The name goes in every case; if even that fails, the first error says more.
    let removed = fs::remove_file(&temporary);
    written.and(removed).map_err(failed(path, "made"))
}

fn write_new(path: &Path, pem: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()
}

/// Tells temporary files of threads in one process apart.
fn unique() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_unspecified| Error::Random)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn check(path: &Path, meta: &fs::Metadata) -> Result<(), Error> {
    let refuse = |what: String| {
        Err(Error::RootUnsafe {
            path: path.into(),
            what,
        })
    };
    if !meta.is_file() {
        return refuse("it is not a regular file".into());
    }
    check_owner(path, meta)?;
    if meta.mode() & 0o7177 != 0 {
        return refuse(format!("its mode is {:04o}, not 0600", meta.mode() & 0o7777));
    }
    if meta.len() >= MAX_SIZE {
        return refuse("it is larger than any CA file".into());
    }
    Ok(())
}

/// Who can write the directory can put another root in its place.
fn check_directory(path: &Path) -> Result<(), Error> {
    let parent = parent(path);
    let meta = fs::metadata(&parent).map_err(|source| Error::RootFile {
        path: parent.clone(),
        action: "examined",
        source,
    })?;
    check_owner(&parent, &meta)?;
    if meta.mode() & 0o022 != 0 {
        let what = format!("others may write it (mode {:04o})", meta.mode() & 0o7777);
        return Err(Error::RootUnsafe { path: parent, what });
    }
    Ok(())
}

fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), Error> {
    let own = nix::unistd::geteuid().as_raw();
    // What root put there is as good as its own.
    if meta.uid() == own || meta.uid() == 0 {
        return Ok(());
    }
    let what = format!("it belongs to user {}, not to root or user {own}", meta.uid());
    Err(Error::RootUnsafe {
        path: path.into(),
        what,
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

/// The PEM block of the certificate, with its newline.
pub(super) fn certificate_part(pem: &str) -> Option<&str> {
    part(pem, BEGIN_CERTIFICATE, END_CERTIFICATE)
}

/// The PEM block of the private key.
pub(super) fn key_part(pem: &str) -> Option<&str> {
    part(pem, BEGIN_KEY, END_KEY)
}

fn part<'a>(pem: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let block = pem.get(pem.find(begin)?..)?;
    let length = block.find(end)? + end.len();
    let newline = block.get(length..)?.find('\n').map_or(0, |at| at + 1);
    block.get(..length + newline)
}

/// From when to when the certificate is good.
pub(super) fn validity(certificate_pem: &str) -> Result<Range<SystemTime>, String> {
    let der =
        CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    let validity = parsed.validity();
    let time = |time: ASN1Time| SystemTime::from(time.to_datetime());
    Ok(time(validity.not_before)..time(validity.not_after))
}

/// Whether the certificate is about this key: one of them replaced alone would sign what nobody trusts.
pub(super) fn belongs(certificate_pem: &str, key: &KeyPair) -> bool {
    CertificateDer::from_pem_slice(certificate_pem.as_bytes()).is_ok_and(|der| {
        ParsedCertificate::try_from(&der)
            .is_ok_and(|parsed| *parsed.subject_public_key_info() == *key.subject_public_key_info())
    })
}
