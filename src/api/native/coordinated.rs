//! Jobs with a coordinator: how they are made and stand, what their tasks report, checkpoints by hand, what a task starts from.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use esker_client::wire::{
    AssignedStateInfo, BacklogReport, CheckpointFiguresInfo, CoordinatorInfo, ErrorBody, JobInfo, JobOperator,
    JobOperatorInput, JobSettings, JobStateInfo, KeyGroups, LastTask, NewJob, RequestAnswer, RestoreJob,
    SavepointRequest, StateParams, StopRequest, TaskName, TaskStateInfo, TasksAnswer, TasksReport, TriggerRequest,
};
use http::{StatusCode, Uri};
use tokio::sync::watch;

use super::parts::{Native, claim_of, cut, header_text, in_field, job_of, json, object, query, text};
use crate::api::status::ApiError;
use crate::config::{PublishDir, Span};
use crate::coordinator::RequestView;
use crate::coordinator::ack::StateKind;
use crate::coordinator::assign::TaskStart;
use crate::coordinator::handle::{JobHandle, JobStanding, JobStart, RestoreWanted};
use crate::coordinator::history::CheckpointFigures;
use crate::coordinator::registry::NewCoordinatedJob;
use crate::coordinator::state::machine::JobPhase;
use crate::coordinator::state::queue::{StopMode, WantedCheckpoint};
use crate::coordinator::state::tasks::TaskState;
use crate::coordinator::topology::{ConnectionPattern, OperatorInput, OperatorSpec, default_max_parallelism};
use crate::engine::{EngineError, JobView};
use crate::error::ErrorKind;
use crate::model::{CheckpointId, InvalidId, JobId, Label};

/// Bytes of a report of many tasks.
const REPORT_BYTES_MAX: usize = 8 << 20;
/// Tasks of one report.
const TASKS_MAX: usize = 1 << 16;
/// Bytes of a small request.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// The longest time that a request waits for what it is about.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

/// Reads a job to create with a coordinator.
pub(super) fn new_job(job: JobId, new: NewJob) -> Result<NewCoordinatedJob, ApiError> {
    let operators = new.operators.ok_or_else(|| ApiError::invalid("operators", "a job with a coordinator has some"))?;
    Ok(NewCoordinatedJob {
        job,
        settings: texts(new.settings.unwrap_or_default())?,
        operators: operators_of(operators)?,
        iterative: new.iterative.unwrap_or_default(),
    })
}

/// Settings as texts.
fn texts(settings: BTreeMap<String, serde_json::Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let text = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => Ok((key, text)),
        serde_json::Value::Number(number) => Ok((key, number.to_string())),
        serde_json::Value::Bool(yes) => Ok((key, yes.to_string())),
        _ => Err(ApiError::invalid("settings", format!("{key} must be a text, a number or a boolean"))),
    };
    settings.into_iter().map(text).collect()
}

fn operators_of(operators: Vec<JobOperator>) -> Result<Vec<OperatorSpec>, ApiError> {
    let input = |input: JobOperatorInput| {
        let pattern = match input.pattern.as_deref() {
            None | Some("all-to-all") => ConnectionPattern::AllToAll,
            Some("pointwise") => ConnectionPattern::Pointwise,
            Some(other) => {
                let message = format!("a pattern is 'all-to-all' or 'pointwise', not {other:?}");
                return Err(ApiError::invalid("operators", message));
            }
        };
        Ok(OperatorInput { from: input.from, pattern })
    };
    let spec = |operator: JobOperator| {
        let JobOperator { id, parallelism, max_parallelism, inputs, union_list_state, two_phase_commit, unaligned } =
            operator;
        Ok(OperatorSpec {
            id,
            parallelism,
            max_parallelism: max_parallelism.unwrap_or_else(|| default_max_parallelism(parallelism)),
            max_parallelism_given: max_parallelism.is_some(),
            inputs: inputs.into_iter().map(input).collect::<Result<_, ApiError>>()?,
            union_list_state,
            two_phase_commit,
            unaligned: unaligned.unwrap_or(true),
        })
    };
    operators.into_iter().map(spec).collect()
}

