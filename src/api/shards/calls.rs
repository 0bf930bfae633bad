//! What the owner of a shard asks the engines of others, and their answers: JSON, but for bytes of an object.
//!
//! A call is not checked against anybody's key: whoever makes it has done so. So it comes from members alone, which show each other
//! `cluster.token`. It goes the way of a client's request that is passed on: it is held, repeated and proven like one.

use axum::body::Body as AxumBody;
use esker_client::wire::{ListedSegment, RestoredJob};
use futures::TryStreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::status::{ApiError, status_of};
use crate::coordinator::error::CoordinatorError;
use crate::engine::jobs::GoOn;
use crate::engine::{
    ChecksumKind, Engine, EngineError, ListPage, ListQuery, Listed, ObjectToDelete, Refusal, UploadView,
};
use crate::error::{ErrorKind, chain};
use crate::model::{CheckpointId, Claim, InvalidId, JobId, Millis, NewUpload, ObjectHead, SegmentId};

/// A call is at most so long, and an answer that is no bytes of an object.
pub(in crate::api) const CALL_BYTES_MAX: usize = 8 << 20;
pub(in crate::api) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A call of an engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum EngineCall {
    /// One page of a bucket's keys. Answer: [`ListedPage`].
    List {
        /// The bucket.
        bucket: String,
        /// As in [`ListQuery`].
        prefix: String,
        /// Likewise.
        delimiter: String,
        /// Likewise.
        after: String,
        /// Likewise.
        max: usize,
    },
    /// Uploads to keys of a bucket. Answer: [`ListedUpload`]s.
    Uploads {
        /// The bucket.
        bucket: String,
        /// The begin of the keys.
        prefix: String,
    },
    /// Deletes keys. Answer: for each `None`, or why not.
    Delete {
        /// Their bucket.
        bucket: String,
        /// The keys.
        objects: Vec<Doomed>,
    },
    /// Looks for an object. Answer: [`SeenHead`].
    Head {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
    },
    /// Bytes of an object, if it has this entity tag still.
    Read {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
        /// The entity tag.
        etag: String,
        /// The first byte.
        start: u64,
        /// The one behind the last.
        end: u64,
    },
    /// Creates a bucket; nothing happens if it is there.
    CreateBucket(String),
    /// Deletes a bucket; nothing happens if it is not there.
    DeleteBucket(String),
    /// Looks for a bucket. Answer: [`BucketSeen`].
    LookForBucket(String),
    /// Asks where a job is that would be in this shard. Answer: another shard, if it was placed there.
    PlaceOf(String),
    /// Creates a job; nothing happens if it is there.
    CreateJob(String),
    /// Asks whether a job of another shard may go on from a checkpoint. Answer: [`RestoreAnswer`].
    MayRestore {
        /// The job.
        job: String,
        /// The job whose checkpoint it is.
        from: String,
        /// The checkpoint; the newest if none is named.
        checkpoint: Option<u64>,
        /// Whether it would take the checkpoint over.
        claims: bool,
    },
    /// Asks for the segments of a completed checkpoint. Answer: as the native API gives it to a job that does not claim.
    Restored {
        /// The job that has it.
        job: String,
        /// The checkpoint.
        checkpoint: u64,
    },
    /// Looks for objects, by bucket and key. Answer: for each its number of bytes, `None` if it is not there.
    Lens(Vec<(String, String)>),
    /// Asks for segments. Answer: for each its number of bytes, `None` if it does not know it. More than a request may ask for are
    /// refused.
    Segments(Vec<String>),
}

impl EngineCall {
    /// Lists one page.
    pub fn list(bucket: &str, query: &ListQuery<'_>) -> Self {
        Self::List {
            bucket: bucket.to_owned(),
            prefix: query.prefix.to_owned(),
            delimiter: query.delimiter.to_owned(),
            after: query.after.to_owned(),
            max: query.max,
        }
    }
}

impl EngineCall {
    /// Whether it can be made again when nobody knows whether it was carried out.
    pub(in crate::api) fn is_repeatable(&self) -> bool {
        match self {
            Self::Delete { objects, .. } => {
                objects.iter().all(|doomed| doomed.if_match.is_none() && doomed.if_put_at.is_none())
            }
            _ => true,
        }
    }
}

/// The head of an object, and what its encoding leaves out that a copy takes along.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeenHead {
    /// The head.
    #[serde(flatten)]
    pub head: ObjectHead,
    /// The tags; members of older versions tell none.
    #[serde(default)]
    pub tags: Vec<(String, String)>,
}

