//! The known keys, derived from [`Config`]; values by key; the nearest key to a misspelt one.

use figment::value::{Dict, Empty, Value};

use super::schema::Config;

const ENV_PREFIX: &str = "ESKER__";

/// Stands for the value of a key that has none.
pub(super) const NOT_SET: &str = "(not set)";

/// All keys of [`Config`] with their defaults.
pub(super) struct Keys {
    tree: Value,
    names: Vec<String>,
}

impl Keys {
    pub fn known() -> Self {
        let tree = tree_of(&Config::default());
        let mut names = Vec::new();
        collect(&tree, "", &mut names);
        Self { tree, names }
    }

    /// Every key, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The defaults, as a tree of sections.
    pub fn defaults(&self) -> Value {
        self.tree.clone()
    }

    pub fn contains(&self, key: &str) -> bool {
        self.names.iter().any(|name| name == key)
    }

    /// Keys of the section `name`, empty if there is none.
    pub fn in_section<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
        self.names.iter().map(String::as_str).filter(move |key| key.starts_with(&prefix))
    }

    /// The key that the environment variable `name` sets.
    pub fn of_env(&self, name: &str) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|key| env_name(key) == name)
    }

    /// The known key that looks most like `key`.
    pub fn nearest(&self, key: &str) -> String {
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
    last_part(key) == "secret-key" || key.starts_with("auth.tokens") || key.starts_with("auth.keys")
}

/// `config` as a tree of sections, secrets masked.
pub(super) fn tree_of(config: &Config) -> Value {
    Value::serialize(config).expect("a Config consists of tables, texts, numbers, lists and nothing else")
}

fn collect(value: &Value, path: &str, names: &mut Vec<String>) {
    match value.as_dict() {
        Some(dict) => dict.iter().for_each(|(name, value)| collect(value, &join(path, name), names)),
        None => names.push(path.to_owned()),
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Puts `value` at the known `key` of `tree`.
pub(super) fn set(tree: &mut Value, key: &str, value: Value) {
    let mut at = tree;
    for part in key.split('.') {
        let Value::Dict(_, dict) = at else { return };
        at = dict.entry(part.to_owned()).or_insert_with(|| Dict::new().into());
    }
    *at = value;
}

/// `value` as TOML writes it; what has no value is [`NOT_SET`]. Passwords inside URLs are masked.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, c) => quoted(&c.to_string()),
        Value::Bool(_, yes) => yes.to_string(),
        Value::Num(_, num) => match (num.to_i128(), num.to_u128(), num.to_f64()) {
            (Some(n), _, _) => n.to_string(),
            (_, Some(n), _) => n.to_string(),
            (_, _, float) => format!("{:?}", float.unwrap_or(f64::NAN)),
        },
        Value::Empty(_, Empty::None | Empty::Unit) => NOT_SET.to_owned(),
        Value::Dict(_, dict) => {
            let fields: Vec<String> = dict.iter().map(|(name, value)| format!("{name} = {}", written(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(_, items) => {
            let items: Vec<String> = items.iter().map(written).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// `text` as a TOML string: JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(mask_password(text)).to_string()
}

/// `text` without the user and password of a URL.
fn mask_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest.get(..authority).and_then(|authority| authority.rfind('@')) {
        Some(at) => format!("{scheme}://********{}", rest.get(at..).unwrap_or_default()),
        None => text.to_owned(),
    }
}
