//! The faults of a configuration, and the origin of each value.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File {
        /// As given.
        path: PathBuf,
        /// The line of the key, from 1 on.
        line: usize,
    },
    /// The environment variable of this name.
    Env(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "file {}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A key with the value it has, secrets masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedValue {
    /// The whole key, such as `store.url`.
    pub key: String,
    /// As it would be written in TOML.
    pub value: String,
    /// Unknown when only a `Config` was checked.
    pub origin: Option<Origin>,
}

impl fmt::Display for NamedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key, self.value)?;
        match &self.origin {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

/// One thing that is wrong with a configuration. The caller must fix it; nothing else helps.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration file {}: {source}", path.display())]
    Unreadable {
        /// Path of the file, as given.
        path: PathBuf,
        /// The operating system's error, or that the file is not UTF-8.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("configuration file {} is not TOML: {reason}", path.display())]
    Syntax {
        /// Path of the file, as given.
        path: PathBuf,
        /// The parser's message, without the lines it quotes, which may hold a secret.
        reason: String,
    },
    /// There is no such key.
    #[error("unknown key `{key}` ({origin}), the nearest known key is `{nearest}`")]
    UnknownKey {
        /// The whole key that nobody knows.
        key: String,
        /// Where it was found.
        origin: Origin,
        /// The known key that looks most like it; for a variable, the name of a variable.
        nearest: String,
    },
    /// The value is not one that the key takes.
    #[error("{setting}: {reason}")]
    WrongValue {
        /// The key, its value and where the value came from.
        setting: NamedValue,
        /// A text that says what is wrong and what the key takes instead.
        reason: String,
    },
    /// The values do not go together, or one is out of bounds.
    #[error("{}: {rule}", list(settings))]
    Rule {
        /// The keys that the rule is about, with their values.
        settings: Vec<NamedValue>,
        /// The broken rule, as it is told to the user.
        rule: String,
    },
}

fn list(settings: &[NamedValue]) -> String {
    let settings: Vec<String> = settings.iter().map(NamedValue::to_string).collect();
    settings.join(", ")
}

/// Everything that is wrong with a configuration, never empty.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `value` if there is no error.
    pub(super) fn none_or<T>(errors: Vec<ConfigError>, value: T) -> Result<T, Self> {
        if errors.is_empty() { Ok(value) } else { Err(Self(errors)) }
    }

    /// These errors, of which there is one at least.
    pub(super) fn of(errors: Vec<ConfigError>) -> Self {
        Self(errors)
    }

    /// The single errors, those of the file first.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }

    /// The same errors, each changed by `change`.
    pub(super) fn map(self, change: impl FnMut(ConfigError) -> ConfigError) -> Self {
        Self(self.0.into_iter().map(change).collect())
    }

    pub(super) fn into_vec(self) -> Vec<ConfigError> {
        self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            errors => {
                write!(f, "{} errors in the configuration", errors.len())?;
                errors.iter().try_for_each(|error| write!(f, "\n  {error}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}
