//! Checksums of bodies: what a client says they are, and what they turn out to be.
//!
//! S3 knows ten algorithms, sent in a header before the body or in a trailer after it; older clients send
//! `Content-MD5`. s3s checks only the signature's SHA-256, so everything else is checked here, before anything becomes
//! visible. Five of them came in 2026, and s3s has no fields for them: their values are read and written beside it.
//!
//! An object that comes without a checksum gets a CRC64NVME of the whole ([`ChecksumPlan::DEFAULT`]), as on S3. It costs a
//! twenty-fifth of the MD5 that becomes the entity tag. The parts of an upload that was created without an algorithm get one each,
//! beside what a client brings with them, and the object's is combined of these. It is that of the object alone: as on S3, neither
//! a list of the parts nor the finished object tells those of parts. An object that was stored by a version without it, or that
//! `esker rebuild` found, has none, and a copy of it none either unless it asks for one: a copy reads no bytes. So has one of an
//! upload that was begun by such a version, if some of its parts were.
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html>

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use s3s::crypto::{Checksum as _, Md5, Sha1, Sha256};
use s3s::{S3Error, S3ErrorCode, S3Result};
use xxhash_rust::xxh3::Xxh3;
use xxhash_rust::xxh64::Xxh64;

use super::combine::Combination;
use super::errors::{custom, payload_hash_mismatch, refuse, refuse_as};
use crate::engine::intake::Digests;
use crate::model::{NewUpload, ObjectChecksum};

/// Begins the names of the headers and trailers with checksums.
const HEADER_PREFIX: &str = "x-amz-checksum-";
/// Headers that begin so and hold no checksum.
const NOT_A_CHECKSUM: [&str; 3] = ["algorithm", "type", "mode"];

/// A checksum algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
    Sha512,
    Md5,
    XxHash64,
    XxHash3,
    XxHash128,
}

impl Algorithm {
    pub(super) const ALL: [Self; 10] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64Nvme,
        Self::Sha1,
        Self::Sha256,
        Self::Sha512,
        Self::Md5,
        Self::XxHash64,
        Self::XxHash3,
        Self::XxHash128,
    ];

    /// Its name, as S3 writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
            Self::Md5 => "MD5",
            Self::XxHash64 => "XXHASH64",
            Self::XxHash3 => "XXHASH3",
            Self::XxHash128 => "XXHASH128",
        }
    }

    /// The algorithm called `name`, in any case.
    ///
    /// # Errors
    /// `InvalidRequest` for one that this server does not know.
    pub(super) fn parse(name: &str) -> S3Result<Self> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            refuse(S3ErrorCode::InvalidRequest, format!("the checksum algorithm {name:?} is not supported"))
        })
    }

    /// The CRC of `crc_fast`.
    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            _ => None,
        }
    }

    /// How its values are combined to that of a whole; CRCs alone can be.
    pub(super) fn combination(self) -> Option<Combination> {
        match self {
            Self::Crc32 => Some(Combination::CRC32),
            Self::Crc32c => Some(Combination::CRC32C),
            Self::Crc64Nvme => Some(Combination::CRC64NVME),
            _ => None,
        }
    }

    fn value_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme | Self::XxHash64 | Self::XxHash3 => 8,
            Self::Md5 | Self::XxHash128 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Reads a value in base64.
    fn decode(self, value: &str) -> S3Result<Vec<u8>> {
        let bytes = BASE64.decode(value).ok().filter(|bytes| bytes.len() == self.value_bytes());
        bytes.ok_or_else(|| {
            let header = self.header();
            refuse(S3ErrorCode::InvalidRequest, format!("the value of {header} is not base64 of that checksum"))
        })
    }

    fn hasher(self) -> Hasher {
        match (self.crc(), self) {
            (Some(crc), _) => Hasher::Crc(Box::new(crc_fast::Digest::new(crc)), self.value_bytes()),
            (None, Self::Sha1) => Hasher::Sha1(Box::new(Sha1::new())),
            (None, Self::Sha512) => Hasher::Sha512(Box::new(<sha2::Sha512 as sha2::Digest>::new())),
            (None, Self::Md5) => Hasher::Md5(Box::new(Md5::new())),
            (None, Self::XxHash64) => Hasher::XxHash64(Box::new(Xxh64::new(0))),
            (None, Self::XxHash3) => Hasher::XxHash3(Box::default()),
            (None, Self::XxHash128) => Hasher::XxHash128(Box::default()),
            (None, _) => Hasher::Sha256(Box::new(Sha256::new())),
        }
    }

    /// The header that brings a value of it.
    pub(super) fn header(self) -> String {
        format!("{HEADER_PREFIX}{}", self.name().to_ascii_lowercase())
    }

    /// The checksum of `bytes`.
    pub(super) fn of(self, bytes: &[u8]) -> Vec<u8> {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// The way in which the checksum of a multipart object is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChecksumPlan {
    pub algorithm: Algorithm,
    pub full_object: bool,
}

