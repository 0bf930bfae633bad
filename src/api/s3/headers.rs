//! Headers of a write: what an object keeps, and what this server does not do.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, EXPIRES};
use s3s::S3Result;
use s3s::dto::Metadata;
use s3s::{S3Error, S3ErrorCode};

use super::errors::{not_implemented, refuse};
use crate::catalog::record::ObjectHeaders;

/// The encoding of a body in transit, which is not stored.
const AWS_CHUNKED: &str = "aws-chunked";

/// Headers that ask for something that would not happen, and what that is.
const NOT_DONE: [(&str, &str); 7] = [
    ("x-amz-server-side-encryption", "server-side encryption"),
    ("x-amz-copy-source-server-side-encryption", "server-side encryption"),
    ("x-amz-object-lock", "object lock"),
    ("x-amz-tagging", "tagging of objects"),
    ("x-amz-website-redirect-location", "website redirection"),
    ("x-amz-grant", "granting access by header"),
    ("x-amz-write-offset-bytes", "appending to an object"),
];

/// Access control lists that say what is the case anyway.
const HARMLESS_ACLS: [&str; 3] = ["private", "bucket-owner-full-control", "bucket-owner-read"];

/// Refuses what a write asks for and would not get.
///
/// # Errors
/// `NotImplemented`, naming it; `InvalidStorageClass`.
pub(super) fn refuse_what_is_not_done(headers: &HeaderMap) -> S3Result<()> {
    for (name, value) in headers {
        let (name, value) = (name.as_str(), value.to_str().unwrap_or_default());
        if !name.starts_with("x-amz-") || value.is_empty() {
            continue;
        }
        let directive = name.ends_with("-directive");
        if let Some((_, what)) = NOT_DONE.iter().find(|(prefix, _)| name.starts_with(prefix) && !directive) {
            return Err(not_implemented(what));
        }
        match name {
            "x-amz-acl" if !HARMLESS_ACLS.contains(&value) => {
                return Err(not_implemented(&format!("the access control list {value:?}")));
            }
            "x-amz-storage-class" if value != "STANDARD" => {
                let message = format!("the storage class {value:?} is not there, only STANDARD is");
                return Err(refuse(S3ErrorCode::InvalidStorageClass, message));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The headers of an input of s3s that its object keeps.
macro_rules! object_headers {
    ($request:expr) => {
        $crate::api::s3::headers::kept(
            &$request.headers,
            $crate::catalog::record::ObjectHeaders {
                content_type: $request.input.content_type.take(),
                cache_control: $request.input.cache_control.take(),
                content_disposition: $request.input.content_disposition.take(),
                content_language: $request.input.content_language.take(),
                ..Default::default()
            },
            $request.input.metadata.take(),
        )
    };
}
pub(super) use object_headers;

/// Adds what the typed input does not tell as the client wrote it.
pub(super) fn kept(headers: &HeaderMap, kept: ObjectHeaders, metadata: Option<Metadata>) -> ObjectHeaders {
    let text = |name| headers.get(name).and_then(|value| Some(value.to_str().ok()?.to_owned()));
    let mut metadata: Vec<(String, String)> = metadata.into_iter().flatten().collect();
    metadata.sort_unstable();
    let content_encoding = text(CONTENT_ENCODING).and_then(|value| stored_encoding(&value));
    ObjectHeaders { content_encoding, expires: text(EXPIRES), metadata, ..kept }
}

/// The encoding without what is only for the transit.
fn stored_encoding(value: &str) -> Option<String> {
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty() && *part != AWS_CHUNKED);
    let stored = parts.collect::<Vec<_>>().join(",");
    (!stored.is_empty()).then_some(stored)
}

/// Refuses too much user metadata.
///
/// # Errors
/// `MetadataTooLarge`.
pub(super) fn check_metadata(headers: &ObjectHeaders, bytes_max: u64) -> S3Result<()> {
    let bytes: u64 = headers.metadata.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum();
    if bytes > bytes_max {
        let message = format!("user metadata has {bytes} bytes, at most {bytes_max} are allowed");
        return Err(refuse(S3ErrorCode::MetadataTooLarge, message));
    }
    Ok(())
}

/// Refuses a version that is not the only one there is.
///
/// # Errors
/// `NoSuchVersion`.
pub(super) fn check_version(version: Option<&str>) -> S3Result<()> {
    match version {
        None | Some("null" | "") => Ok(()),
        Some(other) => Err(no_such_version(other)),
    }
}

fn no_such_version(version: &str) -> S3Error {
    let message = format!("there is no version {version:?}: the only version of an object is called null");
    refuse(S3ErrorCode::NoSuchVersion, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_would_not_happen_is_refused() {
        for (name, value, code) in [
            ("x-amz-server-side-encryption", "aws:kms", "NotImplemented"),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256", "NotImplemented"),
            ("x-amz-object-lock-mode", "GOVERNANCE", "NotImplemented"),
            ("x-amz-tagging", "a=b", "NotImplemented"),
            ("x-amz-acl", "public-read", "NotImplemented"),
            ("x-amz-grant-read", "id=x", "NotImplemented"),
            ("x-amz-storage-class", "GLACIER", "InvalidStorageClass"),
        ] {
            let error = refuse_what_is_not_done(&headers(&[(name, value)])).unwrap_err();
            assert_eq!(error.code().as_str(), code, "{name}");
        }
    }

    #[test]
    fn what_is_the_case_anyway_is_accepted() {
        let sent = headers(&[
            ("x-amz-acl", "private"),
            ("x-amz-storage-class", "STANDARD"),
            ("x-amz-tagging-directive", "COPY"),
            ("x-amz-tagging", ""),
            ("x-amz-api-version", "2006-03-01"),
        ]);

        assert!(refuse_what_is_not_done(&sent).is_ok());
    }

    #[test]
    fn the_encoding_of_the_transit_is_not_kept() {
        assert_eq!(stored_encoding("aws-chunked"), None);
        assert_eq!(stored_encoding("gzip,aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(stored_encoding("gzip, br").as_deref(), Some("gzip,br"));
        assert_eq!(stored_encoding(""), None);
    }

    #[test]
    fn user_metadata_is_limited_and_sorted() {
        let metadata = Metadata::from_iter([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);

        let kept = kept(&HeaderMap::new(), ObjectHeaders::default(), Some(metadata));

        assert_eq!(kept.metadata[0].0, "a");
        assert!(check_metadata(&kept, 4).is_ok());
        assert!(check_metadata(&kept, 3).is_err());
    }

    #[test]
    fn the_only_version_is_null() {
        assert!(check_version(None).is_ok());
        assert!(check_version(Some("null")).is_ok());
        assert!(check_version(Some("3HL4k")).is_err());
    }
}
