//! The next step for the caller of anything that failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The one thing every error of the daemon tells: what its receiver should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request is wrong: fix it.
    Invalid,
    /// The named thing does not exist, or no longer.
    NotFound,
    /// The state of things does not allow it: read again, then decide.
    Conflict,
    /// A condition the caller set does not hold.
    Precondition,
    /// Too much at once: slow down, then repeat.
    Overloaded,
    /// Storage does not answer: repeat.
    Unavailable,
    /// Bytes on storage are not what was written: page someone.
    Corrupt,
    /// This daemon is going away: go to another, or wait.
    ShuttingDown,
    /// A bug: report it.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Precondition => "precondition",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
        })
    }
}

/// The whole chain of an error's causes in one line, outermost first. Some libraries repeat a cause in their own text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
