use super::*;
use crate::coordinator::topology::OperatorInput;
use crate::model::SegmentId;

fn spec(id: &str, parallelism: u32) -> OperatorSpec {
    OperatorSpec::plain(id, parallelism)
}

/// A state of `elements` elements of 10 bytes each in segment `segment`.
fn entry(kind: StateKind, name: &str, segment: u128, elements: u64) -> StateEntry {
    StateEntry {
        kind,
        name: name.to_owned(),
        segment: SegmentId(segment),
        offsets: (0..elements).map(|at| at * 10).collect(),
        end: elements * 10,
        key_groups: 0..0,
    }
}

fn keyed(segment: u128, key_groups: Range<u32>, offsets: bool) -> StateEntry {
    let count = u64::from(key_groups.end - key_groups.start);
    let offsets = if offsets { (0..count).map(|at| at * 10).collect() } else { [].into() };
    let (kind, name, end) = (StateKind::Keyed, "k".to_owned(), count * 10);
    StateEntry { kind, name, segment: SegmentId(segment), offsets, end, key_groups }
}

fn restored(id: &str, tasks: Vec<Vec<StateEntry>>) -> RestoredOperator {
    let spec = spec(id, u32::try_from(tasks.len()).unwrap());
    RestoredOperator { spec, tasks: tasks.into_iter().map(|state| (false, state)).collect() }
}

/// What all tasks start from; each by itself starts from the same.
fn assign_all(spec: &OperatorSpec, restored: Option<&RestoredOperator>) -> Vec<TaskStart> {
    let all = assign(spec, restored, 0..spec.parallelism);
    let each = (0..spec.parallelism).flat_map(|subtask| assign(spec, restored, subtask..subtask + 1));
    assert_eq!(each.collect::<Vec<_>>(), all);
    all
}

/// By task: (segment, number of elements) of everything that it gets.
fn counts(starts: &[TaskStart]) -> Vec<Vec<(u128, usize)>> {
    let of = |start: &TaskStart| start.state.iter().map(|state| (state.entry.segment.0, state.ranges.len())).collect();
    starts.iter().map(of).collect()
}

#[test]
fn s5_8_key_groups_follow_their_tasks_to_another_parallelism() {
    let groups = |parallelism| (0..parallelism).map(move |at| key_groups_of(128, parallelism, at));
    let state = groups(2).zip(1_u128..).map(|(groups, id)| vec![keyed(id, groups, true)]).collect();
    let restored = restored("a", state);

    let starts = assign_all(&spec("a", 3), Some(&restored));

    let got: Vec<Vec<(u128, Range<u32>)>> = starts
        .iter()
        .map(|start| start.state.iter().map(|state| (state.entry.segment.0, state.key_groups.clone())).collect())
        .collect();
    assert_eq!(got, [vec![(1, 0..43)], vec![(1, 43..64), (2, 64..86)], vec![(2, 86..128)]]);
    assert_eq!(
        starts[1].state[1].ranges.first(),
        Some(&(0, 10)),
        "offsets count from the first key group of the segment"
    );
    assert_eq!(starts[2].state[0].ranges.first(), Some(&(220, 230)));
    assert_eq!(starts.iter().flat_map(|start| &start.state).map(|state| state.ranges.len()).sum::<usize>(), 128);
}

#[test]
fn keyed_state_without_offsets_is_read_whole_by_everybody_who_has_some_of_it() {
    let restored = restored("a", vec![vec![keyed(1, 0..128, false)]]);

    let starts = assign_all(&spec("a", 2), Some(&restored));

    assert!(starts.iter().all(|start| start.state[0].ranges == [(0, 1280)]));
    assert_eq!(starts[1].state[0].key_groups, 64..128);
}

#[test]
fn at_the_same_parallelism_everybody_keeps_its_own() {
    let state = (1..=3).map(|id| {
        vec![
            entry(StateKind::Split, "s", id, 4),
            entry(StateKind::Broadcast, "b", id + 10, 1),
            entry(StateKind::Channel, "", id + 20, 1),
        ]
    });
    let restored = restored("a", state.collect());

    let starts = assign_all(&spec("a", 3), Some(&restored));

    assert_eq!(counts(&starts)[1], [(2, 4), (12, 1), (22, 1)]);
}

#[test]
fn split_state_is_dealt_out_as_flink_does() {
    // Three tasks with 1, 4 and 5 elements of one state; a second state with 2.
    let state = vec![
        vec![entry(StateKind::Split, "a", 1, 1)],
        vec![entry(StateKind::Split, "a", 2, 4)],
        vec![entry(StateKind::Split, "a", 3, 5), entry(StateKind::Split, "b", 4, 2)],
    ];
    let restored = restored("op", state);

    let starts = assign_all(&spec("op", 4), Some(&restored));

    // 10 elements: 3, 3, 2, 2. The second state begins at the third task, where the first ran out of odd ones.
    let expected = [vec![(1, 1), (2, 2)], vec![(2, 2), (3, 1)], vec![(3, 2), (4, 1)], vec![(3, 2), (4, 1)]];
    assert_eq!(counts(&starts), expected);
    assert_eq!(starts[1].state[0].ranges, [(20, 30), (30, 40)]);
}

