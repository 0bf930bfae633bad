//! Sizes and durations in Flink's grammar.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{ValueError, WrittenValue};

/// The largest number of bytes or nanoseconds, that of Java's `long`.
const QUANTITY_MAX: u64 = i64::MAX.unsigned_abs();

/// One unit of measure: its size in the smallest unit, and its names, the one that is printed first.
struct Unit {
    size: u64,
    names: &'static [&'static str],
}

/// The number and the lower-case unit name of `text`, as Flink splits them.
fn split_quantity(text: &str, expected: &'static str) -> Result<(u64, String), ValueError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(match text.chars().next() {
            None => ValueError::Empty { expected },
            Some('-') => ValueError::Negative { expected },
            Some(_) => ValueError::NoNumber { expected },
        });
    }
    if unit.starts_with(['.', ',']) {
        return Err(ValueError::Fraction { expected });
    }
    let number = number.parse().map_err(|_| ValueError::TooLarge { limit: i64::MAX.to_string() })?;
    Ok((number, unit.trim().to_lowercase()))
}

/// The size of the unit called `name`.
fn unit_size(units: &[Unit], name: &str) -> Result<u64, ValueError> {
    let unit = units.iter().find(|unit| unit.names.contains(&name));
    unit.map(|unit| unit.size).ok_or_else(|| {
        let known: Vec<&str> = units.iter().flat_map(|unit| unit.names).copied().collect();
        ValueError::UnknownUnit { unit: name.to_owned(), known: known.join(", ") }
    })
}

/// `quantity` in the largest unit that divides it.
fn write_quantity(f: &mut fmt::Formatter<'_>, quantity: u64, units: &[Unit], zero: &str) -> fmt::Result {
    let unit = units.iter().rev().find(|unit| quantity != 0 && quantity.is_multiple_of(unit.size));
    match unit {
        Some(unit) => write!(f, "{} {}", quantity / unit.size, unit.names.first().copied().unwrap_or_default()),
        None => f.write_str(zero),
    }
}

/// A number of bytes, written as Flink's `MemorySize`: `32mb`, `20 kb`, `4096`.
///
/// Units are binary (`1 kb` is 1,024 bytes), in any case, and a bare number counts bytes. At most 2^63 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MemorySize(u64);

const SIZE_UNITS: [Unit; 5] = [
    Unit { size: 1, names: &["bytes", "b"] },
    Unit { size: 1 << 10, names: &["kb", "k", "kibibytes"] },
    Unit { size: 1 << 20, names: &["mb", "m", "mebibytes"] },
    Unit { size: 1 << 30, names: &["gb", "g", "gibibytes"] },
    Unit { size: 1 << 40, names: &["tb", "t", "tebibytes"] },
];

impl MemorySize {
    /// `count` times 1,024 bytes.
    pub const fn kib(count: u32) -> Self {
        Self((count as u64) << 10)
    }

    /// `count` times 1,024 KiB.
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// `count` times 1,024 MiB.
    pub const fn gib(count: u32) -> Self {
        Self((count as u64) << 30)
    }

    /// `count` times 1,024 GiB.
    pub const fn tib(count: u16) -> Self {
        Self((count as u64) << 40)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) = split_quantity(text, Self::EXPECTED)?;
        let size = if unit.is_empty() { 1 } else { unit_size(&SIZE_UNITS, &unit)? };
        let bytes = number.checked_mul(size).ok_or_else(too_many_bytes)?;
        Self::from_integer(bytes)
    }
}

fn too_many_bytes() -> ValueError {
    ValueError::TooLarge { limit: format!("{QUANTITY_MAX} bytes") }
}

impl WrittenValue for MemorySize {
    const EXPECTED: &'static str = "a size such as `32mb`, `20 kb` or `4096` (bytes)";

