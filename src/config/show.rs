//! Every key, its value and where it came from.

use super::error::Origin;
use super::keys::{self, Keys};
use super::load::Loaded;

impl Loaded {
    /// One line per key, sorted: valid TOML with the origin as a comment, secrets masked.
    ///
    /// ```text
    /// # store.access-key (not set)         # default
    /// store.url = "s3://flink-state/prod"  # file /etc/esker/config.toml
    /// ```
    pub fn show(&self) -> String {
        let lines: Vec<(String, Origin)> =
            self.values().into_iter().map(|(key, value)| (line(&key, &value), self.origin(&key))).collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 100).max();
        let width = width.unwrap_or_default();
        lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect()
    }

    /// Every key with its value as TOML writes it.
    fn values(&self) -> Vec<(String, String)> {
        let tree = keys::tree_of(&self.config);
        let known = Keys::known();
        let value = |key: &String| tree.find_ref(key).map(keys::written).unwrap_or_default();
        known.names().iter().map(|key| (key.clone(), value(key))).collect()
    }
}

fn line(key: &str, value: &str) -> String {
    if value == keys::NOT_SET { format!("# {key} {value}") } else { format!("{key} = {value}") }
}