/// A key to delete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Doomed {
    /// The key.
    pub key: String,
    /// The entity tag that it must have.
    pub if_match: Option<String>,
    /// When it must have been put.
    pub if_put_at: Option<Millis>,
}

impl From<ObjectToDelete> for Doomed {
    fn from(ObjectToDelete { key, if_match, if_put_at }: ObjectToDelete) -> Self {
        Self { key, if_match, if_put_at }
    }
}

/// Whether a job may go on from a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) enum RestoreAnswer {
    /// From this one.
    Checkpoint(u64),
    /// It may not.
    Refused {
        /// The next step for the caller.
        kind: ErrorKind,
        /// The field of the request that is wrong.
        field: Option<String>,
        /// A sentence that says what is wrong.
        message: String,
    },
}

/// A bucket of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::api) enum BucketSeen {
    /// It is not there.
    Missing,
    /// It has no object.
    Empty,
    /// It has some.
    Filled,
}

/// One page of keys.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) struct ListedPage {
    entries: Vec<ListedEntry>,
    truncated: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum ListedEntry {
    Object {
        key: String,
        len: u64,
        etag: String,
        modified: Millis,
        class: Option<String>,
        checksum: Option<(String, bool)>,
    },
    Prefix(String),
}

impl From<ListPage> for ListedPage {
    fn from(page: ListPage) -> Self {
        let entries = page.entries.into_iter().map(|entry| match entry {
            Listed::Object { key, len, etag, modified, class, checksum } => {
                let checksum = checksum.map(|kind| (kind.algorithm.into_owned(), kind.composite));
                ListedEntry::Object { key, len, etag, modified, class, checksum }
            }
            Listed::Prefix(prefix) => ListedEntry::Prefix(prefix),
        });
        Self { entries: entries.collect(), truncated: page.truncated }
    }
}

impl From<ListedPage> for ListPage {
    fn from(page: ListedPage) -> Self {
        let entries = page.entries.into_iter().map(|entry| match entry {
            ListedEntry::Object { key, len, etag, modified, class, checksum } => {
                let kind =
                    |(algorithm, composite): (String, bool)| ChecksumKind { algorithm: algorithm.into(), composite };
                Listed::Object { key, len, etag, modified, class, checksum: checksum.map(kind) }
            }
            ListedEntry::Prefix(prefix) => Listed::Prefix(prefix),
        });
        Self { entries: entries.collect(), truncated: page.truncated }
    }
}

/// A multipart upload.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::api) struct ListedUpload {
    id: String,
    upload: NewUpload,
    created: Millis,
}

impl From<ListedUpload> for UploadView {
    fn from(ListedUpload { id, upload, created }: ListedUpload) -> Self {
        Self { id, upload: upload.into(), created }
    }
}

/// Why an engine did not do what it was asked, as far as the one who asked can use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::api) enum CallFailure {
    NoSuchBucket(String),
    BucketExists(String),
    BucketNotEmpty(String),
    NoSuchKey(String),
    ConditionFailed(String),
    ConditionUndecided(String),
    CatalogFull { used_bytes: u64, limit_bytes: u64 },
    Other { kind: ErrorKind, message: String },
}

impl From<Refusal> for CallFailure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchBucket(bucket) => Self::NoSuchBucket(bucket),
            Refusal::BucketExists(bucket) => Self::BucketExists(bucket),
            Refusal::BucketNotEmpty(bucket) => Self::BucketNotEmpty(bucket),
            Refusal::NoSuchKey(key) => Self::NoSuchKey(key),
            Refusal::ConditionFailed(key) => Self::ConditionFailed(key),
            Refusal::ConditionUndecided(key) => Self::ConditionUndecided(key),
            Refusal::CatalogFull { used_bytes, limit_bytes } => Self::CatalogFull { used_bytes, limit_bytes },
            other => Self::Other { kind: other.kind(), message: other.to_string() },
        }
    }
}

impl From<EngineError> for CallFailure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused(refusal) => refusal.into(),
            error => Self::Other { kind: error.kind(), message: chain(&error) },
        }
    }
}

impl CallFailure {
    fn kind(&self) -> ErrorKind {
        match self.refusal() {
            Ok(refusal) => refusal.kind(),
            Err((kind, _)) => kind,
        }
    }

