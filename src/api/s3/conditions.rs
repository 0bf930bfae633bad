//! Conditions that a client sets on an object, for reads, writes and copies.
//!
//! # Source
//! RFC 9110, sections 13.1 and 13.2; <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html>

use std::time::{Duration, UNIX_EPOCH};

use http::header::{ETAG, IF_RANGE, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::dto::{ETag, ETagCondition, Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result};

use super::errors::{not_implemented, refuse};
use crate::engine::Condition;
use crate::model::{Millis, ObjectHead};

/// The condition of a put.
///
/// # Errors
/// `InvalidRequest` for two at once, `NotImplemented` for `If-Match: *`.
pub(super) fn of_put(if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (Some(_), Some(_)) => {
            Err(refuse(S3ErrorCode::InvalidRequest, "If-Match and If-None-Match cannot be used together on a write"))
        }
        (Some(ETagCondition::Any), None) => Err(not_implemented("If-Match: * on a write")),
        (Some(ETagCondition::ETag(etag)), None) => Ok(Condition::Match(etag.value().to_owned())),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (None, Some(ETagCondition::ETag(etag))) => Ok(Condition::NoneMatch(etag.value().to_owned())),
    }
}

/// Entity tags where a read names several; s3s reads one.
#[derive(Debug, Clone, Default)]
pub(super) struct TagLists {
    pub if_match: Vec<String>,
    pub if_none_match: Vec<String>,
}

/// No object has this entity tag.
const TAG_OF_NOTHING: &str = "?";

/// The entity tags in a header that s3s would not read as one: a list, or what is no tag and so belongs to no object.
pub(super) fn odd_tags(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let value = headers.get(name).filter(|value| !value.is_empty())?;
    if ETagCondition::parse_http_header(value.as_bytes()).is_ok() && !value.as_bytes().contains(&b',') {
        return None;
    }
    let text = std::str::from_utf8(value.as_bytes()).unwrap_or(TAG_OF_NOTHING);
    let one = |tag: &str| match ETagCondition::parse_http_header(tag.trim().as_bytes()) {
        Ok(ETagCondition::ETag(tag)) => tag.into_value(),
        _ => TAG_OF_NOTHING.to_owned(),
    };
    Some(text.split(',').filter(|tag| !tag.trim().is_empty()).map(one).collect())
}

/// Whether a range counts: an `If-Range` names this version of the object.
pub(super) fn range_counts(headers: &HeaderMap, object: &ObjectHead) -> bool {
    let Some(value) = headers.get(IF_RANGE) else { return true };
    let text = value.to_str().unwrap_or_default().trim();
    match Timestamp::parse(TimestampFormat::HttpDate, text) {
        Ok(time) => whole_seconds(millis(&time)) == whole_seconds(object.modified),
        // A weak tag names no bytes. Some clients leave out the quotes.
        Err(_) => text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text) == object.etag,
    }
}

/// The conditions of a read, or those on the source of a copy.
#[derive(Debug, Default)]
pub(super) struct ReadConditions {
    pub if_match: Option<ETagCondition>,
    pub if_none_match: Option<ETagCondition>,
    /// Besides them.
    pub lists: TagLists,
    pub if_modified_since: Option<Timestamp>,
    pub if_unmodified_since: Option<Timestamp>,
}

/// The condition that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// The object is not the one that the client means.
    Precondition,
    /// The client has this version.
    NotModified,
}

