//! Who may come in at the doors, and what they may touch: access keys and tokens, of the configuration and of a file that may
//! change while the daemon runs.
//!
//! # Invariants
//! - A door that once asked for credentials asks for them, whatever becomes of the file.
//! - A request is judged by the keys of the moment at which it is judged.
//! - A file that is being written is not taken for one that is written: two looks have to find the same.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use parking_lot::{Mutex, RwLock};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::status::ApiError;
use crate::config::{AuthSettings, KeyAccess, KeysFile, S3Key, Secret, Settings, readable_by_others};
use crate::metrics::Metrics;
use crate::metrics::labels::{ReloadOutcome, Reloadable};
use crate::runtime::Share;

/// The key that names the file.
const KEYS_FILE: &str = "auth.keys-file";
/// Between two looks at a file that has changed.
const SETTLE: Duration = Duration::from_millis(250);
/// Looks at a file that goes on changing, until the next round.
const LOOKS_MAX: usize = 20;

/// Access keys and tokens. Clones share them.
#[derive(Clone)]
pub struct KeyRing(Arc<RingShared>);

crate::runtime::opaque_debug!(KeyRing);

struct RingShared {
    settings: AuthSettings,
    memory_bytes: u64,
    metrics: Metrics,
    current: RwLock<Arc<Keys>>,
    seen: Mutex<SeenFile>,
}

/// Texts of the file; `None` where it could not be read.
struct SeenFile {
    /// What was taken or refused last.
    judged: Option<String>,
    /// What the last look found, if that is something else: it may be half of it.
    latest: Option<Option<String>>,
}

/// What a look at the file says.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Known,
    Changing,
    Changed,
}

impl SeenFile {
    fn look(&mut self, text: Option<String>) -> Look {
        if text == self.judged {
            self.latest = None;
            return Look::Known;
        }
        if self.latest.as_ref() != Some(&text) {
            self.latest = Some(text);
            return Look::Changing;
        }
        (self.judged, self.latest) = (text, None);
        Look::Changed
    }
}

/// The keys and tokens of a moment.
#[derive(Debug)]
pub struct Keys {
    keys: HashMap<String, KnownKey>,
    unknown: Arc<Grants>,
    tokens: Vec<KnownToken>,
    asks_for_tokens: bool,
    /// Keys and tokens of the file.
    in_file: (usize, usize),
}

/// An access key of the S3 door.
#[derive(Debug, Clone)]
pub struct KnownKey {
    /// Checks signatures.
    pub secret: Secret,
    /// What it may.
    pub grants: Arc<Grants>,
    /// The share of the memory that it may hold, where there are several keys.
    pub share: Option<Share>,
}

/// A token of the native API.
#[derive(Debug, Clone)]
pub struct KnownToken {
    secret: Secret,
    /// What it may.
    pub access: KeyAccess,
    /// The share of the memory that it may hold, where there are several.
    pub share: Option<Share>,
}

/// The buckets and keys that an access key may touch, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    reach: Reach,
    access: KeyAccess,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    All,
    None,
    /// Everything below these `bucket/key` prefixes.
    Below(Vec<String>),
}

impl KeyRing {
    /// The keys of the configuration, and those of its file, with the text that they were read from.
    pub fn new(settings: &Settings, file: (KeysFile, Option<String>), metrics: Metrics) -> Self {
        Self::of(settings.auth.clone(), file, settings.limits.key_memory_bytes, metrics)
    }

    fn of(
        settings: AuthSettings,
        (file, seen): (KeysFile, Option<String>),
        memory_bytes: u64,
        metrics: Metrics,
    ) -> Self {
        let keys = Keys::new(&settings, file, memory_bytes, None);
        let seen = Mutex::new(SeenFile { judged: seen, latest: None });
        let current = RwLock::new(Arc::new(keys));
        Self(Arc::new(RingShared { settings, memory_bytes, metrics, current, seen }))
    }

