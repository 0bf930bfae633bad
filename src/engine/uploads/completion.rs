//! Completing a multipart upload: from its parts to an object.
//!
//! Parts on storage become an object's by one durable commit, whatever their number. Parts of an upload that lives in memory
//! become segments together with the object, likewise. If some are here and some there, those in memory go to storage
//! first: so a completion that fails loses nothing, and may be repeated.
//!
//! Whoever completes an upload first asks what there is ([`Engine::to_complete`]), chooses among the parts, and then names
//! those that it has chosen as it saw them ([`Engine::complete_upload`]). One that was uploaded again in between is not what
//! was chosen: nothing is done then, and the choice is to be made again.
//!
//! The object remembers the upload that made it. So a completion whose answer was lost is answered again with the same
//! entity tag, as long as its object is the one under the key. Of several at once, one does it and the others wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;

use super::parts::{UploadName, no_such_upload};
use super::{PartBytes, PartView, Upload};
use crate::catalog::command::{Bind, Condition, MadeBy, ObjectContent, PutObject, Stored};
use crate::engine::arrivals::Arrival;
use crate::engine::intake::Counts;
use crate::engine::objects::{Put, put_answer};
use crate::engine::{Engine, EngineError};
use crate::merge::{Parcel, WholeSegment};
use crate::model::{NewUpload, ObjectChecksum, ObjectHead, PartHead, SegmentId};
use crate::runtime::{Failure, reply};

/// Parts that are sent to storage at a time.
const PARTS_AT_ONCE: usize = 8;

/// A client's claims about the parts of an upload that it wants completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedParts {
    /// The entity tag that they make, if it names that of each.
    pub etag: Option<String>,
    /// Number of parts.
    pub count: usize,
}

/// The state of an upload that a client wants completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToComplete {
    /// The client's request that created it, and the parts that have arrived, by number.
    Parts(Arc<NewUpload>, BTreeMap<u16, PartHead>),
    /// The object that an earlier completion has made of it.
    Object(Put),
}

/// An upload that is to be completed, and the object that it becomes.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The upload.
    pub upload: UploadName,
    /// The condition that the object under the key must meet.
    pub condition: Condition,
    /// The parts that the object is made of, in order, as [`ToComplete::Parts`] had them.
    pub parts: Vec<(u16, PartHead)>,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// Its checksum.
    pub checksum: Option<ObjectChecksum>,
}

/// A part that the object is made of.
struct ChosenPart {
    number: u16,
    part: PartView,
}

impl Engine {
    /// Tells what there is of an upload that is to be completed. Waits for whoever completes or aborts it meanwhile.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such upload to this key; [`EngineError::OtherParts`] if an earlier completion
    /// was made of other parts.
    pub async fn to_complete(&self, name: &UploadName, named: &NamedParts) -> Result<ToComplete, EngineError> {
        let upload = match self.remembered_upload(name) {
            Ok(upload) => upload,
            Err(gone) => return self.completed_before(name, named).await?.map(ToComplete::Object).ok_or(gone),
        };
        // What somebody else makes of the parts just now is seen whole or not at all.
        let _turn = upload.turn.lock().await;
        if let Some(put) = self.completed_before(name, named).await? {
            return Ok(ToComplete::Object(put));
        }
        if !self.is_open(&upload) {
            return Err(no_such_upload(upload.id()));
        }
        let heads = self.part_views(&upload).into_iter().map(|(number, part)| (number, part.head)).collect();
        Ok(ToComplete::Parts(Arc::clone(&upload.view.upload), heads))
    }

    /// Completes an upload, or tells what an earlier completion of it has made.
    ///
    /// # Errors
    /// [`EngineError::PartsChanged`] if a part is not what was seen: nothing was done; see what there is now.
    /// [`EngineError::OtherParts`] if an earlier completion was made of other parts; [`EngineError::Refused`].
    pub async fn complete_upload(&self, completion: Completion) -> Result<Put, EngineError> {
        let named = NamedParts { etag: Some(completion.etag.clone()), count: completion.parts.len() };
        let upload = match self.remembered_upload(&completion.upload) {
            Ok(upload) => upload,
            Err(gone) => return self.completed_before(&completion.upload, &named).await?.ok_or(gone),
        };
        // Held until the task below ends: neither a second completion nor an abort comes in between.
        let turn = Arc::clone(&upload.turn).lock_owned().await;
        if let Some(put) = self.completed_before(&completion.upload, &named).await? {
            return Ok(put);
        }
        if !self.is_open(&upload) {
            return Err(no_such_upload(upload.id()));
        }
        let chosen = choose(completion.parts, self.part_views(&upload)).ok_or(EngineError::PartsChanged)?;
        let Completion { upload: UploadName { bucket, key, .. }, condition, etag, checksum, .. } = completion;
        self.refuse_early(&bucket, &key, &condition).await?;
        if upload.layout.merged_by_flink {
            self.merged.warn(&upload.layout.about.job, &key);
        }
        let (writer, answer) = oneshot::channel();
        let engine = self.clone();
        // In a task of its own: whoever repeats a completion whose client has left finds it done, not half-way.
        self.tasks().spawn("multipart-completion", Failure::FailsItsWork, async move {
            let stored = engine.store_parts(&upload, condition, chosen, etag, checksum).await;
            let stored = engine.counted_store(Counts::Object, stored);
            if stored.is_ok() {
                engine.uploads.remove(upload.id());
                engine.arrived(Arrival::of(upload.bucket(), upload.key()));
            }
            if let (Ok(_), Some(checkpoint)) = (&stored, upload.layout.completes) {
                engine.merger.checkpoint_barrier(&upload.layout.about.job, checkpoint);
            }
            reply(writer, stored);
            // Last: whose turn is next finds the object, and the upload gone.
            drop(turn);
        });
        let stored = answer.await.map_err(|_| EngineError::NotEnded)?;
        put_answer(stored?)
    }

