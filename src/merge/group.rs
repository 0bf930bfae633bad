//! A group on its way: from parcels to frames and items of a commit, and back to those who wait.

use tokio::sync::oneshot;

use super::context::WriteContext;
use super::file::FileWriter;
use super::pool::{Group, PendingParcel};
use super::{MergeError, MergeResult, Parcel, WholeSegment};
use crate::catalog::command::{Bind, NewSegment, Refusal, Store, StoreItem, Stored};
use crate::model::Location;
use crate::runtime::{PaidBytes, reply};
use crate::store::{DiskSpace, StoreError};

/// The writers whose parcels are in a group, and the memory of these. Dropped, they are told that it was given up.
pub(super) struct Waiters {
    replies: Vec<oneshot::Sender<MergeResult>>,
    /// Held until the group is durable.
    paid: Vec<PaidBytes>,
}

/// Parcels that are on their way, kept to be written once more. Their writers wait in [`Waiters`].
pub(super) struct GroupAgain(Vec<(Vec<WholeSegment>, Bind)>);

impl GroupAgain {
    /// Keeps what `group` holds; its bytes are not copied.
    pub(super) fn of(group: &Group) -> Self {
        let parcels = group.parcels.iter().map(|pending| (pending.parcel.pieces.clone(), pending.parcel.bind.clone()));
        Self(parcels.collect())
    }

    /// The group as it was, with those who wait for it.
    pub(super) fn group(self, waiters: Waiters, last: bool) -> Group {
        let Waiters { replies, paid } = waiters;
        let mut paid = paid.into_iter();
        let parcels = self.0.into_iter().zip(replies).map(|((pieces, bind), reply)| {
            // Whose memory is whose does not matter: all of it is given back when the group is durable.
            PendingParcel { parcel: Parcel { pieces, bind, paid: paid.next() }, reply }
        });
        Group { parcels: parcels.collect(), last }
    }
}

impl Waiters {
    /// The writers of a group that is not written.
    pub(super) fn of(group: Group) -> Self {
        let mut waiters = Self::with_capacity(group.parcels.len());
        for PendingParcel { parcel, reply } in group.parcels {
            waiters.add(reply, parcel.paid);
        }
        waiters
    }

    fn with_capacity(parcels: usize) -> Self {
        Self { replies: Vec::with_capacity(parcels), paid: vec![] }
    }

    fn add(&mut self, reply: oneshot::Sender<MergeResult>, paid: Option<PaidBytes>) {
        self.replies.push(reply);
        self.paid.extend(paid);
    }

    /// Tells each what the catalog said of its parcel.
    pub(super) fn answer(self, answers: Vec<Result<Stored, Refusal>>) {
        for (writer, answer) in self.replies.into_iter().zip(answers) {
            reply(writer, answer.map_err(MergeError::Refused));
        }
    }

    /// Tells all that the group was not stored.
    pub(super) fn fail(self, error: &MergeError) {
        self.replies.into_iter().for_each(|writer| reply(writer, Err(error.clone())));
    }
}

/// A group that is laid out in a file.
pub(super) struct Laid {
    pub items: Vec<StoreItem>,
    pub segments: usize,
    pub waiters: Waiters,
}

/// Lays out a group behind what the file has.
pub(super) fn lay_out(file: &mut FileWriter, parcels: Vec<PendingParcel>) -> Laid {
    let waiters = Waiters::with_capacity(parcels.len());
    let mut laid = Laid { items: Vec::with_capacity(parcels.len()), segments: 0, waiters };
    for PendingParcel { parcel, reply } in parcels {
        laid.segments += parcel.pieces.len();
        let segments = parcel.pieces.into_iter().map(|WholeSegment { id, about, data, crc }| {
            let location = Location::File(file.push(id, &about, data, &crc));
            NewSegment { id, about, location, inline: None, crc }
        });
        laid.items.push(StoreItem { segments: segments.collect(), bind: parcel.bind });
        laid.waiters.add(reply, parcel.paid);
    }
    laid
}

/// The same for parcels whose bytes go into the catalog's records.
pub(super) fn inline_items(parcels: Vec<PendingParcel>) -> (Vec<StoreItem>, Waiters) {
    let (mut items, mut waiters) = (vec![], Waiters::with_capacity(parcels.len()));
    for PendingParcel { parcel, reply } in parcels {
        let segments = parcel.pieces.into_iter().map(|piece| NewSegment {
            id: piece.id,
            about: piece.about,
            location: Location::Inline { len: piece.data.len() as u64 },
            inline: Some(piece.data),
            crc: piece.crc,
        });
        items.push(StoreItem { segments: segments.collect(), bind: parcel.bind });
        waiters.add(reply, parcel.paid);
    }
    (items, waiters)
}

/// When an inline parcel is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InlineAnswer {
    /// Once it is durable.
    Durable,
    /// Once it is in the catalog's memory.
    Lazy,
}

/// Stores one parcel whose bytes go into the catalog's records.
pub(super) async fn store_inline(context: &WriteContext, pending: PendingParcel, answer: InlineAnswer) {
    let (items, waiters) = inline_items(vec![pending]);
    let store = Store { file: None, items };
    let stored = match answer {
        InlineAnswer::Durable => context.catalog.store(store).await,
        InlineAnswer::Lazy => context.catalog.store_lazily(store).await,
    };
    match stored {
        Ok(answers) => waiters.answer(answers),
        Err(error) => waiters.fail(&error.into()),
    }
}

/// Whether a group is so small that its bytes go into the catalog's record: one request instead of two.
pub(super) fn fits_the_catalog(context: &WriteContext, group: &Group) -> bool {
    let parcels = group.parcels.iter().map(|pending| &pending.parcel);
    !parcels.clone().any(Parcel::belongs_in_a_file) && takes_inline(context, parcels.map(Parcel::len).sum())
}

/// Whether the catalog's records take so many bytes at once.
pub(super) fn takes_inline(context: &WriteContext, bytes: u64) -> bool {
    let settings = &context.settings;
    bytes <= settings.checkpointing.inline_bytes_max
        || (bytes <= settings.merging.inline_group_bytes_max
            && context.catalog.space().inline_bytes + bytes <= settings.catalog.inline_bytes_max)
}

/// Tells those whose parcels were in a file that failed.
pub(super) fn refuse(space: &DiskSpace, group: Group) {
    if group.parcels.is_empty() {
        return;
    }
    let earlier = || StoreError::Failed {
        operation: "append",
        path: "the physical file".to_owned(),
        source: "an earlier group of the file failed: repeat the request".into(),
    };
    let failed = space.check_write().map_or_else(MergeError::Full, |()| earlier().into());
    Waiters::of(group).fail(&failed);
}
