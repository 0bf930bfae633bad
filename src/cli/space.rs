//! `esker du`, `reclaim` and `gc`: against a running daemon, or on a stopped one's folder.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::segments::{ApiArgs, block_on};
use super::storage::{Stopped, StorageArgs};
use crate::api::figures::{GcReport, ReclaimPlan, SpaceInfo, SpaceRow, WaitingBytes};
use crate::api::space::{SpaceBy, space};
use crate::config::Settings;
use crate::reclaim::preview;
use crate::reclaim::sweep::{Swept, unnamed};
use crate::reclaim::watch::Watch;
use crate::runtime::Clock;
use crate::store::DataStore;

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
                let folder = Stopped::open(&settings).await?;
                let watch = Watch::new(&settings, matches!(folder.data, DataStore::Local(_)));
                let info = space(&folder.state, args.by, job.as_ref(), &watch, Clock::System.ages());
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

/// What files that are to be deleted wait for; nothing if there are none.
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
                let folder = Stopped::open(&settings).await?;
                let plan = preview(&folder.state, &settings, true, Clock::System.ages());
                folder.close().await?;
                Ok(ReclaimPlan::from(&plan))
            })?;
            print_plan(args, &plan)
        }
        (Some(_), false) => bail!("a stopped daemon reclaims nothing: start it, or add --dry-run"),
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
        (Some(_), false) => bail!("the next start deletes what nobody needs: start the daemon, or add --dry-run"),
        (None, dry_run) => {
            let client = args.at.api.client()?;
            block_on(async { Ok(if dry_run { client.gc_report().await? } else { client.gc(args.force).await? }) })?
        }
    };
    print(args.at.json, &report, || {
        report.unnamed.iter().for_each(|file| println!("not in the catalog  {file}"));
        report.kept.iter().for_each(|file| println!("has unknown data    {file}"));
        report.foreign.iter().for_each(|name| println!("not of esker        {name}"));
        report.refused.iter().for_each(|why| println!("warning: {why}"));
        if !args.dry_run {
            println!("deleted {} files", report.deleted);
        }
        println!(
            "{} files with {} wait{}; {} are not in the catalog",
            report.forgotten_files,
            bytes(report.forgotten_bytes),
            waiting(&report.waiting),
            report.unnamed.len()
        );
    })
}

async fn look(settings: &Settings) -> anyhow::Result<GcReport> {
    let folder = Stopped::open(settings).await?;
    let listed = folder.data.list().await?;
    let swept: Swept = unnamed(&folder.state, listed);
    let forgotten = folder.state.forgotten_files(|_, _| true, usize::MAX);
    let local = matches!(folder.data, DataStore::Local(_));
    let waiting = Watch::new(settings, local).waiting(&folder.state, Clock::System.ages());
    let epoch = folder.catalog.epoch();
    let report = GcReport::of(&forgotten, waiting, &swept, epoch).with_kept(&folder.state, epoch + 1);
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
fn bytes(count: u64) -> String {
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
