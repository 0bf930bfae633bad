//! Whether a catalog and the files that are listed agree: what the catalog knows to be durable is there.
//!
//! A listing that shows less is never taken for the truth: a volume may be missing, a prefix wrong, a file lost. The start is
//! refused then; only an operator's word drops what is lost.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::catalog::state::CatalogState;
use crate::format::FormatError;
use crate::model::{FileState, Millis, PhysicalFileId, Segment};
use crate::store::{DataStore, StoreError};

/// Names in a log line or message.
const NAMES_MAX: usize = 10;

/// Why the daemon could not bring its state in order.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Storage does not answer.
    #[error("storage does not tell what the daemon before this one left")]
    Store(#[from] StoreError),
    /// A file cannot be read.
    #[error("{file} cannot be read")]
    Read {
        /// The file.
        file: PhysicalFileId,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The catalog knows nothing, and yet there are files: this is not the catalog that wrote them.
    #[error(
        "the catalog is empty, but {files} physical files are there ({example}): the catalog was lost or moved. Nothing was \
         deleted. Put the catalog back, make a new one with `esker rebuild --replace`, or move the data away to begin anew"
    )]
    CatalogMissing {
        /// Number of files.
        files: usize,
        /// One of them.
        example: String,
    },
    /// None of what the catalog knows is there: this is not its data.
    #[error(
        "the catalog names {files} files with segments in them ({example}), and none of them is there: this is not the data \
         that belongs to it. Nothing was changed. Mount the volume, or set store.url to where the data is"
    )]
    DataMissing {
        /// Number of files that it names.
        files: usize,
        /// One of them.
        example: String,
    },
    /// Files that hold what was confirmed are missing or have lost their end.
    #[error(
        "durable segments are missing or too short: {segments} in {}: {named}. Nothing was changed. Put the files \
         back; or have the segments that are lost dropped by `esker verify --repair --drop-lost`, which names them",
        if *files == 1 { "1 file".to_owned() } else { format!("{files} files") }
    )]
    Lost {
        /// Number of files.
        files: usize,
        /// Segments in them.
        segments: u64,
        /// The first of them.
        named: String,
    },
}

impl RecoverError {
    /// Whether catalog and data were found not to agree: trying again changes nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::CatalogMissing { .. } | Self::DataMissing { .. } | Self::Lost { .. } => true,
            Self::Store(_) | Self::Read { .. } => false,
        }
    }
}

/// The treatment of segments that were durable and whose file is missing or too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The start ends.
    Refuse,
    /// Their records stay, and the file stays as it is. Nothing else is freed meanwhile.
    Keep,
    /// They go, and with them the objects made of them.
    Drop,
}

/// A catalog that was never used does not belong to files that are there.
///
/// # Errors
/// [`RecoverError::CatalogMissing`].
pub(super) fn check_not_missing(state: &CatalogState, listed: &[(String, u64)]) -> Result<(), RecoverError> {
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
pub(super) fn check_some_there(state: &CatalogState, listed: &[(String, u64)]) -> Result<(), RecoverError> {
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
    /// Its length; `None` if there is no such file.
    there: Option<u64>,
    needed: u64,
    segments: u64,
}

impl LostFile {
    /// A file that cannot be closed, of which so much can be read all the same.
    pub(super) fn still_open(state: &CatalogState, id: PhysicalFileId, there: u64) -> Self {
        let (needed, segments) = (state.living_end(&id), state.segments_in(&id).len() as u64);
        Self { id, there: Some(there), needed, segments }
    }
}

impl fmt::Display for LostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.there {
            Some(there) => write!(f, "{} has {there} bytes, what lives in it ends at {}", self.id, self.needed),
            None => write!(f, "{} does not exist", self.id),
        }
    }
}

/// Checks that all durable bytes are there. Returns those that are not, if that is no reason to stop.
///
/// # Errors
/// [`RecoverError::Lost`].
pub(super) fn check_durable(
    state: &CatalogState,
    store: &DataStore,
    listed: &[(String, u64)],
    missing: Missing,
) -> Result<Vec<LostFile>, RecoverError> {
    let lens: HashMap<&str, u64> = listed.iter().map(|(name, len)| (name.as_str(), *len)).collect();
    let made_before = store.capabilities().appends;
    let lost = state.files().filter(|view| view.live_segments > 0).filter_map(|view| {
        let needed = match view.state {
            // Not its length: its end may not have been written, and older versions recorded what was only to be written.
            FileState::Closed { len } => len.min(state.living_end(&view.id)),
            // It was made before the commit that says that something is in it.
            FileState::Open { durable_len, .. } if made_before => durable_len,
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
pub(super) fn shorten(state: &mut CatalogState, listed: &[(String, u64)], at: Millis) -> Vec<PhysicalFileId> {
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
pub(super) fn drop_lost(state: &mut CatalogState, lost: &LostFile, at: Millis) -> String {
    let there = lost.there.unwrap_or(0);
    let beyond = |place: Option<&Segment>| place.is_some_and(|place| place.end() > there);
    let segments = state.segments_in(&lost.id);
    let gone: Vec<String> =
        segments.iter().filter(|view| beyond(view.location.segment())).map(|view| view.id.to_string()).collect();
    state.settle_file(&lost.id, there, there, at);
    match lost.there {
        None => format!("dropped {} segments of {}, which does not exist: {}", gone.len(), lost.id, gone.join(" ")),
        Some(_) => format!("dropped {} segments, because {lost}: {}", gone.len(), gone.join(" ")),
    }
}
