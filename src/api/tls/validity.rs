//! The time for which a certificate is good. The library that checks certificates of others tells nothing of one's own.
//!
//! # Source
//! RFC 5280, section 4.1: `Certificate`, `TBSCertificate`, `Validity`; X.690 for DER.

use std::time::{Duration, UNIX_EPOCH};

use chrono::NaiveDateTime;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, which may be left out.
const VERSION: u8 = 0xa0;

/// The first and the last second, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

/// Reads the validity of a certificate in DER. `None` if it is no certificate.
pub(super) fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = any_element(fields)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        fields = any_element(fields)?.2;
    }
    let (times, _) = element(fields, SEQUENCE)?;
    let (not_before, times) = time(times)?;
    let (not_after, _) = time(times)?;
    Some(Validity { not_before, not_after })
}

/// A second since 1970 for people.
pub(super) fn shown(second: i64) -> String {
    let since = Duration::from_secs(u64::try_from(second).unwrap_or_default());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

fn time(der: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, content, rest) = any_element(der)?;
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let text = match tag {
        // Two digits of the year: 1950 to 2049.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%S").ok()?;
    Some((time.and_utc().timestamp(), rest))
}

/// The content of an element with this tag, and what follows it.
fn element(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    any_element(der).filter(|(tag, ..)| *tag == wanted).map(|(_, content, rest)| (content, rest))
}

/// Tag, content, and what follows.
fn any_element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The begin of a certificate, up to its validity.
    fn certificate(version: &[u8], times: &[u8]) -> Vec<u8> {
        let sequence = |content: &[u8]| [&[SEQUENCE, 0x81, u8::try_from(content.len()).unwrap()], content].concat();
        let fields = [version, &[2, 1, 7], &sequence(b"")[..], &sequence(b"")[..], &sequence(times)[..], b"rest"];
        sequence(&sequence(&fields.concat()))
    }

    const UTC: &[u8] = b"\x17\x0d260102030405Z\x17\x0d500101000000Z";

    #[test]
    fn both_forms_of_a_time_are_read_with_and_without_a_version() {
        let utc = Some(Validity { not_before: 1_767_323_045, not_after: -631_152_000 });
        assert_eq!(validity(&certificate(&[VERSION, 3, 2, 1, 2], UTC)), utc);
        assert_eq!(validity(&certificate(&[], UTC)), utc);

        let general = b"\x18\x0f19700101000001Z\x18\x0f99991231235959Z";
        assert_eq!(validity(&certificate(&[], general)), Some(Validity { not_before: 1, not_after: 253_402_300_799 }));
        assert_eq!(shown(1_767_323_045), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn what_is_no_certificate_has_no_validity() {
        let whole = certificate(&[], UTC);
        let end = whole.windows(UTC.len()).position(|window| window == UTC).unwrap() + UTC.len();

        for len in 0..end {
            assert_eq!(validity(&whole[..len]), None, "{len}");
        }
        assert_eq!(validity(&[SEQUENCE, 0x80, 0, 0]), None);
        assert_eq!(validity(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(validity(&certificate(&[], b"\x17\x0d26010203040\xffZ\x17\x0d500101000000Z")), None);
    }
}