impl ChecksumPlan {
    /// The plan of an upload that was created without an algorithm.
    pub(super) const DEFAULT: Self = Self { algorithm: Algorithm::Crc64Nvme, full_object: true };

    /// The plan as the catalog records it.
    pub(super) fn record(self) -> (String, bool) {
        (self.algorithm.name().to_owned(), self.full_object)
    }

    /// The plan of an upload that the catalog remembers; `None` if it was created without an algorithm.
    pub(super) fn of(upload: &NewUpload) -> Option<Self> {
        let (name, full_object) = upload.checksum.as_ref()?;
        Some(Self { algorithm: Algorithm::parse(name).ok()?, full_object: *full_object })
    }
}

/// A checksum while its bytes arrive.
enum Hasher {
    Crc(Box<crc_fast::Digest>, usize),
    Sha1(Box<Sha1>),
    Sha256(Box<Sha256>),
    Sha512(Box<sha2::Sha512>),
    Md5(Box<Md5>),
    XxHash64(Box<Xxh64>),
    XxHash3(Box<Xxh3>),
    XxHash128(Box<Xxh3>),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(digest, _) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
            Self::Sha512(digest) => sha2::Digest::update(&mut **digest, bytes),
            Self::Md5(digest) => digest.update(bytes),
            Self::XxHash64(digest) => digest.update(bytes),
            Self::XxHash3(digest) | Self::XxHash128(digest) => digest.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc(digest, width) => digest.finalize().to_be_bytes()[8 - width..].to_vec(),
            Self::Sha1(digest) => digest.finalize().to_vec(),
            Self::Sha256(digest) => digest.finalize().to_vec(),
            Self::Sha512(digest) => sha2::Digest::finalize(*digest).to_vec(),
            Self::Md5(digest) => digest.finalize().to_vec(),
            Self::XxHash64(digest) => digest.digest().to_be_bytes().to_vec(),
            Self::XxHash3(digest) => digest.digest().to_be_bytes().to_vec(),
            Self::XxHash128(digest) => digest.digest128().to_be_bytes().to_vec(),
        }
    }
}

/// The client's claims about a body, and the digests that must be computed besides.
#[derive(Debug, Default)]
pub(super) struct Claims {
    md5: Option<[u8; 16]>,
    /// The value is none if it comes in a trailer or is only to be computed.
    checksums: Vec<(Algorithm, Option<Vec<u8>>)>,
    trailer: Option<Algorithm>,
    /// The hash of the payload, where s3s does not check it.
    payload_sha256: Option<Vec<u8>>,
}

impl Claims {
    /// Reads the claims in the headers of a request with a body.
    ///
    /// # Errors
    /// `InvalidDigest` or `InvalidRequest` for a value that cannot be one.
    pub(super) fn of(headers: &HeaderMap) -> S3Result<Self> {
        let mut claims = Self { md5: content_md5(headers)?, ..Self::default() };
        for (name, value) in headers {
            let Some(name) = name.as_str().strip_prefix(HEADER_PREFIX) else { continue };
            if NOT_A_CHECKSUM.contains(&name) {
                continue;
            }
            let algorithm = Algorithm::parse(name)?;
            let value = algorithm.decode(value.to_str().unwrap_or_default())?;
            claims.checksums.push((algorithm, Some(value)));
        }
        for name in text(headers, "x-amz-trailer").unwrap_or_default().split(',').map(str::trim) {
            if let Some(name) = name.to_ascii_lowercase().strip_prefix(HEADER_PREFIX) {
                let algorithm = Algorithm::parse(name)?;
                claims.trailer = Some(algorithm);
                claims.also(algorithm);
            }
        }
        if let Some(name) = text(headers, "x-amz-sdk-checksum-algorithm") {
            claims.also(Algorithm::parse(name)?);
        }
        Ok(claims)
    }

