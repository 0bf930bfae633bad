//! The rest of a command is done in pieces, whatever comes between; and so is a look.

use bytes::Bytes;

use super::*;
use crate::catalog::command::{
    Bind, Command, Condition, NewSegment, ObjectContent, Outcome, PutObject, Refusal, RestorePoint, Store, StoreFile,
    StoreItem,
};
use crate::catalog::state::written::WrittenRecords;
use crate::catalog::state::{Count, GoesOn, LaneCount, ListPage, ListQuery};
use crate::model::{
    About, Claim, JobEnd, Lane, LaneOf, Leavings, Location, ObjectHead, ObjectHeaders, PhysicalFileId, Segment,
    SegmentCrc, StateScope, Writer,
};

const NOW: Millis = Millis(1);
const MANY: u64 = 200;

fn job(name: &str) -> JobId {
    name.parse().unwrap()
}

/// As many segments of a checkpoint, half of them in a file.
fn store(state: &mut CatalogState, job: &JobId, checkpoint: u64, first: u64, count: u64) {
    let file = PhysicalFileId::new(Some(job), 1, first.into());
    let items = (first..first + count).map(|number| {
        let about = About {
            job: job.clone(),
            scope: StateScope::Shared,
            writer: Writer::default(),
            checkpoint: Some(CheckpointId(checkpoint)),
            name: None,
        };
        let (location, inline) = match number % 2 {
            0 => (Location::Inline { len: 1 }, Some(Bytes::from_static(b"x"))),
            _ => (Location::File(Segment { file: file.clone(), offset: 100 * (number - first), len: 10 }), None),
        };
        let (id, crc) = (SegmentId(number.into()), SegmentCrc::default());
        let idempotency_key = (number % 7 == 0).then(|| format!("key-{number}").parse().unwrap());
        let bind = Bind::Checkpoint { idempotency_key, run: None };
        StoreItem { segments: vec![NewSegment { id, about, location, inline, crc }], bind }
    });
    let lane = Lane { job: Some(job.clone()), scope: StateScope::Shared, of: LaneOf::All };
    let (items, len) = (items.collect(), 100 * count + 100);
    let file = StoreFile { id: file, lane, len, closes: true, upload: None };
    let stored = state.apply(Command::Store(Store { file: Some(file), items }), NOW);
    let Ok(Outcome::Stored(token, answers)) = stored else { panic!("{stored:?}") };
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    state.confirm(token, NOW);
}

fn reuse(state: &mut CatalogState, job: &JobId, checkpoint: u64, segments: std::ops::Range<u64>) -> Vec<SegmentId> {
    let segments = segments.map(|number| SegmentId(number.into())).collect();
    let outcome = state.apply(Command::Reuse(job.clone(), CheckpointId(checkpoint), segments, None), NOW);
    let Ok(Outcome::Reused(refused)) = outcome else { panic!("{outcome:?}") };
    refused
}

/// A job with checkpoints 1 and 2, which shares some segments with 1, a savepoint 3, and a checkpoint 4 that has begun,
/// with segments of its own and of earlier ones.
fn a_job() -> WrittenRecords {
    let (mut state, a) = (CatalogState::default(), job("a"));
    state.apply(Command::CreateJob(a.clone()), NOW).unwrap();
    store(&mut state, &a, 1, 0, MANY);
    state.apply(Command::CompleteCheckpoint(a.clone(), CheckpointId(1)), NOW).unwrap();
    store(&mut state, &a, 2, 1000, MANY);
    assert_eq!(reuse(&mut state, &a, 2, 50..MANY), []);
    state.apply(Command::CompleteCheckpoint(a.clone(), CheckpointId(2)), NOW).unwrap();
    state.apply(Command::BeginCheckpoint(a.clone(), CheckpointId(3), CheckpointKind::Savepoint), NOW).unwrap();
    store(&mut state, &a, 3, 2000, MANY);
    state.apply(Command::CompleteCheckpoint(a.clone(), CheckpointId(3)), NOW).unwrap();
    store(&mut state, &a, 4, 3000, MANY);
    assert_eq!(reuse(&mut state, &a, 4, 100..MANY), []);
    WrittenRecords::of(&mut state)
}

