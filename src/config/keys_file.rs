//! `auth.keys-file`: access keys and tokens that may change while the daemon runs.
//!
//! ```toml
//! # Bearer tokens of the native API: these open all of it, those only read.
//! tokens = ["change-me"]
//! read-tokens = ["change-me-too"]
//!
//! [[keys]]
//! access-key = "team-a"
//! secret-key = "change-me"
//! prefixes = ["flink-state/team-a/"]   # left out: everything
//! access = "read"                      # or "read-write", the default
//! ```
//!
//! A table of `[[keys]]` is that of `[[auth.keys]]`.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::{ConfigError, ConfigErrors, NamedValue, Origin};
use super::keys;
use super::schema::AuthKeyConfig;
use super::settings::doors::{ACCESS_KEY_RULE, PREFIX_RULE, TOKEN_RULE, is_access_key, is_prefix, is_token};
use super::settings::{AuthSettings, S3Key};
use super::values::{InvalidLiteral, InvalidLiteralCause, Literal, Placed, Secret, Setting, read_document};

const KEYS: &str = "keys";
const TOKENS: &str = "tokens";
const READ_TOKENS: &str = "read-tokens";
const PREFIXES: &str = "prefixes";
const MASK: &str = "********";
/// Permissions of others, and the permission to write of the group.
const TOO_OPEN: u32 = 0o027;

/// The access keys and tokens of a file.
#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(PartialEq))]
pub struct KeysFile {
    /// Of the S3 door.
    pub(crate) keys: Vec<S3Key>,
    /// Whether the file says which those are, if only that there are none: `keys = []`.
    pub(crate) says_keys: bool,
    /// Of the native API.
    pub(crate) tokens: Vec<Secret>,
    /// Of the native API, to read.
    pub(crate) read_tokens: Vec<Secret>,
}

impl KeysFile {
    /// Reads the text of the file at `path`. What `configured` has besides it must not be in it again.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once, by line; no secret is in the messages.
    pub fn parse(path: &Path, text: &str, configured: &AuthSettings) -> Result<Self, ConfigErrors> {
        let entries = read_document(text).map_err(|error| {
            let syntax = ConfigError::Syntax { path: path.to_owned(), reason: error.to_string() };
            ConfigErrors::of(vec![syntax])
        })?;
        let mut reader = KeysFileReader { path, errors: vec![], names: HashSet::new() };
        reader.names.extend(configured.keys.iter().map(|key| key.access_key.clone()));
        let mut file = Self::default();
        for (name, placed) in &entries {
            match name.as_str() {
                KEYS => (file.keys, file.says_keys) = (reader.keys(placed), true),
                TOKENS => file.tokens = reader.tokens(TOKENS, placed),
                READ_TOKENS => file.read_tokens = reader.tokens(READ_TOKENS, placed),
                other => {
                    let nearest = keys::most_alike([KEYS, TOKENS, READ_TOKENS].into_iter(), other).unwrap_or(KEYS);
                    reader.unknown(other.to_owned(), placed.line, nearest.to_owned());
                }
            }
        }
        let tokens = configured.tokens.iter().chain(&file.tokens).chain(&file.read_tokens);
        let mut known = HashSet::new();
        if !tokens.map(Secret::expose).all(|token| known.insert(token)) {
            reader.wrong(TOKENS.to_owned(), 1, TOKEN_RULE);
        }
        ConfigErrors::none_or(reader.errors, file)
    }

    /// Reads the file at `path`. Returns its text, too, which a later look is compared with.
    ///
    /// # Errors
    /// As [`Self::parse`], or that it cannot be read.
    pub fn read(path: &Path, configured: &AuthSettings) -> Result<(Self, String), ConfigErrors> {
        let unreadable = |source| ConfigErrors::of(vec![ConfigError::Unreadable { path: path.to_owned(), source }]);
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(path, &text, configured).map(|file| (file, text))
    }
}

/// A warning about a file with a secret that others may read, or may change. `key` names it in the configuration.
pub fn readable_by_others(key: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & TOO_OPEN != 0).then(|| {
        format!("{key} = {path:?}: holds a secret, and its permissions ({mode:03o}) let others at it: chmod 600")
    })
}

/// Collects what is wrong.
struct KeysFileReader<'a> {
    path: &'a Path,
    errors: Vec<ConfigError>,
    names: HashSet<String>,
}

