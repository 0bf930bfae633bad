//! Checks that a signature says and covers everything it must, before s3s computes whether it is right.
//!
//! s3s checks the mathematics and the times. It would also take signatures of version 2, any name of an algorithm, and
//! headers that nobody signed: whoever holds a presigned PUT could have it copy another object by adding a header. So, as on
//! S3:
//!
//! | | in the `Authorization` header | in the query of a presigned address |
//! | --- | --- | --- |
//! | algorithm | `AWS4-HMAC-SHA256` | the same |
//! | scope | the date of `x-amz-date` (or `Date`), any region, `s3` | the date of `X-Amz-Date`, any region, `s3` |
//! | signed headers | `host` and every `x-amz-*` that is sent, none that is not | the same |
//! | life | s3s: a quarter of an hour | `X-Amz-Expires`, 1 second to 7 days |
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html> and `sigv4-query-string-auth.html`

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result};

use super::errors::{custom, refuse};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The longest life of a presigned URL, as in S3.
const PRESIGNED_SECONDS_MAX: u64 = 604_800;
/// Parameters of a presigned address that must be there once.
const PRESIGNED: [&str; 6] =
    ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"];
/// Values of `x-amz-content-sha256` that are no hash.
const UNHASHED: [&str; 6] = [
    "UNSIGNED-PAYLOAD",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
    "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER",
];

/// Checks what a request says of its signature. One that has none passes: whether that is allowed is not asked here.
///
/// # Errors
/// The refusal that S3 would send.
pub(super) fn check(uri: &Uri, headers: &HeaderMap) -> S3Result<()> {
    let query = query(uri);
    let has = |name: &str| query.iter().any(|(known, _)| known == name);
    if has("Signature") || has("AWSAccessKeyId") {
        return Err(old_version());
    }
    let authorization = only(headers, AUTHORIZATION.as_str(), S3ErrorCode::InvalidArgument)?;
    let presigned = PRESIGNED.iter().any(|name| has(name));
    payload_hash(headers)?;
    match (authorization, presigned) {
        (None, false) => Ok(()),
        (Some(_), true) => {
            Err(refuse(S3ErrorCode::InvalidArgument, "a request is signed in its header or its query, not both"))
        }
        (Some(value), false) => in_header(value)?.check(uri, headers),
        (None, true) => in_query(&query)?.check(uri, headers),
    }
}

/// The access key that a request names as its signer, true or not.
pub(super) fn claimed_key(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let in_header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once("Credential="));
    let credential = match in_header {
        Some((_, rest)) => rest.to_owned(),
        None => query(uri).into_iter().find(|(name, _)| name == "X-Amz-Credential")?.1,
    };
    credential.split('/').next().filter(|key| !key.is_empty() && key.len() <= 128).map(str::to_owned)
}

/// The signature of a request, wherever it stands.
struct Signed<'a> {
    algorithm: &'a str,
    credential: &'a str,
    /// `None` if it is in the header `x-amz-date` or `Date`.
    date: Option<&'a str>,
    headers: Vec<&'a str>,
    /// The error code for a malformed value.
    malformed: S3ErrorCode,
}

/// `AWS4-HMAC-SHA256 Credential=.., SignedHeaders=.., Signature=..`, in this order, as s3s wants it.
fn in_header(value: &str) -> S3Result<Signed<'_>> {
    let malformed = custom("AuthorizationHeaderMalformed");
    let (algorithm, rest) = value.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((value, ""));
    check_algorithm(algorithm)?;
    let mut parts = rest.splitn(3, ',').map(str::trim_ascii);
    let mut part = |name: &str| {
        let value = parts.next().and_then(|part| part.strip_prefix(name)?.strip_prefix('='));
        value.ok_or_else(|| {
            refuse(malformed.clone(), format!("the Authorization header has no {name} where it belongs"))
        })
    };
    let (credential, headers) = (part("Credential")?, part("SignedHeaders")?);
    part("Signature")?;
    Ok(Signed { algorithm, credential, date: None, headers: headers.split(';').collect(), malformed })
}