    /// The keys of now.
    pub fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.0.current.read())
    }

    /// Looks at the file, and uses what is new in it.
    ///
    /// # Cancel safety
    /// Cancel safe: a change is used as a whole, or found again.
    pub async fn reload(&self) {
        let shared = &*self.0;
        let Some(path) = &shared.settings.keys_file else { return };
        for _ in 0..LOOKS_MAX {
            let text = tokio::fs::read_to_string(path).await;
            let look = shared.seen.lock().look(text.as_ref().ok().cloned());
            match look {
                Look::Known => return,
                Look::Changing => tokio::time::sleep(SETTLE).await,
                Look::Changed => return self.judge(path, text),
            }
        }
        tracing::warn!(file = %path.display(), "the file of access keys changes at each look, the old keys stay until it rests");
    }

    /// Takes what a changed file holds, or says why not.
    fn judge(&self, path: &Path, text: std::io::Result<String>) {
        let shared = &*self.0;
        let before = self.current();
        let read = match text {
            Ok(text) => KeysFile::parse(path, &text, &shared.settings).map_err(|errors| errors.to_string()),
            Err(error) => Err(format!("{KEYS_FILE} = {path:?}: {error}")),
        };
        let meant = read.and_then(|file| if before.are_lost_in(&file) { Err(lost(path)) } else { Ok(file) });
        let outcome = match meant {
            Ok(file) => {
                let keys = Keys::new(&shared.settings, file, shared.memory_bytes, Some(&before));
                tracing::info!(file = %path.display(), keys = keys.keys.len(), tokens = keys.tokens.len(),
                    "new access keys are in use");
                if let Some(warning) = readable_by_others(KEYS_FILE, path) {
                    tracing::warn!("{warning}");
                }
                *shared.current.write() = Arc::new(keys);
                ReloadOutcome::Loaded
            }
            Err(error) => {
                tracing::warn!(error, "the new access keys cannot be used, the old ones stay");
                ReloadOutcome::Refused
            }
        };
        shared.metrics.reloads.of((Reloadable::Keys, outcome)).inc();
    }
}

fn lost(path: &Path) -> String {
    format!("{KEYS_FILE} = {path:?}: no keys are left in it; if that is meant, write: keys = []")
}

/// Warns of a file of keys that others may read.
pub fn warning(settings: &AuthSettings) -> Option<String> {
    readable_by_others(KEYS_FILE, settings.keys_file.as_deref()?)
}

impl Keys {
    /// A key that was there before keeps what it holds of its share.
    fn new(settings: &AuthSettings, file: KeysFile, memory_bytes: u64, before: Option<&Self>) -> Self {
        let in_file = (file.keys.len(), file.tokens.len() + file.read_tokens.len());
        let all: Vec<&S3Key> = settings.keys.iter().chain(&file.keys).collect();
        let several = all.len() > 1;
        let share = |key: &S3Key| {
            let held = before.and_then(|before| before.keys.get(&key.access_key)?.share.clone());
            several.then(|| held.unwrap_or_else(|| Share::new(memory_bytes)))
        };
        let known = |key: &&S3Key| {
            let grants = Arc::new(Grants::of(key));
            (key.access_key.clone(), KnownKey { secret: key.secret_key.clone(), grants, share: share(key) })
        };
        let asks = !all.is_empty() || settings.keys_file.is_some();
        let reach = if asks { Reach::None } else { Reach::All };
        let to_write = settings.tokens.iter().chain(&file.tokens).map(|token| (token, KeyAccess::ReadWrite));
        let tokens: Vec<_> = to_write.chain(file.read_tokens.iter().map(|token| (token, KeyAccess::Read))).collect();
        // A single token has nobody to leave any memory to.
        let several_tokens = tokens.len() > 1;
        let known_token = |(secret, access): &(&Secret, KeyAccess)| {
            let same = |known: &&KnownToken| known.secret == **secret;
            let held = before.and_then(|before| before.tokens.iter().find(same)?.share.clone());
            let share = several_tokens.then(|| held.unwrap_or_else(|| Share::new(memory_bytes)));
            KnownToken { secret: (*secret).clone(), access: *access, share }
        };
        Self {
            keys: all.iter().map(known).collect(),
            unknown: Arc::new(Grants { reach, access: KeyAccess::ReadWrite }),
            asks_for_tokens: !tokens.is_empty() || settings.keys_file.is_some(),
            tokens: tokens.iter().map(known_token).collect(),
            in_file,
        }
    }

