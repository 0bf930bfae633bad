//! The protocol by which several daemons share a store, explored: every order in which requests, answers, crashes and ticks of
//! clocks can come, within a budget of each.
//!
//! The rules are those of `docs/cluster.md`. `world.rs` is what there is, `steps.rs` what may happen, `effects.rs` and `answers.rs`
//! what that does, `cluster.rs` what must hold. A rule that is left out (`bug.rs`) has to be found: else the model says nothing about that rule.
//!
//! Each scope below gives a small budget to the events that it is about. `ESKER_MODEL_DEPTH=2` gives more of each, which takes
//! minutes to hours and gigabytes.

#![allow(clippy::unwrap_used, missing_docs)]

mod answers;
mod bug;
mod cluster;
mod effects;

mod shards;
mod steps;
mod world;

use bug::Bug;
use cluster::{ALWAYS, Cluster, Seen};
use stateright::{Checker, HasDiscoveries, Model};
use world::Budget;

/// Members of their own.
const TWO: &[u8] = &[0, 1];
const THREE: &[u8] = &[0, 1, 2];
/// The last process is the first member, restarted.
const RESTARTED: &[u8] = &[0, 1, 0];
const RESTARTED_ALONE: &[u8] = &[0, 0];

/// How much more may happen than by default.
fn more() -> u8 {
    let depth = std::env::var("ESKER_MODEL_DEPTH").map_or(1, |depth| depth.parse::<u8>().expect("a number, from 1"));
    depth.saturating_sub(1)
}

/// An owner that somebody wrongly takes for silent, and reads.
fn reads() -> Cluster {
    let budget = Budget { suspicions: 1 + more(), puts: 1 + more().min(1), reads: 1 + more(), ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::ShutOut, Seen::ReadByProof, Seen::ReadByLook])
}

/// An owner that is stopped, taken for silent, and comes back.
fn paused() -> Cluster {
    let budget = Budget { pauses: 1 + more(), puts: more(), reads: 1 + more(), clock_steps: 1, ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::ShutOut, Seen::ReadByProof, Seen::ReadByLook])
}

/// A second member joins the only one, and takes its shard.
fn alone() -> Cluster {
    let budget = Budget { suspicions: 1, starts: 1, puts: more(), reads: 1 + more(), ..Budget::default() };
    Cluster::new(TWO, 1, budget, &[Seen::TakeOver, Seen::ShutOut, Seen::ReadAlone])
}

/// The only member is restarted, and its old process may come back.
fn restarted_alone() -> Cluster {
    let (pauses, crashes) = (1, more());
    let budget = Budget { pauses, crashes, starts: 1, puts: more(), reads: 1 + more(), ..Budget::default() };
    Cluster::new(RESTARTED_ALONE, 1, budget, &[Seen::TakeOver, Seen::Restart, Seen::ShutOut, Seen::ReadAlone])
}

/// Two candidates at once, and an owner that is alive.
fn race() -> Cluster {
    let budget = Budget { suspicions: 2, puts: more(), ..Budget::default() };
    Cluster::new(THREE, 3, budget, &[Seen::TakeOver, Seen::FencedAtOpen])
}

/// Requests that come late, twice, or whose answer is lost.
fn lost() -> Cluster {
    let budget =
        Budget { suspicions: 1 + more(), puts: 1, time_outs: 1 + more(), other_writes: more(), ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::LostAnswer, Seen::LateRequest])
}

/// 409 where nothing is.
fn conflicts() -> Cluster {
    let (conflicts, other_writes) = (1 + more(), 1);
    let budget = Budget { suspicions: 1, puts: more(), reads: 1, conflicts, other_writes, ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::Conflict])
}

/// The log: 409, lost answers, late flushes.
fn log() -> Cluster {
    let budget = Budget { suspicions: 1 + more(), puts: 1 + more(), time_outs: 1, conflicts: 1, ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::Conflict, Seen::LostAnswer, Seen::ShutOut])
}

/// A member is restarted while its old process is stopped.
fn restarted() -> Cluster {
    let budget = Budget { pauses: 1, starts: 1, puts: more(), reads: 1, ..Budget::default() };
    Cluster::new(RESTARTED, 2, budget, &[Seen::TakeOver, Seen::Restart, Seen::ShutOut])
}

/// Owners and candidates die at any step.
fn crashes() -> Cluster {
    let budget = Budget { crashes: 2, starts: 1, puts: 1, deletes: more(), ..Budget::default() };
    Cluster::new(RESTARTED, 2, budget, &[Seen::TakeOver, Seen::Restart, Seen::LateRequest])
}

/// An owner gives its shard away.
fn hand_over() -> Cluster {
    let budget = Budget { suspicions: more(), hand_overs: 1, puts: 1, reads: 1 + more(), ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::HandOver])
}

/// A shard is taken from an owner that does not notice, and given back to it.
fn handed_back() -> Cluster {
    let budget = Budget { suspicions: 1, hand_overs: 1 + more(), puts: more(), reads: 1, ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::HandOver, Seen::ShutOut])
}

/// The same with an object that the old owner does not know.
fn handed_back_with_news() -> Cluster {
    let mut scope = handed_back();
    scope.budget.puts = 1;
    scope
}

/// Files: uploads that come late or never, tombstones, deletes.
fn files() -> Cluster {
    let budget = Budget { suspicions: 1, puts: 1 + more(), deletes: 1, give_ups: 1, ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::Deleted, Seen::Tombstone, Seen::SlowPut])
}

/// Owners, also those that are none any more, delete what they cannot name.
fn sweep() -> Cluster {
    let budget = Budget { suspicions: 1, puts: 1 + more(), sweeps: 1 + more(), ..Budget::default() };
    Cluster::new(TWO, 2, budget, &[Seen::TakeOver, Seen::Swept, Seen::ShutOut])
}