    fn from_integer(bytes: u64) -> Result<Self, ValueError> {
        if bytes > QUANTITY_MAX { Err(too_many_bytes()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quantity(f, self.0, &SIZE_UNITS, "0 bytes")
    }
}

/// A length of time, written as Flink's `TimeUtils` does: `10 min`, `500 ms`, `1s`.
///
/// Units in any case; a bare number counts milliseconds. At most 2^63 - 1 nanoseconds (292 years), so it can be
/// added to any clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(Duration);

const NANOS_PER_MILLI: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000 * NANOS_PER_MILLI;

const TIME_UNITS: [Unit; 7] = [
    Unit { size: 1, names: &["ns", "nano", "nanos", "nanosecond", "nanoseconds"] },
    Unit { size: 1_000, names: &["µs", "micro", "micros", "microsecond", "microseconds"] },
    Unit { size: NANOS_PER_MILLI, names: &["ms", "milli", "millis", "millisecond", "milliseconds"] },
    Unit { size: NANOS_PER_SECOND, names: &["s", "sec", "secs", "second", "seconds"] },
    Unit { size: 60 * NANOS_PER_SECOND, names: &["min", "m", "minute", "minutes"] },
    Unit { size: 3_600 * NANOS_PER_SECOND, names: &["h", "hour", "hours"] },
    Unit { size: 86_400 * NANOS_PER_SECOND, names: &["d", "day", "days"] },
];

impl Span {
    /// `count` milliseconds.
    pub const fn millis(count: u32) -> Self {
        Self(Duration::from_millis(count as u64))
    }

    /// `count` seconds.
    pub const fn seconds(count: u32) -> Self {
        Self(Duration::from_secs(count as u64))
    }

    /// `count` minutes.
    pub const fn minutes(count: u16) -> Self {
        Self(Duration::from_secs(count as u64 * 60))
    }

    /// `count` hours.
    pub const fn hours(count: u16) -> Self {
        Self(Duration::from_secs(count as u64 * 3_600))
    }

    /// The plain duration.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Whether this is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    fn from_nanos(nanos: Option<u64>) -> Result<Self, ValueError> {
        match nanos {
            Some(nanos) if nanos <= QUANTITY_MAX => Ok(Self(Duration::from_nanos(nanos))),
            _ => Err(ValueError::TooLarge { limit: format!("{QUANTITY_MAX} ns (292 years)") }),
        }
    }
}

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) = split_quantity(text, Self::EXPECTED)?;
        if unit.is_empty() {
            return Self::from_integer(number);
        }
        Self::from_nanos(number.checked_mul(unit_size(&TIME_UNITS, &unit)?))
    }
}

impl WrittenValue for Span {
    const EXPECTED: &'static str = "a duration such as `10 min`, `30 s` or `500` (milliseconds)";

