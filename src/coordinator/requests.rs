//! [`RequestBook`]: what people have asked for, and how that goes.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::error::CoordinatorError;
use super::reason::FailureReason;
use super::state::queue::{RequestNumber, WantedCheckpoint};
use crate::config::PublishDir;
use crate::model::CheckpointId;

/// Requests of people that are remembered: all that are not over, and the last ones that are.
const REQUESTS_KEPT: usize = 1000;

/// How a request of people stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestView {
    /// Names it.
    pub id: String,
    /// The checkpoint that it began.
    pub checkpoint: Option<CheckpointId>,
    /// Where the savepoint is.
    pub path: Option<String>,
    /// `None` while it is not over.
    pub ended: Option<Result<(), (FailureReason, String)>>,
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub(super) struct NewRequest {
    /// A checkpoint, a savepoint, or a stop.
    pub wanted: WantedCheckpoint,
    /// The directory that was given with it.
    pub given: Option<PublishDir>,
    /// Where a savepoint goes.
    pub dir: Option<PublishDir>,
    /// By which a repeat is known.
    pub key: Option<String>,
}

struct KnownRequest {
    number: RequestNumber,
    request: NewRequest,
    view: watch::Sender<RequestView>,
}

/// Requests of people: all that are not over, and the last ones that are.
#[derive(Default)]
pub(super) struct RequestBook {
    requests: VecDeque<KnownRequest>,
}

impl RequestBook {
    /// The request that came with the same key before.
    ///
    /// # Errors
    /// [`CoordinatorError::KeyOfAnother`] if it was for something else.
    pub(super) fn earlier(&self, new: &NewRequest) -> Result<Option<watch::Receiver<RequestView>>, CoordinatorError> {
        let Some(key) = &new.key else { return Ok(None) };
        let Some(known) = self.requests.iter().find(|known| known.request.key.as_ref() == Some(key)) else {
            return Ok(None);
        };
        match known.request.wanted == new.wanted && known.request.given == new.given {
            true => Ok(Some(known.view.subscribe())),
            false => Err(CoordinatorError::KeyOfAnother),
        }
    }

    /// Makes room for one more, for one that `must` be taken in any case.
    ///
    /// # Errors
    /// [`CoordinatorError::TooManyRequests`] if none is over.
    pub(super) fn make_room(&mut self, must: bool) -> Result<(), CoordinatorError> {
        if self.requests.len() < REQUESTS_KEPT {
            return Ok(());
        }
        match self.requests.iter().position(|known| known.view.borrow().ended.is_some()) {
            Some(oldest) => drop(self.requests.remove(oldest)),
            None if must => {}
            None => return Err(CoordinatorError::TooManyRequests),
        }
        Ok(())
    }

    /// Takes one in.
    pub(super) fn add(
        &mut self,
        id: String,
        number: RequestNumber,
        request: NewRequest,
    ) -> watch::Receiver<RequestView> {
        let view = watch::Sender::new(RequestView { id, checkpoint: None, path: None, ended: None });
        let answer = view.subscribe();
        self.requests.push_back(KnownRequest { number, request, view });
        answer
    }

    fn of(&self, number: RequestNumber) -> Option<&KnownRequest> {
        self.requests.iter().find(|known| known.number == number)
    }

    /// Shows how one goes.
    pub(super) fn show(&self, number: RequestNumber, show: impl FnOnce(&mut RequestView)) {
        if let Some(known) = self.of(number) {
            known.view.send_modify(show);
        }
    }

    /// What one is for.
    pub(super) fn wanted(&self, number: RequestNumber) -> Option<WantedCheckpoint> {
        self.of(number).map(|known| known.request.wanted)
    }

    /// Where the savepoint of one goes.
    pub(super) fn dir(&self, number: RequestNumber) -> Option<PublishDir> {
        self.of(number)?.request.dir.clone()
    }

    /// Where the savepoint of a checkpoint is.
    pub(super) fn path(&self, checkpoint: CheckpointId) -> Option<String> {
        let known = self.requests.iter().find(|known| known.view.borrow().checkpoint == Some(checkpoint))?;
        known.view.borrow().path.clone()
    }
}
