//! Whether a catalog and the files that are listed agree: what the catalog knows to be durable is there.
//!
//! A listing that shows less is never taken for the truth: a volume may be missing, a prefix wrong, a file lost. The start is
//! refused then; only an operator's word drops what is lost.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::recover::{Missing, RecoverError};
use crate::catalog::record::FileState;
use crate::catalog::state::State;
use crate::model::{Millis, PhysicalFileId, Segment};
use crate::store::DataStore;

/// Names in a log line or message.
const NAMES_MAX: usize = 10;

/// A catalog that was never used does not belong to files that are there.
///
/// # Errors
/// [`RecoverError::CatalogMissing`].
pub(super) fn check_not_missing(state: &State, listed: &[(String, u64)]) -> Result<(), RecoverError> {
    let nothing_known = state.files().next().is_none() && state.all_segments().next().is_none();
    let never_used = state.buckets().is_empty() && state.jobs().is_empty();
    if !nothing_known || !never_used {
        return Ok(());
    }
    let mut files = listed.iter().filter(|(name, _)| name.parse::<PhysicalFileId>().is_ok());
    match files.next() {
        Some((example, _)) => Err(RecoverError::CatalogMissing { files: 1 + files.count(), example: example.clone() }),
        None => Ok(()),
    }
}

/// A catalog that knows files does not belong to a place where none of them is.
///
/// # Errors
/// [`RecoverError::DataMissing`].
pub(super) fn check_some_there(state: &State, listed: &[(String, u64)]) -> Result<(), RecoverError> {
    let there: HashSet<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    let mut files = 0;
    let mut example = None;
    let holds = |state: &FileState| matches!(state, FileState::Closed { .. });
    for view in state.files().filter(|view| holds(&view.state) && view.live_segments > 0) {
        if there.contains(view.id.as_str()) {
            return Ok(());
        }
        files += 1;
        example.get_or_insert_with(|| view.id.to_string());
    }
    example.map_or(Ok(()), |example| Err(RecoverError::DataMissing { files, example }))
}

/// A file that has not all that was durable in it.
pub(super) struct LostFile {
    pub id: PhysicalFileId,
    /// Its length; none if there is no such file.
    there: Option<u64>,
    needed: u64,
    segments: u64,
}

impl fmt::Display for LostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.there {
            Some(there) => write!(f, "{} has {there} bytes, what lives in it ends at {}", self.id, self.needed),
            None => write!(f, "{} does not exist", self.id),
        }
    }
}

/// All that the catalog knows to be durable is there. Returns what is not, if that is no reason to stop.
///
/// # Errors
/// [`RecoverError::Lost`].
pub(super) fn check_durable(
    state: &State,
    store: &DataStore,
    listed: &[(String, u64)],
    missing: Missing,
) -> Result<Vec<LostFile>, RecoverError> {
    let lens: HashMap<&str, u64> = listed.iter().map(|(name, len)| (name.as_str(), *len)).collect();
    let on_disk = matches!(store, DataStore::Local(_));
    let lost = state.files().filter(|view| view.live_segments > 0).filter_map(|view| {
        let needed = match view.state {
            // Not its length: its end may not have been written, and older versions recorded what was only to be written.
            FileState::Closed { len } => len.min(state.living_end(&view.id)),
            // It was made before the commit that says that something is in it.
            FileState::Open { durable_len, .. } if on_disk => durable_len,
            FileState::Open { .. } | FileState::Forgotten { .. } => return None,
        };
        let there = lens.get(view.id.as_str()).copied();
        let segments = view.live_segments;
        there.is_none_or(|there| there < needed).then_some(LostFile { id: view.id, there, needed, segments })
    });
    let lost: Vec<LostFile> = lost.collect();
    if lost.is_empty() || missing != Missing::Refuse {
        return Ok(lost);
    }
    let segments = lost.iter().map(|lost| lost.segments).sum();
    Err(RecoverError::Lost { files: lost.len(), segments, named: names(&lost) })
}

/// The recorded lengths of closed files of which less is there, and all that lives in them, are set right. Returns them.
pub(super) fn shorten(state: &mut State, listed: &[(String, u64)], at: Millis) -> Vec<PhysicalFileId> {
    let lens: HashMap<&str, u64> = listed.iter().map(|(name, len)| (name.as_str(), *len)).collect();
    let shorter = state.files().filter_map(|view| {
        let FileState::Closed { len } = view.state else { return None };
        let there = *lens.get(view.id.as_str())?;
        (there < len && state.living_end(&view.id) <= there).then_some((view.id, there))
    });
    let shorter: Vec<(PhysicalFileId, u64)> = shorter.collect();
    shorter.iter().for_each(|(id, there)| state.settle_file(id, *there, *there, at));
    shorter.into_iter().map(|(id, _)| id).collect()
}

/// The first of them, for a message.
pub(super) fn names<T: fmt::Display>(all: &[T]) -> String {
    let mut named: Vec<String> = all.iter().take(NAMES_MAX).map(ToString::to_string).collect();
    if all.len() > NAMES_MAX {
        named.push(format!("and {} more", all.len() - NAMES_MAX));
    }
    named.join(", ")
}

/// The segments beyond the end of a file that has lost it are dropped. Returns what was done.
pub(super) fn drop_lost(state: &mut State, lost: &LostFile, at: Millis) -> String {
    let there = lost.there.unwrap_or(0);
    let beyond = |place: Option<&Segment>| place.is_some_and(|place| place.end() > there);
    let segments = state.segments_in(&lost.id);
    let gone: Vec<String> =
        segments.iter().filter(|view| beyond(view.record.location.segment())).map(|view| view.id.to_string()).collect();
    state.settle_file(&lost.id, there, there, at);
    match lost.there {
        None => format!("dropped {} segments of {}, which does not exist: {}", gone.len(), lost.id, gone.join(" ")),
        Some(_) => format!("dropped {} segments, because {lost}: {}", gone.len(), gone.join(" ")),
    }
}