    /// Whether a file has none of what was in it before, and does not say so: somebody may have emptied it to write it anew.
    fn are_lost_in(&self, file: &KeysFile) -> bool {
        let (keys, tokens) = self.in_file;
        let nothing = file.keys.is_empty() && file.tokens.is_empty() && file.read_tokens.is_empty();
        !file.says_keys && (keys > 0 && file.keys.is_empty() || tokens > 0 && nothing)
    }

    /// The access key of this name.
    pub fn get(&self, access_key: &str) -> Option<&KnownKey> {
        self.keys.get(access_key)
    }

    /// What the signer of a request may. Without keys, everybody may touch everything.
    pub fn grants_of(&self, access_key: Option<&str>) -> Arc<Grants> {
        Arc::clone(access_key.and_then(|key| self.keys.get(key)).map_or(&self.unknown, |known| &known.grants))
    }

    /// Whether nobody has to sign anything.
    pub fn is_open(&self) -> bool {
        self.unknown.reach == Reach::All
    }

    /// Whether neither door asks who somebody is.
    pub fn lets_everybody_in(&self) -> bool {
        self.is_open() && !self.asks_for_tokens()
    }

    /// Whether the native API asks for a token.
    fn asks_for_tokens(&self) -> bool {
        self.asks_for_tokens
    }

    /// The token of a request to the native API, where it sends one that is known.
    ///
    /// # Errors
    /// 401 if tokens are asked for and it has none of them, 403 if it `writes` and the token may only read.
    pub fn bearer(&self, headers: &HeaderMap, writes: bool) -> Result<Option<&KnownToken>, ApiError> {
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let known = sent.and_then(|value| value.strip_prefix("Bearer ")).and_then(|sent| self.token(sent));
        let (message, status) = match known {
            Some(token) if writes && token.access == KeyAccess::Read => {
                ("the token may only read", StatusCode::FORBIDDEN)
            }
            None if self.asks_for_tokens() => {
                ("a bearer token of auth.tokens, or of auth.keys-file, is needed", StatusCode::UNAUTHORIZED)
            }
            known => return Ok(known),
        };
        Err(ApiError::invalid("authorization", message).with_status(status))
    }

    /// Finds the token. Compares with all of them, in a time that tells neither which one was meant nor where it differs.
    fn token(&self, sent: &str) -> Option<&KnownToken> {
        let mut found = u64::MAX;
        for (place, token) in (0..).zip(&self.tokens) {
            found.conditional_assign(&place, token.secret.expose().as_bytes().ct_eq(sent.as_bytes()));
        }
        usize::try_from(found).ok().and_then(|place| self.tokens.get(place))
    }
}

impl Grants {
    fn of(key: &S3Key) -> Self {
        let reach = match &key.prefixes[..] {
            [] => Reach::All,
            prefixes => Reach::Below(prefixes.iter().map(|prefix| whole_bucket(prefix)).collect()),
        };
        Self { reach, access: key.access }
    }

    /// Whether nothing may be touched.
    pub fn are_none(&self) -> bool {
        self.reach == Reach::None
    }

