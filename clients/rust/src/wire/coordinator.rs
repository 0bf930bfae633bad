//! Jobs with a coordinator: what workers and people say to it, and what it tells them. `docs/coordinator.md` is the contract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SegmentInfo;

/// An operator that sends to another one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobOperatorInput {
    /// Its id.
    pub from: String,
    /// `all-to-all` (default) or `pointwise`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
}

/// An operator of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobOperator {
    /// Its id.
    pub id: String,
    /// Its tasks.
    pub parallelism: u32,
    /// Its key groups; a default of Flink's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallelism: Option<u32>,
    /// The operators before it.
    #[serde(default)]
    pub inputs: Vec<JobOperatorInput>,
    /// It uses union list state.
    #[serde(default)]
    pub union_list_state: bool,
    /// It commits when a checkpoint completes.
    #[serde(default)]
    pub two_phase_commit: bool,
    /// Barriers may overtake records there; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaligned: Option<bool>,
}

/// How a job with a coordinator stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CoordinatorInfo {
    /// `created`, `running`, `restarting` or `stopping`.
    pub status: String,
    /// The attempt.
    pub attempt: u64,
    /// How often all tasks have begun anew.
    #[serde(default)]
    pub restarts: u64,
    /// All tasks.
    pub tasks: u64,
    /// Those that run.
    pub tasks_running: u64,
    /// Those that are over.
    pub tasks_finished: u64,
    /// Checkpoints in progress.
    pub pending: Vec<u64>,
    /// Requests that wait.
    pub queued: u64,
    /// Checkpoints that are being freed.
    pub cleaning: u64,
    /// The newest completed checkpoint.
    pub completed: Option<u64>,
    /// The highest subsumed one.
    pub subsumed: Option<u64>,
    /// A source has a backlog.
    pub backlog: bool,
    /// Failed checkpoints in a row.
    pub failures: u32,
    /// All settings.
    pub settings: BTreeMap<String, String>,
    /// The operators.
    pub operators: Vec<JobOperator>,
}

/// Settings of a job that change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JobSettings {
    /// Flink's keys, with texts, numbers or booleans.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub settings: BTreeMap<String, serde_json::Value>,
}

/// How a task is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TaskReport {
    /// Its operator.
    pub operator: String,
    /// Its index.
    pub subtask: u32,
    /// `running`, `end-of-data`, `finished` or `failed`.
    pub state: String,
}

/// How tasks are; the heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TasksReport {
    /// Their attempt.
    pub attempt: u64,
    /// The process that they are in, by a name that no other one has. Tasks that run, or have read all their input, need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The tasks.
    pub tasks: Vec<TaskReport>,
    /// Why one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How the job stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TasksAnswer {
    /// The attempt.
    pub attempt: u64,
    /// As in the job.
    pub status: String,
    /// Report so often.
    pub heartbeat_ms: u64,
    /// Who is silent for so long is lost.
    pub heartbeat_timeout_ms: u64,
}

/// Which events to tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct EventsParams {
    /// The process that asks: a sign of life of its tasks.
    pub worker: Option<String>,
    /// The id of the last event that was handled.
    pub after: Option<String>,
    /// Long poll: how long to wait, default `20s`, at most `60s`.
    pub wait: Option<String>,
}