impl KeysFileReader<'_> {
    fn keys(&mut self, placed: &Placed) -> Vec<S3Key> {
        let Literal::List(items) = &placed.literal else {
            self.wrong(KEYS.to_owned(), placed.line, "expected tables, [[keys]]");
            return vec![];
        };
        let mut found = vec![];
        for (at, item) in items.iter().enumerate() {
            let key = match AuthKeyConfig::read(&item.literal) {
                Ok(key) => S3Key::from(&key),
                Err(refusal) => {
                    self.refuse(format!("{KEYS}.{at}"), item.line, refusal);
                    continue;
                }
            };
            let named = format!("{KEYS}.{at}.access-key");
            if !is_access_key(&key.access_key) || key.secret_key.expose().is_empty() {
                self.wrong(named, item.line, ACCESS_KEY_RULE);
            } else if !self.names.insert(key.access_key.clone()) {
                self.wrong(named, item.line, "an access key must not appear twice, here or in the configuration");
            } else if !key.prefixes.iter().all(|prefix| is_prefix(prefix)) {
                self.wrong(format!("{KEYS}.{at}.{PREFIXES}"), item.line, PREFIX_RULE);
            }
            found.push(key);
        }
        found
    }

    fn tokens(&mut self, name: &str, placed: &Placed) -> Vec<Secret> {
        let tokens = match Vec::<Secret>::read(&placed.literal) {
            Ok(tokens) => tokens,
            Err(refusal) => {
                self.refuse(name.to_owned(), placed.line, refusal);
                return vec![];
            }
        };
        if !tokens.iter().all(|token| is_token(token.expose())) {
            self.wrong(name.to_owned(), placed.line, TOKEN_RULE);
        }
        tokens
    }

    fn refuse(&mut self, key: String, line: usize, refusal: InvalidLiteral) {
        let at = refusal.path.iter().fold(key.clone(), |at, part| keys::join(&at, part));
        let line = refusal.line.unwrap_or(line);
        match refusal.cause {
            InvalidLiteralCause::UnknownField { nearest } => self.unknown(at, line, keys::join(&key, nearest)),
            InvalidLiteralCause::Value(error) => self.wrong(at, line, &error.to_string()),
        }
    }

    fn unknown(&mut self, key: String, line: usize, nearest: String) {
        let origin = self.origin(line);
        self.errors.push(ConfigError::UnknownKey { key, origin, nearest });
    }

    fn wrong(&mut self, key: String, line: usize, reason: &str) {
        let setting = NamedValue { key, value: MASK.to_owned(), origin: Some(self.origin(line)) };
        self.errors.push(ConfigError::WrongValue { setting, reason: reason.to_owned() });
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyAccess;

    fn configured() -> AuthSettings {
        let access = KeyAccess::ReadWrite;
        let main = S3Key { access_key: "main".into(), secret_key: Secret::new("s"), prefixes: vec![], access };
        AuthSettings { keys: vec![main], tokens: vec![Secret::new("t0")], keys_file: None }
    }

    fn parse(text: &str) -> Result<KeysFile, String> {
        KeysFile::parse(Path::new("keys.toml"), text, &configured()).map_err(|errors| errors.to_string())
    }

    #[test]
    fn keys_and_tokens_are_read() {
        let file = parse(
            "tokens = ['t1']\nread-tokens = ['t2']\n[[keys]]\naccess-key = 'a'\nsecret-key = 'x'\nprefixes = ['b/in/']\n\
             access = 'read'\n[[keys]]\naccess-key = 'c'\nsecret-key = 'y'\n",
        )
        .unwrap();

        assert_eq!((file.tokens, file.read_tokens), (vec![Secret::new("t1")], vec![Secret::new("t2")]));
        let names: Vec<_> = file.keys.iter().map(|key| (key.access_key.as_str(), key.access)).collect();
        assert_eq!(names, [("a", KeyAccess::Read), ("c", KeyAccess::ReadWrite)]);
        assert_eq!(file.keys[0].prefixes, ["b/in/"]);
        assert_eq!(parse("").unwrap(), KeysFile::default());
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_no_secret_is_told() {
        let key = |rest: &str| format!("\n[[keys]]\naccess-key = 'a'\nsecret-key = 'hunter2'\n{rest}");
        for (text, wanted) in [
            ("keys = 'hunter2'".to_owned(), "keys = ******** (file keys.toml:1): expected tables"),
            ("key = 1".to_owned(), "unknown key `key` (file keys.toml:1), the nearest known key is `keys`"),
            (
                key("acess = 'read'"),
                "unknown key `keys.0.acess` (file keys.toml:5), the nearest known key is `keys.0.access`",
            ),
            (
                key("access = 'write'"),
                "keys.0.access = ******** (file keys.toml:5): expected one of `read-write` `read`",
            ),
            (key("prefixes = ['/b']"), "keys.0.prefixes = ******** (file keys.toml:2): a prefix must be"),
            (key("prefixes = []"), "keys.0.prefixes = ******** (file keys.toml:5): expected one prefix or more"),
            (key(&key("")), "keys.1.access-key = ******** (file keys.toml:6): an access key must not appear twice"),
            (
                key("").replace("'a'", "'main'"),
                "keys.0.access-key = ******** (file keys.toml:2): an access key must not",
            ),
            (key("").replace("'a'", "'a b'"), "an access key must be 1 to 128"),
            ("[[keys]]\naccess-key = 'a'".to_owned(), "`secret-key` is missing"),
            ("tokens = ['t0']".to_owned(), "tokens must be different"),
            ("tokens = ['hunter 2']".to_owned(), "tokens must be different"),
            ("tokens = [hunter2]".to_owned(), "is not TOML"),
        ] {
            let error = parse(&text).unwrap_err();

            assert!(error.contains(wanted) && !error.contains("hunter"), "{text}: {error}");
        }
    }
}
