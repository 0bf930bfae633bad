//! `esker audit` and `esker orphans`: against a running daemon, or on the storage of a stopped one.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use esker_client::wire::{
    AuditParams, AuditedCheckpoint, OrphanLine, OrphanObject, OrphansEnd, OrphansOfJob, OrphansParams,
};

use super::NotTried;
use super::restore::FromArgs;
use super::segments::block_on;
use super::space::bytes;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    of: OfArgs,
    /// Lists everything that each checkpoint names
    #[arg(long)]
    names: bool,
}

#[derive(Debug, Args)]
pub(super) struct OrphansArgs {
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    of: OfArgs,
    /// Only what is at least so old; longer than a checkpoint may take (execution.checkpointing.timeout)
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// Deletes them, each if it is still the object that was judged
    #[arg(long)]
    delete: bool,
    /// Deletes also what is younger than ten minutes; if a job runs, files of its next checkpoint may be among that
    #[arg(long, requires = "delete")]
    risk_running_checkpoints: bool,
    /// Lists what is kept, too, with the reason
    #[arg(long)]
    kept: bool,
}

/// Which checkpoints or objects.
#[derive(Debug, Args)]
struct OfArgs {
    /// Only below this place, s3://BUCKET/PREFIX
    #[arg(value_name = "S3-URL")]
    place: Option<String>,
    /// Only of this job: its id in Flink, or BUCKET/FOLDER
    #[arg(long)]
    job: Option<String>,
    /// Prints JSON, a line for each answer
    #[arg(long)]
    json: bool,
}

impl OfArgs {
    /// The bucket and the prefix.
    fn place(&self) -> anyhow::Result<(Option<String>, Option<String>)> {
        let Some(place) = &self.place else { return Ok((None, None)) };
        let rest = place.strip_prefix("s3://").filter(|rest| !rest.starts_with('/') && !rest.is_empty());
        let rest = rest.ok_or_else(|| NotTried(format!("must be s3://BUCKET/PREFIX, is {place:?}")))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        Ok((Some(bucket.to_owned()), Some(prefix.to_owned()).filter(|prefix| !prefix.is_empty())))
    }
}

/// Whatever keeps it from its end is 2: 1 is for what is missing.
pub(super) fn audit(args: &AuditArgs) -> ExitCode {
    match try_audit(args) {
        Ok(sum) => ExitCode::from(u8::from(sum.incomplete + sum.unreadable > 0)),
        Err(error) => {
            eprintln!("esker: {}", crate::error::chain(&*error));
            ExitCode::from(2)
        }
    }
}

fn try_audit(args: &AuditArgs) -> anyhow::Result<AuditSum> {
    let (bucket, prefix) = args.of.place()?;
    let names = args.names.then_some(true);
    let mut params = AuditParams { bucket, prefix, job: args.of.job.clone(), names, ..AuditParams::default() };
    block_on(async {
        let source = args.from.open().await?;
        let asked = async {
            let mut sum = AuditSum::default();
            loop {
                let page = source.client.audit(&params).await?;
                for checkpoint in &page.checkpoints {
                    sum.add(checkpoint);
                    match args.of.json {
                        true => println!("{}", serde_json::to_string(checkpoint)?),
                        false => print_checkpoint(checkpoint),
                    }
                }
                if page.next.is_none() {
                    break anyhow::Ok(sum);
                }
                params.after = page.next;
            }
        };
        let sum = asked.await;
        source.close().await?;
        let sum = sum?;
        if !args.of.json {
            let AuditSum { checkpoints, incomplete, unreadable } = sum;
            println!("{checkpoints} checkpoints: {incomplete} incomplete, {unreadable} unreadable");
        }
        Ok(sum)
    })
}

#[derive(Debug, Default, Clone, Copy)]
struct AuditSum {
    checkpoints: u64,
    incomplete: u64,
    unreadable: u64,
}

impl AuditSum {
    fn add(&mut self, checkpoint: &AuditedCheckpoint) {
        self.checkpoints += 1;
        self.incomplete += u64::from(checkpoint.missing > 0);
        self.unreadable += u64::from(checkpoint.unreadable.is_some());
    }
}

fn print_checkpoint(checkpoint: &AuditedCheckpoint) {
    let place = format!("s3://{}/{}", checkpoint.bucket, checkpoint.key);
    if let Some(why) = &checkpoint.unreadable {
        println!("unreadable  {place}  {why}");
        return;
    }
    let state = if checkpoint.missing > 0 { "incomplete" } else { "complete" };
    let (kind, number, objects) = (&checkpoint.kind, checkpoint.checkpoint, checkpoint.objects);
    println!("{state:<10}  {place}  {kind} {number}, {objects} objects, {} of state", bytes(checkpoint.state_bytes));
    if let Some(first) = &checkpoint.elsewhere_first {
        println!("            not looked at: {} files on other storage, such as {first}", checkpoint.elsewhere);
    }
    match (&checkpoint.copy_of, &checkpoint.of_others_first) {
        (Some(original), _) => println!("            a copy of {original}, whose files it names: they are not copied"),
        (None, Some(first)) => {
            println!("            names {} objects of other jobs, such as of {first}", checkpoint.of_others);
        }
        (None, None) => (),
    }
    for object in &checkpoint.missing_objects {
        let merged = if object.merged_by_flink { "  (made by Flink's own file merging)" } else { "" };
        let place = format!("s3://{}/{}", object.bucket, object.key);
        match object.len {
            None => println!("  missing   {place}{merged}"),
            Some(len) => println!("  too short {place}  {len} of {} bytes{merged}", object.needed_bytes),
        }
    }
    let told = checkpoint.missing_objects.len() as u64;
    if checkpoint.missing > told {
        println!("            and {} more", checkpoint.missing - told);
    }
    for part in &checkpoint.named {
        let place =
            part.bucket.as_ref().map_or_else(|| part.key.clone(), |bucket| format!("s3://{bucket}/{}", part.key));
        println!("  names     {place}  {} bytes from {}", part.len, part.start);
    }
}