    /// Reads `Content-MD5` alone.
    ///
    /// # Errors
    /// `InvalidDigest` for a value that cannot be one.
    pub(super) fn of_md5(headers: &HeaderMap) -> S3Result<Self> {
        Ok(Self { md5: content_md5(headers)?, ..Self::default() })
    }

    /// Computes `algorithm` in any case.
    pub(super) fn also(&mut self, algorithm: Algorithm) {
        if !self.checksums.iter().any(|(known, _)| *known == algorithm) {
            self.checksums.push((algorithm, None));
        }
    }

    /// Checks the payload hash of the signature, where the signature itself is not checked.
    pub(super) fn check_payload_hash(&mut self, headers: &HeaderMap) {
        let value = text(headers, "x-amz-content-sha256").filter(|value| value.len() == 64);
        self.payload_sha256 = value.and_then(|value| hex::decode(value).ok());
    }

    /// Computes the default checksum if the client neither sent one nor asked for one.
    pub(super) fn or_default(&mut self) {
        if self.checksums.is_empty() {
            self.also(ChecksumPlan::DEFAULT.algorithm);
        }
    }

    /// How many checksums the client sent or asked for, before any other is computed.
    pub(super) fn checksums(&self) -> usize {
        self.checksums.len()
    }

    /// Whether there is nothing to check or compute.
    pub(super) fn is_empty(&self) -> bool {
        self.md5.is_none() && self.checksums.is_empty() && self.payload_sha256.is_none()
    }

    /// Reads the signature's claim about the payload, and no other.
    pub(super) fn of_payload(headers: &HeaderMap) -> Self {
        let mut claims = Self::default();
        claims.check_payload_hash(headers);
        claims
    }

    /// Begins to compute; the MD5 too if it is an entity tag.
    pub(super) fn hasher(self, etag: EtagNeeds) -> BodyHasher {
        let md5 = (etag == EtagNeeds::Md5 || self.md5.is_some()).then(|| Box::new(Md5::new()));
        let hashers = self.checksums.iter().map(|(algorithm, _)| algorithm.hasher()).collect();
        let payload = self.payload_sha256.is_some().then(|| Box::new(Sha256::new()));
        BodyHasher { claims: self, md5, hashers, payload }
    }
}

/// The digest that becomes the entity tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EtagNeeds {
    Md5,
    Nothing,
}

/// Computes what a body turns out to be while it arrives.
pub(super) struct BodyHasher {
    claims: Claims,
    md5: Option<Box<Md5>>,
    hashers: Vec<Hasher>,
    payload: Option<Box<Sha256>>,
}

impl BodyHasher {
    /// Takes in the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        for hasher in &mut self.hashers {
            hasher.update(bytes);
        }
        if let Some(payload) = &mut self.payload {
            payload.update(bytes);
        }
    }

    /// Compares with what the client said, in its headers and `trailers`.
    ///
    /// # Errors
    /// `BadDigest` if something differs; `MalformedTrailerError` if an announced trailer did not come.
    pub(super) fn finish(self, trailers: Option<&HeaderMap>) -> S3Result<Digests> {
        let Self { mut claims, md5, hashers, payload } = self;
        claims.take_trailer(trailers)?;
        let md5 = md5.map(|md5| md5.finalize());
        if claims.md5.is_some() && claims.md5 != md5 {
            return Err(bad_digest("Content-MD5"));
        }
        let mut checksums = Vec::with_capacity(hashers.len());
        for ((algorithm, claimed), hasher) in claims.checksums.into_iter().zip(hashers) {
            let value = hasher.finish();
            if claimed.is_some_and(|claimed| claimed != value) {
                return Err(bad_digest(algorithm.name()));
            }
            let value = BASE64.encode(value);
            let algorithm = algorithm.name().to_owned();
            checksums.push(ObjectChecksum { algorithm, value, composite: false, parts: vec![] });
        }
        let payload = payload.map(|payload| payload.finalize().to_vec());
        if payload != claims.payload_sha256 {
            return Err(payload_hash_mismatch());
        }
        Ok(Digests { md5, checksums })
    }
}