/// A job as the API shows it, with its coordinator if it has one.
pub(super) async fn job_info(native: &Native, job: JobView) -> Result<JobInfo, ApiError> {
    let (id, subsumed) = (job.id.clone(), job.subsumed.map(|id| id.0));
    let mut info = JobInfo::from(job);
    if let Some(coordinator) = native.coordinators.find(&id) {
        // One that ends right now is like one that has ended.
        info.coordinator = coordinator.standing().await.ok().map(|standing| coordinator_info(standing, subsumed));
    }
    Ok(info)
}

pub(super) fn status_of(phase: JobPhase) -> &'static str {
    match phase {
        JobPhase::Created => "created",
        JobPhase::Running => "running",
        JobPhase::Restarting => "restarting",
        JobPhase::Stopping => "stopping",
        JobPhase::Ended => "ended",
    }
}

fn coordinator_info(standing: JobStanding, subsumed: Option<u64>) -> CoordinatorInfo {
    let JobStanding {
        phase,
        attempt,
        restarts,
        tasks,
        pending,
        waiting,
        completed,
        backlog,
        failures,
        settings,
        operators,
        ..
    } = standing;
    CoordinatorInfo {
        status: status_of(phase).to_owned(),
        attempt,
        restarts,
        tasks: tasks.0,
        tasks_running: tasks.1,
        tasks_finished: tasks.2,
        pending: pending.into_iter().map(|id| id.0).collect(),
        queued: waiting.0 as u64,
        cleaning: waiting.1 as u64,
        completed: completed.map(|id| id.0),
        subsumed,
        backlog,
        failures,
        settings,
        operators: operators.into_iter().map(operator_info).collect(),
    }
}

fn operator_info(spec: OperatorSpec) -> JobOperator {
    let input = |input: OperatorInput| {
        let pattern = match input.pattern {
            ConnectionPattern::AllToAll => "all-to-all",
            ConnectionPattern::Pointwise => "pointwise",
        };
        JobOperatorInput { from: input.from, pattern: Some(pattern.to_owned()) }
    };
    JobOperator {
        id: spec.id,
        parallelism: spec.parallelism,
        max_parallelism: Some(spec.max_parallelism),
        inputs: spec.inputs.into_iter().map(input).collect(),
        union_list_state: spec.union_list_state,
        two_phase_commit: spec.two_phase_commit,
        unaligned: Some(spec.unaligned),
    }
}