    fn from_integer(millis: u64) -> Result<Self, ValueError> {
        Self::from_nanos(millis.checked_mul(NANOS_PER_MILLI))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(QUANTITY_MAX);
        write_quantity(f, nanos, &TIME_UNITS, "0 ms")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> u64 {
        text.parse::<MemorySize>().unwrap().bytes()
    }

    fn span(text: &str) -> Duration {
        text.parse::<Span>().unwrap().duration()
    }

    fn size_error(text: &str) -> String {
        text.parse::<MemorySize>().unwrap_err().to_string()
    }

    fn span_error(text: &str) -> String {
        text.parse::<Span>().unwrap_err().to_string()
    }

    #[test]
    fn sizes_follow_flinks_grammar() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("7b", 7), ("7 bytes", 7), (" 32mb ", 32 << 20)] {
            assert_eq!(size(text), bytes, "{text}");
        }
        for (text, bytes) in [("1k", 1u64 << 10), ("1 KB", 1 << 10), ("1 kibibytes", 1 << 10), ("1M", 1 << 20)] {
            assert_eq!(size(text), bytes, "{text}");
        }
        for (text, bytes) in [("2 mebibytes", 2u64 << 20), ("3g", 3 << 30), ("3Gb", 3 << 30), ("5t", 5 << 40)] {
            assert_eq!(size(text), bytes, "{text}");
        }
        assert_eq!(size("4 gibibytes"), 4 << 30);
        assert_eq!(size("4 tebibytes"), 4 << 40);
        assert_eq!(size("9223372036854775807"), i64::MAX as u64);
    }

    #[test]
    fn durations_follow_flinks_grammar() {
        for (text, millis) in [("0", 0), ("250", 250), ("1 ms", 1), ("2millis", 2), ("1 milli", 1), ("1S", 1_000)] {
            assert_eq!(span(text), Duration::from_millis(millis), "{text}");
        }
        for (text, seconds) in [("1 sec", 1), ("2 secs", 2), ("3 second", 3), ("4 seconds", 4), ("10 min", 600)] {
            assert_eq!(span(text), Duration::from_secs(seconds), "{text}");
        }
        for (text, seconds) in [("1m", 60), ("2 minutes", 120), ("1h", 3_600), ("2 hours", 7_200), ("1 d", 86_400)] {
            assert_eq!(span(text), Duration::from_secs(seconds), "{text}");
        }
        for (text, nanos) in [("9ns", 9), ("9 nanos", 9), ("9 nanoseconds", 9), ("1 µs", 1_000), ("1 micro", 1_000)] {
            assert_eq!(span(text), Duration::from_nanos(nanos), "{text}");
        }
        assert_eq!(span("2 days"), Duration::from_secs(172_800));
    }

    #[test]
    fn junk_is_refused_with_the_reason() {
        assert!(size_error(" ").contains("is empty"));
        assert!(size_error("-1mb").contains("is negative"));
        assert!(size_error("mb").contains("does not start with a number"));
        assert!(size_error("1.5gb").contains("only whole numbers"));
        assert!(size_error("10 parsecs").contains("unit `parsecs` is not one of bytes, b, kb"));
        assert!(span_error("").contains("is empty"));
        assert!(span_error("-5 s").contains("is negative"));
        assert!(span_error("soon").contains("does not start with a number"));
        assert!(span_error("10 kb").contains("unit `kb` is not one of ns"));
        assert!(span_error("1 min 30 s").contains("unit `min 30 s`"));
    }

    #[test]
    fn overflow_is_refused() {
        for text in ["9223372036854775808", "99999999999999999999999", "8388608tb", "18446744073709551615 tb"] {
            assert!(size_error(text).contains("larger than 9223372036854775807"), "{text}");
        }
        for text in ["9223372036855", "106752 d", "99999999999999999999999 s"] {
            assert!(span_error(text).contains("larger than 9223372036854775807"), "{text}");
        }
    }

    #[test]
    fn values_print_in_the_largest_unit_that_divides_them() {
        for (text, printed) in [("0", "0 bytes"), ("32mb", "32 mb"), ("1536 k", "1536 kb"), ("1025", "1025 bytes")] {
            assert_eq!(text.parse::<MemorySize>().unwrap().to_string(), printed);
        }
        for (text, printed) in [("0", "0 ms"), ("60 s", "1 min"), ("90 s", "90 s"), ("1500", "1500 ms")] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), printed);
        }
        assert_eq!("48 h".parse::<Span>().unwrap().to_string(), "2 d");
        assert_eq!("5tb".parse::<MemorySize>().unwrap().to_string(), "5 tb");
    }

    proptest! {
        #[test]
        fn what_a_size_prints_parses_back(bytes in prop_oneof![0..1u64 << 45, 0..=i64::MAX as u64], shift in 0u32..5) {
            let size = MemorySize((bytes << (shift * 10)) & i64::MAX as u64);

            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn what_a_span_prints_parses_back(nanos in 0..=i64::MAX as u64, unit in 0usize..7) {
            let size = TIME_UNITS[unit].size;
            let span = Span(Duration::from_nanos(nanos / size * size));

            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", digits in "[0-9]{1,30} ?[a-zµ]{0,6}") {
            for text in [text, digits] {
                if let Ok(size) = text.parse::<MemorySize>() {
                    prop_assert!(size.0 <= QUANTITY_MAX);
                }
                if let Ok(span) = text.parse::<Span>() {
                    prop_assert!(span.0 <= Duration::from_nanos(QUANTITY_MAX));
                }
            }
        }
    }
}