    /// The refusal of an engine; else its kind, and what it says.
    fn refusal(&self) -> Result<Refusal, (ErrorKind, String)> {
        Ok(match self.clone() {
            Self::NoSuchBucket(bucket) => Refusal::NoSuchBucket(bucket),
            Self::BucketExists(bucket) => Refusal::BucketExists(bucket),
            Self::BucketNotEmpty(bucket) => Refusal::BucketNotEmpty(bucket),
            Self::NoSuchKey(key) => Refusal::NoSuchKey(key),
            Self::ConditionFailed(key) => Refusal::ConditionFailed(key),
            Self::ConditionUndecided(key) => Refusal::ConditionUndecided(key),
            Self::CatalogFull { used_bytes, limit_bytes } => Refusal::CatalogFull { used_bytes, limit_bytes },
            Self::Other { kind, message } => return Err((kind, message)),
        })
    }
}

impl From<CallFailure> for EngineError {
    fn from(failure: CallFailure) -> Self {
        match failure.refusal() {
            Ok(refusal) => Self::Refused(refusal),
            Err((kind, message)) => Self::Elsewhere { kind, message },
        }
    }
}

/// Lets an engine answer the call that a body is.
pub(in crate::api) async fn answer(engine: &Engine, body: AxumBody) -> Response<AxumBody> {
    let call = match Limited::new(body, CALL_BYTES_MAX).collect().await {
        Ok(read) => serde_json::from_slice::<EngineCall>(&read.to_bytes()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let answered = match call {
        Ok(call) => carry_out(engine, call).await,
        Err(why) => Err(CallFailure::Other { kind: ErrorKind::Invalid, message: format!("a call of a peer: {why}") }),
    };
    answered.unwrap_or_else(|failure| json(status_of(failure.kind()), &failure))
}

async fn carry_out(engine: &Engine, call: EngineCall) -> Result<Response<AxumBody>, CallFailure> {
    Ok(match call {
        EngineCall::List { bucket, prefix, delimiter, after, max } => {
            let query = ListQuery { prefix: &prefix, delimiter: &delimiter, after: &after, max };
            done(&ListedPage::from(engine.list(&bucket, &query).await?))
        }
        EngineCall::Uploads { bucket, prefix } => {
            let uploads = engine.uploads_below(&bucket, &prefix)?.into_iter();
            let uploads = uploads.map(|UploadView { id, upload, created }| ListedUpload {
                id,
                upload: (*upload).clone(),
                created,
            });
            done(&uploads.collect::<Vec<_>>())
        }
        EngineCall::Delete { bucket, objects } => {
            let objects = objects.into_iter();
            let objects =
                objects.map(|Doomed { key, if_match, if_put_at }| ObjectToDelete { key, if_match, if_put_at });
            let answers = engine.delete_objects(&bucket, objects.collect()).await?.into_iter();
            done(&answers.map(|answer| answer.err().map(CallFailure::from)).collect::<Vec<_>>())
        }
        EngineCall::Head { bucket, key } => {
            let head = engine.object(&bucket, &key).await?.head().clone();
            done(&SeenHead { tags: head.headers.tags.clone(), head })
        }
        EngineCall::Read { bucket, key, etag, start, end } => {
            let object = engine.object(&bucket, &key).await?;
            if object.head().etag != etag || object.head().len < end {
                let message = format!("the key {key:?} was put again meanwhile, repeat the request");
                return Err(CallFailure::Other { kind: ErrorKind::Unavailable, message });
            }
            let bytes = engine.read_object(&object, start..end).await?;
            let mut answer =
                Response::new(AxumBody::from_stream(bytes.map_err(|error| std::io::Error::other(chain(&error)))));
            answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
            answer
        }
        EngineCall::CreateBucket(bucket) => match engine.create_bucket(&bucket).await {
            Ok(()) | Err(EngineError::Refused(Refusal::BucketExists(_))) => done(&()),
            Err(error) => return Err(error.into()),
        },
        // An upload that has begun since the others were asked keeps it.
        EngineCall::DeleteBucket(bucket) if look_for_bucket(engine, &bucket).await? == BucketSeen::Filled => {
            return Err(CallFailure::BucketNotEmpty(bucket));
        }
        EngineCall::DeleteBucket(bucket) => match engine.delete_bucket(&bucket).await {
            Ok(()) | Err(EngineError::Refused(Refusal::NoSuchBucket(_))) => done(&()),
            Err(error) => return Err(error.into()),
        },
        EngineCall::LookForBucket(bucket) => done(&look_for_bucket(engine, &bucket).await?),
        EngineCall::PlaceOf(job) => {
            let placed = job.parse().map_or(Ok(None), |job: JobId| engine.placed(&job));
            done(&placed?)
        }
        EngineCall::CreateJob(job) => {
            engine.create_job(&id_of(&job)?).await?;
            done(&())
        }
        EngineCall::MayRestore { job, from, checkpoint, claims } => {
            let claim = if claims { Claim::Claim } else { Claim::NoClaim };
            let (job, from) = (id_of(&job)?, id_of(&from)?);
            done(&may_restore(engine, GoOn { job, from, checkpoint: checkpoint.map(CheckpointId), claim }))
        }
        EngineCall::Restored { job, checkpoint } => {
            let segments = engine.checkpoint_segments(&id_of(&job)?, CheckpointId(checkpoint)).await?;
            let segments = segments.iter().map(ListedSegment::from).collect();
            let mut answer = done(&RestoredJob { job, checkpoint, segments });
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer
        }
        EngineCall::Lens(objects) => done(&engine.object_lens(&objects)?),
        EngineCall::Segments(ids) => {
            let max = engine.settings().limits.segments_per_request_max;
            if ids.len() > max {
                let message = format!("more than limits.segments-per-request-max, {max}");
                return Err(CallFailure::Other { kind: ErrorKind::Invalid, message });
            }
            engine.check()?;
            let len = |id: &String| Some(engine.segment(id.parse::<SegmentId>().ok()?).ok()?.location.len());
            done(&ids.iter().map(len).collect::<Vec<Option<u64>>>())
        }
    })
}

fn id_of(text: &str) -> Result<JobId, CallFailure> {
    text.parse().map_err(|error: InvalidId| CallFailure::Other { kind: ErrorKind::Invalid, message: error.to_string() })
}

fn may_restore(engine: &Engine, go_on: GoOn) -> RestoreAnswer {
    let refused = |error: ApiError| RestoreAnswer::Refused {
        kind: error.kind,
        field: error.field.map(str::to_owned),
        message: error.message,
    };
    let from = go_on.from.clone();
    match engine.is_coordinated(&from) {
        Ok(true) if go_on.claim == Claim::Claim => return refused(CoordinatorError::Runs(from).into()),
        Ok(_) => {}
        Err(error) => return refused(error.into()),
    }
    match engine.may_go_on(go_on) {
        Ok(checkpoint) => RestoreAnswer::Checkpoint(checkpoint.0),
        Err(error) => refused(error.into()),
    }
}

/// Whether a bucket is there, and has objects or uploads.
pub(in crate::api) async fn look_for_bucket(engine: &Engine, bucket: &str) -> Result<BucketSeen, EngineError> {
    let any = ListQuery { max: 1, ..ListQuery::default() };
    match engine.list(bucket, &any).await {
        Ok(page) if page.entries.is_empty() && engine.uploads_below(bucket, "")?.is_empty() => Ok(BucketSeen::Empty),
        Ok(_) => Ok(BucketSeen::Filled),
        Err(EngineError::Refused(Refusal::NoSuchBucket(_))) => Ok(BucketSeen::Missing),
        Err(error) => Err(error),
    }
}

fn done(answer: &impl Serialize) -> Response<AxumBody> {
    json(StatusCode::OK, answer)
}

fn json(status: StatusCode, answer: &impl Serialize) -> Response<AxumBody> {
    let bytes = serde_json::to_vec(answer).unwrap_or_default();
    let mut response = Response::new(AxumBody::from(bytes));
    *response.status_mut() = status;
    response
}

/// Reads an answer.
///
/// # Errors
/// What the engine says, or that its answer cannot be understood.
pub(in crate::api) async fn read<T: DeserializeOwned>(answer: Response<AxumBody>) -> Result<T, EngineError> {
    let status = answer.status();
    let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let bytes = read.map_err(|error| broken(&error.to_string()))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|error| broken(&error.to_string()));
    }
    let failure = serde_json::from_slice::<CallFailure>(&bytes);
    Err(failure.map_or_else(|_| broken(&format!("it answers {status}")), EngineError::from))
}

/// An answer whose bytes are read as they come.
///
/// # Errors
/// What the engine says in place of them.
pub(in crate::api) async fn succeeded(answer: Response<AxumBody>) -> Result<Response<AxumBody>, EngineError> {
    match answer.status().is_success() {
        true => Ok(answer),
        false => Err(read::<()>(answer).await.err().unwrap_or(EngineError::NoAnswerGiven)),
    }
}

fn broken(why: &str) -> EngineError {
    let message = format!("another daemon of the cluster did not answer: {why}");
    EngineError::Elsewhere { kind: ErrorKind::Unavailable, message }
}