/// Changes settings of a job with a coordinator while it runs.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/settings", request_body = JobSettings, params(("job" = String, Path)),
    responses((status = 200, body = JobInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn change_settings(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Json<JobInfo>, ApiError> {
    let job = job_of(&job)?;
    let coordinator = native.coordinators.get(&job)?;
    let JobSettings { settings } = json(&native, request, SMALL_BYTES_MAX).await?;
    coordinator.reconfigure(texts(settings)?).await?;
    Ok(Json(job_info(&native, native.engine.job(&job)?).await?))
}

/// Says how tasks are; the heartbeat.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/tasks", request_body = TasksReport, params(("job" = String, Path)),
    responses((status = 200, body = TasksAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub(super) async fn report_tasks(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Json<TasksAnswer>, ApiError> {
    let coordinator = native.coordinators.get(&job_of(&job)?)?;
    // Kept to the end: what it is taken apart into is about as large.
    let body = text(&native, request, REPORT_BYTES_MAX).await?;
    let TasksReport { attempt, worker, tasks, message } = object("body", &body)?;
    if tasks.len() > TASKS_MAX {
        return Err(ApiError::invalid("tasks", format!("at most {TASKS_MAX} in one report")));
    }
    let worker = worker.map(|worker| Label::parse("worker", &worker).map(|_| worker)).transpose()?;
    let tasks = tasks.into_iter().map(|task| Ok((task.operator, task.subtask, task_state(&task.state)?)));
    let tasks = tasks.collect::<Result<Vec<_>, ApiError>>()?;
    let runs = |state: TaskState| matches!(state, TaskState::Running | TaskState::EndOfData);
    if worker.is_none() && tasks.iter().any(|(.., state)| runs(*state)) {
        // Two processes without a name that run one task would be taken for one.
        let message = "tasks that run are those of a process: give it a name that no other one has";
        return Err(ApiError::invalid("worker", message));
    }
    let standing = coordinator.report(attempt, worker, tasks, message.map(cut)).await?;
    Ok(Json(TasksAnswer {
        attempt: standing.attempt,
        status: status_of(standing.phase).to_owned(),
        heartbeat_ms: millis(standing.heartbeat_interval),
        heartbeat_timeout_ms: millis(standing.heartbeat_timeout),
    }))
}

fn task_state(text: &str) -> Result<TaskState, ApiError> {
    Ok(match text {
        "running" => TaskState::Running,
        "end-of-data" => TaskState::EndOfData,
        "finished" => TaskState::Finished,
        "failed" => TaskState::Failed,
        other => {
            let message = format!("must be 'running', 'end-of-data', 'finished' or 'failed', is {other:?}");
            return Err(ApiError::invalid("state", message));
        }
    })
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Says whether a source has a backlog.
#[utoipa::path(put, tag = "Coordinator", path = "/v1/jobs/{job}/backlog", request_body = BacklogReport, params(("job" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn report_backlog(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let coordinator = native.coordinators.get(&job_of(&job)?)?;
    let BacklogReport { source, backlog } = json(&native, request, SMALL_BYTES_MAX).await?;
    coordinator.report_backlog(source, backlog).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Triggers a checkpoint by hand.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/checkpoints:trigger", request_body = TriggerRequest,
    params(("job" = String, Path), ("idempotency-key" = Option<String>, Header, description = "A repeat is the same request")),
    responses((status = 200, body = RequestAnswer), (status = 202, body = RequestAnswer), (status = 404, body = ErrorBody)))]
pub(super) async fn trigger_checkpoint(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (coordinator, key) = (native.coordinators.get(&job_of(&job)?)?, key_of(&request)?);
    let TriggerRequest { wait } = json(&native, request, SMALL_BYTES_MAX).await?;
    let wait = wait_of(wait.as_deref(), Duration::ZERO)?;
    answer(&native, coordinator.request(WantedCheckpoint::Checkpoint, None, key).await?, wait).await
}

/// Triggers a savepoint.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/savepoints:trigger", request_body = SavepointRequest,
    params(("job" = String, Path), ("idempotency-key" = Option<String>, Header, description = "A repeat is the same request")),
    responses((status = 200, body = RequestAnswer), (status = 202, body = RequestAnswer), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody)))]
pub(super) async fn trigger_savepoint(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (coordinator, key) = (native.coordinators.get(&job_of(&job)?)?, key_of(&request)?);
    let SavepointRequest { dir, format, wait } = json(&native, request, SMALL_BYTES_MAX).await?;
    let (dir, wait) = (dir_of(dir.as_deref(), format.as_deref())?, wait_of(wait.as_deref(), Duration::ZERO)?);
    answer(&native, coordinator.request(WantedCheckpoint::Savepoint, dir, key).await?, wait).await
}

/// Stops a job with a savepoint.
#[utoipa::path(post, tag = "Coordinator", path = "/v1/jobs/{job}/stop", request_body = StopRequest,
    params(("job" = String, Path), ("idempotency-key" = Option<String>, Header, description = "A repeat is the same request")),
    responses((status = 200, body = RequestAnswer), (status = 202, body = RequestAnswer), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody)))]
pub(super) async fn stop(
    State(native): State<Native>,
    Path(job): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (coordinator, key) = (native.coordinators.get(&job_of(&job)?)?, key_of(&request)?);
    let StopRequest { drain, dir, format, wait } = json(&native, request, SMALL_BYTES_MAX).await?;
    let (dir, wait) = (dir_of(dir.as_deref(), format.as_deref())?, wait_of(wait.as_deref(), Duration::ZERO)?);
    let mode = if drain { StopMode::Drain } else { StopMode::Suspend };
    answer(&native, coordinator.request(WantedCheckpoint::Stop(mode), dir, key).await?, wait).await
}

fn key_of(request: &Request) -> Result<Option<String>, ApiError> {
    let key = super::parts::idempotency_key(header_text(request.headers(), "idempotency-key")?)?;
    Ok(key.map(|key| key.as_str().to_owned()))
}

/// Reads how long to wait.
pub(super) fn wait_of(text: Option<&str>, default: Duration) -> Result<Duration, ApiError> {
    let Some(text) = text else { return Ok(default) };
    let wait = text.parse::<Span>().map_err(|error| in_field("wait", &error))?.duration();
    if wait > WAIT_MAX {
        return Err(ApiError::invalid("wait", format!("must be at most 60 s, is {text:?}")));
    }
    Ok(wait)
}

