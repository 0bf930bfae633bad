//! `esker du`, `reclaim` and `gc`: against a running daemon, or on a stopped one's folder.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use clap::Args;
use esker_client::wire::{GcReport, ReclaimPlan, SetAsideFile, SpaceInfo, SpaceRow, WaitingBytes};
use serde::Serialize;

use super::NotTried;
use super::segments::{ApiArgs, block_on};
use super::storage::StorageArgs;
use crate::config::Settings;
use crate::engine::space::SpaceBy;
use crate::engine::stopped::Stopped;

/// A daemon that runs, or the folder of one that does not.
#[derive(Debug, Args)]
pub(super) struct Where {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    storage: StorageArgs,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DuArgs {
    #[command(flatten)]
    at: Where,
    /// `job`, `lane` or `checkpoint`
    #[arg(long)]
    by: Option<SpaceBy>,
    /// Only this job
    #[arg(long)]
    job: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ReclaimArgs {
    #[command(flatten)]
    at: Where,
    /// Prints what the next round would do, and does nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    #[command(flatten)]
    at: Where,
    /// Prints what is waiting to be deleted, and deletes nothing
    #[arg(long)]
    dry_run: bool,
    /// The next sweep deletes what the catalog does not name even if that is most of what is there, and files are no longer
    /// kept for data in them that it does not know
    #[arg(long, conflicts_with = "dry_run")]
    force: bool,
}

pub(super) fn du(args: &DuArgs) -> anyhow::Result<ExitCode> {
    let info: SpaceInfo = match args.at.storage.stopped()? {
        None => {
            let client = args.at.api.client()?;
            let by = args.by.map(SpaceBy::name);
            block_on(async { Ok(client.space(by, args.job.as_deref()).await?) })?
        }
        Some(settings) => {
            let job = args.job.as_deref().map(str::parse).transpose()?;
            block_on(async {
                let folder = open(&settings).await?;
                let info = SpaceInfo::from(&folder.space(&settings, args.by, job.as_ref()));
                folder.close().await?;
                Ok(info)
            })?
        }
    };
    print(args.at.json, &info, || {
        println!(
            "{:>7} {:>9} {:>12} {:>12} {:>12} {:>12} {:>7}",
            "files", "segments", "physical", "live", "in catalog", "to delete", "ratio"
        );
        info.rows.iter().chain([&info.total]).for_each(print_row);
    })
}

fn print_row(row: &SpaceRow) {
    let ratio = row.amplification.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let own = row.own_bytes.map_or_else(String::new, |own| format!("  ({} its own)", bytes(own)));
    println!(
        "{:>7} {:>9} {:>12} {:>12} {:>12} {:>12} {ratio:>7}  {}{own}{}",
        row.files,
        row.segments,
        bytes(row.physical_bytes),
        bytes(row.live_bytes),
        bytes(row.inline_bytes),
        bytes(row.forgotten_bytes),
        row.of,
        waiting(&row.waiting)
    );
}

/// The waits of files that are to be deleted, as text; empty if there are none.
fn waiting(waiting: &WaitingBytes) -> String {
    let WaitingBytes { readers, grace, rate, refused } = *waiting;
    let all = [(readers, "being read"), (grace, "in their grace"), (rate, "next"), (refused, "refused by storage")];
    let told: Vec<String> =
        all.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{} {why}", bytes(*count))).collect();
    if told.is_empty() { String::new() } else { format!("  (to delete: {})", told.join(", ")) }
}

pub(super) fn reclaim(args: &ReclaimArgs) -> anyhow::Result<ExitCode> {
    match (args.at.storage.stopped()?, args.dry_run) {
        (Some(settings), true) => {
            let plan = block_on(async {
                let folder = open(&settings).await?;
                let plan = ReclaimPlan::from(&folder.reclaim_plan(&settings));
                folder.close().await?;
                Ok(plan)
            })?;
            print_plan(args, &plan)
        }
        (Some(_), false) => bail!(NotTried("a stopped daemon reclaims nothing: start it, or add --dry-run".to_owned())),
        (None, true) => {
            let client = args.at.api.client()?;
            let plan = block_on(async { Ok(client.reclaim_plan().await?) })?;
            print_plan(args, &plan)
        }
        (None, false) => {
            let client = args.at.api.client()?;
            let round = block_on(async { Ok(client.reclaim().await?) })?;
            print(args.at.json, &round, || {
                println!("closed {} open files", round.closed_files);
                println!("gave back {} in place", bytes(round.punched_bytes));
                println!(
                    "rewrote {} files: read {}, wrote {}, {} to be deleted",
                    round.rewritten_files,
                    bytes(round.read_bytes),
                    bytes(round.written_bytes),
                    bytes(round.freed_bytes)
                );
                println!("{} jobs are still above their limit", round.jobs_above);
            })
        }
    }
}

fn print_plan(args: &ReclaimArgs, plan: &ReclaimPlan) -> anyhow::Result<ExitCode> {
    print(args.at.json, plan, || {
        plan.close.iter().for_each(|file| println!("close  {file}"));
        plan.punch.iter().for_each(|file| println!("punch  {file}"));
        plan.copy.iter().for_each(|file| println!("copy   {file}"));
        plan.pack.iter().for_each(|files| println!("pack   {}", files.join(" ")));
        println!(
            "would read {}, write {}, free {} with about {} requests; {} jobs would stay above their limit",
            bytes(plan.read_bytes),
            bytes(plan.written_bytes),
            bytes(plan.freed_bytes),
            plan.requests,
            plan.jobs_above
        );
    })
}

pub(super) fn gc(args: &GcArgs) -> anyhow::Result<ExitCode> {
    let report = match (args.at.storage.stopped()?, args.dry_run) {
        (Some(settings), true) => block_on(look(&settings))?,
        (Some(_), false) => {
            let why = "the next start deletes what nobody needs: start the daemon, or add --dry-run";
            bail!(NotTried(why.to_owned()))
        }
        (None, dry_run) => {
            let client = args.at.api.client()?;
            block_on(async { Ok(if dry_run { client.gc_report().await? } else { client.gc(args.force).await? }) })?
        }
    };
    print(args.at.json, &report, || {
        report.unnamed.iter().for_each(|file| println!("not in the catalog  {file}"));
        report.kept.iter().for_each(|file| println!("has unknown data    {file}"));
        report.set_aside.iter().for_each(print_set_aside);
        report.foreign.iter().for_each(|name| println!("not of esker        {name}"));
        report.refused.iter().for_each(|why| println!("warning: {why}"));
        if !args.dry_run {
            println!("deleted {} files", report.deleted);
        }
        println!(
            "{} files with {} wait{}; {} are not in the catalog, and {} more in lost+found",
            report.forgotten_files,
            bytes(report.forgotten_bytes),
            waiting(&report.waiting),
            report.unnamed.len(),
            report.set_aside.len()
        );
    })
}

fn print_set_aside(file: &SetAsideFile) {
    let date = |ms: u64| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms));
    let kept = match (file.since_ms, file.until_ms) {
        (Some(since), Some(until)) => format!("  seen since {}, kept until {}", date(since), date(until)),
        _ => String::new(),
    };
    println!("in lost+found       {}  {}{kept}", file.file, bytes(file.bytes));
}

/// Opens a storage, and says what of it cannot be seen.
async fn open(settings: &Settings) -> anyhow::Result<Stopped> {
    let folder = Stopped::open(settings).await?;
    folder.notes().iter().for_each(|note| eprintln!("note: {note}"));
    Ok(folder)
}

async fn look(settings: &Settings) -> anyhow::Result<GcReport> {
    let folder = open(settings).await?;
    let report = GcReport::from(&folder.gc_state(settings).await?);
    folder.close().await?;
    Ok(report)
}

/// Prints an answer as JSON or for people.
fn print<T: Serialize>(json: bool, answer: &T, text: impl FnOnce()) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string(answer)?);
    } else {
        text();
    }
    Ok(ExitCode::SUCCESS)
}

/// A number of bytes for people, in binary units.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}
