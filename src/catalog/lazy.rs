//! Commands that are answered before they are durable, and the answers that build on them.
//!
//! A lazy command is applied like any other, in its turn, and its changes go into the journal behind those before it. It is
//! answered as soon as they are there, and they become durable with the next commit of anything, because the journal makes
//! its batches durable in order. So whatever is answered as durable later makes it durable, too: a copy of an object, a put
//! in the place of one that was deleted. What changes nothing and is founded on it, such as a refusal, waits for it.
//!
//! # Crash
//! The last lazy commands never happened, as far as nothing durable came after them: the state is the one of a moment
//! before.

use std::collections::HashSet;

use super::command::{Bind, Command, Outcome, Refusal};
use super::slate::Commit;

/// Bytes of lazy commands that may wait for a commit; whoever comes then is answered once all are durable.
const BYTES_MAX: usize = 4 << 20;

/// Lazy commands that wait for a commit.
#[derive(Default)]
pub(super) struct LazyBacklog {
    /// That of the last of them.
    commit: Option<Commit>,
    bytes: usize,
    /// Buckets and keys that they name.
    keys: HashSet<(String, String)>,
}

impl LazyBacklog {
    /// Whether one more of `weight` bytes may wait.
    pub(super) fn has_room(&self, weight: usize) -> bool {
        self.bytes + weight <= BYTES_MAX
    }

    /// Takes in a command that will be answered before it is durable. Deletes of what is not there change nothing.
    pub(super) fn take(&mut self, command: &Command, is_there: impl Fn(&str, &str) -> bool) {
        self.bytes += command.weight();
        let deletes = matches!(command, Command::DeleteObjects(..));
        each_key(command, |bucket, key| {
            if !deletes || is_there(bucket, key) {
                self.keys.insert((bucket.to_owned(), key.to_owned()));
            }
        });
    }

    /// Whether one of them names this bucket and key.
    pub(super) fn names(&self, named: &(String, String)) -> bool {
        self.keys.contains(named)
    }

    /// They are in the journal up to this commit.
    pub(super) fn wrote(&mut self, commit: Commit) {
        self.commit = Some(commit);
    }

    /// There was nothing to be written.
    pub(super) fn wrote_nothing(&mut self) {
        if self.commit.is_none() {
            self.clear();
        }
    }

    /// Another commit is on its way, which takes all of them along. Returns their own.
    pub(super) fn clear(&mut self) -> Option<Commit> {
        self.bytes = 0;
        self.keys.clear();
        self.commit.take()
    }

    /// Whether an answer to `command` may be founded on them, though it changes nothing: by the keys that it names. Without a
    /// command somebody waits for all there is.
    pub(super) fn may_found(&self, command: Option<&Command>) -> bool {
        let Some(command) = command else { return true };
        let mut named = false;
        if !self.keys.is_empty() {
            each_key(command, |bucket, key| named |= self.keys.contains(&(bucket.to_owned(), key.to_owned())));
        }
        named
    }
}

/// Tells the keys of objects that a command changes.
fn each_key(command: &Command, mut tell: impl FnMut(&str, &str)) {
    match command {
        Command::DeleteObjects(bucket, objects) => objects.iter().for_each(|object| tell(bucket, &object.key)),
        Command::Store(store) => {
            for item in &store.items {
                if let Bind::Object(put) = &item.bind {
                    tell(&put.bucket, &put.key);
                }
            }
        }
        _ => {}
    }
}

/// Whether something of a command was refused, which may be founded on anything.
pub(super) fn refuses(outcome: &Result<Outcome, Refusal>) -> bool {
    match outcome {
        Err(_) => true,
        Ok(Outcome::Stored(_, answers)) => answers.iter().any(Result::is_err),
        Ok(Outcome::Deleted(answers)) => answers.iter().any(Result::is_err),
        Ok(Outcome::Done | Outcome::Reused(_) | Outcome::Moved(..)) => false,
    }
}