fn dir_of(dir: Option<&str>, format: Option<&str>) -> Result<Option<PublishDir>, ApiError> {
    if let Some(other) = format.filter(|format| !["canonical", "native"].contains(format)) {
        return Err(ApiError::invalid("format", format!("must be 'canonical' or 'native', is {other:?}")));
    }
    let parsed = |text: &str| PublishDir::parse(text).ok_or_else(|| ApiError::invalid("dir", PublishDir::EXPECTED));
    dir.map(parsed).transpose()
}

/// Answers when the request is over, or after `wait`.
async fn answer(native: &Native, mut view: watch::Receiver<RequestView>, wait: Duration) -> Result<Response, ApiError> {
    let over = view.wait_for(|view| view.ended.is_some());
    tokio::select! {
        over = tokio::time::timeout(wait, over) => match over {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(_)) => return Err(ApiError::of(ErrorKind::ShuttingDown, "the coordinator of the job has ended")),
        },
        () = native.ending.cancelled() => {}
    }
    let RequestView { id, checkpoint, path, ended } = view.borrow().clone();
    let (status, state) = match &ended {
        Some(Ok(())) => (StatusCode::OK, "completed"),
        Some(Err(_)) => (StatusCode::OK, "failed"),
        None if checkpoint.is_some() => (StatusCode::ACCEPTED, "pending"),
        None => (StatusCode::ACCEPTED, "queued"),
    };
    let failure = ended.and_then(Result::err);
    let answer = RequestAnswer {
        request: id,
        state: state.to_owned(),
        checkpoint: checkpoint.map(|id| id.0),
        path,
        reason: failure.as_ref().map(|(reason, _)| reason.as_str().to_owned()),
        message: failure.map(|(_, message)| message),
    };
    Ok((status, Json(answer)).into_response())
}

/// Tells what a task, or each of them, starts from.
#[utoipa::path(get, tag = "Coordinator", path = "/v1/jobs/{job}/state", params(("job" = String, Path), StateParams),
    responses((status = 200, body = JobStateInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn state(
    State(native): State<Native>,
    Path(job): Path<String>,
    uri: Uri,
) -> Result<Json<JobStateInfo>, ApiError> {
    let job = job_of(&job)?;
    let StateParams { operator, subtask } = query(&uri)?;
    let of = match (operator, subtask) {
        (Some(operator), Some(subtask)) => Some((operator, subtask)),
        (None, None) => None,
        _ => return Err(ApiError::invalid("subtask", "operator and subtask go together")),
    };
    let start = native.coordinators.get(&job)?.start(of).await?;
    Ok(Json(state_info(&native, &job, start)?))
}

fn state_info(native: &Native, job: &JobId, start: JobStart) -> Result<JobStateInfo, ApiError> {
    let tasks = match task_states(native, start.tasks) {
        // Nobody starts any more, and what they started from goes.
        Err(error) if start.phase.has_begun() && error.kind() == ErrorKind::NotFound => vec![],
        tasks => tasks?,
    };
    Ok(JobStateInfo {
        job: job.to_string(),
        status: status_of(start.phase).to_owned(),
        attempt: start.attempt,
        first_attempt: start.first_attempt,
        from: start.from.as_ref().map(|from| from.job.clone()),
        checkpoint: start.from.map(|from| from.checkpoint),
        tasks,
    })
}

fn task_states(
    native: &Native,
    starts: Vec<(OperatorSpec, u32, TaskStart)>,
) -> Result<Vec<TaskStateInfo>, EngineError> {
    let groups = |range: &std::ops::Range<u32>| KeyGroups { start: range.start, end: range.end };
    let mut tasks = vec![];
    for (spec, subtask, start) in starts {
        let mut state = vec![];
        for assigned in start.state {
            let view = native.engine.segment(assigned.entry.segment)?;
            let handle = view.handle();
            state.push(AssignedStateInfo {
                kind: kind_name(assigned.entry.kind).to_owned(),
                name: assigned.entry.name,
                segment: view.id.to_string(),
                handle: handle.to_string(),
                len: handle.location.len(),
                scope: view.about.scope.to_string(),
                subtask: assigned.from,
                key_groups: (assigned.entry.kind == StateKind::Keyed).then(|| groups(&assigned.key_groups)),
                ranges: assigned.ranges,
            });
        }
        tasks.push(TaskStateInfo {
            operator: spec.id,
            subtask,
            parallelism: spec.parallelism,
            max_parallelism: spec.max_parallelism,
            key_groups: groups(&start.key_groups),
            finished: start.finished,
            state,
        });
    }
    Ok(tasks)
}

pub(super) fn kind_name(kind: StateKind) -> &'static str {
    match kind {
        StateKind::Keyed => "keyed",
        StateKind::Split => "split",
        StateKind::Union => "union",
        StateKind::Broadcast => "broadcast",
        StateKind::Channel => "channel",
    }
}

/// A job with a coordinator goes on from a state that somebody chose.
pub(super) async fn restore(
    native: &Native,
    job: &JobId,
    coordinator: &JobHandle,
    wanted: RestoreJob,
) -> Result<JobStateInfo, ApiError> {
    let RestoreJob { from, checkpoint, mode, savepoint, operators, allow_non_restored_state } = wanted;
    if savepoint.is_some() && (from.is_some() || checkpoint.is_some()) {
        return Err(ApiError::invalid("savepoint", "give either savepoint, or from and checkpoint"));
    }
    let parsed =
        |text: &str| PublishDir::parse(text).ok_or_else(|| ApiError::invalid("savepoint", PublishDir::EXPECTED));
    let wanted = RestoreWanted {
        from: from.map(|from| from.parse().map_err(|error: InvalidId| in_field("from", &error))).transpose()?,
        checkpoint: checkpoint.map(CheckpointId),
        savepoint: savepoint.as_deref().map(parsed).transpose()?,
        claim: claim_of(mode.as_deref())?,
        operators: operators.map(operators_of).transpose()?,
        allow_non_restored: allow_non_restored_state.unwrap_or_default(),
    };
    coordinator.restore(wanted).await?;
    state_info(native, job, coordinator.start(None).await?)
}

/// Tells how the last checkpoints went.
#[utoipa::path(get, tag = "Coordinator", path = "/v1/jobs/{job}/checkpoints:history", params(("job" = String, Path)),
    responses((status = 200, body = Vec<CheckpointFiguresInfo>), (status = 404, body = ErrorBody)))]
