//! `esker jobs`, `checkpoints`, `savepoint` and `stop`: jobs whose checkpoints a daemon coordinates.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use esker_client::Client;
use esker_client::wire::{CheckpointFiguresInfo, JobInfo, RequestAnswer, SavepointRequest, StopRequest};
use http::StatusCode;

use super::segments::{ApiArgs, block_on};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest that a request waits.
const WAIT: &str = "60 s";

#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CheckpointsArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The job
    #[arg(long)]
    job: String,
    /// Goes on with each checkpoint that ends
    #[arg(long)]
    follow: bool,
    /// Prints JSON, one line a checkpoint
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SavepointArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The job
    #[arg(long)]
    job: String,
    /// Where it goes, `s3://bucket/prefix`; `execution.checkpointing.savepoint-dir` of the job if not given
    #[arg(long)]
    dir: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    savepoint: SavepointArgs,
    /// Emits the last watermark before: timers fire, and the job is not meant to go on
    #[arg(long)]
    drain: bool,
}

pub(super) fn jobs(args: &JobsArgs) -> anyhow::Result<ExitCode> {
    let client = args.api.client()?;
    let jobs = block_on(async { Ok(client.jobs().await?) })?;
    if args.json {
        println!("{}", serde_json::to_string(&jobs)?);
        return Ok(ExitCode::SUCCESS);
    }
    for job in jobs.iter().filter(|job| job.coordinator.is_some()) {
        println!("{}", job_line(job));
    }
    Ok(ExitCode::SUCCESS)
}

fn job_line(job: &JobInfo) -> String {
    let Some(of) = &job.coordinator else { return job.job.clone() };
    let number = |id: Option<u64>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    format!(
        "{}  {}, {} restarts, tasks {} of {} running, {} finished, checkpoint {}, {} pending, {} failed in a row",
        job.job,
        of.status,
        of.restarts,
        of.tasks_running,
        of.tasks,
        of.tasks_finished,
        number(of.completed),
        of.pending.len(),
        of.failures
    )
}

pub(super) fn checkpoints(args: &CheckpointsArgs) -> anyhow::Result<ExitCode> {
    let client = args.api.client()?;
    block_on(async { follow(&client, args).await })
}

/// Prints those that are over, each once.
async fn follow(client: &Client, args: &CheckpointsArgs) -> anyhow::Result<ExitCode> {
    let mut told: BTreeMap<u64, String> = BTreeMap::new();
    let mut is_known = false;
    loop {
        let figures = match client.checkpoint_history(&args.job).await {
            Err(error) if is_known && error.status() == Some(StatusCode::NOT_FOUND) => {
                eprintln!("job {} has ended", args.job);
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) if is_known && args.follow && error.is_transient() => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            figures => figures?,
        };
        is_known = true;
        for figures in figures.iter().rev() {
            let is_over = figures.state != "pending";
            if (args.follow && !is_over) || told.get(&figures.checkpoint) == Some(&figures.state) {
                continue;
            }
            told.insert(figures.checkpoint, figures.state.clone());
            let line = if args.json { serde_json::to_string(figures)? } else { line(figures) };
            println!("{line}");
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        // More than the daemon remembers is of no use.
        while told.len() > 1000 {
            told.pop_first();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn line(figures: &CheckpointFiguresInfo) -> String {
    let mut line = format!(
        "{} {}  {}  {} ms, {} of {} tasks, {} bytes",
        figures.kind,
        figures.checkpoint,
        figures.reason.as_ref().map_or_else(|| figures.state.clone(), |reason| format!("failed, {reason}")),
        figures.duration_ms,
        figures.acknowledged,
        figures.tasks,
        figures.bytes
    );
    if figures.bytes_reused > 0 {
        line.push_str(&format!(" and {} of earlier ones", figures.bytes_reused));
    }
    if let Some(last) = &figures.last {
        line.push_str(&format!(", last {}/{} after {} ms", last.operator, last.subtask, last.after_ms));
    }
    if !figures.waiting_for.is_empty() {
        let names = figures.waiting_for.iter().map(|task| format!("{}/{}", task.operator, task.subtask));
        line.push_str(&format!(", missing {}", names.collect::<Vec<_>>().join(" ")));
    }
    line
}

pub(super) fn savepoint(args: &SavepointArgs) -> anyhow::Result<ExitCode> {
    let client = args.api.client()?;
    let request = SavepointRequest { dir: args.dir.clone(), format: None, wait: Some(WAIT.to_owned()) };
    block_on(async {
        let key = key();
        loop {
            if let Some(code) = told(&client.trigger_savepoint(&args.job, &request, Some(&key)).await?) {
                return Ok(code);
            }
        }
    })
}

pub(super) fn stop(args: &StopArgs) -> anyhow::Result<ExitCode> {
    let SavepointArgs { api, job, dir } = &args.savepoint;
    let client = api.client()?;
    let request = StopRequest { drain: args.drain, dir: dir.clone(), format: None, wait: Some(WAIT.to_owned()) };
    block_on(async {
        let key = key();
        loop {
            let answer = client.stop_job(job, &request, Some(&key)).await?;
            match told(&answer) {
                Some(_) if answer.state == "completed" => return until_it_has_ended(&client, job).await,
                Some(code) => return Ok(code),
                None => {}
            }
        }
    })
}

/// The savepoint is there. The job ends with its tasks; if one of them fails before it has finished, all begin anew from the
/// savepoint, as in Flink.
async fn until_it_has_ended(client: &Client, job: &str) -> anyhow::Result<ExitCode> {
    loop {
        match client.job(job).await {
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return Ok(ExitCode::SUCCESS),
            Err(error) if error.is_transient() => {}
            info => match info?.coordinator.map(|of| of.status) {
                None => return Ok(ExitCode::SUCCESS),
                Some(status) if status == "stopping" || status == "ended" => {}
                Some(_) => {
                    eprintln!(
                        "the job has not stopped: a task failed behind the savepoint, and all began anew from it"
                    );
                    return Ok(ExitCode::from(1));
                }
            },
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Names the request, so that it can be asked for again.
fn key() -> String {
    use crate::runtime::{Clock, Entropy};
    format!("cli-{}", Entropy::from_os(Clock::System).hex(12))
}

/// Prints how a request ended; `None` if it has not.
fn told(answer: &RequestAnswer) -> Option<ExitCode> {
    match &*answer.state {
        "completed" => {
            println!("{}", answer.path.as_deref().unwrap_or("completed"));
            Some(ExitCode::SUCCESS)
        }
        "failed" => {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            eprintln!("it failed: {}, {}", text(&answer.reason), text(&answer.message));
            Some(ExitCode::from(1))
        }
        _ => None,
    }
}
