//! Reads which bytes of an object a request asks for.

use std::ops::Range;

use http::header::{CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result, dto};

use super::errors::{custom, refuse, refuse_as};

/// Numbers that a part may have.
const PART_NUMBERS: std::ops::RangeInclusive<i32> = 1..=10_000;

/// The bytes that a read asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestedRange {
    /// Half-open.
    pub bytes: Range<u64>,
    /// Whether the request named them; then the answer is 206.
    pub partial: bool,
}

impl RequestedRange {
    /// `Content-Range` of the answer.
    pub(super) fn content_range(&self, len: u64) -> Option<String> {
        let Range { start, end } = self.bytes;
        self.partial.then(|| format!("bytes {start}-{}/{len}", end.saturating_sub(1)))
    }
}

/// The bytes of an object of `len` bytes, made of `part_lens`, that a `Range` header or a part number asks for.
///
/// # Errors
/// 416 if there are no such bytes, `InvalidRequest` if both are given.
pub(super) fn of_read(
    range: Option<dto::Range>,
    part_number: Option<i32>,
    len: u64,
    part_lens: &[u64],
) -> S3Result<RequestedRange> {
    match (range, part_number) {
        (Some(_), Some(_)) => {
            Err(refuse(S3ErrorCode::InvalidRequest, "a range and a part number cannot be asked for together"))
        }
        (Some(range), None) => {
            let bytes = range.check(len).ok().filter(|bytes| !bytes.is_empty()).ok_or_else(|| not_satisfiable(len))?;
            Ok(RequestedRange { bytes, partial: true })
        }
        (None, Some(number)) => of_part(number, len, part_lens),
        (None, None) => Ok(RequestedRange { bytes: 0..len, partial: false }),
    }
}

/// The number of a part, if one may have it.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn part_number(number: i32) -> S3Result<u16> {
    let number = u16::try_from(number).ok().filter(|_| PART_NUMBERS.contains(&number));
    number.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the part number must be 1 to 10000"))
}

/// Part 1 of an object that came in one piece is all of it.
fn of_part(number: i32, len: u64, part_lens: &[u64]) -> S3Result<RequestedRange> {
    let index = usize::from(part_number(number)? - 1);
    let whole = [len];
    let part_lens = if part_lens.is_empty() { &whole } else { part_lens };
    let part_len = *part_lens.get(index).ok_or_else(|| {
        let message = format!("the object has {} parts, not a part {number}", part_lens.len());
        refuse_as(http::StatusCode::RANGE_NOT_SATISFIABLE, custom("InvalidPartNumber"), message)
    })?;
    let start: u64 = part_lens[..index].iter().sum();
    Ok(RequestedRange { bytes: start..start + part_len, partial: part_len > 0 })
}

/// The bytes of a source of `len` bytes that `x-amz-copy-source-range` names; unlike in a read they must exist.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn of_copy(text: Option<&str>, len: u64) -> S3Result<Range<u64>> {
    let Some(text) = text else { return Ok(0..len) };
    match dto::Range::parse(text) {
        Ok(dto::Range::Int { first, last: Some(last) }) if last < len => Ok(first..last + 1),
        _ => {
            let message = format!("x-amz-copy-source-range must be bytes=first-last within {len} bytes, is {text:?}");
            Err(refuse(S3ErrorCode::InvalidArgument, message))
        }
    }
}

/// Tells how long the object is: clients that read in ranges alone learn from it that an object is empty.
fn not_satisfiable(len: u64) -> S3Error {
    let mut error = refuse(S3ErrorCode::InvalidRange, "the object has no bytes in the range");
    // These headers take the place of all others.
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers
        .insert(CONTENT_RANGE, HeaderValue::try_from(format!("bytes */{len}")).expect("digits are a header's value"));
    error.set_headers(headers);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, len: u64) -> Option<Range<u64>> {
        of_read(Some(dto::Range::parse(text).unwrap()), None, len, &[]).ok().map(|wanted| wanted.bytes)
    }

    #[test]
    fn ranges_are_clamped_to_the_object() {
        assert_eq!(read("bytes=0-0", 10), Some(0..1));
        assert_eq!(read("bytes=8-20", 10), Some(8..10));
        assert_eq!(read("bytes=-3", 10), Some(7..10));
        assert_eq!(read("bytes=-30", 10), Some(0..10));
        assert_eq!(read("bytes=4-", 10), Some(4..10));
    }

    #[test]
    fn ranges_without_bytes_are_refused() {
        for (text, len) in [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)] {
            assert_eq!(read(text, len), None, "{text} of {len}");
        }
    }

    #[test]
    fn a_refused_range_tells_how_long_the_object_is() {
        let refused = of_read(Some(dto::Range::parse("bytes=10-").unwrap()), None, 10, &[]).unwrap_err();

        assert_eq!(refused.headers().unwrap()[CONTENT_RANGE], "bytes */10");
        assert_eq!(refused.headers().unwrap()[CONTENT_TYPE], "application/xml");
    }

    #[test]
    fn part_numbers_are_1_to_10000() {
        assert_eq!(part_number(1).unwrap(), 1);
        assert_eq!(part_number(10_000).unwrap(), 10_000);
        for bad in [0, -1, 10_001, i32::MIN] {
            assert!(part_number(bad).is_err());
        }
    }

    #[test]
    fn parts_are_read_by_number() {
        let part = |number| of_read(None, Some(number), 30, &[10, 15, 5]).ok().map(|wanted| wanted.bytes);

        assert_eq!(
            [part(0), part(1), part(2), part(3), part(4)],
            [None, Some(0..10), Some(10..25), Some(25..30), None]
        );
        assert_eq!(of_read(None, Some(1), 7, &[]).unwrap(), RequestedRange { bytes: 0..7, partial: true });
        assert_eq!(of_read(None, Some(1), 0, &[]).unwrap(), RequestedRange { bytes: 0..0, partial: false });
    }

    #[test]
    fn content_range_names_the_last_byte() {
        let wanted = RequestedRange { bytes: 5..7, partial: true };

        assert_eq!(wanted.content_range(9).as_deref(), Some("bytes 5-6/9"));
        assert_eq!(RequestedRange { partial: false, ..wanted }.content_range(9), None);
    }

    #[test]
    fn a_copied_range_has_to_exist() {
        assert_eq!(of_copy(None, 5).unwrap(), 0..5);
        assert_eq!(of_copy(Some("bytes=1-4"), 5).unwrap(), 1..5);
        for bad in ["bytes=1-5", "bytes=1-", "bytes=-2", "1-2", ""] {
            assert!(of_copy(Some(bad), 5).is_err(), "{bad:?}");
        }
    }
}