/// Events of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventPage {
    /// In order.
    pub events: Vec<EventInfo>,
    /// Give it as `after` to get what follows.
    pub next: String,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventInfo {
    /// Its id.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub event: JobEvent,
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
pub enum JobEvent {
    /// How things stand.
    Hello(HelloData),
    /// Take a snapshot.
    Trigger(TriggerData),
    /// It is durable.
    Complete(CompleteData),
    /// It and those before it went.
    Subsume(SubsumeData),
    /// It is given up.
    Abort(AbortData),
    /// All tasks begin anew.
    Restore(RestoreData),
    /// All tasks end.
    Stop(StopData),
    /// The job has ended.
    End(EndData),
}

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HelloData {
    /// The attempt.
    pub attempt: u64,
    /// As in the job.
    pub status: String,
    /// The newest completed checkpoint.
    pub completed: Option<u64>,
    /// The highest subsumed one.
    pub subsumed: Option<u64>,
    /// Checkpoints that tasks take a snapshot for.
    pub pending: Vec<TriggerData>,
    /// Report so often.
    pub heartbeat_ms: u64,
    /// Who is silent for so long is lost.
    pub heartbeat_timeout_ms: u64,
}

/// A checkpoint to take a snapshot for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TriggerData {
    /// Its number.
    pub checkpoint: u64,
    /// The attempt whose tasks take it.
    pub attempt: u64,
    /// `checkpoint` or `savepoint`.
    pub kind: String,
    /// When it was triggered.
    pub timestamp_ms: u64,
    /// After so long it is given up.
    pub timeout_ms: u64,
    /// `EXACTLY_ONCE` or `AT_LEAST_ONCE`.
    pub mode: String,
    /// Barriers overtake records.
    pub unaligned: bool,
    /// Once the start is delayed by so much; 0: at once.
    pub aligned_timeout_ms: u64,
    /// Segments of completed checkpoints may be named again.
    pub incremental: bool,
    /// None may.
    pub full: bool,
    /// `drain` or `suspend`: the job stops with it.
    pub stop: Option<String>,
    /// Subtasks that share a file of channel state.
    pub max_subtasks_per_channel_state_file: u32,
}

/// A checkpoint that is durable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompleteData {
    /// Its number.
    pub checkpoint: u64,
    /// The attempt that took it.
    pub attempt: u64,
    /// `checkpoint` or `savepoint`.
    pub kind: String,
    /// The handle of its metadata.
    pub metadata: String,
    /// Where else that is.
    pub path: Option<String>,
    /// The highest that went for it.
    pub last_subsumed: Option<u64>,
}

/// Checkpoints that went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SubsumeData {
    /// This one and those before it.
    pub checkpoint: u64,
}

/// A checkpoint that is given up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AbortData {
    /// Its number.
    pub checkpoint: u64,
    /// The attempt that took it.
    pub attempt: u64,
    /// `checkpoint` or `savepoint`.
    pub kind: String,
    /// Flink's name of why.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// A new attempt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RestoreData {
    /// Its number.
    pub attempt: u64,
    /// The job whose checkpoint it begins from.
    pub job: String,
    /// The checkpoint; none: from nothing.
    pub checkpoint: Option<u64>,
    /// `TASK_FAILURE`, `TASK_LOST`, `CHECKPOINT_FAILURES` or `RESTORE`.
    pub cause: String,
    /// The same for people.
    pub message: String,
}

/// The savepoint that the job stops with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StopData {
    /// Its number.
    pub checkpoint: u64,
    /// Where it is.
    pub path: Option<String>,
    /// The last watermark was emitted before.
    pub drain: bool,
}

/// The end of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndData {
    /// `FINISHED`, `CANCELED`, `FAILED` or `SUSPENDED`.
    pub state: String,
    /// Its completed checkpoints are kept.
    pub kept: bool,
}

/// Key groups, the end left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct KeyGroups {
    /// The first.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

/// A state that a task acknowledges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AckState {
    /// `keyed`, `split` (default), `union`, `broadcast` or `channel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its segment, by identity or handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Or the number of the segment in the same request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// First bytes of its elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Vec<u64>>,
    /// The end of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
    /// Of keyed state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_groups: Option<KeyGroups>,
}

/// What a task acknowledges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// Its operator.
    pub operator: String,
    /// Its index.
    pub subtask: u32,
    /// Its attempt.
    pub attempt: u64,
    /// Its states.
    #[serde(default)]
    pub state: Vec<AckState>,
    /// Its operators have finished.
    #[serde(default)]
    pub finished: bool,
    /// Bytes of records in flight.
    #[serde(default)]
    pub bytes_in_flight: u64,
    /// How long barriers were waited for.
    #[serde(default)]
    pub alignment_ms: u64,
    /// How long records waited for the snapshot.
    #[serde(default)]
    pub sync_ms: u64,
    /// How long it took after that.
    #[serde(default)]
    pub async_ms: u64,
    /// From the trigger to the first barrier.
    #[serde(default)]
    pub start_delay_ms: u64,
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AckAnswer {
    /// The checkpoint.
    pub checkpoint: u64,
    /// `pending` or `completed`.
    pub state: String,
    /// Tasks that have not acknowledged.
    pub missing: u64,
    /// The segments that came with it.
    pub segments: Vec<SegmentInfo>,
}

