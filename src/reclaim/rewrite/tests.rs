//! Tests how a round takes the events of its new files.

use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;

use super::*;
use crate::model::{About, CheckpointId, Holder, Lane, LaneOf, Location, Millis, SegmentCrc, Writer};
use crate::store::{DataStore, ObjectFiles};

/// As many new files, of which none has begun.
async fn rewriting(outputs: u128) -> Rewriting {
    let files = ObjectFiles::with_retries(Arc::new(InMemory::new()), Path::default(), Duration::ZERO);
    let context = WriteContext::for_tests(DataStore::Object(files)).await;
    let lane = Lane { job: None, scope: StateScope::Shared, of: LaneOf::All };
    let key = LaneKey { lane, checkpoint: None };
    let output = |ulid| Output { ulid, key: key.clone(), segments: vec![], leases: vec![] };
    Rewriting::new(context, (0..outputs).map(output).collect())
}

/// Begins what may be begun. Returns how many that were.
fn begin(rewriting: &mut Rewriting) -> usize {
    let mut begun = 0;
    while rewriting.may_begin() && rewriting.begin() {
        begun += 1;
    }
    begun
}

fn file() -> PhysicalFileId {
    PhysicalFileId::new(None, 1, 7)
}

fn corrupt() -> RewriteEvent {
    RewriteEvent::Written(Err(ReclaimError::Corrupt { segment: SegmentId(1), file: file() }))
}

fn damage() -> Damage {
    Damage { segment: SegmentId(1), file: file() }
}

fn lost() -> StoreError {
    StoreError::NotFound("the store".to_owned())
}

#[tokio::test]
async fn a_few_files_are_written_at_a_time_and_what_they_took_adds_up() {
    let mut rewriting = rewriting(6).await;
    assert_eq!(begin(&mut rewriting), OUTPUTS_AT_ONCE);
    rewriting.running.clear();

    for bytes in [1, 10] {
        rewriting.apply(RewriteEvent::Written(Ok(RewrittenFile { read_bytes: bytes, written_bytes: 2 * bytes })));
    }

    assert_eq!((rewriting.written.read_bytes, rewriting.written.written_bytes), (11, 22));
    assert_eq!(begin(&mut rewriting), 2);
}

#[tokio::test]
async fn after_wrong_bytes_nothing_is_begun_before_the_store_was_looked_at() {
    let mut rewriting = rewriting(6).await;

    rewriting.apply(corrupt());
    assert_eq!(begin(&mut rewriting), 0);
    assert!(rewriting.damaged.is_empty(), "it may be another store");
    let looked = rewriting.next_event().await.unwrap();
    assert!(matches!(looked, RewriteEvent::Looked(Damage { segment: SegmentId(1), .. }, Ok(()))));
    rewriting.apply(looked);

    assert_eq!(rewriting.damaged.iter().map(|damage| &damage.file).collect::<Vec<_>>(), [&file()]);
    assert!(rewriting.failed.is_none());
    assert_eq!(begin(&mut rewriting), OUTPUTS_AT_ONCE);
}

#[tokio::test]
async fn wrong_bytes_of_a_store_that_is_gone_are_no_damage_and_end_the_round() {
    let mut rewriting = rewriting(6).await;

    rewriting.apply(corrupt());
    rewriting.apply(RewriteEvent::Looked(damage(), Err(lost())));

    assert!(rewriting.damaged.is_empty());
    assert!(matches!(rewriting.failed, Some(ReclaimError::Store(StoreError::NotFound(_)))));
    assert!(!rewriting.may_begin());
}

#[tokio::test]
async fn after_a_failure_nothing_is_begun_what_runs_is_seen_through_and_the_first_one_is_told() {
    let mut rewriting = rewriting(6).await;
    begin(&mut rewriting);

    rewriting.apply(RewriteEvent::Written(Err(ReclaimError::Store(lost()))));
    rewriting.apply(RewriteEvent::Written(Err(ReclaimError::Merge(MergeError::ShuttingDown))));

    assert!(matches!(rewriting.failed, Some(ReclaimError::Store(_))));
    assert_eq!(begin(&mut rewriting), 0);
    let mut seen_through = 0;
    while let Some(event) = rewriting.next_event().await {
        assert!(matches!(event, RewriteEvent::Written(Ok(_))));
        rewriting.apply(event);
        seen_through += 1;
    }
    assert_eq!(seen_through, OUTPUTS_AT_ONCE);
}

fn view(number: u128, location: Location) -> SegmentView {
    let (job, scope, writer) = ("j".parse().unwrap(), StateScope::Shared, Writer::default());
    SegmentView {
        id: SegmentId(number),
        about: About { job, scope, writer, checkpoint: None, name: None },
        holder: Holder::Checkpoints { last_used: CheckpointId(1) },
        location,
        crc: SegmentCrc::default(),
        created: Millis(1),
    }
}

#[test]
fn a_pause_is_for_many_segments_inside_the_catalog() {
    let file = PhysicalFileId::new(None, 1, 1);
    let mut segments: Vec<SegmentView> = (0..2000).map(|n| view(n, Location::Inline { len: 200 })).collect();
    segments.push(view(2000, Location::File(Segment { file, offset: 64, len: 200 })));
    segments.push(view(2001, Location::Inline { len: 2 * INLINE_BYTES_AT_ONCE }));

    let runs: Vec<usize> = runs(&segments).map(<[SegmentView]>::len).collect();

    assert_eq!(runs, [1310, 690, 1, 1]);
}
