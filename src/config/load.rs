//! Lays the environment over the file and flags over both, and reports everything that is wrong at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use figment::Provider;
use figment::error::{Error as FigmentError, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Empty, Value};

use super::error::{ConfigError, ConfigErrors, NamedValue, Origin};
use super::keys::{self, Keys};
use super::schema::Config;
use super::settings::Settings;

/// A configuration and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// By key, e.g. `store.url`. Keys that nobody set are absent.
    pub origins: BTreeMap<String, Origin>,
}

impl Config {
    /// Reads `file` if given, then `ESKER__SECTION__KEY` variables of this process, then `flags`.
    ///
    /// `flags` are pairs of a key such as `store.url` and its value as text; the last of equal keys wins. An
    /// empty text unsets a key that may be unset.
    ///
    /// # Errors
    /// Everything that is wrong, at once: an unreadable file, unknown keys, wrong values. If there is any, broken rules
    /// between the other values are reported too; otherwise [`Loaded::settings`] checks them.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Loaded, ConfigErrors> {
        Self::load_with(file, std::env::vars_os(), flags)
    }

    /// As [`Config::load`], with `env` in place of the environment of this process.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[(String, String)],
    ) -> Result<Loaded, ConfigErrors> {
        let mut loader = Loader::new();
        if let Some(path) = file {
            loader.add_file(path);
        }
        loader.add_env(env);
        for (key, text) in flags {
            loader.add_text(key, text, Origin::Flag);
        }
        loader.finish()
    }

    /// Every key there is, sorted, such as `execution.checkpointing.file-merging.max-file-size`.
    pub fn keys() -> Vec<String> {
        Keys::known().names().to_vec()
    }
}

impl Loaded {
    /// Checks all rules and returns what the daemon works with.
    ///
    /// # Errors
    /// Every broken rule, with the keys, values and origins it is about.
    pub fn settings(&self) -> Result<Settings, ConfigErrors> {
        Settings::try_from(&self.config).map_err(|errors| errors.map(|error| self.with_origins(error)))
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    fn with_origins(&self, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Rule { mut settings, rule } => {
                for setting in &mut settings {
                    setting.origin = Some(self.origin(&setting.key));
                }
                ConfigError::Rule { settings, rule }
            }
            other => other,
        }
    }
}

/// Collects values layer by layer, and what is wrong with them.
struct Loader {
    keys: Keys,
    tree: Value,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ConfigError>,
    /// Keys whose values were refused: rules about them would mislead.
    refused: Vec<String>,
}

impl Loader {
    fn new() -> Self {
        let keys = Keys::known();
        Self { tree: keys.defaults(), keys, origins: BTreeMap::new(), errors: Vec::new(), refused: Vec::new() }
    }

    fn add_file(&mut self, path: &Path) {
        let sections = match read_toml(path) {
            Ok(sections) => sections,
            Err(error) => {
                self.refused.extend_from_slice(self.keys.names());
                return self.errors.push(error);
            }
        };
        self.add_section(sections, "", &Origin::File(path.to_owned()));
    }

    fn add_section(&mut self, section: Dict, path: &str, origin: &Origin) {
        for (name, value) in section {
            let key = keys::join(path, &name);
            let is_section = self.keys.in_section(&key).next().is_some();
            match value {
                value if self.keys.contains(&key) => self.add(&key, &[value], origin.clone()),
                Value::Dict(_, section) if is_section || !section.is_empty() => {
                    self.add_section(section, &key, origin);
                }
                value if is_section => self.refuse_section(&key, &value, origin),
                _ => self.refuse_key(key, origin.clone()),
            }
        }
    }

    fn add_env(&mut self, env: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut ours: Vec<(String, OsString)> = env
            .into_iter()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
            .filter(|(name, _)| keys::is_env_name(name))
            .collect();
        ours.sort();
        for (name, value) in ours {
            let key = self.keys.of_env(&name).map(str::to_owned);
            match (key, value.into_string()) {
                (None, _) => self.refuse_key(keys::key_of_env(&name), Origin::Env(name)),
                (Some(key), Ok(text)) => self.add_text(&key, &text, Origin::Env(name)),
                (Some(key), Err(_)) => {
                    self.refuse_value(&key, "(not UTF-8)".to_owned(), Origin::Env(name), "expected UTF-8 text")
                }
            }
        }
    }

    fn add_text(&mut self, key: &str, text: &str, origin: Origin) {
        if self.keys.contains(key) {
            self.add(key, &readings(text), origin);
        } else {
            self.refuse_key(key.to_owned(), origin);
        }
    }

