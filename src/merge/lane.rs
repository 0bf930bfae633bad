//! Which segments may share a physical file.

use crate::config::{Boundary, CheckpointBoundary, MergingSettings};
use crate::model::{About, CheckpointId, Lane, LaneOf, StateScope};

/// Segments with equal keys may share a physical file that is open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey {
    /// The lane of the file.
    pub lane: Lane,
    /// The checkpoint; `None` when a file takes those of several, or it is not known.
    pub checkpoint: Option<CheckpointId>,
}

impl LaneKey {
    /// The lane of a segment. Where the boundary names something the door did not know, the S3 door's boundary holds.
    pub fn of(about: &About, settings: &MergingSettings) -> Self {
        let boundary = match about.scope {
            StateScope::Shared => settings.shared_boundary,
            StateScope::Exclusive => settings.exclusive_boundary,
        };
        let of = match boundary {
            Boundary::Subtask => about.writer.subtask.clone().map(LaneOf::Subtask),
            Boundary::TaskManager => about.writer.task_manager.clone().map(LaneOf::TaskManager),
            Boundary::Job | Boundary::Daemon => Some(LaneOf::All),
        };
        let boundary = if of.is_some() { boundary } else { settings.s3_boundary };
        let lane = Lane {
            job: (boundary != Boundary::Daemon).then(|| about.job.clone()),
            scope: about.scope,
            of: of.unwrap_or(LaneOf::All),
        };
        let checkpoint = match settings.checkpoint_boundary {
            CheckpointBoundary::Within => about.checkpoint,
            CheckpointBoundary::Across => None,
        };
        Self { lane, checkpoint }
    }

    /// The lane of a savepoint's segment: its files hold nothing else, so that it can be kept or deleted by itself.
    pub fn of_savepoint(about: &About) -> Self {
        let lane = Lane { job: Some(about.job.clone()), scope: about.scope, of: LaneOf::Savepoint };
        Self { lane, checkpoint: about.checkpoint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};
    use crate::model::{Label, SubtaskKey, Writer};

    fn about(scope: StateScope, subtask: Option<u32>, checkpoint: u64) -> About {
        let label = |text| Label::parse("label", text).unwrap();
        About {
            job: "j".parse().unwrap(),
            scope,
            writer: Writer {
                subtask: subtask.map(|index| SubtaskKey { operator: label("op"), index, parallelism: 2 }),
                task_manager: subtask.map(|_| label("tm")),
            },
            checkpoint: Some(CheckpointId(checkpoint)),
            name: None,
        }
    }

    fn merging() -> MergingSettings {
        Settings::try_from(&Config::default()).unwrap().merging
    }

    #[test]
    fn by_default_shared_state_is_merged_within_a_subtask_and_exclusive_state_across_a_task_manager() {
        let lane = |scope, subtask| LaneKey::of(&about(scope, Some(subtask), 1), &merging());

        assert_ne!(lane(StateScope::Shared, 0), lane(StateScope::Shared, 1));
        assert_eq!(lane(StateScope::Exclusive, 0), lane(StateScope::Exclusive, 1));
        assert_ne!(lane(StateScope::Exclusive, 0), lane(StateScope::Shared, 0));
    }

    #[test]
    fn a_file_never_holds_two_checkpoints_unless_told_so() {
        let mut settings = merging();
        let lane = |settings: &_, n| LaneKey::of(&about(StateScope::Exclusive, Some(0), n), settings);
        assert_ne!(lane(&settings, 1), lane(&settings, 2));

        settings.checkpoint_boundary = CheckpointBoundary::Across;

        assert_eq!(lane(&settings, 1), lane(&settings, 2));
    }

    #[test]
    fn where_the_door_knows_no_subtask_the_job_is_the_boundary() {
        let lane = LaneKey::of(&about(StateScope::Shared, None, 1), &merging());

        assert_eq!((lane.lane.of, lane.lane.job), (LaneOf::All, Some("j".parse().unwrap())));
    }
}