/// A task declines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DeclineRequest {
    /// Its operator.
    pub operator: String,
    /// Its index.
    pub subtask: u32,
    /// Its attempt.
    pub attempt: u64,
    /// Flink's name of why; default `CHECKPOINT_DECLINED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Whether a source has a backlog.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BacklogReport {
    /// The operator.
    pub source: String,
    /// Whether.
    pub backlog: bool,
}

/// A checkpoint by hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TriggerRequest {
    /// How long to wait for its end; default not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// A savepoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SavepointRequest {
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// `canonical` or `native`, which are the same here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// How long to wait for its end; default not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// A savepoint that the job stops with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Emit the last watermark before.
    #[serde(default)]
    pub drain: bool,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// `canonical` or `native`, which are the same here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// How long to wait for its end; default not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<String>,
}

/// How a request for a checkpoint or savepoint stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestAnswer {
    /// Names it.
    pub request: String,
    /// `queued`, `pending`, `completed` or `failed`.
    pub state: String,
    /// The checkpoint.
    pub checkpoint: Option<u64>,
    /// Where the savepoint is.
    pub path: Option<String>,
    /// Flink's name of why it failed.
    pub reason: Option<String>,
    /// The same for people.
    pub message: Option<String>,
}

/// Whose state to tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct StateParams {
    /// The operator; goes with `subtask`. Both or none.
    pub operator: Option<String>,
    /// The index.
    pub subtask: Option<u32>,
}

/// What the tasks of an attempt start from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobStateInfo {
    /// The job.
    pub job: String,
    /// As in the job.
    pub status: String,
    /// The attempt.
    pub attempt: u64,
    /// The first one of the job: with another one it is another job of the same name.
    #[serde(default)]
    pub first_attempt: u64,
    /// The job whose checkpoint it is.
    pub from: Option<String>,
    /// The checkpoint; none: from nothing.
    pub checkpoint: Option<u64>,
    /// The tasks.
    pub tasks: Vec<TaskStateInfo>,
}

/// What a task starts from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskStateInfo {
    /// Its operator.
    pub operator: String,
    /// Its index.
    pub subtask: u32,
    /// The parallelism of the operator.
    pub parallelism: u32,
    /// Its key groups.
    pub max_parallelism: u32,
    /// Those of the task.
    pub key_groups: KeyGroups,
    /// It was finished, and only ends.
    pub finished: bool,
    /// Its state.
    pub state: Vec<AssignedStateInfo>,
}

/// A piece of state that a task gets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AssignedStateInfo {
    /// How it is given out.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its segment.
    pub segment: String,
    /// The same with the place where it is.
    pub handle: String,
    /// Bytes of the segment.
    pub len: u64,
    /// `shared` or `exclusive`.
    pub scope: String,
    /// The task that wrote it.
    pub subtask: u32,
    /// The key groups that the task takes of keyed state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_groups: Option<KeyGroups>,
    /// Bytes of its elements, the ends left out.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Vec<u64>>))]
    pub ranges: Vec<(u64, u64)>,
}

/// How a checkpoint went, or goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckpointFiguresInfo {
    /// Its number.
    pub checkpoint: u64,
    /// `checkpoint` or `savepoint`.
    pub kind: String,
    /// `pending`, `completed` or `failed`.
    pub state: String,
    /// When it was triggered.
    pub triggered_ms: u64,
    /// How long it took, so far.
    pub duration_ms: u64,
    /// Flink's name of why it failed.
    pub reason: Option<String>,
    /// Tasks that have acknowledged.
    pub acknowledged: u64,
    /// All that had to.
    pub tasks: u64,
    /// Bytes that were stored for it.
    pub bytes: u64,
    /// Bytes of earlier ones that it uses.
    pub bytes_reused: u64,
    /// Bytes of records in flight.
    pub bytes_in_flight: u64,
    /// The longest that a task waited for barriers.
    pub alignment_ms_max: u64,
    /// Who acknowledged last.
    pub last: Option<LastTask>,
    /// Some of those that have not.
    pub waiting_for: Vec<TaskName>,
}

/// A task that acknowledged last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastTask {
    /// Its operator.
    pub operator: String,
    /// Its index.
    pub subtask: u32,
    /// After the trigger.
    pub after_ms: u64,
}

/// A task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskName {
    /// Its operator.
    pub operator: String,
    /// Its index.
    pub subtask: u32,
}