fn in_query(query: &[(String, String)]) -> S3Result<Signed<'_>> {
    let malformed = S3ErrorCode::AuthorizationQueryParametersError;
    let once = |name: &str| {
        let mut values = query.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (Some(value), None) => Ok(value),
            _ => Err(refuse(malformed.clone(), format!("a presigned address has {name} once"))),
        }
    };
    for name in PRESIGNED {
        once(name)?;
    }
    let seconds = once("X-Amz-Expires")?;
    // A number may be written with a sign, seconds may not.
    let digits = seconds.bytes().all(|digit| digit.is_ascii_digit());
    if !digits || !matches!(seconds.parse::<u64>(), Ok(1..=PRESIGNED_SECONDS_MAX)) {
        return Err(refuse(malformed.clone(), format!("X-Amz-Expires must be 1 to {PRESIGNED_SECONDS_MAX} seconds")));
    }
    Ok(Signed {
        algorithm: once("X-Amz-Algorithm")?,
        credential: once("X-Amz-Credential")?,
        date: Some(once("X-Amz-Date")?),
        headers: once("X-Amz-SignedHeaders")?.split(';').collect(),
        malformed: malformed.clone(),
    })
}

impl Signed<'_> {
    fn check(&self, uri: &Uri, headers: &HeaderMap) -> S3Result<()> {
        check_algorithm(self.algorithm)?;
        let other;
        let date = match self.date {
            Some(date) => date,
            None => match only(headers, "x-amz-date", S3ErrorCode::AccessDenied)? {
                Some(date) => date,
                None => {
                    let none =
                        || refuse(S3ErrorCode::AccessDenied, "a signed request has the header x-amz-date or Date");
                    other = only(headers, "date", S3ErrorCode::AccessDenied)?.and_then(|_| date(headers));
                    other.as_deref().ok_or_else(none)?
                }
            },
        };
        self.check_scope(date)?;
        self.check_headers(uri, headers)
    }

    fn malformed(&self, message: String) -> S3Error {
        refuse(self.malformed.clone(), message)
    }

    fn check_scope(&self, date: &str) -> S3Result<()> {
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        let whole = date
            .split_once('T')
            .is_some_and(|(day, time)| digits(day, 8) && time.strip_suffix('Z').is_some_and(|time| digits(time, 6)));
        if !whole {
            return Err(self.malformed(format!("x-amz-date must be YYYYMMDDTHHMMSSZ, is {date:?}")));
        }
        let scope: Vec<&str> = self.credential.split('/').collect();
        let [_, day, _, service, "aws4_request"] = scope[..] else {
            return Err(self.malformed("a credential is KEY/DATE/REGION/s3/aws4_request".to_owned()));
        };
        if !date.starts_with(day) || day.len() != 8 {
            return Err(self.malformed(format!("the credential is of {day:?}, the request of {date}")));
        }
        if service != "s3" {
            return Err(self.malformed(format!("the credential is for the service {service:?}, this one is \"s3\"")));
        }
        Ok(())
    }

    fn check_headers(&self, uri: &Uri, headers: &HeaderMap) -> S3Result<()> {
        let signed = |name: &str| self.headers.contains(&name);
        let sent = headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-amz-"));
        let unsigned: Vec<&str> = sent.chain(["host"]).filter(|name| !signed(name)).collect();
        if !unsigned.is_empty() {
            let message = format!("there were headers in the request that were not signed: {}", unsigned.join(", "));
            return Err(refuse(S3ErrorCode::AccessDenied, message));
        }
        if headers.get_all(HOST).iter().count() > 1 {
            return Err(refuse(S3ErrorCode::InvalidRequest, "there is more than one Host header"));
        }
        for name in &self.headers {
            // In HTTP/2 the host stands in the address.
            let there = headers.contains_key(*name) || *name == "host" && uri.authority().is_some();
            if !there {
                return Err(refuse(S3ErrorCode::AccessDenied, format!("the signed header {name:?} was not sent")));
            }
            // What s3s cannot read it leaves out of what is signed.
            if headers.get_all(*name).iter().any(|value| std::str::from_utf8(value.as_bytes()).is_err()) {
                return Err(refuse(S3ErrorCode::InvalidRequest, format!("the header {name:?} is not text")));
            }
        }
        Ok(())
    }
}

fn check_algorithm(algorithm: &str) -> S3Result<()> {
    match algorithm {
        ALGORITHM => Ok(()),
        old if old.starts_with("AWS") => Err(old_version()),
        _ => Err(refuse(S3ErrorCode::InvalidArgument, format!("the authorization must be {ALGORITHM}"))),
    }
}

