//! Tags of objects, as they are sent: which an object may have, and how a header says them.
//!
//! # Source
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions> for the characters.

use std::collections::HashSet;

use http::{HeaderMap, StatusCode};
use s3s::{S3ErrorCode, S3Result};

use super::errors::{custom, refuse, refuse_as};

/// Tags that an object may have, as in S3.
const TAGS_MAX: usize = 10;
/// UTF-16 units of a tag's key, and of its value.
const KEY_UNITS_MAX: usize = 128;
const VALUE_UNITS_MAX: usize = 256;
/// Of the provider's own tags.
const RESERVED: &str = "aws:";
/// How many tags an object has; told if it has any. s3s knows it for `GetObject` alone.
pub(super) const TAGGING_COUNT: &str = "x-amz-tagging-count";

/// The tags of a write.
///
/// # Errors
/// `InvalidArgument` for a header that is no list of tags, `InvalidTag`, `BadRequest` for too many.
pub(super) fn sent_tags(headers: &HeaderMap) -> S3Result<Vec<(String, String)>> {
    let Some(value) = headers.get("x-amz-tagging") else { return Ok(vec![]) };
    let not_a_list = || {
        let message = "the header x-amz-tagging must be a list of tags as in a query: k1=v1&k2=v2, percent-encoded";
        refuse(S3ErrorCode::InvalidArgument, message)
    };
    let text = value.to_str().map_err(|_| not_a_list())?;
    let tags = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decoded(key)?, decoded(value)?))
    });
    checked(tags.collect::<Option<_>>().ok_or_else(not_a_list)?)
}

/// Whether a copy gets the tags that are sent with it in place of those of its source.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn replaces_tags(headers: &HeaderMap) -> S3Result<bool> {
    match headers.get("x-amz-tagging-directive").map(|value| value.as_bytes()) {
        None | Some(b"" | b"COPY") => Ok(false),
        Some(b"REPLACE") => Ok(true),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            let message = format!("x-amz-tagging-directive must be COPY or REPLACE, is {other:?}");
            Err(refuse(S3ErrorCode::InvalidArgument, message))
        }
    }
}

/// A key or a value out of a query; `None` if it is no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_encoding::percent_decode_str(&text).decode_utf8().ok().map(Into::into)
}

/// Tags, if an object may have them.
///
/// # Errors
/// `InvalidTag`, `BadRequest` for too many.
pub(super) fn checked(tags: Vec<(String, String)>) -> S3Result<Vec<(String, String)>> {
    let invalid = |why: String| Err(refuse_as(StatusCode::BAD_REQUEST, custom("InvalidTag"), why));
    if tags.len() > TAGS_MAX {
        let why = format!("{} tags were sent, an object has at most {TAGS_MAX}", tags.len());
        return Err(refuse_as(StatusCode::BAD_REQUEST, custom("BadRequest"), why));
    }
    let mut seen = HashSet::new();
    for (key, value) in &tags {
        let units = |text: &str| text.encode_utf16().count();
        if key.is_empty() || units(key) > KEY_UNITS_MAX {
            return invalid(format!("the key {key:?} of a tag must have 1 to {KEY_UNITS_MAX} characters"));
        }
        if units(value) > VALUE_UNITS_MAX {
            return invalid(format!("the value of the tag {key:?} has more than {VALUE_UNITS_MAX} characters"));
        }
        if let Some(odd) = key.chars().chain(value.chars()).find(|c| !may_be_in_tags(*c)) {
            return invalid(format!(
                "{odd:?} of the tag {key:?} is none of letters, digits, spaces and + - = . _ : / @"
            ));
        }
        if key.get(..RESERVED.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(RESERVED)) {
            return invalid(format!("the tag {key:?} begins with {RESERVED}, which is not for clients"));
        }
        if !seen.insert(key) {
            return invalid(format!("the tag {key:?} is there twice"));
        }
    }
    Ok(tags)
}

fn may_be_in_tags(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "+-=._:/@".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(value: &str) -> Result<Vec<(String, String)>, String> {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("x-amz-tagging"), value.parse().unwrap())]);
        sent_tags(&headers).map_err(|error| error.code().as_str().to_owned())
    }

    fn tags(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tags_of_a_write_are_read_like_a_query() {
        assert_eq!(sent("team=a+b&%C3%BC=%2F%3D&none&"), Ok(tags(&[("team", "a b"), ("ü", "/="), ("none", "")])));
        assert_eq!(sent(""), Ok(vec![]));
        assert_eq!(sent_tags(&HeaderMap::new()).unwrap(), []);
        assert_eq!(sent("a=%FF"), Err("InvalidArgument".to_owned()));
    }

    #[test]
    fn tags_that_an_object_may_not_have_are_refused() {
        let invalid = Err("InvalidTag".to_owned());
        let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join("&");

        assert_eq!(sent(&many(TAGS_MAX)).unwrap().len(), TAGS_MAX);
        assert_eq!(sent(&many(TAGS_MAX + 1)), Err("BadRequest".to_owned()));
        assert!(sent(&format!("{}={}", "k".repeat(128), "v".repeat(256))).is_ok());
        for bad in [
            format!("{}=v", "k".repeat(129)),
            format!("k={}", "v".repeat(257)),
            "=v".to_owned(),
            "a=1&a=2".to_owned(),
            "AWS:a=1".to_owned(),
            "a=%3Cb%3E".to_owned(),
            "a=%0A".to_owned(),
        ] {
            assert_eq!(sent(&bad), invalid, "{bad}");
        }
    }

    #[test]
    fn a_copy_takes_the_tags_along_unless_it_is_told_otherwise() {
        let replaces = |value: &str| {
            let name = http::HeaderName::from_static("x-amz-tagging-directive");
            replaces_tags(&HeaderMap::from_iter([(name, value.parse().unwrap())])).ok()
        };

        assert_eq!([replaces("COPY"), replaces("REPLACE"), replaces("other")], [Some(false), Some(true), None]);
        assert!(!replaces_tags(&HeaderMap::new()).unwrap());
    }
}
