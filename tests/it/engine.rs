//! The engine without doors: what the load generator and the benches open.

use bytes::Bytes;
use esker::config::{Config, Settings};
use esker::engine::intake::{Body, Digests, Whole};
use esker::engine::jobs::CheckpointStep;
use esker::engine::objects::NewObject;
use esker::engine::uploads::{Completion, NamedParts, ToComplete, UploadName};
use esker::engine::{
    Background, Condition, Engine, EngineError, EngineOptions, NoAnswer, ObjectToDelete, Refusal, Running,
};
use esker::model::{
    About, CheckpointId, CheckpointKind, CheckpointState, JobId, NewUpload, ObjectHeaders, PartHead, SegmentCrc,
    StateScope, Writer,
};
use futures::TryStreamExt;
use tempfile::TempDir;

const CHECKPOINT: CheckpointId = CheckpointId(1);

fn job() -> JobId {
    "job".parse().unwrap()
}

fn settings(folder: &TempDir) -> Settings {
    let url = ("store.url".to_owned(), format!("file:{}", folder.path().display()));
    Config::load_with(None, [], &[url]).unwrap().settings().unwrap()
}

async fn open(folder: &TempDir) -> Running {
    let opening = EngineOptions { background: Background::OnCall, ..EngineOptions::default() };
    Engine::open(settings(folder), opening).await.unwrap()
}

fn whole(text: &'static [u8]) -> Whole {
    Whole { data: Bytes::from_static(text), crc: SegmentCrc::of(text), paid: None }
}

fn about() -> About {
    About { job: job(), scope: StateScope::Shared, writer: Writer::default(), checkpoint: Some(CHECKPOINT), name: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_without_doors_is_restored_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let running = open(&folder).await;
    let engine = running.engine();
    engine.create_job(&job()).await.unwrap();
    engine.step(&job(), CHECKPOINT, CheckpointStep::Begin(CheckpointKind::Checkpoint)).await.unwrap();
    let handle = engine.store(about(), None, None, whole(b"state")).await.unwrap();
    let early = engine.read_checkpoint(&job(), CHECKPOINT).await.err().unwrap();
    engine.step(&job(), CHECKPOINT, CheckpointStep::Complete).await.unwrap();
    running.stop().await.unwrap();

    let running = open(&folder).await;
    let engine = running.engine();
    let latest = engine.latest_completed(&job()).unwrap();
    let pieces = engine.read_checkpoint(&job(), latest.id).await.unwrap();
    let bytes: Vec<Bytes> = pieces.map_ok(|piece| piece.bytes).try_collect().await.unwrap();

    assert!(matches!(early, EngineError::NoAnswer(NoAnswer::Incomplete(..))), "{early}");
    assert_eq!((latest.id, latest.state), (CHECKPOINT, CheckpointState::Completed));
    assert_eq!(bytes.concat(), b"state");
    assert_eq!(engine.segment_of(&handle).unwrap().id, handle.id);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_engine_on_the_same_folder_is_refused_while_the_first_runs() {
    let folder = tempfile::tempdir().unwrap();
    let running = open(&folder).await;

    let second = Engine::open(settings(&folder), EngineOptions::default()).await;

    assert!(second.is_err());
    assert!(running.engine().check().is_ok());
    running.stop().await.unwrap();
}

/// A body in one piece.
struct Text(Option<&'static str>);

impl Body for Text {
    type Fault = std::convert::Infallible;

    fn announced(&self) -> u64 {
        self.0.map_or(0, |text| text.len() as u64)
    }

    fn waits(&self) -> bool {
        false
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Self::Fault> {
        Ok(self.0.take().map(Bytes::from))
    }

    fn check(self, _: u32) -> Result<Digests, Self::Fault> {
        Ok(Digests::default())
    }

    fn is_of_client(_: &Self::Fault) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_put_again_since_it_was_seen_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let running = open(&folder).await;
    let engine = running.engine();
    engine.create_bucket("b").await.unwrap();
    let put = async || {
        let headers = ObjectHeaders::default();
        let object = NewObject { bucket: "b".to_owned(), key: "k".to_owned(), condition: Condition::None, headers };
        engine.put_object(object, Text(Some("same"))).await.unwrap_or_else(|_| panic!("a put")).modified
    };
    let delete = async |seen| {
        let object = ObjectToDelete { key: "k".to_owned(), if_match: None, if_put_at: Some(seen) };
        engine.delete_objects("b", vec![object]).await.unwrap().pop().unwrap()
    };

    let first = put().await;
    let mut second = put().await;
    while second == first {
        second = put().await;
    }

    assert!(matches!(delete(first).await, Err(Refusal::ConditionFailed(_))));
    assert_eq!(delete(second).await, Ok(()));
    assert!(matches!(delete(second).await, Err(Refusal::NoSuchKey(_))));
    running.stop().await.unwrap();
}

/// The whole of an upload as a completion of its first part.
fn completion(name: &UploadName, part: PartHead) -> Completion {
    let (upload, condition) = (name.clone(), Condition::None);
    Completion { upload, condition, parts: vec![(1, part)], etag: "whole-1".to_owned(), checksum: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_completed_of_the_parts_that_were_seen_and_of_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let running = open(&folder).await;
    let engine = running.engine();
    engine.create_bucket("b").await.unwrap();
    let (bucket, key, headers) = ("b".to_owned(), "out/k".to_owned(), ObjectHeaders::default());
    let upload = NewUpload { bucket: bucket.clone(), key: key.clone(), headers, checksum: None };
    let id = engine.create_upload(upload).await.unwrap();
    let name = UploadName { id, bucket, key };
    let named = NamedParts { etag: None, count: 1 };
    let first_part = async || match engine.to_complete(&name, &named).await.unwrap() {
        ToComplete::Parts(_, parts) => parts[&1].clone(),
        ToComplete::Object(put) => panic!("it is not complete: {put:?}"),
    };

    engine.put_part(&name, 1, Text(Some("first"))).await.unwrap();
    let seen = first_part().await;
    engine.put_part(&name, 1, Text(Some("other"))).await.unwrap();
    let refused = engine.complete_upload(completion(&name, seen)).await.unwrap_err();

    assert!(matches!(refused, EngineError::PartsChanged), "{refused}");
    assert!(engine.find_object("b", "out/k").await.unwrap().is_none());

    let seen = first_part().await;
    let put = engine.complete_upload(completion(&name, seen.clone())).await.unwrap();
    let object = engine.object("b", "out/k").await.unwrap();
    let bytes: Vec<Bytes> = engine.read_object(&object, 0..5).await.unwrap().try_collect().await.unwrap();

    assert_eq!(bytes.concat(), b"other");
    assert_eq!(engine.complete_upload(completion(&name, seen)).await.unwrap(), put, "its answer was lost");
    assert_eq!(engine.to_complete(&name, &named).await.unwrap(), ToComplete::Object(put));
    let more = NamedParts { etag: None, count: 2 };
    assert!(matches!(engine.to_complete(&name, &more).await, Err(EngineError::OtherParts)));
    running.stop().await.unwrap();
}