impl ReadConditions {
    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        self.if_match.is_some()
            || self.if_none_match.is_some()
            || self.if_modified_since.is_some()
            || self.if_unmodified_since.is_some()
    }

    /// Checks the conditions of a read.
    ///
    /// # Errors
    /// `PreconditionFailed`, or `NotModified` with the headers that a 304 has.
    pub(super) fn check_read(&self, object: &ObjectHead) -> S3Result<()> {
        match self.check(&object.etag, object.modified) {
            Ok(()) => Ok(()),
            Err(Fails::NotModified) => Err(not_modified(object)),
            Err(Fails::Precondition) => Err(precondition_failed()),
        }
    }

    /// Checks the conditions on the source of a copy.
    ///
    /// # Errors
    /// `PreconditionFailed`, whichever it is.
    pub(super) fn check_source(&self, object: &ObjectHead) -> S3Result<()> {
        self.check(&object.etag, object.modified).map_err(|_| precondition_failed())
    }

    /// Entity tags weigh more than dates; dates count whole seconds, as the header that tells them does.
    fn check(&self, etag: &str, modified: Millis) -> Result<(), Fails> {
        let is_it = |wanted: &ETagCondition| wanted.as_etag().is_none_or(|wanted| wanted.value() == etag);
        let after = |time: &Timestamp| whole_seconds(modified) > whole_seconds(millis(time));
        let TagLists { if_match, if_none_match } = &self.lists;
        if !if_match.is_empty() && !if_match.iter().any(|wanted| wanted == etag) {
            return Err(Fails::Precondition);
        }
        if if_none_match.iter().any(|unwanted| unwanted == etag) {
            return Err(Fails::NotModified);
        }
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(wanted), _) if !is_it(wanted) => return Err(Fails::Precondition),
            (None, Some(time)) if after(time) => return Err(Fails::Precondition),
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(unwanted), _) if is_it(unwanted) => Err(Fails::NotModified),
            (None, Some(time)) if !after(time) => Err(Fails::NotModified),
            _ => Ok(()),
        }
    }
}

fn precondition_failed() -> S3Error {
    refuse(S3ErrorCode::PreconditionFailed, "at least one of the conditions you set does not hold")
}

fn not_modified(object: &ObjectHead) -> S3Error {
    let mut error = refuse(S3ErrorCode::NotModified, "the object is the one you have");
    let mut headers = HeaderMap::new();
    if let Ok(value) = etag(&object.etag).to_http_header() {
        headers.insert(ETAG, value);
    }
    if let Some(value) = http_date(object.modified) {
        headers.insert(LAST_MODIFIED, value);
    }
    error.set_headers(headers);
    error
}

/// A stored entity tag as s3s has it.
pub(super) fn etag(text: &str) -> ETag {
    ETag::Strong(text.to_owned())
}

/// A stored time as s3s has it.
pub(super) fn timestamp(at: Millis) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_millis(at.0))
}

fn http_date(at: Millis) -> Option<HeaderValue> {
    let mut text = vec![];
    timestamp(at).format(TimestampFormat::HttpDate, &mut text).ok()?;
    HeaderValue::from_bytes(&text).ok()
}

/// A time of a client as the catalog has it; times before 1970 count as 1970.
fn millis(time: &Timestamp) -> Millis {
    let mut text = vec![];
    let seconds = time
        .format(TimestampFormat::EpochSeconds, &mut text)
        .ok()
        .and_then(|()| std::str::from_utf8(&text).ok()?.split('.').next()?.parse::<u64>().ok());
    Millis(seconds.unwrap_or(0).saturating_mul(1000))
}