fn claim(checkpoint: u64) -> Command {
    let (job, from) = (job("b"), job("a"));
    Command::Restore(RestorePoint { job, from, checkpoint: CheckpointId(checkpoint), claim: Claim::Claim })
}

/// Everything that can be seen of a state.
fn picture(state: &CatalogState) -> String {
    let segments: Vec<_> = state.all_segments().collect();
    let files: Vec<_> = state.files().collect();
    let jobs: Vec<_> = state.jobs().into_iter().map(|job| (state.checkpoints(&job.id), job)).collect();
    format!("{segments:#?}{files:#?}{jobs:#?}{:?}", state.space())
}

fn of_checkpoint(state: &CatalogState, job: &JobId, checkpoint: u64) -> Vec<u128> {
    let mut found: Vec<u128> =
        state.checkpoint_segments(job, CheckpointId(checkpoint)).into_iter().map(|segment| segment.id.0).collect();
    found.sort_unstable();
    found
}

fn visible(state: &CatalogState) -> Vec<SegmentId> {
    state.all_segments().map(|view| view.id).filter(|id| state.segment(*id).is_some()).collect()
}

/// Does a piece of work; false if there is none.
fn piece(state: &mut CatalogState) -> bool {
    let left = !state.is_idle();
    state.work(NOW, || false);
    left
}

/// Wherever a crash comes between two pieces, the next start does the rest, and what can be asked is answered as at the end.
#[track_caller]
fn is_done_in_pieces(command: &Command, asked: impl Fn(&CatalogState) -> Vec<u128>) {
    let before = a_job();
    let mut whole = before.recovered(NOW);
    whole.apply(command.clone(), NOW).unwrap();
    assert_eq!(whole.check(), Vec::<String>::new());
    let (mut state, mut written, mut pieces) = (before.recovered(NOW), before, 0);

    state.begin(command.clone(), NOW).unwrap();
    loop {
        assert_eq!(state.check(), Vec::<String>::new(), "after {pieces} pieces");
        assert_eq!((visible(&state), asked(&state)), (visible(&whole), asked(&whole)), "after {pieces} pieces");
        written.write(&state.take_mutations());
        let recovered = written.recovered(NOW);
        assert_eq!(recovered.check(), Vec::<String>::new(), "a crash after {pieces} pieces");
        assert_eq!(picture(&recovered), picture(&whole), "a crash after {pieces} pieces");
        if !piece(&mut state) {
            break;
        }
        pieces += 1;
    }

    assert!(pieces > 2, "{pieces} pieces");
    assert_eq!(picture(&state), picture(&whole));
}

#[test]
fn a_claim_is_carried_out_in_pieces() {
    is_done_in_pieces(&claim(2), |state| of_checkpoint(state, &job("b"), 2));
    let claimed = of_checkpoint(&a_job().recovered(NOW), &job("a"), 2);

    let mut state = a_job().recovered(NOW);
    state.apply(claim(2), NOW).unwrap();

    assert_eq!(of_checkpoint(&state, &job("b"), 2), claimed);
    assert_eq!(claimed.len() as u64, 2 * MANY - 50);
}

#[test]
fn a_claim_of_a_savepoint_is_carried_out_in_pieces() {
    is_done_in_pieces(&claim(3), |state| {
        [of_checkpoint(state, &job("b"), 3), of_checkpoint(state, &job("a"), 2)].concat()
    });
}