    /// Whether every key that begins so may be read.
    pub fn read(&self, bucket: &str, key_or_prefix: &str) -> bool {
        match &self.reach {
            Reach::All => true,
            Reach::None => false,
            Reach::Below(prefixes) => {
                let path = format!("{bucket}/{key_or_prefix}");
                prefixes.iter().any(|prefix| path.starts_with(prefix.as_str()))
            }
        }
    }

    /// Whether every key that begins so may be written and deleted.
    pub fn write(&self, bucket: &str, key_or_prefix: &str) -> bool {
        self.access == KeyAccess::ReadWrite && self.read(bucket, key_or_prefix)
    }

    /// Whether deleting `key` may be answered with success and left undone: it is a directory above what may be written.
    pub fn ignore_delete(&self, bucket: &str, key: &str) -> bool {
        match &self.reach {
            Reach::Below(prefixes) if key.ends_with('/') && self.access == KeyAccess::ReadWrite => {
                let path = format!("{bucket}/{key}");
                prefixes.iter().any(|prefix| prefix.starts_with(&path))
            }
            _ => false,
        }
    }

    /// Whether there is anything in a bucket that may be touched.
    pub fn see_bucket(&self, bucket: &str) -> bool {
        match &self.reach {
            Reach::All => true,
            Reach::None => false,
            Reach::Below(prefixes) => {
                prefixes.iter().any(|prefix| prefix.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('/')))
            }
        }
    }
}