fn whole_seconds(at: Millis) -> u64 {
    at.0 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Millis = Millis(1_000_500);

    fn tag(text: &str) -> Option<ETagCondition> {
        Some(text.parse().unwrap())
    }

    fn time(seconds: u64) -> Option<Timestamp> {
        Some(timestamp(Millis(seconds * 1000)))
    }

    fn check(conditions: ReadConditions) -> Result<(), Fails> {
        conditions.check("e", AT)
    }

    #[test]
    fn entity_tags_are_compared_and_a_star_is_any() {
        let with = |if_match, if_none_match| ReadConditions { if_match, if_none_match, ..Default::default() };

        assert_eq!(check(with(tag("\"e\""), None)), Ok(()));
        assert_eq!(check(with(tag("*"), None)), Ok(()));
        assert_eq!(check(with(tag("\"x\""), None)), Err(Fails::Precondition));
        assert_eq!(check(with(None, tag("\"x\""))), Ok(()));
        assert_eq!(check(with(None, tag("\"e\""))), Err(Fails::NotModified));
        assert_eq!(check(with(None, tag("*"))), Err(Fails::NotModified));
    }

    #[test]
    fn of_several_entity_tags_one_has_to_be_it() {
        let of = |if_match: &[&str], if_none_match: &[&str]| {
            let list = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
            let lists = TagLists { if_match: list(if_match), if_none_match: list(if_none_match) };
            check(ReadConditions { lists, ..Default::default() })
        };

        assert_eq!([of(&["x", "e"], &[]), of(&[], &["x", "y"])], [Ok(()), Ok(())]);
        assert_eq!(of(&["x", "y"], &[]), Err(Fails::Precondition));
        assert_eq!(of(&[], &["x", "e"]), Err(Fails::NotModified));
    }

    #[test]
    fn what_is_no_entity_tag_belongs_to_no_object() {
        let odd = |value: &str| {
            let headers = HeaderMap::from_iter([(http::header::IF_MATCH, value.parse().unwrap())]);
            odd_tags(&headers, &http::header::IF_MATCH)
        };
        let tags = |tags: &[&str]| Some(tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>());

        assert_eq!([odd("\"e\""), odd("e"), odd("*"), odd("W/\"e\"")], [None, None, None, None]);
        assert_eq!(odd("\"a\", W/\"b\",c"), tags(&["a", "b", "c"]));
        assert_eq!(odd("\"e"), tags(&["?"]));
        assert_eq!(odd("no tag"), tags(&["?"]));
    }

    #[test]
    fn a_range_counts_for_the_version_that_it_was_made_for() {
        let object = ObjectHead {
            len: 0,
            etag: "e".into(),
            modified: Millis(1_000_500),
            headers: Default::default(),
            checksum: None,
            part_lens: vec![],
        };
        let counts = |value: &str| range_counts(&HeaderMap::from_iter([(IF_RANGE, value.parse().unwrap())]), &object);

        assert!(range_counts(&HeaderMap::new(), &object));
        assert!(counts("\"e\"") && counts("e") && counts("Thu, 01 Jan 1970 00:16:40 GMT"));
        assert!(!counts("\"x\"") && !counts("W/\"e\"") && !counts("Thu, 01 Jan 1970 00:16:41 GMT") && !counts(""));
    }

    #[test]
    fn dates_count_whole_seconds() {
        let since = |if_modified_since| ReadConditions { if_modified_since, ..Default::default() };
        let not_since = |if_unmodified_since| ReadConditions { if_unmodified_since, ..Default::default() };

        assert_eq!(check(since(time(999))), Ok(()));
        assert_eq!(check(since(time(1000))), Err(Fails::NotModified));
        assert_eq!(check(not_since(time(1000))), Ok(()));
        assert_eq!(check(not_since(time(999))), Err(Fails::Precondition));
    }

    #[test]
    fn entity_tags_weigh_more_than_dates() {
        let conditions = ReadConditions { if_match: tag("e"), if_unmodified_since: time(1), ..Default::default() };
        assert_eq!(check(conditions), Ok(()));

        let conditions = ReadConditions { if_none_match: tag("e"), if_modified_since: time(1), ..Default::default() };
        assert_eq!(check(conditions), Err(Fails::NotModified));
    }

    #[test]
    fn conditions_of_a_put_are_one_at_most() {
        assert_eq!(of_put(None, None).unwrap(), Condition::None);
        assert_eq!(of_put(None, tag("*").as_ref()).unwrap(), Condition::Absent);
        assert_eq!(of_put(tag("\"a\"").as_ref(), None).unwrap(), Condition::Match("a".into()));
        assert_eq!(of_put(None, tag("a").as_ref()).unwrap(), Condition::NoneMatch("a".into()));
        assert!(of_put(tag("a").as_ref(), tag("a").as_ref()).is_err());
        assert!(of_put(tag("*").as_ref(), None).is_err());
    }
}
