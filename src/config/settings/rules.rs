//! Collects broken rules and warnings. None hides another.

use crate::config::error::{ConfigError, ConfigErrors, NamedValue};
use crate::config::schema::Config;

/// Collects the broken and the odd settings of a configuration.
pub(super) struct Rules<'a> {
    pub config: &'a Config,
    broken: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl<'a> Rules<'a> {
    /// Collects about `config`; nothing is collected yet.
    pub(super) fn about(config: &'a Config) -> Self {
        Self { config, broken: Vec::new(), warnings: Vec::new() }
    }

    /// Unless `ok`, reports `keys`, their values and the `rule` they break.
    pub(super) fn require(&mut self, ok: bool, keys: &[&str], rule: impl Into<String>) {
        if !ok {
            let settings = self.named(keys);
            self.broken.push(ConfigError::Rule { settings, rule: rule.into() });
        }
    }

    /// If `odd`, warns about `keys` and their values.
    pub(super) fn warn_if(&mut self, odd: bool, keys: &[&str], warning: &str) {
        if odd {
            let settings: Vec<String> = self.named(keys).iter().map(NamedValue::to_string).collect();
            self.warnings.push(format!("{}: {warning}", settings.join(", ")));
        }
    }

    fn named(&self, keys: &[&str]) -> Vec<NamedValue> {
        let entries = self.config.entries();
        let value = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.to_string());
        let named =
            |key: &&str| NamedValue { key: (*key).to_owned(), value: value(key).unwrap_or_default(), origin: None };
        keys.iter().map(named).collect()
    }

    /// The warnings, if no rule is broken.
    pub(super) fn finish(self) -> Result<Vec<String>, ConfigErrors> {
        ConfigErrors::none_or(self.broken, self.warnings)
    }
}
