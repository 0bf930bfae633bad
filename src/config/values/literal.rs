//! Values as TOML writes them, before the type of their key is asked.

use std::fmt;
use std::ops::Range;

use toml_edit::{ImDocument, Item, Key, TableLike};

use crate::config::url::is_container;

/// A value in a configuration file, a variable or a flag.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) enum Literal {
    /// There is no value.
    Unset,
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// A date or a time of day, which no key takes.
    Date(String),
    List(Vec<Placed>),
    /// In the order of the file.
    Table(Vec<(String, Placed)>),
}

/// A literal and its line in the file, from 1 on; 1 outside of files.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) struct Placed {
    pub literal: Literal,
    pub line: usize,
}

impl Literal {
    /// The value that `text` is in TOML, or the number that it is to Rust (`007`, `.5`).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let number = text.parse().map(Self::Integer).or_else(|_| text.parse().map(Self::Float));
        let toml = |_| text.parse().map(|value| Lines(vec![0]).value(&value, 1));
        number.or_else(toml).ok()
    }

    /// The meanings that a text from the environment or a flag may have; the key's type decides: the value that TOML would
    /// read, the text as it is, a list without brackets, or nothing.
    ///
    /// The text as it is comes first, as `123` may be a password.
    pub(in crate::config) fn readings(text: &str) -> Vec<Self> {
        let mut readings = Vec::new();
        if text.is_empty() {
            readings.push(Self::Unset);
        }
        readings.push(Self::Text(text.to_owned()));
        readings.extend(Self::parse(text));
        let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
        let items = inner.split([',', ';']).map(str::trim).filter(|item| !item.is_empty());
        readings.push(Self::list(items.map(|item| Self::Text(item.to_owned()))));
        readings
    }

    /// A list outside of files.
    pub(crate) fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self::List(items.into_iter().map(|literal| Placed { literal, line: 1 }).collect())
    }

    /// A table outside of files.
    pub(crate) fn table<'a>(fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let placed = |(name, literal): (&str, Self)| (name.to_owned(), Placed { literal, line: 1 });
        Self::Table(fields.into_iter().map(placed).collect())
    }
}

/// Why a text is not TOML.
#[derive(Debug)]
pub(in crate::config) struct SyntaxError {
    line: usize,
    column: usize,
    /// Names keys, and quotes no value: that may be a secret.
    message: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TOML parse error at line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Everything in a TOML file, in its order.
pub(in crate::config) fn read_document(text: &str) -> Result<Vec<(String, Placed)>, SyntaxError> {
    let lines = Lines::of(text);
    let document = ImDocument::parse(text).map_err(|error| {
        let line = lines.number(error.span(), 1);
        let message: Vec<&str> = error.message().lines().collect();
        SyntaxError { line, column: lines.column(text, error.span(), line), message: message.join(": ") }
    })?;
    Ok(lines.entries(document.as_table(), 1))
}

/// Where each line of a text begins.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// The line in which `span` begins; `outer` if the place is unknown.
    fn number(&self, span: Option<Range<usize>>, outer: usize) -> usize {
        span.map_or(outer, |span| self.0.partition_point(|start| *start <= span.start))
    }

    /// The character of `line` at which `span` begins, from 1 on.
    fn column(&self, text: &str, span: Option<Range<usize>>, line: usize) -> usize {
        let start = self.0.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = span.and_then(|span| text.get(start..span.start));
        before.map_or(1, |before| before.chars().count() + 1)
    }

    fn entries(&self, table: &dyn TableLike, outer: usize) -> Vec<(String, Placed)> {
        let placed = |(name, item): (&str, &Item)| {
            let line = self.number(table.key(name).and_then(Key::span), outer);
            (name.to_owned(), Placed { literal: self.item(item, line), line })
        };
        table.iter().map(placed).collect()
    }

    fn item(&self, item: &Item, line: usize) -> Literal {
        match item {
            Item::None => Literal::Unset,
            Item::Value(value) => self.value(value, line),
            Item::Table(table) => Literal::Table(self.entries(table, line)),
            Item::ArrayOfTables(tables) => {
                let placed = |table: &toml_edit::Table| {
                    let line = self.number(table.span(), line);
                    Placed { literal: Literal::Table(self.entries(table, line)), line }
                };
                Literal::List(tables.iter().map(placed).collect())
            }
        }
    }

    fn value(&self, value: &toml_edit::Value, line: usize) -> Literal {
        match value {
            toml_edit::Value::String(text) => Literal::Text(text.value().clone()),
            toml_edit::Value::Integer(integer) => Literal::Integer(*integer.value()),
            toml_edit::Value::Float(float) => Literal::Float(*float.value()),
            toml_edit::Value::Boolean(yes) => Literal::Bool(*yes.value()),
            toml_edit::Value::Datetime(date) => Literal::Date(date.value().to_string()),
            toml_edit::Value::InlineTable(table) => Literal::Table(self.entries(table, line)),
            toml_edit::Value::Array(items) => {
                let placed = |item: &toml_edit::Value| {
                    let line = self.number(item.span(), line);
                    Placed { literal: self.value(item, line), line }
                };
                Literal::List(items.iter().map(placed).collect())
            }
        }
    }
}

/// As TOML writes it; [`Literal::Unset`] as `(not set)`. Passwords inside URLs are masked.
impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("(not set)"),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Float(float) if float.is_nan() => f.write_str("nan"),
            Self::Float(float) => write!(f, "{float:?}"),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::Date(date) => f.write_str(date),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|item| item.literal.to_string()).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Table(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, field)| format!("{name} = {}", field.literal)).collect();
                write!(f, "{{ {} }}", fields.join(", "))
            }
        }
    }
}

/// `text` as a TOML string: JSON's escapes are among TOML's, which wants one more.
fn quoted(text: &str) -> String {
    serde_json::Value::from(mask_password(text)).to_string().replace('\u{7f}', "\\u007f")
}

/// Schemes of Azure's addresses, `abfss://container@account..`.
fn is_azure(scheme: &str) -> bool {
    ["abfss", "abfs", "wasbs", "wasb"].iter().any(|azure| azure.eq_ignore_ascii_case(scheme))
}

/// `text` without the user and password of a URL.
fn mask_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest.get(..authority).and_then(|authority| authority.rfind('@')) {
        // A container stands there in the addresses of Azure. A name of one has no characters that part user and secret.
        Some(at) if is_azure(scheme) && rest.get(..at).is_some_and(is_container) => text.to_owned(),
        Some(at) => format!("{scheme}://********{}", rest.get(at..).unwrap_or_default()),
        None => text.to_owned(),
    }
}
