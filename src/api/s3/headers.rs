//! Headers of a write: what an object keeps.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, EXPIRES};
use s3s::S3Result;
use s3s::dto::Metadata;
use s3s::{S3Error, S3ErrorCode};

use super::errors::refuse;
use crate::model::ObjectHeaders;

/// The encoding of a body in transit, which is not stored.
const AWS_CHUNKED: &str = "aws-chunked";

/// The class that is not told.
pub(super) const STANDARD: &str = "STANDARD";
/// Others that are kept and told, and move no bytes. Those are not among them whose objects S3 gives back only after
/// `RestoreObject`: clients would wait for that.
const STORAGE_CLASSES: [&str; 5] =
    ["REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"];

/// The storage class that a write asks for, if it is not the one that is not told.
pub(super) fn storage_class(headers: &HeaderMap) -> Option<String> {
    let class = headers.get("x-amz-storage-class")?.to_str().ok()?;
    (!class.is_empty() && class != STANDARD).then(|| class.to_owned())
}

/// Refuses a storage class that cannot be kept.
///
/// # Errors
/// `InvalidStorageClass`.
pub(super) fn check_storage_class(headers: &HeaderMap) -> S3Result<()> {
    match storage_class(headers) {
        Some(class) if !STORAGE_CLASSES.contains(&class.as_str()) => {
            let message =
                format!("the storage class {class:?} is not one of {STANDARD}, {}", STORAGE_CLASSES.join(", "));
            Err(refuse(S3ErrorCode::InvalidStorageClass, message))
        }
        _ => Ok(()),
    }
}

/// The headers of an input of s3s that its object keeps.
macro_rules! object_headers {
    ($request:expr) => {
        $crate::api::s3::headers::kept(
            &$request.headers,
            $request.extensions.get::<$crate::api::s3::headers::SentExpires>(),
            $crate::model::ObjectHeaders {
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

/// An `Expires` that is no date, as the client wrote it.
#[derive(Debug, Clone)]
pub(super) struct SentExpires(pub String);

/// Adds what the typed input does not tell as the client wrote it.
pub(super) fn kept(
    headers: &HeaderMap,
    odd_expires: Option<&SentExpires>,
    kept: ObjectHeaders,
    metadata: Option<Metadata>,
) -> ObjectHeaders {
    let text = |name| headers.get(name).and_then(|value| Some(value.to_str().ok()?.to_owned()));
    let mut metadata: Vec<(String, String)> = metadata.into_iter().flatten().collect();
    metadata.sort_unstable();
    let content_encoding = text(CONTENT_ENCODING).and_then(|value| stored_encoding(&value));
    let expires = odd_expires.map(|odd| odd.0.clone()).or_else(|| text(EXPIRES));
    ObjectHeaders { content_encoding, expires, metadata, storage_class: storage_class(headers), ..kept }
}

/// The encoding without what is only for the transit.
fn stored_encoding(value: &str) -> Option<String> {
    let stored = value.split(',').filter(|part| part.trim() != AWS_CHUNKED).collect::<Vec<_>>().join(",");
    let stored = stored.trim();
    (!stored.is_empty()).then(|| stored.to_owned())
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
    fn storage_classes_are_those_whose_objects_can_be_read() {
        let class = |class: &str| {
            let sent = headers(&[("x-amz-storage-class", class)]);
            check_storage_class(&sent).map(|()| storage_class(&sent)).map_err(|error| error.code().as_str().to_owned())
        };

        assert_eq!([class("STANDARD"), class("")], [Ok(None), Ok(None)]);
        assert_eq!(class("GLACIER_IR"), Ok(Some("GLACIER_IR".to_owned())));
        for bad in ["GLACIER", "STD1", "standard"] {
            assert_eq!(class(bad), Err("InvalidStorageClass".to_owned()));
        }
    }

    #[test]
    fn the_encoding_of_the_transit_is_not_kept() {
        assert_eq!(stored_encoding("aws-chunked"), None);
        assert_eq!(stored_encoding("gzip,aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(stored_encoding("deflate, gzip").as_deref(), Some("deflate, gzip"), "as the client wrote it");
        assert_eq!(stored_encoding("deflate, aws-chunked, gzip").as_deref(), Some("deflate, gzip"));
        assert_eq!(stored_encoding("aws-chunked, gzip").as_deref(), Some("gzip"));
        assert_eq!(stored_encoding(""), None);
    }

    #[test]
    fn user_metadata_is_limited_and_sorted() {
        let metadata = Metadata::from_iter([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);

        let kept = kept(&HeaderMap::new(), None, ObjectHeaders::default(), Some(metadata));

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