fn old_version() -> S3Error {
    refuse(S3ErrorCode::InvalidRequest, format!("the authorization mechanism is not supported, use {ALGORITHM}"))
}

/// The value of a header that may be there once.
fn only<'a>(headers: &'a HeaderMap, name: &str, code: S3ErrorCode) -> S3Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(value), None) => Ok(Some(value)),
        _ => Err(refuse(code, format!("the header {name} must be there once, as text"))),
    }
}

/// The SHA-256 that a request claims of its payload, if it does.
///
/// # Errors
/// `InvalidArgument` for a value that is no hash and no name of another way.
pub(super) fn payload_hash(headers: &HeaderMap) -> S3Result<Option<&str>> {
    let name = "x-amz-content-sha256";
    match only(headers, name, S3ErrorCode::InvalidArgument)? {
        Some(hash) if hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            Ok(Some(hash))
        }
        Some(value) if !UNHASHED.contains(&value) => Err(refuse(
            S3ErrorCode::InvalidArgument,
            format!("{name} must be UNSIGNED-PAYLOAD, STREAMING-.. or a SHA-256"),
        )),
        _ => Ok(None),
    }
}

/// The query as s3s reads it.
pub(super) fn query(uri: &Uri) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// The header `Date` in the form of `x-amz-date`: it may have that already, or that of HTTP.
pub(super) fn date(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(http::header::DATE)?.to_str().ok()?;
    let Ok(time) = Timestamp::parse(TimestampFormat::HttpDate, text) else { return Some(text.to_owned()) };
    let mut text = vec![];
    time.format(TimestampFormat::DateTime, &mut text).ok()?;
    let digits: String = String::from_utf8(text).ok()?.split('.').next()?.replace(['-', ':', 'Z'], "");
    Some(digits + "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Headers that are sent, too.
    type More<'a> = &'a [(&'static str, &'a str)];

    /// The text that a request is refused with.
    fn header_form(authorization: &str, more: More) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        let base = [("host", "h"), ("x-amz-date", "20260101T000000Z"), ("x-amz-content-sha256", SHA)];
        for (name, value) in base.iter().chain(more) {
            headers.append(*name, value.parse().unwrap());
        }
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        check(&"/b/k".parse().unwrap(), &headers).map_err(|error| error.code().as_str().to_owned())
    }

    fn query_form(query: &str, more: More) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "h")].iter().chain(more) {
            headers.append(*name, value.parse().unwrap());
        }
        check(&format!("/b/k?{query}").parse().unwrap(), &headers).map_err(|error| error.code().as_str().to_owned())
    }

    fn authorization(credential: &str, signed: &str) -> String {
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature=0")
    }

    const CREDENTIAL: &str = "K/20260101/anywhere/s3/aws4_request";
    const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
    const PRESIGNED_WELL: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K%2F20260101%2Fr%2Fs3%2Faws4_request\
        &X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=0";

    #[test]
    fn a_signature_in_the_header_says_and_covers_what_it_must() {
        let well = authorization(CREDENTIAL, SIGNED);
        assert_eq!(header_form(&well, &[]), Ok(()));
        assert_eq!(header_form(&well, &[("x-amzn-trace-id", "Root=1"), ("amz-sdk-invocation-id", "1")]), Ok(()));
        assert_eq!(header_form(&well.replace(", ", ","), &[]), Ok(()), "as some clients write it");
        let meta = authorization(CREDENTIAL, "host;x-amz-content-sha256;x-amz-date;x-amz-meta-a");
        assert_eq!(header_form(&meta, &[("x-amz-meta-a", "1"), ("x-amz-meta-a", "2")]), Ok(()));

        let refused: [(&str, More, &str); 17] = [
            (&well, &[("x-amz-copy-source", "/b/secret")], "AccessDenied"),
            (&well, &[("x-amz-meta-a", "1")], "AccessDenied"),
            (&authorization(CREDENTIAL, "x-amz-content-sha256;x-amz-date"), &[], "AccessDenied"),
            (&authorization(CREDENTIAL, "Host;x-amz-content-sha256;x-amz-date"), &[], "AccessDenied"),
            (&meta, &[], "AccessDenied"),
            (&well, &[("host", "other")], "InvalidRequest"),
            (&well, &[("x-amz-date", "20260102T000000Z")], "AccessDenied"),
            (&well, &[("x-amz-content-sha256", SHA)], "InvalidArgument"),
            (&authorization("K/20150101/r/s3/aws4_request", SIGNED), &[], "AuthorizationHeaderMalformed"),
            (&authorization("K/20260101/r/iam/aws4_request", SIGNED), &[], "AuthorizationHeaderMalformed"),
            (&authorization("K/20260101/r/s3/aws2_request", SIGNED), &[], "AuthorizationHeaderMalformed"),
            (&authorization("K/2026/r/s3/aws4_request", SIGNED), &[], "AuthorizationHeaderMalformed"),
            (&well.replace("AWS4-HMAC-SHA256", "AWS2-HMAC-SHA1"), &[], "InvalidRequest"),
            (&well.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), &[], "InvalidRequest"),
            ("AWS K:c2lnbmF0dXJl", &[], "InvalidRequest"),
            ("Bearer e30.e30.e30", &[], "InvalidArgument"),
            ("AWS4-HMAC-SHA256 SignedHeaders=host, Credential=K, Signature=0", &[], "AuthorizationHeaderMalformed"),
        ];
        for (authorization, more, code) in refused {
            assert_eq!(header_form(authorization, more), Err(code.to_owned()), "{authorization} {more:?}");
        }
    }

    #[test]
    fn a_presigned_address_says_and_covers_what_it_must() {
        assert_eq!(query_form(PRESIGNED_WELL, &[("range", "bytes=0-1"), ("x-amzn-trace-id", "Root=1")]), Ok(()));
        assert_eq!(query_form("list-type=2", &[]), Ok(()), "nobody says that it is signed");
        let with = |from: &str, to: &str| PRESIGNED_WELL.replace(from, to);
        assert_eq!(query_form(&with("Headers=host", "Headers=host%3Bx-amz-meta-a"), &[("x-amz-meta-a", "1")]), Ok(()));
        assert_eq!(query_form(&with("Expires=60", "Expires=604800"), &[]), Ok(()));

        let malformed = "AuthorizationQueryParametersError";
        let refused: [(String, More, &str); 17] = [
            (with("", ""), &[("x-amz-copy-source", "/b/secret")], "AccessDenied"),
            (with("", ""), &[("x-amz-content-sha256", SHA)], "AccessDenied"),
            (with("", ""), &[("authorization", "AWS4-HMAC-SHA256 Credential=")], "InvalidArgument"),
            (with("Headers=host", "Headers=range"), &[("range", "bytes=0-1")], "AccessDenied"),
            (with("Headers=host", "Headers=host%3Bx-amz-acl"), &[], "AccessDenied"),
            (with("AWS4-HMAC-SHA256", "AWS2-HMAC-SHA1"), &[], "InvalidRequest"),
            (with("K%2F20260101", "K%2F20150101"), &[], malformed),
            (with("%2Fs3%2F", "%2Fsts%2F"), &[], malformed),
            (with("T000000Z", ""), &[], malformed),
            (with("&X-Amz-Date=20260101T000000Z", ""), &[], malformed),
            (with("Expires=60", "Expires=604801"), &[], malformed),
            (with("Expires=60", "Expires=0"), &[], malformed),
            (with("Expires=60", "Expires=-1"), &[], malformed),
            (with("Expires=60", "Expires=%2B60"), &[], malformed),
            (with("X-Amz-Expires=60", "X-Amz-Expires=60&%58-Amz-Expires=61"), &[], malformed),
            ("AWSAccessKeyId=K&Signature=0&Expires=1".to_owned(), &[], "InvalidRequest"),
            ("AWSAccessKeyId=K&Signatur%65=0&Expires=1".to_owned(), &[], "InvalidRequest"),
        ];
        for (query, more, code) in refused {
            assert_eq!(query_form(&query, more), Err(code.to_owned()), "{query} {more:?}");
        }
    }

    #[test]
    fn a_payload_hash_is_a_hash_or_says_why_not() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-content-sha256", value.parse().unwrap());
            payload_hash(&headers).map(|hash| hash.is_some()).map_err(|error| error.code().as_str().to_owned())
        };

        assert_eq!((of(SHA), of("UNSIGNED-PAYLOAD")), (Ok(true), Ok(false)));
        for bad in ["x", &SHA[1..], &SHA.to_uppercase(), "unsigned-payload"] {
            assert_eq!(of(bad), Err("InvalidArgument".to_owned()), "{bad}");
        }
    }
}