/// A prefix that names a bucket alone is meant for that bucket, not for those whose names begin so.
fn whole_bucket(prefix: &str) -> String {
    if prefix.contains('/') { prefix.to_owned() } else { format!("{prefix}/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, prefixes: &[&str], access: KeyAccess) -> S3Key {
        let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        S3Key { access_key: name.into(), secret_key: Secret::new("S"), prefixes, access }
    }

    fn keys(keys: &[S3Key]) -> Keys {
        let settings = AuthSettings { keys: keys.to_vec(), tokens: vec![], keys_file: None };
        Keys::new(&settings, KeysFile::default(), 1, None)
    }

    fn grants(prefixes: &[&str], access: KeyAccess) -> Grants {
        Grants::of(&key("K", prefixes, access))
    }

    const BOTH: KeyAccess = KeyAccess::ReadWrite;

    #[test]
    fn without_keys_everybody_may_touch_everything_and_with_a_file_nobody() {
        let open = keys(&[]);
        assert!(open.is_open() && open.grants_of(None).write("b", "k") && open.grants_of(Some("any")).write("b", "k"));

        let one = keys(&[key("K", &[], BOTH)]);
        assert!(!one.is_open() && one.grants_of(None).are_none() && one.grants_of(Some("other")).are_none());
        assert!(one.grants_of(Some("K")).write("b", "k"));

        let settings = AuthSettings { keys: vec![], tokens: vec![], keys_file: Some("keys.toml".into()) };
        let empty = Keys::new(&settings, KeysFile::default(), 1, None);
        assert!(!empty.is_open() && empty.asks_for_tokens() && empty.grants_of(None).are_none());
    }

    #[test]
    fn a_prefix_covers_what_lies_below_it() {
        let grants = grants(&["b/jobs/", "whole"], BOTH);

        assert!(grants.read("b", "jobs/1") && grants.write("b", "jobs/1"));
        assert!(grants.read("whole", "") && grants.write("whole", "x"));
        assert!(!grants.read("b", "job") && !grants.read("b", "") && !grants.read("whole-2", "x"));
        assert!(grants.see_bucket("b") && grants.see_bucket("whole") && !grants.see_bucket("whole-2"));
    }

    #[test]
    fn who_may_read_may_not_write() {
        for prefixes in [&[][..], &["b/jobs/"]] {
            let grants = grants(prefixes, KeyAccess::Read);
            assert!(grants.read("b", "jobs/1") && grants.see_bucket("b"));
            assert!(!grants.write("b", "jobs/1") && !grants.ignore_delete("b", "jobs/"));
        }
    }

    #[test]
    fn markers_of_directories_above_are_deleted_in_name_only() {
        let grants = grants(&["b/jobs/a/"], BOTH);

        assert!(grants.ignore_delete("b", "jobs/"));
        assert!(!grants.ignore_delete("b", "jobs") && !grants.ignore_delete("b", "other/"));
    }

    #[test]
    fn a_key_keeps_what_it_holds_when_others_come() {
        let two = [key("K", &[], BOTH), key("L", &[], BOTH)];
        let before = keys(&two);
        let settings = AuthSettings { keys: two.to_vec(), tokens: vec![], keys_file: Some("f".into()) };
        let file = KeysFile { keys: vec![key("M", &[], BOTH)], ..KeysFile::default() };

        let after = Keys::new(&settings, file, 1, Some(&before));

        let share = |keys: &Keys, name: &str| format!("{:?}", keys.get(name).unwrap().share);
        assert_eq!(share(&before, "K"), share(&after, "K"));
        assert!(after.get("M").unwrap().share.is_some());
    }

    fn text_of(names: &[&str]) -> String {
        names.iter().map(|name| format!("[[keys]]\naccess-key = '{name}'\nsecret-key = 's'\n")).collect()
    }

    #[tokio::test]
    async fn a_file_that_changes_while_the_daemon_starts_is_loaded_at_the_first_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        std::fs::write(&path, text_of(&["old"])).unwrap();
        let settings = AuthSettings { keys: vec![], tokens: vec![], keys_file: Some(path.clone()) };
        let (file, text) = KeysFile::read(&path, &settings).unwrap();
        std::fs::write(&path, text_of(&["new"])).unwrap();

        let ring = KeyRing::of(settings, (file, Some(text)), 1, Metrics::new());
        assert!(ring.current().get("old").is_some());
        ring.reload().await;

        assert!(ring.current().get("old").is_none() && ring.current().get("new").is_some());
    }

    #[test]
    fn a_change_counts_once_two_looks_find_the_same() {
        let text = |text: &str| Some(text.to_owned());
        let mut seen = SeenFile { judged: text("old"), latest: None };

        for (found, look) in [
            (text("old"), Look::Known),
            (text("ne"), Look::Changing),
            (text("new"), Look::Changing),
            (text("new"), Look::Changed),
            (text("new"), Look::Known),
            // Away for a moment, while another is put there.
            (None, Look::Changing),
            (text("new"), Look::Known),
            (None, Look::Changing),
            (None, Look::Changed),
            (None, Look::Known),
        ] {
            assert_eq!(seen.look(found.clone()), look, "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_empty_of_a_sudden_is_refused_unless_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let settings = AuthSettings { keys: vec![], tokens: vec![], keys_file: Some(path.clone()) };
        std::fs::write(&path, format!("tokens = ['t']\n{}", text_of(&["a", "b"]))).unwrap();
        let (file, text) = KeysFile::read(&path, &settings).unwrap();
        let ring = KeyRing::of(settings, (file, Some(text)), 1, Metrics::new());

        for (text, there) in
            [("", true), ("tokens = ['t']\n", true), ("keys = []\n", false), (&text_of(&["a"]), true), ("#", true)]
        {
            std::fs::write(&path, text).unwrap();
            ring.reload().await;
            assert_eq!(ring.current().get("a").is_some(), there, "{text:?}");
        }
    }

    #[test]
    fn tokens_are_told_apart() {
        let settings = AuthSettings { keys: vec![], tokens: vec![Secret::new("all")], keys_file: None };
        let file = KeysFile { read_tokens: vec![Secret::new("look")], ..KeysFile::default() };
        let keys = Keys::new(&settings, file, 1, None);

        assert_eq!(keys.token("all").map(|token| token.access), Some(BOTH));
        assert_eq!(keys.token("look").map(|token| token.access), Some(KeyAccess::Read));
        assert!(keys.token("loo").is_none() && keys.token("").is_none());
    }
}
