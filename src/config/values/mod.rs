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
    #[error("the value is empty, expected {expected}")]
    Empty { expected: &'static str },
    #[error("the value is negative, expected {expected}")]
    Negative { expected: &'static str },
    #[error("the value does not start with a number, expected {expected}")]
    NoNumber { expected: &'static str },
    #[error("only whole numbers are understood, expected {expected}")]
    Fraction { expected: &'static str },
    #[error("unit `{unit}` is not one of {known}")]
    UnknownUnit { unit: String, known: String },
    #[error("the value is larger than {limit}")]
    TooLarge { limit: String },
    #[error("expected {expected}")]
    Unexpected { expected: &'static str },
    #[error("{reason}, expected {expected}")]
    Malformed { reason: &'static str, expected: &'static str },
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
