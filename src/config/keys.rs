//! The known keys, derived from [`Config`]; the nearest key to a misspelt one; keys as names of variables.

use super::schema::Config;

const ENV_PREFIX: &str = "ESKER__";

/// All keys of [`Config`].
pub(super) struct ConfigKeys {
    names: Vec<String>,
}

impl ConfigKeys {
    pub(super) fn known() -> Self {
        Self { names: Config::default().entries().into_iter().map(|entry| entry.key).collect() }
    }

    /// Some of them.
    pub(super) fn of(names: impl Iterator<Item = String>) -> Self {
        Self { names: names.collect() }
    }

    /// Every key, sorted.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.names.iter().any(|name| name == key)
    }

    /// Keys of the section `name`, empty if there is none.
    pub(super) fn in_section<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
        self.names.iter().map(String::as_str).filter(move |key| key.starts_with(&prefix))
    }

    /// The key that the environment variable `name` sets.
    pub(super) fn of_env(&self, name: &str) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|key| env_name(key) == name)
    }

    /// The known key that looks most like `key`.
    pub(super) fn nearest(&self, key: &str) -> String {
        let score = |name: &str| {
            let (name_last, key_last) = (last_part(name), last_part(key));
            let whole = strsim::normalized_damerau_levenshtein(name, key);
            let last = strsim::normalized_damerau_levenshtein(name_last, key_last);
            // Half of a name is near, and so is the right name in a wrong section.
            let half = if name_last.contains(key_last) { 0.3 } else { 0.0 };
            whole.max(0.9 * last) + half
        };
        let nearest = self.names.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
        nearest.cloned().unwrap_or_default()
    }
}

/// The one of `names` that looks most like `name`.
pub(super) fn most_alike<'a>(names: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    let score = |known: &str| strsim::normalized_damerau_levenshtein(known, name);
    names.max_by(|a, b| score(a).total_cmp(&score(b)))
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// Whether `name` is meant for this daemon's configuration.
pub(super) fn is_env_name(name: &str) -> bool {
    name.starts_with(ENV_PREFIX)
}

/// The environment variable that sets `key`.
pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").replace('-', "_").to_uppercase())
}

/// The key that `name` seems to mean, known or not.
pub(super) fn key_of_env(name: &str) -> String {
    name.trim_start_matches(ENV_PREFIX).to_lowercase().replace("__", ".").replace('_', "-")
}

/// Whether the value of `key` is never printed.
pub(super) fn is_secret(key: &str) -> bool {
    last_part(key) == "secret-key"
        || key.starts_with("auth.tokens")
        || key == "auth.keys"
        || key.starts_with("auth.keys.")
}

/// The key `name` of the section `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
