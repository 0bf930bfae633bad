//! Certificates for tests of TLS: an authority, and what it signs. As few fields as clients want (RFC 5280).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    name: String,
    key: EcdsaKeyPair,
    /// In PEM.
    pub cert: String,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
    /// The certificate as it is shown in a handshake.
    pub der: Vec<u8>,
}

impl Authority {
    /// One that is good for a day.
    pub fn new(name: &str) -> Self {
        let (key, _) = new_key();
        let ca = extension(BASIC_CONSTRAINTS, &sequence(&[&[0x01, 0x01, 0xff]]));
        let der = certificate(name, &key, name, &key, (SystemTime::now() - DAY, SystemTime::now() + DAY), &ca);
        Self { name: name.to_owned(), key, cert: pem("CERTIFICATE", &der) }
    }

    /// A certificate for names and addresses, good from yesterday to tomorrow.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_for(names, (SystemTime::now() - DAY, SystemTime::now() + DAY))
    }

    /// One that was good until yesterday.
    pub fn issue_expired(&self, names: &[&str]) -> Issued {
        self.issue_for(names, (SystemTime::now() - 2 * DAY, SystemTime::now() - DAY))
    }

    fn issue_for(&self, names: &[&str], times: (SystemTime, SystemTime)) -> Issued {
        let (key, pkcs8) = new_key();
        let names: Vec<Vec<u8>> = names.iter().map(|name| alternative(name)).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let names = extension(ALTERNATIVE_NAME, &sequence(&names));
        let der = certificate("esker", &key, &self.name, &self.key, times, &names);
        Issued { cert: pem("CERTIFICATE", &der), key: pem("PRIVATE KEY", &pkcs8), der }
    }
}

impl Issued {
    /// Writes `cert.pem` and `key.pem` into a folder, each as a whole.
    pub fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        (put(folder, "cert.pem", &self.cert), put(folder, "key.pem", &self.key))
    }
}

/// Writes a file so that a reader sees all of it or nothing, for its owner alone.
pub fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let (path, temporary) = (folder.join(name), folder.join(format!("{name}.new")));
    std::fs::write(&temporary, text).unwrap();
    std::fs::set_permissions(&temporary, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(&temporary, &path).unwrap();
    path
}

/// A new RSA key in PEM, as service accounts of Google have it.
pub fn rsa_key() -> String {
    let key = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    pem("PRIVATE KEY", der.as_ref())
}

fn new_key() -> (EcdsaKeyPair, Vec<u8>) {
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    (EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap(), pkcs8.as_ref().to_vec())
}

fn certificate(
    subject: &str,
    key: &EcdsaKeyPair,
    issuer: &str,
    issuer_key: &EcdsaKeyPair,
    (begin, end): (SystemTime, SystemTime),
    extension: &[u8],
) -> Vec<u8> {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let algorithm = sequence(&[&element(OID, ECDSA_WITH_SHA256)]);
    let point = [&[0], key.public_key().as_ref()].concat();
    let public =
        sequence(&[&sequence(&[&element(OID, EC_PUBLIC_KEY), &element(OID, P256)]), &element(BIT_STRING, &point)]);
    let to_sign = sequence(&[
        &element(0xa0, &element(INTEGER, &[2])),
        &element(INTEGER, &[&[0x01][..], &serial.to_be_bytes()].concat()[..]),
        &algorithm,
        &name(issuer),
        &sequence(&[&time(begin), &time(end)]),
        &name(subject),
        &public,
        &element(0xa3, &sequence(&[extension])),
    ]);
    let signature = issuer_key.sign(&SystemRandom::new(), &to_sign).unwrap();
    sequence(&[&to_sign, &algorithm, &element(BIT_STRING, &[&[0], signature.as_ref()].concat())])
}

fn name(common: &str) -> Vec<u8> {
    sequence(&[&element(SET, &sequence(&[&element(OID, COMMON_NAME), &element(UTF8, common.as_bytes())]))])
}

fn alternative(name: &str) -> Vec<u8> {
    match name.parse() {
        Ok(IpAddr::V4(ip)) => element(0x87, &ip.octets()),
        Ok(IpAddr::V6(ip)) => element(0x87, &ip.octets()),
        Err(_) => element(0x82, name.as_bytes()),
    }
}

fn extension(oid: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&element(OID, oid), &element(OCTET_STRING, value)])
}

fn time(at: SystemTime) -> Vec<u8> {
    let text = humantime::format_rfc3339_seconds(at).to_string();
    element(UTC_TIME, text[2..].replace(['-', ':', 'T'], "").as_bytes())
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(SEQUENCE, &parts.concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap().to_be_bytes();
    // DER wants the shortest form.
    let head = match content.len() {
        0..0x80 => vec![tag, len[1]],
        0x80..0x100 => vec![tag, 0x81, len[1]],
        _ => vec![tag, 0x82, len[0], len[1]],
    };
    [&head, content].concat()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
