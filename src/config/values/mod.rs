//! Values that are more than a plain text, number or word: sizes (`32mb`) and durations (`10 min`) as Flink writes
//! them, and secrets, which are never printed.

mod quantity;
mod secret;

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};

pub use quantity::{MemorySize, Span};
pub use secret::Secret;

/// Why a text is not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// There is no text.
    #[error("the value is empty, expected {expected}")]
    Empty {
        /// What is allowed, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The number is below zero, which no size or duration is.
    #[error("the value is negative, expected {expected}")]
    Negative {
        /// What is allowed, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The text starts with something else than a digit.
    #[error("the value does not start with a number, expected {expected}")]
    NoNumber {
        /// What is allowed, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The number has a decimal point or comma, which Flink's grammar does not know.
    #[error("only whole numbers are understood, expected {expected}")]
    Fraction {
        /// What is allowed, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The number is followed by an unknown unit.
    #[error("unit `{unit}` is not one of {known}")]
    UnknownUnit {
        /// The unit as written, in lower case.
        unit: String,
        /// Every known unit, separated by commas.
        known: String,
    },
    /// The number does not fit into Java's `long`, so Flink could not hold it either.
    #[error("the value is larger than {limit}")]
    TooLarge {
        /// The largest number that fits, with its unit where it is known.
        limit: String,
    },
    /// The text is not one of the words, or not of the type, that the key takes.
    #[error("expected {expected}")]
    Unexpected {
        /// What is allowed, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The text breaks the grammar of its kind, such as that of a URL.
    #[error("{reason}, expected {expected}")]
    Malformed {
        /// Which part of the grammar it breaks.
        reason: &'static str,
        /// What is allowed, as the end of the sentence "expected ..".
        expected: &'static str,
    },
}

/// A value that is written as text, some also as a bare integer.
pub(in crate::config) trait Written: FromStr<Err = ValueError> {
    /// What is allowed, as the end of the sentence "expected ..".
    const EXPECTED: &'static str;

    /// The value that a bare integer stands for.
    fn from_integer(_integer: u64) -> Result<Self, ValueError> {
        Err(ValueError::Unexpected { expected: Self::EXPECTED })
    }
}

/// Deserialises a [`Written`] value from text or an integer.
pub(in crate::config) fn deserialize_written<'de, T: Written, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_any(WrittenVisitor(PhantomData))
}

struct WrittenVisitor<T>(PhantomData<T>);

impl<T: Written> Visitor<'_> for WrittenVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, integer: u64) -> Result<T, E> {
        T::from_integer(integer).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, integer: i64) -> Result<T, E> {
        let integer = u64::try_from(integer).map_err(|_| E::custom(ValueError::Negative { expected: T::EXPECTED }))?;
        self.visit_u64(integer)
    }
}