    /// The object that an earlier completion of this upload has made, if it is the one under the key.
    async fn completed_before(&self, name: &UploadName, named: &NamedParts) -> Result<Option<Put>, EngineError> {
        let UploadName { id, bucket, key } = name;
        let found = self.catalog.object(bucket, key).await?;
        let Some(made) = found.filter(|found| found.made_by() == Some(id)) else { return Ok(None) };
        let ObjectHead { etag, modified, checksum, part_lens, .. } = made.head();
        let same = match &named.etag {
            Some(named) => named == etag,
            None => named.count == part_lens.len(),
        };
        if !same {
            return Err(EngineError::OtherParts);
        }
        Ok(Some(Put { etag: etag.clone(), modified: *modified, checksum: checksum.clone() }))
    }

    async fn store_parts(
        &self,
        upload: &Upload,
        condition: Condition,
        chosen: Vec<ChosenPart>,
        etag: String,
        checksum: Option<ObjectChecksum>,
    ) -> Result<Stored, EngineError> {
        let part_lens: Vec<u64> = chosen.iter().map(|part| part.part.head.len).collect();
        let ((segments, pieces), made_by) = if upload.is_recorded() {
            ((self.flush_parts(upload, chosen).await?, vec![]), MadeBy::Recorded(upload.id().to_owned()))
        } else {
            (self.pieces(upload, chosen), MadeBy::Unrecorded(upload.id().to_owned()))
        };
        let head = ObjectHead {
            len: part_lens.iter().sum(),
            etag,
            modified: self.clock.now(),
            headers: upload.view.upload.headers.clone(),
            checksum,
            part_lens,
        };
        let content = ObjectContent::Segments { segments, head, upload: Some(made_by) };
        let (bucket, key) = (upload.bucket().to_owned(), upload.key().to_owned());
        let bind = Bind::Object(Box::new(PutObject { bucket, key, condition, content }));
        if pieces.is_empty() {
            return self.store_without_bytes(bind).await;
        }
        // The upload keeps paying for the bytes until it is done.
        Ok(self.merger.store(Parcel { pieces, bind, paid: None }).await?)
    }

    /// Parts in memory as new segments. Each attempt names them anew, because one that failed may have stored its own.
    fn pieces(&self, upload: &Upload, chosen: Vec<ChosenPart>) -> (Vec<SegmentId>, Vec<WholeSegment>) {
        let in_memory = chosen.into_iter().filter_map(|part| match part.part.bytes {
            PartBytes::Memory(data, crc) => Some((part.number, (data, crc))),
            PartBytes::Stored(_) => None,
        });
        let piece = |(number, (data, crc))| WholeSegment {
            id: self.merger.new_part_id(upload.id(), number),
            about: upload.layout.about.clone(),
            data,
            crc,
        };
        let pieces: Vec<WholeSegment> = in_memory.filter(|(_, (data, _))| !data.is_empty()).map(piece).collect();
        (pieces.iter().map(|piece| piece.id).collect(), pieces)
    }

    /// Sends the parts that are in memory to storage, and names the segments of all.
    async fn flush_parts(&self, upload: &Upload, chosen: Vec<ChosenPart>) -> Result<Vec<SegmentId>, EngineError> {
        let segments = futures::stream::iter(chosen.into_iter().map(|part| self.flush_part(upload, part)));
        let segments: Vec<Option<SegmentId>> = segments.buffered(PARTS_AT_ONCE).try_collect().await?;
        Ok(segments.into_iter().flatten().collect())
    }

    async fn flush_part(&self, upload: &Upload, chosen: ChosenPart) -> Result<Option<SegmentId>, EngineError> {
        let ChosenPart { number, part: PartView { head, bytes } } = chosen;
        let (data, crc) = match bytes {
            PartBytes::Stored(segment) => return Ok(segment),
            PartBytes::Memory(data, _) if data.is_empty() => return Ok(None),
            PartBytes::Memory(data, crc) => (data, crc),
        };
        let id = self.merger.new_part_id(upload.id(), number);
        let bind = Bind::Part { upload: upload.id().to_owned(), number, part: head };
        let pieces = vec![WholeSegment { id, about: upload.layout.about.clone(), data, crc }];
        self.merger.store(Parcel { pieces, bind, paid: None }).await?;
        self.uploads.drop_part(upload.id(), number);
        Ok(Some(id))
    }
}

/// The parts that were chosen, if each is what was seen.
fn choose(seen: Vec<(u16, PartHead)>, mut there: BTreeMap<u16, PartView>) -> Option<Vec<ChosenPart>> {
    let take = |(number, head)| {
        let part = there.remove(&number).filter(|part| part.head == head)?;
        Some(ChosenPart { number, part })
    };
    seen.into_iter().map(take).collect()
}
