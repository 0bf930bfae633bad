//! Every key, its value and where it came from.

use super::error::Origin;
use super::load::Loaded;
use super::schema::ConfigEntry;
use super::values::Literal;

impl Loaded {
    /// One line per key, sorted: valid TOML with the origin as a comment, secrets masked.
    ///
    /// ```text
    /// # store.access-key (not set)         # default
    /// store.url = "s3://flink-state/prod"  # file /etc/esker/config.toml:12
    /// ```
    pub fn show(&self) -> String {
        let entries = self.config.entries();
        let lines: Vec<(String, Origin)> =
            entries.into_iter().map(|entry| (line(&entry), self.origin(&entry.key))).collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 100).max();
        let width = width.unwrap_or_default();
        lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect()
    }
}

fn line(ConfigEntry { key, value, .. }: &ConfigEntry) -> String {
    if *value == Literal::Unset { format!("# {key} {value}") } else { format!("{key} = {value}") }
}