impl Claims {
    fn take_trailer(&mut self, trailers: Option<&HeaderMap>) -> S3Result<()> {
        let Some(algorithm) = self.trailer else { return none_came(trailers) };
        let name = algorithm.header();
        let value = trailers.and_then(|trailers| text(trailers, &name)).ok_or_else(|| {
            let message = format!("the trailer {name} was announced and did not come");
            refuse_as(StatusCode::BAD_REQUEST, custom("MalformedTrailerError"), message)
        })?;
        let value = algorithm.decode(value)?;
        let Some((_, claimed)) = self.checksums.iter_mut().find(|(known, _)| *known == algorithm) else {
            return Ok(());
        };
        match claimed {
            Some(header) if *header != value => Err(bad_digest(algorithm.name())),
            _ => {
                *claimed = Some(value);
                Ok(())
            }
        }
    }
}

/// Refuses a checksum in a trailer that was not announced: it was not computed, so it cannot be compared.
fn none_came(trailers: Option<&HeaderMap>) -> S3Result<()> {
    let mut names = trailers.into_iter().flat_map(HeaderMap::keys);
    if names.any(|name| name.as_str().starts_with(HEADER_PREFIX)) {
        let message = "a checksum came in a trailer that x-amz-trailer does not announce";
        return Err(refuse_as(StatusCode::BAD_REQUEST, custom("MalformedTrailerError"), message));
    }
    Ok(())
}

/// The checksum of a multipart object as the checksum of its parts' checksums, with their number.
///
/// # Errors
/// `InvalidPart` if a part has no such checksum.
pub(super) fn composite<'a>(algorithm: Algorithm, parts: impl Iterator<Item = Option<&'a str>>) -> S3Result<String> {
    let (mut values, mut count) = (vec![], 0);
    for part in parts {
        values.extend(part_value(algorithm, part)?);
        count += 1;
    }
    Ok(format!("{}-{count}", BASE64.encode(algorithm.of(&values))))
}

/// The checksum of a multipart object as if its bytes had come in one piece, from the CRCs and lengths of its parts.
///
/// # Errors
/// `InvalidPart` if a part has no such checksum; `InvalidRequest` for an algorithm that cannot be combined.
pub(super) fn full_object<'a>(
    algorithm: Algorithm,
    parts: impl Iterator<Item = (Option<&'a str>, u64)>,
) -> S3Result<String> {
    let combination = algorithm.combination().ok_or_else(|| cannot_be_full(algorithm))?;
    let mut whole = Combination::EMPTY;
    for (part, len) in parts {
        let value = part_value(algorithm, part)?.into_iter().fold(0, |number, byte| (number << 8) | u64::from(byte));
        whole = combination.append(whole, value, len);
    }
    Ok(BASE64.encode(&whole.to_be_bytes()[8 - algorithm.value_bytes()..]))
}

/// Only CRCs can be computed of a whole from those of its parts.
pub(super) fn cannot_be_full(algorithm: Algorithm) -> S3Error {
    let message = format!("the checksum type FULL_OBJECT cannot be used with {}", algorithm.name());
    refuse(S3ErrorCode::InvalidRequest, message)
}

fn part_value(algorithm: Algorithm, value: Option<&str>) -> S3Result<Vec<u8>> {
    let message = || format!("a part has no {} checksum", algorithm.name());
    algorithm.decode(value.ok_or_else(|| refuse(S3ErrorCode::InvalidPart, message()))?)
}

/// The body is not what the client said.
pub(super) fn bad_digest(what: &str) -> S3Error {
    refuse(S3ErrorCode::BadDigest, format!("the {what} you sent is not that of the bytes that arrived"))
}

