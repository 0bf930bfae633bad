//! Reads the arguments of the examples: `--name value`, each once and in any order.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Arguments that were given and not taken yet.
pub(crate) struct GivenArguments(BTreeMap<String, String>);

impl GivenArguments {
    /// The arguments of this process, and whether the word `command` stands before them.
    pub(crate) fn read(command: &str) -> Result<(bool, Self), String> {
        let mut words = std::env::args().skip(1).peekable();
        let commanded = words.next_if(|word| word == command).is_some();
        let mut given = BTreeMap::new();
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name} wants a value"))?;
            if !name.starts_with("--") || given.insert(name.clone(), value).is_some() {
                return Err(format!("{name}: give arguments as --name value, each once"));
            }
        }
        Ok((commanded, Self(given)))
    }

    /// Takes the value of `name`; without `default` it must be there.
    pub(crate) fn take<T: FromStr>(&mut self, name: &str, default: Option<&str>) -> Result<T, String> {
        let text = self.0.remove(name).or_else(|| default.map(str::to_owned));
        let text = text.ok_or_else(|| format!("{name} is missing"))?;
        text.parse().map_err(|_| format!("{name}: {text:?} is no value of it"))
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(unknown) => Err(format!("{unknown} is not known")),
            None => Ok(()),
        }
    }
}