/// Explores all of it. Nothing may break, and what the scope is about must have happened.
fn holds(name: &str, scope: Cluster) {
    let checker = scope.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();

    let found = checker.discoveries();
    for property in ALWAYS {
        if let Some(path) = found.get(property) {
            panic!("{name}: not so: {property}\n{}", story(path.clone().into_actions()));
        }
    }
    for seen in checker.model().expected {
        assert!(checker.model().saw(*seen), "{name}: never happened: {seen:?}");
    }
    let (states, deep) = (checker.unique_state_count(), checker.max_depth());
    println!("{name}: {states} states, at most {deep} steps deep");
}

/// Explores until a rule that was left out shows.
fn finds(bug: Bug, scope: Cluster, property: &'static str) {
    assert!(ALWAYS.contains(&property), "{property}");

    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = scope.with(bug).checker().finish_when(wanted).spawn_bfs().join();

    let path = checker.discoveries().remove(property).map(|path| path.into_actions());
    let path = path.unwrap_or_else(|| panic!("{bug:?} is not found in {} states", checker.unique_state_count()));
    let states = checker.unique_state_count();
    let steps = path.len();
    println!("{bug:?}: after {steps} steps not so: {property} ({states} states)\n{}", story(path));
}

fn story(steps: Vec<impl std::fmt::Debug>) -> String {
    steps.iter().map(|step| format!("    {step:?}\n")).collect()
}

macro_rules! scopes {
    ($($test:ident: $scope:ident;)*) => {
        $(#[test]
        fn $test() {
            holds(stringify!($scope), $scope());
        })*
    };
}

scopes! {
    no_read_is_stale_beside_a_take_over: reads;
    an_owner_that_was_stopped_answers_nothing_stale: paused;
    a_member_that_was_alone_hears_of_the_second: alone;
    the_only_member_can_be_restarted: restarted_alone;
    of_two_candidates_one_serves: race;
    requests_may_come_late_or_twice: lost;
    a_409_is_no_answer: conflicts;
    the_log_has_one_order: log;
    a_new_incarnation_is_not_the_old_one: restarted;
    a_crash_at_any_step_is_healed: crashes;
    a_shard_can_be_given_away: hand_over;
    a_shard_can_be_given_back: handed_back;
    files_live_as_long_as_they_are_named: files;
    a_sweep_spares_what_others_named: sweep;
}

macro_rules! bugs {
    ($($test:ident: $bug:ident in $scope:ident breaks $property:literal;)*) => {
        $(#[test]
        fn $test() {
            finds(Bug::$bug, $scope(), $property);
        })*
    };
}

bugs! {
    finds_a_proof_that_was_taken_before_the_view: ProofBeforeView in reads breaks "no read is older than an answer";
    finds_a_proof_that_counts_from_its_answer: ProofFromAnswer in reads breaks "one member at most answers from memory";
    finds_a_clock_that_stands_still: ProofStandsStill in paused breaks "one member at most answers from memory";
    finds_a_clock_that_can_be_set: ProofByWallClock in paused breaks "one member at most answers from memory";
    finds_a_new_owner_that_does_not_wait: ServesAtOnce in reads breaks "no read is older than an answer";
    finds_a_member_that_is_alone_for_ever: AloneForEver in alone breaks "one member at most answers from memory";
    finds_a_joiner_that_does_not_wait: JoinerDoesNotWait in alone breaks "one member at most answers from memory";
    finds_a_restart_that_does_not_wait:
        RestartDoesNotWait in restarted_alone breaks "one member at most answers from memory";
    finds_an_open_before_the_map_was_written: OpenBeforeMap in reads breaks "one member at most answers from memory";
    finds_a_write_of_the_map_that_is_not_create_only: BlindMapWrite in race breaks "the map never goes back";
    finds_a_lost_answer_taken_for_a_failure: LostIsFailure in lost breaks "a shard is always somebody's business";
    finds_a_fenced_candidate_that_gives_up: FencedIsFinal in race breaks "a shard is always somebody's business";
    finds_a_new_incarnation_taken_for_the_old:
        IncarnationIgnored in restarted breaks "one member at most answers from memory";
    finds_a_shard_that_was_given_back_taken_for_the_old:
        EpochIgnored in handed_back_with_news breaks "no read is older than an answer";
    finds_a_409_taken_for_a_map_that_is_there: ConflictAtMap in conflicts breaks "one member at most answers from memory";
    finds_a_409_taken_for_a_name_of_the_log: ConflictAtLog in log breaks "no flush takes effect after a fence";
    finds_a_fence_that_is_passed_over: NextNameWhenTaken in log breaks "what was answered can be read";
    finds_a_fence_that_was_removed: FenceCollected in log breaks "no flush takes effect after a fence";
    finds_an_owner_that_serves_after_it_gave_away:
        HandOverServesOn in hand_over breaks "one member at most answers from memory";
    finds_an_answer_before_the_commit_is_durable: AnswerBeforeDurable in log breaks "what was answered can be read";
    finds_a_look_in_place_of_a_tombstone: HeadWithoutTombstone in files breaks "what was answered can be read";
    finds_a_slow_upload_that_is_not_checked: SlowPutUnchecked in files breaks "what was answered can be read";
    finds_a_delete_before_it_is_durable: DeleteBeforeForgotten in files breaks "no living file is deleted";
    finds_a_sweep_that_does_not_look_who_owns: SweepUnchecked in sweep breaks "no living file is deleted";
    finds_a_sweep_that_looks_before_it_lists: SweepCheckedBeforeList in sweep breaks "no living file is deleted";
}
