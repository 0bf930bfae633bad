//! Values that are more than a plain text, number or word: sizes (`32mb`) and durations (`10 min`) as Flink writes
//! them, and secrets, which are never printed. How a value of each type is read from what TOML, a variable or a flag
//! says, and how it is written.

mod literal;
mod quantity;
mod secret;
mod setting;

use std::str::FromStr;

pub(in crate::config) use literal::{Literal, Placed, read_document};
pub use quantity::{MemorySize, Span};
pub use secret::Secret;
pub(in crate::config) use setting::{Fields, InvalidLiteral, InvalidLiteralCause, Setting};

/// Why a text is not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// There is no text.
    #[error("the value is empty, expected {expected}")]
    Empty {
        /// The allowed values, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The number is below zero, which no size or duration is.
    #[error("the value is negative, expected {expected}")]
    Negative {
        /// The allowed values, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The text starts with something else than a digit.
    #[error("the value does not start with a number, expected {expected}")]
    NoNumber {
        /// The allowed values, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The number has a decimal point or comma, which Flink's grammar does not know.
    #[error("only whole numbers are understood, expected {expected}")]
    Fraction {
        /// The allowed values, as the end of the sentence "expected ..".
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
        /// The allowed values, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// The text breaks the grammar of its kind, such as that of a URL.
    #[error("{reason}, expected {expected}")]
    Malformed {
        /// Which part of the grammar it breaks.
        reason: &'static str,
        /// The allowed values, as the end of the sentence "expected ..".
        expected: &'static str,
    },
    /// A table lacks a field that has no default.
    #[error("`{field}` is missing")]
    Missing {
        /// The name of the field.
        field: &'static str,
    },
}

/// A value that is written as text, some also as a bare integer.
pub(in crate::config) trait WrittenValue: FromStr<Err = ValueError> {
    /// The allowed values, as the end of the sentence "expected ..".
    const EXPECTED: &'static str;

    /// The value that a bare integer stands for.
    fn from_integer(_integer: u64) -> Result<Self, ValueError> {
        Err(ValueError::Unexpected { expected: Self::EXPECTED })
    }
}
