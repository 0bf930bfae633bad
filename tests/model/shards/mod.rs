//! A second, smaller model: two shards, whose entries are in one map.
//!
//! What the first model shows of one shard is taken for granted here: an open is one step, and so is a commit, which the fence of a
//! later owner refuses. What is left is what shards have in common: a map that members write for different shards at the same time, the
//! edits of one member that go into one map, READs that tell of all shards, commits that tell of one, and balance.

mod effects;
mod pair;

use std::sync::atomic::Ordering;

use stateright::{Checker, HasDiscoveries, Model};

use self::pair::{Bug, ENDS, LOST, Left, ONE, STALE, Seen, Shards, UNGIVEN};
use crate::story;

/// Two members, of which one has both shards, and the other takes it for silent.
fn silent() -> Shards {
    let left = Left { suspicions: 1, puts: 2, reads: 1, ..Left::default() };
    Shards::new(2, [0, 0], left, &[Seen::TakeOver, Seen::ShutOut, Seen::Read])
}

/// A member has both shards and dies; the others take one each, or both.
fn dead() -> Shards {
    let left = Left { crashes: 1, ..Left::default() };
    Shards::new(3, [0, 0], left, &[Seen::TakeOver, Seen::Together, Seen::DecidedAnew])
}

/// Each of two members has a shard, and takes the other one for silent.
fn each_other() -> Shards {
    let left = Left { suspicions: 2, pauses: 1, puts: 1, ..Left::default() };
    Shards::new(2, [0, 1], left, &[Seen::TakeOver, Seen::DecidedAnew, Seen::ShutOut])
}

/// A member has both shards, and gives one away, while the other one is taken from it.
fn balance() -> Shards {
    let left = Left { suspicions: 1, moves: 2, puts: 1, ..Left::default() };
    Shards::new(2, [0, 0], left, &[Seen::TakeOver, Seen::HandOver])
}

/// Two of three members have a shard each.
fn spread() -> Shards {
    Shards::new(3, [0, 1], Left { moves: 2, ..Left::default() }, &[])
}

fn holds(name: &str, scope: Shards) {
    let checker = scope.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();

    let found = checker.discoveries().into_iter().next();
    if let Some((property, path)) = found {
        panic!("{name}: not so: {property}\n{}", story(path.into_actions()));
    }
    for seen in checker.model().expected {
        assert!(checker.model().seen[*seen as usize].load(Ordering::Relaxed), "{name}: never happened: {seen:?}");
    }
    println!("{name}: {} states, at most {} steps deep", checker.unique_state_count(), checker.max_depth());
}

fn finds(bug: Bug, scope: Shards, property: &'static str) {
    let scope = Shards { bug: Some(bug), ..scope };
    let checker = scope.checker().finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();

    let path = checker.discoveries().remove(property).map(|path| path.into_actions());
    let path = path.unwrap_or_else(|| panic!("{bug:?} is not found in {} states", checker.unique_state_count()));
    println!("{bug:?}: after {} steps not so: {property}\n{}", path.len(), story(path));
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
    a_member_loses_one_of_its_shards: silent;
    the_shards_of_one_that_died_go_to_others: dead;
    two_members_take_from_each_other: each_other;
    a_shard_is_given_away_while_another_one_is_taken: balance;
    shards_that_are_spread_stay: spread;
}

macro_rules! bugs {
    ($($test:ident: $bug:ident in $scope:ident breaks $property:ident;)*) => {
        $(#[test]
        fn $test() {
            finds(Bug::$bug, $scope(), $property);
        })*
    };
}

bugs! {
    finds_a_map_that_is_written_again_as_it_was: StaleMapRewritten in dead breaks LOST;
    finds_edits_that_are_told_together: EditsToldTogether in dead breaks UNGIVEN;
    finds_a_proof_of_another_shard: ProofOfOtherShard in silent breaks STALE;
    finds_a_read_for_another_shard: ReadOfOtherShard in silent breaks ONE;
    finds_shards_that_are_moved_for_one_less: BalanceByOne in spread breaks ENDS;
}