#[test]
fn what_frees_segments_is_carried_out_in_pieces() {
    let a = || job("a");
    let left = |state: &CatalogState| [of_checkpoint(state, &job("a"), 2), of_checkpoint(state, &job("a"), 3)].concat();
    is_done_in_pieces(&Command::SubsumeCheckpoint(a(), CheckpointId(2)), left);
    let of_one = |state: &CatalogState| of_checkpoint(state, &job("a"), 1);
    is_done_in_pieces(&Command::SubsumeSince(a(), CheckpointId(2), CheckpointId(2)), of_one);
    is_done_in_pieces(&Command::EndJobSince(a(), JobEnd::Finished, Leavings::Delete, CheckpointId(2)), of_one);
    is_done_in_pieces(&Command::AbortCheckpoint(a(), CheckpointId(4)), left);
    is_done_in_pieces(&Command::DiscardSavepoint(a(), CheckpointId(3)), left);
    is_done_in_pieces(&Command::EndJob(a(), JobEnd::Finished, Leavings::Delete), left);
    is_done_in_pieces(&Command::EndJob(a(), JobEnd::Failed, Leavings::Keep), left);
}

#[test]
fn what_is_claimed_and_subsumed_before_it_has_changed_hands_is_freed() {
    let mut state = a_job().recovered(NOW);
    state.begin(claim(2), NOW).unwrap();
    assert!(piece(&mut state));
    state.begin(Command::SubsumeCheckpoint(job("b"), CheckpointId(2)), NOW).unwrap();
    assert!(visible(&state).iter().all(|id| (2000..3000).contains(&id.0)), "only the savepoint's");

    state.finish_work(NOW);

    assert_eq!(state.check(), Vec::<String>::new());
    assert_eq!(state.job(&job("b")).unwrap().segments, 0);
    assert_eq!(of_checkpoint(&state, &job("a"), 3).len() as u64, MANY, "the savepoint stays");
}

/// The start does not do what is left: it may be more than there is memory for.
#[test]
fn a_start_leaves_what_is_left_to_be_done_in_pieces() {
    let (mut state, mut written) = (a_job().recovered(NOW), a_job());
    state.begin(Command::EndJob(job("a"), JobEnd::Finished, Leavings::Delete), NOW).unwrap();
    written.write(&state.take_mutations());

    let mut state = written.loaded();
    state.end_loading(NOW);

    assert!(!state.is_idle() && state.take_mutations().is_empty());
    assert_eq!(state.check(), Vec::<String>::new());
    state.finish_work(NOW);
    assert_eq!((state.check(), state.all_segments().count()), (vec![], MANY as usize), "the savepoint stays");
}

#[test]
fn a_job_goes_on_once_nothing_of_its_end_is_left() {
    let mut state = a_job().recovered(NOW);
    state.begin(Command::EndJob(job("a"), JobEnd::Finished, Leavings::Delete), NOW).unwrap();
    assert!(piece(&mut state));
    let go_on = Command::CreateJob(job("a"));
    assert!(state.waits_for_work(&go_on) && !state.waits_for_work(&Command::CreateJob(job("b"))));
    state.begin(go_on, NOW).unwrap();
    assert!(state.is_idle());
    assert!((0..MANY).all(|number| state.segment(SegmentId(number.into())).is_none()));
    let new = NewSegments { first: 5000, checkpoint: 1 };
    new.store(&mut state);

    state.finish_work(NOW);

    assert_eq!(state.check(), Vec::<String>::new());
    assert!((5000..5000 + MANY).all(|number| state.segment(SegmentId(number.into())).is_some()));
}

/// Segments that are stored while something is left.
struct NewSegments {
    first: u64,
    checkpoint: u64,
}

impl NewSegments {
    fn store(&self, state: &mut CatalogState) {
        let token = state.begin_store(None, NOW);
        let items = (self.first..self.first + MANY).map(|number| {
            let (scope, writer) = (StateScope::Shared, Writer::default());
            let checkpoint = Some(CheckpointId(self.checkpoint));
            let about = About { job: job("a"), scope, writer, checkpoint, name: None };
            let (location, inline) = (Location::Inline { len: 1 }, Some(Bytes::from_static(b"x")));
            let (id, crc) = (SegmentId(number.into()), SegmentCrc::default());
            let bind = Bind::Checkpoint { idempotency_key: None, run: None };
            StoreItem { segments: vec![NewSegment { id, about, location, inline, crc }], bind }
        });
        assert!(state.add_to_store(token, items, NOW).iter().all(Result::is_ok));
        while !state.confirm_some(token, NOW) {}
    }
}