    /// Sets `key` to the first of `readings` that it takes.
    fn add(&mut self, key: &str, readings: &[Value], origin: Origin) {
        let mut deepest: Option<(FigmentError, &Value)> = None;
        for reading in readings {
            let mut trial = self.keys.defaults();
            keys::set(&mut trial, key, reading.clone());
            match trial.deserialize::<Config>() {
                Ok(_) => {
                    keys::set(&mut self.tree, key, reading.clone());
                    self.refused.retain(|refused| refused != key);
                    self.origins.insert(key.to_owned(), origin);
                    return;
                }
                Err(_) if reading.to_empty().is_some() => {}
                // Of several readings the one that got furthest into the value is the one that was meant.
                Err(error) if deepest.as_ref().is_none_or(|(known, _)| known.path.len() < error.path.len()) => {
                    deepest = Some((error, reading));
                }
                Err(_) => {}
            }
        }
        if let Some((error, reading)) = deepest {
            self.refuse_reading(key, reading, origin, error);
        }
    }

    fn refuse_key(&mut self, key: String, origin: Origin) {
        let nearest = match &origin {
            // A variable is compared with variables, and named as one.
            Origin::Env(_) => keys::env_name(&self.keys.nearest(&key)),
            _ => self.keys.nearest(&key),
        };
        self.errors.push(ConfigError::UnknownKey { key, origin, nearest });
    }

    fn refuse_section(&mut self, section: &str, value: &Value, origin: &Origin) {
        let keys: Vec<&str> = self.keys.in_section(section).take(8).collect();
        let reason = format!("expected a section with keys such as {}", keys.join(", "));
        self.refuse_value(section, keys::written(value), origin.clone(), &reason);
    }

    fn refuse_reading(&mut self, key: &str, reading: &Value, origin: Origin, error: FigmentError) {
        self.refused.push(key.to_owned());
        // Inside a list the error knows better where it is: `auth.keys.0.secret-key`.
        let path = error.path.join(".");
        let at = if path.starts_with(key) { path.as_str() } else { key };
        if let Kind::UnknownField(field, known) = &error.kind {
            let score = |name: &str| strsim::normalized_damerau_levenshtein(name, field);
            let nearest = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
            let (key, nearest) = (at.to_owned(), keys::join(key, nearest.copied().unwrap_or_default()));
            return self.errors.push(ConfigError::UnknownKey { key, origin, nearest });
        }
        let value = if keys::is_secret(key) { "********".to_owned() } else { keys::written(reading) };
        self.refuse_value(at, value, origin, &reason(&error.kind));
    }

    fn refuse_value(&mut self, key: &str, value: String, origin: Origin, reason: &str) {
        let setting = NamedValue { key: key.to_owned(), value, origin: Some(origin) };
        self.errors.push(ConfigError::WrongValue { setting, reason: reason.to_owned() });
    }

    fn finish(self) -> Result<Loaded, ConfigErrors> {
        let config = self.tree.deserialize().expect("each value was tried, and they do not depend on each other");
        let loaded = Loaded { config, origins: self.origins };
        let mut errors = self.errors;
        if !errors.is_empty() {
            errors.extend(broken_rules(&loaded, &self.refused));
        }
        ConfigErrors::none_or(errors, loaded)
    }
}

/// Broken rules that are not about a refused key.
fn broken_rules(loaded: &Loaded, refused: &[String]) -> Vec<ConfigError> {
    let mut errors = loaded.settings().err().map(ConfigErrors::into_vec).unwrap_or_default();
    errors.retain(|error| match error {
        ConfigError::Rule { settings, .. } => !settings.iter().any(|setting| refused.contains(&setting.key)),
        _ => true,
    });
    errors
}

fn read_toml(path: &Path) -> Result<Dict, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let profiles = Toml::string(&text).data().map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        reason: without_source_lines(&error.kind.to_string()),
    })?;
    Ok(profiles.into_values().next().unwrap_or_default())
}

/// A parser's message without the lines it quotes, which may hold a secret.
fn without_source_lines(message: &str) -> String {
    let lines: Vec<&str> =
        message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|')).collect();
    lines.join(": ")
}

/// What a text from the environment or a flag may mean, the key's type decides: the value that TOML would read,
/// the text as it is, a list without brackets, or nothing.
///
/// The text as it is comes first, as `123` may be a password.
fn readings(text: &str) -> Vec<Value> {
    let mut readings = Vec::new();
    if text.is_empty() {
        readings.push(Value::from(Empty::None));
    }
    readings.push(Value::from(text));
    // figment takes a character's number for its place in bytes when it unescapes, and panics.
    if text.is_ascii() || !text.contains('\\') {
        readings.push(text.parse().unwrap_or_else(|never| match never {}));
    }
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let items = inner.split([',', ';']).map(str::trim).filter(|item| !item.is_empty());
    readings.push(Value::from(items.collect::<Vec<_>>()));
    readings
}

/// What is wrong and what is allowed, without the value.
fn reason(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.clone(),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("expected {}", plain_words(expected))
        }
        Kind::MissingField(field) => format!("`{field}` is missing"),
        other => other.to_string(),
    }
}

/// A Rust type in words.
fn plain_words(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "text",
        "a sequence" => "a list",
        expected if expected.starts_with("struct ") => "a table",
        expected => expected,
    }
}
