//! Reads each type of a key from a literal, and writes it as one.

use std::fmt;
use std::path::PathBuf;

use super::literal::{Literal, Placed};
use super::{Secret, ValueError, WrittenValue};
use crate::config::keys;

/// The type of a key.
pub(in crate::config) trait Setting: Sized {
    /// The value that `literal` stands for.
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral>;

    /// As it would be written in a file, secrets masked.
    fn write(&self) -> Literal;
}

/// Why a key does not take a literal.
#[derive(Debug)]
pub(in crate::config) struct InvalidLiteral {
    /// Where inside the literal, from the outside: `0`, `secret-key`. Empty: the literal itself.
    pub path: Vec<String>,
    /// The line of that place. `None`: that of the literal.
    pub line: Option<usize>,
    pub cause: InvalidLiteralCause,
}

#[derive(Debug)]
pub(in crate::config) enum InvalidLiteralCause {
    Value(ValueError),
    /// A table has a field that nobody knows.
    UnknownField {
        nearest: &'static str,
    },
}

impl InvalidLiteral {
    /// The same, seen from around `part`, which is in `line`.
    fn inside(mut self, part: impl Into<String>, line: usize) -> Self {
        self.path.insert(0, part.into());
        self.line.get_or_insert(line);
        self
    }
}

impl From<ValueError> for InvalidLiteral {
    fn from(error: ValueError) -> Self {
        Self { path: Vec::new(), line: None, cause: InvalidLiteralCause::Value(error) }
    }
}

fn unexpected<T>(expected: &'static str) -> Result<T, InvalidLiteral> {
    Err(ValueError::Unexpected { expected }.into())
}

impl<T: WrittenValue + fmt::Display> Setting for T {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        match literal {
            Literal::Text(text) => Ok(text.parse()?),
            Literal::Integer(integer) => match u64::try_from(*integer) {
                Ok(integer) => Ok(T::from_integer(integer)?),
                Err(_) => Err(ValueError::Negative { expected: T::EXPECTED }.into()),
            },
            _ => unexpected(T::EXPECTED),
        }
    }

    fn write(&self) -> Literal {
        Literal::Text(self.to_string())
    }
}

impl Setting for bool {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        match literal {
            Literal::Bool(yes) => Ok(*yes),
            _ => unexpected("true or false"),
        }
    }

    fn write(&self) -> Literal {
        Literal::Bool(*self)
    }
}

impl Setting for u32 {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        let integer = match literal {
            Literal::Integer(integer) => Self::try_from(*integer).ok(),
            _ => None,
        };
        integer.map_or_else(|| unexpected("a whole number from 0 to 4294967295"), Ok)
    }

    fn write(&self) -> Literal {
        Literal::Integer(i64::from(*self))
    }
}

impl Setting for f64 {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        match literal {
            Literal::Float(float) => Ok(*float),
            Literal::Integer(integer) => Ok(*integer as Self),
            _ => unexpected("a number"),
        }
    }

    fn write(&self) -> Literal {
        Literal::Float(*self)
    }
}

impl Setting for String {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        match literal {
            Literal::Text(text) => Ok(text.clone()),
            _ => unexpected("text"),
        }
    }

    fn write(&self) -> Literal {
        Literal::Text(self.clone())
    }
}

impl Setting for PathBuf {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        String::read(literal).map(Self::from)
    }

    fn write(&self) -> Literal {
        Literal::Text(self.to_string_lossy().into_owned())
    }
}

impl Setting for Secret {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        String::read(literal).map(Self::new)
    }

    /// A mask.
    fn write(&self) -> Literal {
        Literal::Text(self.to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        match literal {
            Literal::Unset => Ok(None),
            literal => T::read(literal).map(Some),
        }
    }

    fn write(&self) -> Literal {
        self.as_ref().map_or(Literal::Unset, T::write)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn read(literal: &Literal) -> Result<Self, InvalidLiteral> {
        let Literal::List(items) = literal else { return unexpected("a list") };
        let read = |(at, item): (usize, &Placed)| {
            T::read(&item.literal).map_err(|refusal| refusal.inside(at.to_string(), item.line))
        };
        items.iter().enumerate().map(read).collect()
    }

    fn write(&self) -> Literal {
        Literal::list(self.iter().map(T::write))
    }
}

/// The fields of a table that is an item of a list.
pub(in crate::config) struct Fields<'a>(&'a [(String, Placed)]);

impl<'a> Fields<'a> {
    /// Those of `literal`, if it is a table and each of them is `known`.
    pub(crate) fn of(literal: &'a Literal, known: &[&'static str]) -> Result<Self, InvalidLiteral> {
        let Literal::Table(fields) = literal else { return unexpected("a table") };
        let Some((name, field)) = fields.iter().find(|(name, _)| !known.contains(&name.as_str())) else {
            return Ok(Self(fields));
        };
        let nearest = keys::most_alike(known.iter().copied(), name).unwrap_or_default();
        Err(InvalidLiteral {
            path: vec![name.clone()],
            line: Some(field.line),
            cause: InvalidLiteralCause::UnknownField { nearest },
        })
    }

    pub(crate) fn optional<T: Setting>(&self, name: &str) -> Result<Option<T>, InvalidLiteral> {
        let field = self.0.iter().find(|(known, _)| known == name);
        let read =
            |(_, field): &(String, Placed)| T::read(&field.literal).map_err(|refusal| refusal.inside(name, field.line));
        field.map(read).transpose()
    }

    pub(crate) fn required<T: Setting>(&self, name: &'static str) -> Result<T, InvalidLiteral> {
        Ok(self.optional(name)?.ok_or(ValueError::Missing { field: name })?)
    }
}