pub(super) fn orphans(args: &OrphansArgs) -> anyhow::Result<ExitCode> {
    let (bucket, prefix) = args.of.place()?;
    let older_than_ms = Some(u64::try_from(args.older_than.as_millis())?);
    let kept = args.kept.then_some(true);
    let risk_running_checkpoints = args.risk_running_checkpoints.then_some(true);
    let job = args.of.job.clone();
    let params = OrphansParams { bucket, prefix, job, older_than_ms, kept, risk_running_checkpoints };
    block_on(async {
        let source = args.from.open().await?;
        let asked = async {
            let mut lines = match args.delete {
                true => source.client.delete_orphans(&params).await?,
                false => source.client.orphans(&params).await?,
            };
            let mut failed = 0_u64;
            while let Some(line) = lines.next().await? {
                failed += u64::from(matches!(&line, OrphanLine::Orphan(orphan) if orphan.not_deleted.is_some()));
                match args.of.json {
                    true => println!("{}", serde_json::to_string(&line)?),
                    false => print_line(&line),
                }
            }
            anyhow::Ok(failed)
        };
        let failed = asked.await;
        source.close().await?;
        Ok(ExitCode::from(u8::from(failed? > 0)))
    })
}

fn print_line(line: &OrphanLine) {
    match line {
        OrphanLine::Orphan(orphan) => print_orphan(orphan),
        OrphanLine::Kept(kept) => println!("kept         s3://{}/{}  {}", kept.bucket, kept.key, because(&kept.why)),
        OrphanLine::Unreadable(metadata) => {
            println!("unreadable   s3://{}/{}  {}", metadata.bucket, metadata.key, metadata.why);
        }
        OrphanLine::Job(job) => print_job(job),
        OrphanLine::End(OrphansEnd { objects, orphans, orphan_bytes, deleted, others }) => {
            let size = bytes(*orphan_bytes);
            println!(
                "{objects} objects: {orphans} orphans with {size}, {deleted} deleted; {others} objects are none of Flink's"
            );
        }
        OrphanLine::Broken(why) => println!("broken off: {why}"),
    }
}

fn print_orphan(orphan: &OrphanObject) {
    let done = if orphan.deleted { "deleted" } else { "orphan" };
    let put = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(orphan.modified_ms));
    let why = match orphan.why.as_str() {
        "aborted_checkpoint" => "of a checkpoint that was aborted",
        "late_upload" => "came too late for its checkpoint",
        _ => "no checkpoint names it",
    };
    let (bucket, key, size) = (&orphan.bucket, &orphan.key, bytes(orphan.len));
    println!("{done:<11}  s3://{bucket}/{key}  {size}  {put}  {why}");
    if let Some(why) = &orphan.not_deleted {
        println!("             not deleted: {why}");
    }
}

fn print_job(job: &OrphansOfJob) {
    println!(
        "s3://{}/{}: {} objects with {}, {} orphans with {}",
        job.bucket,
        job.folder,
        job.objects,
        bytes(job.bytes),
        job.orphans,
        bytes(job.orphan_bytes)
    );
    for kept in &job.kept {
        println!("  {:>9} with {:>10} kept: {}", kept.objects, bytes(kept.bytes), because(&kept.why));
    }
}

/// The reason for which objects are kept, for people.
fn because(why: &str) -> &str {
    match why {
        "metadata" => "the list of a checkpoint's files",
        "folder" => "the marker of a folder",
        "named" => "a checkpoint or savepoint needs it",
        "savepoint" => "a savepoint's folder is the user's",
        "task_owned" => "tasks own it, and checkpoints need not name it",
        "working" => "a state backend may be working on it",
        "changelog" => "changes are stored before a checkpoint names them",
        "unreadable" => "a _metadata of the job cannot be read, and may name it",
        "unreadable_copy" => "a _metadata that cannot be read is outside of all jobs, and may name it",
        "elsewhere" => "a _metadata of the job names files on other storage, or in buckets that are not here",
        "no_checkpoint" => "its folder has no completed checkpoint, so nothing says what is in progress",
        "running" => "its checkpoint may be in progress",
        "young" => "it is not older than the newest checkpoint",
        "recent" => "it is younger than --older-than",
        other => other,
    }
}
