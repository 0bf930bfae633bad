//! Makes parts of a request's head plain before s3s sees them. Nothing that is signed changes.
//!
//! | a client sends | s3s gets |
//! | --- | --- |
//! | `x-amz-meta-*` several times | once, the values joined by commas, as signatures join them, too |
//! | `x-amz-*` in the query of a presigned address, where SDKs move headers to | the header, too |
//! | `Date`, and no `x-amz-date` | both |
//! | chunks with a trailer that is not announced | `x-amz-trailer`, empty |
//!
//! # Source
//! RFC 9110, section 5.3; <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use s3s::{S3ErrorCode, S3Result};

use super::errors::refuse;
use super::signature;

/// Begins the names of user metadata.
const METADATA: &str = "x-amz-meta-";
/// Parameters that are no headers: those of the signature, and checksums. SDKs put the checksum of an empty body there,
/// because they have no other when they sign, and S3 does not look at it.
const NO_HEADERS: [&str; 9] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-content-sha256",
    "x-amz-sdk-checksum-algorithm",
];
const CHECKSUM: &str = "x-amz-checksum-";
/// Is none: it asks for one.
const CHECKSUM_MODE: &str = "x-amz-checksum-mode";

/// Makes the head of a request plain. The signature's form was checked before ([`signature::check`]).
///
/// # Errors
/// `InvalidArgument` for a parameter that stands for a header and is none.
pub(super) fn make_plain(uri: &Uri, headers: &mut HeaderMap) -> S3Result<()> {
    if headers.len() > headers.keys_len() {
        join_metadata(headers);
    }
    let has_headers = |query: &str| query.as_bytes().windows(6).any(|begin| begin.eq_ignore_ascii_case(b"x-amz-"));
    if uri.query().is_some_and(has_headers) {
        add_headers_of_query(uri, headers)?;
    }
    let kind = headers.get("x-amz-content-sha256").map(HeaderValue::as_bytes);
    if kind.is_some_and(|kind| kind.ends_with(b"-TRAILER")) && !headers.contains_key("x-amz-trailer") {
        headers.insert("x-amz-trailer", HeaderValue::from_static(""));
    }
    if !headers.contains_key("x-amz-date")
        && headers.contains_key(http::header::AUTHORIZATION)
        && let Some(date) = signature::date(headers).and_then(|date| HeaderValue::try_from(date).ok())
    {
        headers.insert("x-amz-date", date);
    }
    Ok(())
}

fn join_metadata(headers: &mut HeaderMap) {
    let several = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(METADATA)).filter(several).cloned().collect();
    for name in names {
        let values: Vec<&[u8]> = headers.get_all(&name).iter().map(|value| value.as_bytes().trim_ascii()).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b","[..])) {
            headers.insert(name, joined);
        }
    }
}

fn add_headers_of_query(uri: &Uri, headers: &mut HeaderMap) -> S3Result<()> {
    for (name, value) in signature::query(uri) {
        let name = name.to_ascii_lowercase();
        let is_checksum = name.starts_with(CHECKSUM) && name != CHECKSUM_MODE;
        if !name.starts_with("x-amz-") || is_checksum || NO_HEADERS.contains(&name.as_str()) {
            continue;
        }
        let value = HeaderValue::from_bytes(value.as_bytes());
        let (Ok(header), Ok(value)) = (HeaderName::try_from(&name), value) else {
            let message = format!("the parameter {name} stands for a header, and its value is none");
            return Err(refuse(S3ErrorCode::InvalidArgument, message));
        };
        headers.entry(header).or_insert(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(uri: &str, sent: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, value.parse().unwrap());
        }
        make_plain(&uri.parse().unwrap(), &mut headers).unwrap();
        headers
    }

    #[test]
    fn metadata_is_joined_and_other_headers_are_not() {
        let twice = [("x-amz-meta-k", "v1 "), ("x-amz-meta-k", "v2"), ("x-amz-meta-l", "v"), ("te", "a"), ("te", "b")];

        let headers = plain("/b/k", &twice);

        assert_eq!(
            (&headers["x-amz-meta-k"], &headers["x-amz-meta-l"]),
            (&"v1,v2".parse().unwrap(), &"v".parse().unwrap())
        );
        assert_eq!(headers.get_all("te").iter().count(), 2);
    }

    #[test]
    fn headers_in_the_query_are_headers_but_those_of_signatures_and_checksums() {
        let query =
            "/b/k?x-amz-meta-a=x%20y&X-Amz-Date=1&x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-acl=private&x-id=PutObject";

        let headers = plain(query, &[("x-amz-acl", "public-read")]);

        let names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-amz-acl", "x-amz-meta-a"]);
        assert!(plain("/b/k?x-amz-checksum-mode=ENABLED&X-Amz-Date=1", &[]).contains_key(CHECKSUM_MODE));
        assert_eq!(
            (&headers["x-amz-meta-a"], &headers["x-amz-acl"]),
            (&"x y".parse().unwrap(), &"public-read".parse().unwrap())
        );
    }

    #[test]
    fn a_date_stands_in_for_that_of_the_signature() {
        let signed = ("authorization", "AWS4-HMAC-SHA256");
        for date in ["Sun, 29 Nov 2026 12:18:14 GMT", "20261129T121814Z"] {
            assert_eq!(plain("/", &[signed, ("date", date)])["x-amz-date"], "20261129T121814Z");
        }
        assert!(!plain("/", &[("date", "20261129T121814Z")]).contains_key("x-amz-date"));
        assert_eq!(plain("/", &[signed, ("date", "20261129T121814Z"), ("x-amz-date", "1")])["x-amz-date"], "1");
    }

    #[test]
    fn a_trailer_may_come_unannounced() {
        let kind = ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");

        assert_eq!(plain("/", &[kind])["x-amz-trailer"], "");
        assert_eq!(plain("/", &[kind, ("x-amz-trailer", "a")])["x-amz-trailer"], "a");
        assert!(!plain("/", &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")]).contains_key("x-amz-trailer"));
    }

    #[test]
    fn a_parameter_that_stands_for_a_header_has_to_be_one() {
        let uri = "/b/k?x-amz-meta-z=a%0d%0ab".parse().unwrap();

        assert!(make_plain(&uri, &mut HeaderMap::new()).is_err());
        assert_eq!(plain("/b/k?X-AMZ-STORAGE-CLASS=STANDARD", &[])["x-amz-storage-class"], "STANDARD");
    }
}