fn content_md5(headers: &HeaderMap) -> S3Result<Option<[u8; 16]>> {
    let Some(value) = headers.get("content-md5") else { return Ok(None) };
    let bytes = BASE64.decode(value.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let message = "Content-MD5 is not base64 of 16 bytes";
    bytes.map(Some).ok_or_else(|| refuse(S3ErrorCode::InvalidDigest, message))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Copies a checksum to the fields that every output of s3s has for them.
macro_rules! set_checksum {
    ($output:expr, $checksum:expr) => {
        if let Some((algorithm, value)) = $checksum {
            let value = Some(value);
            match algorithm {
                "CRC32" => $output.checksum_crc32 = value,
                "CRC32C" => $output.checksum_crc32c = value,
                "CRC64NVME" => $output.checksum_crc64nvme = value,
                "SHA1" => $output.checksum_sha1 = value,
                "SHA256" => $output.checksum_sha256 = value,
                _ => {}
            }
        }
    };
}
pub(super) use set_checksum;

/// Algorithms that s3s has fields for.
const KNOWN_TO_S3S: [Algorithm; 5] =
    [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Sha1, Algorithm::Sha256];

/// Tells a checksum that s3s has no field for in a header of the answer.
pub(super) fn add_header(headers: &mut HeaderMap, algorithm: &str, value: &str) {
    let Some(algorithm) = beside_s3s(algorithm) else { return };
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(algorithm.header()), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}

/// The element that tells a checksum that s3s has no field for in an answer of XML; empty for others.
pub(super) fn more_element(algorithm: &str, value: &str) -> String {
    beside_s3s(algorithm).map_or_else(String::new, |algorithm| {
        let name = algorithm.name();
        format!("<Checksum{name}>{value}</Checksum{name}>")
    })
}

fn beside_s3s(algorithm: &str) -> Option<Algorithm> {
    Algorithm::parse(algorithm).ok().filter(|algorithm| !KNOWN_TO_S3S.contains(algorithm))
}

/// The value that a typed input of s3s has for an algorithm.
macro_rules! checksum_field {
    ($input:expr, $algorithm:expr) => {
        match $algorithm {
            Algorithm::Crc32 => $input.checksum_crc32.as_deref(),
            Algorithm::Crc32c => $input.checksum_crc32c.as_deref(),
            Algorithm::Crc64Nvme => $input.checksum_crc64nvme.as_deref(),
            Algorithm::Sha1 => $input.checksum_sha1.as_deref(),
            Algorithm::Sha256 => $input.checksum_sha256.as_deref(),
            _ => None,
        }
    };
}
pub(super) use checksum_field;

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &[u8] = b"123456789";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn check(sent: &[(&'static str, &str)], trailers: &[(&'static str, &str)], body: &[u8]) -> S3Result<Digests> {
        let mut hasher = Claims::of(&headers(sent))?.hasher(EtagNeeds::Nothing);
        body.chunks(4).for_each(|chunk| hasher.update(chunk));
        hasher.finish(Some(&headers(trailers)))
    }

    fn code(result: S3Result<Digests>) -> String {
        result.unwrap_err().code().as_str().to_owned()
    }

    /// The check values of the published catalogues of CRCs, FIPS 180, RFC 1321, and what `xxhsum` of xxHash 0.8 says.
    const CHECK: [(&str, &str); 10] = [
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ("x-amz-checksum-crc32c", "4waSgw=="),
        ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
        ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        (
            "x-amz-checksum-sha512",
            "2eZ2LdHI6vbWGzxhkvxAjU1tXxF20MKRabwk5xw/J0rSf81YEbMT1oH35V7ALXPUmclUVba1u1A6z1dPuo/+hQ==",
        ),
        ("x-amz-checksum-md5", "JfnnlDI7RTiF9RgfG2JNCw=="),
        ("x-amz-checksum-xxhash64", "jLhB20DmroM="),
        ("x-amz-checksum-xxhash3", "ctyxi2ehff8="),
        ("x-amz-checksum-xxhash128", "MxGUd+3l3NXpcWQnaB1YYA=="),
    ];

    #[test]
    fn plans_survive_their_form_in_the_catalog() {
        let plan = ChecksumPlan { algorithm: Algorithm::Crc64Nvme, full_object: true };
        let upload = NewUpload {
            bucket: "b".into(),
            key: "k".into(),
            headers: crate::model::ObjectHeaders::default(),
            checksum: Some(plan.record()),
        };

        assert_eq!(ChecksumPlan::of(&upload), Some(plan));
    }

    #[test]
    fn right_checksums_pass_and_are_told_in_headers_and_trailers() {
        for (index, (name, value)) in CHECK.into_iter().enumerate() {
            let algorithm = Algorithm::ALL[index];

            let by_header = check(&[(name, value)], &[], DIGITS).unwrap();
            let by_trailer = check(&[("x-amz-trailer", name)], &[(name, value)], DIGITS).unwrap();

            for digests in [by_header, by_trailer] {
                assert_eq!(digests.get(algorithm.name()), Some(value));
                let first = &digests.checksums[0];
                assert_eq!((first.algorithm.as_str(), first.composite), (algorithm.name(), false));
            }
        }
    }

    #[test]
    fn wrong_checksums_are_refused_in_headers_and_trailers() {
        for (name, value) in CHECK {
            assert_eq!(code(check(&[(name, value)], &[], b"other")), "BadDigest");
            assert_eq!(code(check(&[("x-amz-trailer", name)], &[(name, value)], b"other")), "BadDigest");
        }
    }

    #[test]
    fn an_announced_trailer_has_to_come() {
        assert_eq!(code(check(&[("x-amz-trailer", CHECK[0].0)], &[], DIGITS)), "MalformedTrailerError");
    }

    #[test]
    fn a_checksum_in_a_trailer_has_to_be_announced() {
        assert_eq!(code(check(&[], &[CHECK[0]], DIGITS)), "MalformedTrailerError");
        assert!(check(&[], &[("x-amz-trailer-signature", "0")], DIGITS).is_ok());
    }

    #[test]
    fn values_that_cannot_be_checksums_are_refused() {
        for value in ["", "not base64!", "AAA=", "rosUhgp5mIg="] {
            assert_eq!(code(check(&[("x-amz-checksum-crc32", value)], &[], DIGITS)), "InvalidRequest", "{value}");
            assert_eq!(code(check(&[("content-md5", value)], &[], DIGITS)), "InvalidDigest", "{value}");
        }
        assert_eq!(code(check(&[("x-amz-checksum-xxhash3", "AAAA")], &[], DIGITS)), "InvalidRequest");
        assert_eq!(code(check(&[("x-amz-checksum-md4", "AAAA")], &[], DIGITS)), "InvalidRequest");
    }

    #[test]
    fn content_md5_is_compared() {
        assert!(check(&[("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")], &[], DIGITS).is_ok());
        assert_eq!(code(check(&[("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")], &[], b"x")), "BadDigest");
    }

    #[test]
    fn the_payload_hash_is_compared_where_it_is_asked_for() {
        let sent = headers(&[("x-amz-content-sha256", &hex::encode(Algorithm::Sha256.of(DIGITS)))]);
        for (body, right) in [(DIGITS, true), (b"x", false)] {
            let mut claims = Claims::default();
            claims.check_payload_hash(&sent);
            let mut hasher = claims.hasher(EtagNeeds::Nothing);
            hasher.update(body);
            assert_eq!(hasher.finish(None).is_ok(), right);
        }
    }

    #[test]
    fn headers_about_checksums_are_none() {
        let sent = [("x-amz-checksum-type", "FULL_OBJECT"), ("x-amz-checksum-algorithm", "CRC32")];

        assert!(Claims::of(&headers(&sent)).unwrap().is_empty());
    }

    #[test]
    fn a_full_object_checksum_is_that_of_the_whole() {
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let parts = [&DIGITS[..2], &DIGITS[2..2], &DIGITS[2..7], &DIGITS[7..]];
            let values: Vec<String> = parts.iter().map(|part| BASE64.encode(algorithm.of(part))).collect();

            let pairs = values.iter().zip(&parts).map(|(value, part)| (Some(value.as_str()), part.len() as u64));
            let whole = full_object(algorithm, pairs).unwrap();

            assert_eq!(whole, BASE64.encode(algorithm.of(DIGITS)), "{algorithm:?}");
        }
        assert!(full_object(Algorithm::Sha1, std::iter::empty()).is_err());
    }

    #[test]
    fn a_composite_checksum_is_that_of_the_parts_checksums() {
        let value = BASE64.encode(Algorithm::Sha1.of(DIGITS));
        let doubled = Algorithm::Sha1.of(DIGITS).repeat(2);

        let composite = composite(Algorithm::Sha1, [Some(value.as_str()); 2].into_iter()).unwrap();

        assert_eq!(composite, format!("{}-2", BASE64.encode(Algorithm::Sha1.of(&doubled))));
    }
}