pub(super) async fn history(
    State(native): State<Native>,
    Path(job): Path<String>,
) -> Result<Json<Vec<CheckpointFiguresInfo>>, ApiError> {
    let figures = native.coordinators.get(&job_of(&job)?)?.figures().await?;
    Ok(Json(figures.into_iter().map(figures_info).collect()))
}

fn figures_info(figures: CheckpointFigures) -> CheckpointFiguresInfo {
    CheckpointFiguresInfo {
        checkpoint: figures.id.0,
        kind: if figures.savepoint { "savepoint" } else { "checkpoint" }.to_owned(),
        state: match figures.ended {
            None => "pending",
            Some(Ok(())) => "completed",
            Some(Err(_)) => "failed",
        }
        .to_owned(),
        triggered_ms: figures.triggered_ms,
        duration_ms: millis(figures.duration),
        reason: figures.ended.and_then(Result::err).map(|reason| reason.as_str().to_owned()),
        acknowledged: figures.acknowledged.0 as u64,
        tasks: figures.acknowledged.1 as u64,
        bytes: figures.bytes,
        bytes_reused: figures.bytes_reused,
        bytes_in_flight: figures.bytes_in_flight,
        alignment_ms_max: figures.alignment_ms_max,
        last: figures.last.map(|(operator, subtask, after)| LastTask { operator, subtask, after_ms: millis(after) }),
        waiting_for: figures
            .waiting_for
            .into_iter()
            .map(|(operator, subtask)| TaskName { operator, subtask })
            .collect(),
    }
}

/// The metadata of a completed checkpoint: enough to restore it.
#[utoipa::path(get, tag = "Coordinator", path = "/v1/jobs/{job}/checkpoints/{checkpoint}/metadata",
    params(("job" = String, Path), ("checkpoint" = u64, Path)), responses(
    (status = 200, body = Object, description = "docs/coordinator.md describes it"), (status = 404, body = ErrorBody)))]
pub(super) async fn metadata(
    State(native): State<Native>,
    Path((job, checkpoint)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let coordinator = native.coordinators.get(&job_of(&job)?)?;
    Ok(Json(coordinator.metadata(checkpoint.parse()?).await?).into_response())
}