#[test]
fn every_element_of_split_state_goes_to_one_task() {
    for (before, after) in [(5, 3), (3, 8), (1, 7), (7, 1)] {
        let state = (0..before).map(|at| vec![entry(StateKind::Split, "s", at, (at * 7 % 4) as u64)]).collect();
        let restored = restored("a", state);

        let starts = assign_all(&spec("a", after), Some(&restored));

        let all: usize = restored.tasks.iter().flat_map(|(_, state)| state).map(|entry| entry.offsets.len()).sum();
        let each: Vec<usize> =
            starts.iter().map(|start| start.state.iter().map(|state| state.ranges.len()).sum()).collect();
        assert_eq!(each.iter().sum::<usize>(), all);
        assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 1, "{each:?}");
        let mut got: Vec<(u128, (u64, u64))> = starts
            .iter()
            .flat_map(|start| &start.state)
            .flat_map(|state| state.ranges.iter().map(|range| (state.entry.segment.0, *range)))
            .collect();
        got.sort_unstable();
        got.dedup();
        assert_eq!(got.len(), all, "none twice");
    }
}

#[test]
fn union_state_goes_to_everybody_whole() {
    let state = (1..=2).map(|id| vec![entry(StateKind::Union, "u", id, 3)]).collect();
    for parallelism in [2, 3] {
        let starts = assign_all(&spec("a", parallelism), Some(&restored("a", Vec::clone(&state))));

        assert!(counts(&starts).iter().all(|got| *got == [(1, 3), (2, 3)]));
    }
}

#[test]
fn broadcast_state_goes_around() {
    let state = (1..=2).map(|id| vec![entry(StateKind::Broadcast, "b", id, 1)]).collect();

    let starts = assign_all(&spec("a", 5), Some(&restored("a", state)));

    assert_eq!(counts(&starts), [[(1, 1)], [(2, 1)], [(1, 1)], [(2, 1)], [(1, 1)]]);
}

#[test]
fn broadcast_state_of_partly_finished_tasks_goes_to_all() {
    let mut operator = restored("a", vec![vec![], vec![entry(StateKind::Broadcast, "b", 7, 1)]]);
    operator.tasks[0].0 = true;

    let starts = assign_all(&spec("a", 2), Some(&operator));

    assert_eq!(counts(&starts), [[(7, 1)], [(7, 1)]]);
    assert_eq!(starts.iter().map(|start| start.finished).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn key_groups_of_the_state_hold() {
    let state = [restored("a", vec![vec![keyed(1, 0..128, true)]])];
    let open = OperatorSpec { max_parallelism: 256, ..spec("a", 2) };
    let given = OperatorSpec { max_parallelism_given: true, ..open.clone() };

    let fitted = fit(&Topology::new(vec![open]), &state, false).unwrap();
    assert_eq!(fitted.operators()[0].max_parallelism, 128);
    let refused = fit(&Topology::new(vec![given]), &state, false);
    assert!(matches!(refused, Err(Misfit::MaxParallelism { wanted: 256, has: 128, .. })), "{refused:?}");
    let refused = fit(&Topology::new(vec![spec("a", 129)]), &state, false);
    assert!(matches!(refused, Err(Misfit::TooFewKeyGroups { .. })), "{refused:?}");
}

#[test]
fn state_without_a_place_is_refused_unless_that_is_allowed() {
    let state = [restored("gone", vec![vec![entry(StateKind::Split, "s", 1, 1)]])];
    let job = Topology::new(vec![spec("a", 1)]);

    assert_eq!(fit(&job, &state, false), Err(Misfit::NoOperator("gone".into())));
    assert!(fit(&job, &state, true).is_ok());
}

#[test]
fn records_in_flight_stay_with_their_tasks() {
    let state = [restored("a", vec![vec![entry(StateKind::Channel, "", 1, 1)]])];

    assert!(fit(&Topology::new(vec![spec("a", 1)]), &state, false).is_ok());
    assert_eq!(fit(&Topology::new(vec![spec("a", 2)]), &state, false), Err(Misfit::Channel("a".into())));
}

#[test]
fn s5_12_a_finished_operator_wants_finished_ones_before_it() {
    let with = |own: [bool; 2], before: [bool; 2], pattern| {
        let mut state = vec![restored("before", vec![vec![], vec![]]), restored("after", vec![vec![], vec![]])];
        (state[0].tasks[0].0, state[0].tasks[1].0) = (before[0], before[1]);
        (state[1].tasks[0].0, state[1].tasks[1].0) = (own[0], own[1]);
        let input = OperatorInput { from: "before".into(), pattern };
        let after = OperatorSpec { inputs: vec![input], ..spec("after", 2) };
        fit(&Topology::new(vec![spec("before", 2), after]), &state, false).is_ok()
    };
    use ConnectionPattern::{AllToAll, Pointwise};

    assert!(with([false, false], [false, false], AllToAll));
    assert!(with([true, true], [true, true], AllToAll));
    assert!(!with([true, true], [true, false], AllToAll));
    assert!(!with([true, true], [true, false], Pointwise));
    assert!(!with([true, false], [true, false], AllToAll));
    assert!(with([true, false], [true, true], AllToAll));
    assert!(with([true, false], [true, false], Pointwise));
    assert!(!with([true, false], [false, false], Pointwise));
}
