//! A store of roots as Java reads it: PKCS #12 (RFC 7292) with nothing encrypted and no MAC, since there is no secret
//! in it and every Java (8 and later) opens one without a password, or with any.

/// `1.2.840.113549.1.7.1`: the content is plain data.
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// `1.2.840.113549.1.12.10.1.3`: a bag with a certificate.
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
/// `1.2.840.113549.1.9.22.1`: it is an X.509 certificate.
const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
/// `1.2.840.113549.1.9.20`: the entry's name.
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
/// `2.16.840.1.113894.746875.1.1`: Java's mark for what is to be trusted; it ignores certificates without.
const TRUSTED_KEY_USAGE: &[u8] = &[
    0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01,
];
/// `2.5.29.37.0`: for any purpose.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0] EXPLICIT`.
const CONTEXT_0: u8 = 0xa0;

/// A store that trusts these certificates (DER) for any purpose.
pub(super) fn store<'a>(certificates: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let bags: Vec<u8> = certificates
        .enumerate()
        .flat_map(|(number, der)| bag(&format!("root{number}"), der))
        .collect();
    let contents = data(&tlv(SEQUENCE, &bags));
    let whole = data(&tlv(SEQUENCE, &contents));
    tlv(SEQUENCE, &[tlv(INTEGER, &[3]), whole].concat())
}

/// A ContentInfo of plain data.
fn data(content: &[u8]) -> Vec<u8> {
    let content = tlv(CONTEXT_0, &tlv(OCTETS, content));
    tlv(SEQUENCE, &[tlv(OID, DATA), content].concat())
}

fn bag(name: &str, der: &[u8]) -> Vec<u8> {
    let certificate = tlv(CONTEXT_0, &tlv(OCTETS, der));
    let certificate = tlv(SEQUENCE, &[tlv(OID, X509), certificate].concat());
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let attributes = [
        attribute(FRIENDLY_NAME, &tlv(BMP_STRING, &name)),
        attribute(TRUSTED_KEY_USAGE, &tlv(OID, ANY_PURPOSE)),
    ];
    let parts = [
        tlv(OID, CERT_BAG),
        tlv(CONTEXT_0, &certificate),
        tlv(SET, &attributes.concat()),
    ];
    tlv(SEQUENCE, &parts.concat())
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[tlv(OID, kind), tlv(SET, value)].concat())
}

/// Tag, length, value (X.690); the length in as few octets as will do.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let octets = value.len().to_be_bytes();
    let significant = octets.iter().position(|octet| *octet != 0);
    let octets = significant.map_or(&octets[octets.len() - 1..], |first| &octets[first..]);
    match octets {
        [short @ 0..=0x7f] => out.push(*short),
        long => {
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn lengths_take_as_few_octets_as_will_do() {
        assert_eq!(tlv(OCTETS, &[]), [4, 0]);
        assert_eq!(tlv(OCTETS, &[1; 127])[..2], [4, 127]);
        assert_eq!(tlv(OCTETS, &[1; 128])[..3], [4, 0x81, 128]);
        assert_eq!(tlv(OCTETS, &[1; 256])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn openssl_finds_the_certificates_in_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::new(vec!["a.example.test".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store.p12");
        std::fs::write(&file, store([der.der().as_ref(), der.der().as_ref()].into_iter())).unwrap();
        let output = Command::new("openssl")
            .args(["pkcs12", "-nokeys", "-nomacver", "-passin", "pass:", "-in"])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2, "{output:?}");
        assert!(text.contains("friendlyName: root1"), "{text}");
    }
}