#[test]
fn what_is_leaving_is_not_used_again() {
    let (mut state, a) = (a_job().recovered(NOW), job("a"));
    state.begin(Command::DiscardSavepoint(a.clone(), CheckpointId(3)), NOW).unwrap();
    state.begin(Command::SubsumeCheckpoint(a.clone(), CheckpointId(1)), NOW).unwrap();
    assert!(!state.is_idle());

    let again = Command::BeginCheckpoint(a.clone(), CheckpointId(3), CheckpointKind::Savepoint);
    assert_eq!(state.begin(again.clone(), NOW).unwrap_err(), Refusal::CheckpointCompleted(a.clone(), CheckpointId(3)));
    let ids: Vec<SegmentId> = (0..60).map(SegmentId).collect();
    let Ok(Outcome::Reused(refused)) = state.begin(Command::Reuse(a, CheckpointId(4), ids, None), NOW) else {
        panic!("a reuse")
    };
    assert_eq!(refused, (0..50).map(SegmentId).collect::<Vec<_>>());

    state.finish_work(NOW);
    state.begin(again, NOW).unwrap();
    assert_eq!(state.check(), Vec::<String>::new());
}

/// Goes on with a look that is stopped after each thing.
fn stopped_each_time(mut look: impl FnMut(GoesOn<'_>) -> bool) -> usize {
    let mut pieces = 1;
    while !look(&mut || false) {
        pieces += 1;
    }
    pieces
}

#[test]
fn a_look_in_pieces_sees_what_a_look_at_once_sees() {
    let mut state = a_job().recovered(NOW);
    state.apply(Command::EndJob(job("a"), JobEnd::Failed, Leavings::Keep), NOW).unwrap();
    store_more(&mut state);
    let a = job("a");

    let mut lanes = LaneCount::default();
    assert!(stopped_each_time(|goes_on| state.count_lanes(&mut lanes, goes_on)) > 100);
    assert_eq!(lanes.lanes, state.space_by_lane());

    let mut count = state.begin_checkpoint_count(&a);
    assert!(stopped_each_time(|goes_on| state.count_checkpoints(&a, &mut count, goes_on)) > 100);
    let (counted, at_once) = (count.finish(), state.space_by_checkpoint(&a));
    assert_eq!(format!("{counted:?}"), format!("{at_once:?}"));
    let of_two = counted.iter().find(|(view, _)| view.id.0 == 2).unwrap().1;
    assert_eq!((of_two.segments, counted.len()), (2 * MANY - 50, 3));

    for checkpoint in [2, 3].map(CheckpointId) {
        let mut look = state.begin_checkpoint_look(&a, checkpoint);
        assert!(stopped_each_time(|goes_on| state.look_at_checkpoint(&a, checkpoint, &mut look, goes_on)) > 100);
        assert_eq!(look.found, state.checkpoint_segments(&a, checkpoint));
    }

    let (mut after, mut forgotten) = (None, vec![]);
    stopped_each_time(|goes_on| state.each_forgotten(&mut after, goes_on, &|_, _| true, |file| forgotten.push(file)));
    assert_eq!(forgotten, state.forgotten_files(|_, _| true, usize::MAX));
    assert!(forgotten.len() > 1);

    let mut count = Count::default();
    stopped_each_time(|goes_on| state.count_names(&mut count, goes_on));
    count.sort();
    stopped_each_time(|goes_on| state.count_all(&mut count, goes_on));
    state.count_totals(&mut count);
    assert_eq!((count.faults, count.segments), (vec![], state.segment_count()));
}

/// Files that hold nothing that lives, of a job that is forgotten.
fn store_more(state: &mut CatalogState) {
    for (number, name) in [(7000, "x"), (8000, "y")] {
        state.apply(Command::CreateJob(job(name)), NOW).unwrap();
        store(state, &job(name), 1, number, 3);
        state.apply(Command::EndJob(job(name), JobEnd::Finished, Leavings::Delete), NOW).unwrap();
    }
}

#[test]
fn a_page_that_is_listed_in_pieces_is_the_page_that_is_listed_at_once() {
    let mut state = CatalogState::default();
    state.apply(Command::CreateBucket("bucket".into()), NOW).unwrap();
    for (number, key) in (1..).zip(["a/1", "a/2", "b", "c/d/1", "c/d/2", "c/e"]) {
        let about = About {
            job: job("bucket/j"),
            scope: StateScope::Shared,
            writer: Writer::default(),
            checkpoint: None,
            name: None,
        };
        let (id, location) = (SegmentId(number), Location::Inline { len: 1 });
        let segment = NewSegment { id, about, location, inline: None, crc: SegmentCrc::default() };
        let head = ObjectHead {
            len: 1,
            etag: "e".into(),
            modified: NOW,
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![],
        };
        let content = ObjectContent::Segments { segments: vec![id], head, upload: None };
        let (bucket, key, condition) = ("bucket".into(), key.into(), Condition::None);
        let put = PutObject { bucket, key, condition, content };
        let item = StoreItem { segments: vec![segment], bind: Bind::Object(Box::new(put)) };
        let token = state.begin_store(None, NOW);
        assert!(state.add_to_store(token, [item], NOW).iter().all(Result::is_ok));
        state.confirm(token, NOW);
    }

    for (prefix, delimiter, max) in [("", "", 100), ("", "/", 100), ("c/", "/", 100), ("", "/", 2), ("z", "", 9)] {
        let query = ListQuery { prefix, delimiter, after: "", max };
        let mut page = ListPage::default();
        stopped_each_time(|goes_on| state.list_on("bucket", &query, &mut page, goes_on));
        assert_eq!(format!("{page:?}"), format!("{:?}", state.list("bucket", &query)), "{query:?}");
    }
}

/// What it has recorded, taken up by another process, is the same.
fn recovered(state: &mut CatalogState, mut written: WrittenRecords) -> WrittenRecords {
    let seen = picture(state);
    written.write(&state.take_mutations());
    assert_eq!(picture(&written.recovered(NOW)), seen);
    assert_eq!(state.check(), Vec::<String>::new());
    written
}

#[test]
fn checkpoints_before_those_that_are_subsumed_or_end_with_the_job_keep_what_they_use() {
    let (written, a) = (a_job(), job("a"));
    let mut state = written.recovered(NOW);
    let all_of = |state: &CatalogState, checkpoint| of_checkpoint(state, &job("a"), checkpoint);
    let (first, second) = (all_of(&state, 1), all_of(&state, 2));
    state.apply(Command::CompleteCheckpoint(a.clone(), CheckpointId(4)), NOW).unwrap();
    store(&mut state, &a, 5, 4000, MANY);
    state.apply(Command::CompleteCheckpoint(a.clone(), CheckpointId(5)), NOW).unwrap();

    state.apply(Command::SubsumeSince(a.clone(), CheckpointId(3), CheckpointId(4)), NOW).unwrap();
    let known = |state: &CatalogState| state.checkpoints(&job("a")).iter().map(|one| one.id.0).collect::<Vec<_>>();
    assert_eq!(known(&state), [1, 2, 3, 5]);
    assert_eq!((all_of(&state, 1), all_of(&state, 2)), (first.clone(), second.clone()));
    assert_eq!(state.all_segments().count() as u64, 4 * MANY, "what 4 alone has stored is freed");
    let written = recovered(&mut state, written);

    let ends = Command::EndJobSince(a.clone(), JobEnd::Finished, Leavings::Delete, CheckpointId(3));
    state.apply(ends, NOW).unwrap();
    assert_eq!(known(&state), [1, 2, 3]);
    assert_eq!((all_of(&state, 1), all_of(&state, 2)), (first, second));
    assert_eq!(state.all_segments().count() as u64, 3 * MANY);
    let written = recovered(&mut state, written);

    state.apply(Command::SubsumeCheckpoint(a, CheckpointId(2)), NOW).unwrap();
    assert_eq!(known(&state), [3]);
    assert_eq!(state.all_segments().count() as u64, MANY);
    recovered(&mut state, written);
}
