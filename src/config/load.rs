//! Lays the environment over the file and flags over both, and reports everything that is wrong at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::error::{ConfigError, ConfigErrors, NamedValue, Origin};
use super::keys::{self, ConfigKeys};
use super::schema::{Config, ConfigEntry, Node};
use super::settings::Settings;
use super::values::{InvalidLiteral, InvalidLiteralCause, Literal, Placed, read_document};

/// A configuration and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub(super) config: Config,
    /// By key, e.g. `store.url`. Keys that nobody set are absent.
    pub(super) origins: BTreeMap<String, Origin>,
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
        ConfigKeys::known().names().to_vec()
    }
}

impl Loaded {
    /// Checks all rules and returns what the daemon works with. A key that somebody set and that has no effect is among
    /// its warnings.
    ///
    /// # Errors
    /// Every broken rule, with the keys, values and origins it is about.
    pub fn settings(&self) -> Result<Settings, ConfigErrors> {
        let settings = Settings::try_from(&self.config);
        let mut settings = settings.map_err(|errors| errors.map(|error| self.with_origins(error)))?;
        settings.warnings.extend(self.without_effect());
        Ok(settings)
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// A sentence for each key that somebody set and that has no effect.
    fn without_effect(&self) -> Vec<String> {
        let warning = |entry: ConfigEntry| {
            let why = entry.effect.warning()?;
            let origin = Some(self.origins.get(&entry.key).filter(|_| entry.value != Literal::Unset)?.clone());
            Some(format!("{}: {why}", NamedValue { key: entry.key, value: entry.value.to_string(), origin }))
        };
        self.config.entries().into_iter().filter_map(warning).collect()
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
    keys: ConfigKeys,
    config: Config,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ConfigError>,
    /// Keys whose values were refused: rules about them would mislead.
    refused: Vec<String>,
}

impl Loader {
    fn new() -> Self {
        Self {
            keys: ConfigKeys::known(),
            config: Config::default(),
            origins: BTreeMap::new(),
            errors: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn add_file(&mut self, path: &Path) {
        match read_file(path) {
            Ok(sections) => self.add_section(&sections, "", path),
            Err(error) => {
                self.refused.extend_from_slice(self.keys.names());
                self.errors.push(error);
            }
        }
    }

    fn add_section(&mut self, section: &[(String, Placed)], path: &str, file: &Path) {
        for (name, Placed { literal, line }) in section {
            let key = keys::join(path, name);
            let origin = Origin::File { path: file.to_owned(), line: *line };
            let is_section = self.keys.in_section(&key).next().is_some();
            match literal {
                literal if self.keys.contains(&key) => self.add_once(&key, literal, origin),
                Literal::Table(section) if is_section || !section.is_empty() => self.add_section(section, &key, file),
                literal if is_section => self.refuse_section(&key, literal, origin),
                _ => self.refuse_key(key, origin),
            }
        }
    }

    /// Sets a key of the file. TOML finds most keys that are there twice, but not `"a.b"` beside `a.b`.
    fn add_once(&mut self, key: &str, literal: &Literal, origin: Origin) {
        match self.origins.get(key) {
            Some(first) => {
                let reason = format!("is set before that ({first})");
                self.refuse_value(key, masked(key, literal), origin, &reason);
            }
            None => self.add(key, std::slice::from_ref(literal), origin),
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
        self.add(key, &Literal::readings(text), origin);
    }

    /// Sets `key` to the first of `readings` that it takes.
    fn add(&mut self, key: &str, readings: &[Literal], origin: Origin) {
        let mut deepest: Option<(InvalidLiteral, &Literal)> = None;
        for reading in readings {
            match self.config.set(key, reading) {
                None => return self.refuse_key(key.to_owned(), origin),
                Some(Ok(())) => {
                    self.refused.retain(|refused| refused != key);
                    self.origins.insert(key.to_owned(), origin);
                    return;
                }
                Some(Err(_)) if *reading == Literal::Unset => {}
                // Of several readings the one that got furthest into the value is the one that was meant.
                Some(Err(refusal))
                    if deepest.as_ref().is_none_or(|(known, _)| known.path.len() < refusal.path.len()) =>
                {
                    deepest = Some((refusal, reading));
                }
                Some(Err(_)) => {}
            }
        }
        if let Some((refusal, reading)) = deepest {
            self.refuse_reading(key, reading, origin, refusal);
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

    fn refuse_section(&mut self, section: &str, literal: &Literal, origin: Origin) {
        let keys: Vec<&str> = self.keys.in_section(section).take(8).collect();
        let reason = format!("expected a section with keys such as {}", keys.join(", "));
        self.refuse_value(section, masked(section, literal), origin, &reason);
    }

    fn refuse_reading(&mut self, key: &str, reading: &Literal, origin: Origin, refusal: InvalidLiteral) {
        self.refused.push(key.to_owned());
        // Inside a list the refusal knows better where it is: `auth.keys.0.secret-key`.
        let at = refusal.path.iter().fold(key.to_owned(), |at, part| keys::join(&at, part));
        let origin = match (origin, refusal.line) {
            (Origin::File { path, .. }, Some(line)) => Origin::File { path, line },
            (origin, _) => origin,
        };
        match refusal.cause {
            InvalidLiteralCause::UnknownField { nearest } => {
                let nearest = keys::join(key, nearest);
                self.errors.push(ConfigError::UnknownKey { key: at, origin, nearest });
            }
            InvalidLiteralCause::Value(error) => {
                self.refuse_value(&at, masked(key, reading), origin, &error.to_string())
            }
        }
    }

    fn refuse_value(&mut self, key: &str, value: String, origin: Origin, reason: &str) {
        let setting = NamedValue { key: key.to_owned(), value, origin: Some(origin) };
        self.errors.push(ConfigError::WrongValue { setting, reason: reason.to_owned() });
    }

    fn finish(self) -> Result<Loaded, ConfigErrors> {
        let loaded = Loaded { config: self.config, origins: self.origins };
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

fn read_file(path: &Path) -> Result<Vec<(String, Placed)>, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    read_document(&text).map_err(|error| ConfigError::Syntax { path: path.to_owned(), reason: error.to_string() })
}

/// `literal` for a message: nothing of it where it may hold a secret.
fn masked(key: &str, literal: &Literal) -> String {
    if keys::is_secret(key) { "********".to_owned() } else { literal.to_string() }
}
