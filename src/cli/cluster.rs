//! `esker cluster`: several daemons as one.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use esker_client::wire::ClusterStatus;
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::NotTried;
use super::segments::{ApiArgs, block_on};
use super::storage::{StorageArgs, WRITTEN, bar};
use crate::cluster::reshard::{self, ReshardOptions, ReshardProgress, ReshardReport, ReshardState};
use crate::cluster::upkeep;

/// A change of the number of shards says so often where it is.
const TOLD_EVERY: Duration = Duration::from_secs(4);

#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    action: ClusterAction,
}

#[derive(Debug, Subcommand)]
enum ClusterAction {
    /// Shows the members, and which of them has which shard
    Status(StatusArgs),
    /// Has a member give its shards to others
    Drain(DrainArgs),
    /// Makes the store of a cluster whose daemons are all stopped one for a daemon by itself
    Dissolve(DissolveArgs),
    /// Makes a first map where all maps of a cluster were deleted. All daemons must be stopped
    Repair(RepairArgs),
    /// Changes the number of shards of a store whose daemons are all stopped; says what that would do, without --run
    Reshard(ReshardArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DrainArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The member, by its `cluster.daemon-id`
    id: String,
}

#[derive(Debug, Args)]
struct DissolveArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// Also if members have not left, because they are dead
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct RepairArgs {
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Debug, Args)]
struct ReshardArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// The number of shards that the store is to have
    #[arg(long, value_name = "M", required_unless_present = "abandon", conflicts_with = "abandon")]
    shards: Option<u32>,
    /// Does it, or goes on where an earlier run was cut short
    #[arg(long)]
    run: bool,
    /// Also if members have not left, because they are dead
    #[arg(long, requires = "run")]
    force: bool,
    /// Gives up what an earlier run has begun: the store stays as it was
    #[arg(long, conflicts_with_all = ["run", "force"])]
    abandon: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn cluster(args: &ClusterArgs) -> anyhow::Result<ExitCode> {
    match &args.action {
        ClusterAction::Status(args) => {
            let client = args.api.client()?;
            let status = block_on(async { Ok(client.cluster().await?) })?;
            if args.json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print(&status);
            }
        }
        ClusterAction::Drain(args) => {
            let client = args.api.client()?;
            block_on(async { Ok(client.drain(&args.id).await?) })?;
            println!("{} was told to give its shards away: `esker cluster status` says who has them", args.id);
        }
        ClusterAction::Dissolve(args) => {
            let settings = args.storage.settings()?;
            block_on(async { Ok(upkeep::dissolve(&settings, args.force).await?) })?;
            println!(
                "a daemon by itself may open the store now; one that is divided into shards, commands on its storage"
            );
        }
        ClusterAction::Repair(args) => {
            let settings = args.storage.settings()?;
            block_on(async { Ok(upkeep::repair(&settings).await?) })?;
            println!("the cluster has a map again, without members: start the daemons");
        }
        ClusterAction::Reshard(args) => change_shards(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(status: &ClusterStatus) {
    println!("map {}", status.map);
    println!("{:<24} {:<11} {:<21} address", "member", "", "since");
    for member in &status.members {
        let reachable = if member.reachable { "reachable" } else { "UNREACHABLE" };
        println!("{:<24} {reachable:<11} {:<21} {}", member.id, member.since, member.url);
    }
    println!("{:<6} {:<24} {:>10} {:<21} how", "shard", "owner", "segments", "since");
    for shard in &status.shards {
        let segments = shard.segments.map_or_else(|| "-".to_owned(), |segments| segments.to_string());
        let owner = shard.owner.as_deref().unwrap_or("(nobody)");
        println!("{:<6} {owner:<24} {segments:>10} {:<21} {}", shard.shard, shard.since, shard.cause);
    }
}

fn change_shards(args: &ReshardArgs) -> anyhow::Result<()> {
    if args.storage.shard.is_some() {
        bail!(NotTried("--shard names one shard, and this is about all of them: leave it out".to_owned()));
    }
    let settings = args.storage.settings()?;
    let shown = ChangeShown::default();
    let show = |step| shown.take(step);
    let report = block_on(async {
        let changing = async {
            anyhow::Ok(match args.shards {
                None => reshard::abandon(&settings).await?,
                Some(shards) if args.run => {
                    reshard::run(&settings, ReshardOptions { shards, force: args.force }, &show).await?
                }
                Some(shards) => reshard::plan(&settings, shards, &show).await?,
            })
        };
        tokio::select! {
            report = changing => report,
            never = shown.tell() => match never {},
        }
    });
    shown.0.lock().bar.finish_and_clear();
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_change(&report);
    }
    Ok(())
}

/// Tells how far a change has come: by a bar on a terminal, by a line every few seconds elsewhere.
struct ChangeShown(Mutex<ChangeSeen>);

struct ChangeSeen {
    bar: ProgressBar,
    at: String,
    copied: u64,
    bytes: u64,
}

impl Default for ChangeShown {
    fn default() -> Self {
        Self(Mutex::new(ChangeSeen { bar: bar(WRITTEN), at: "looking at the store".to_owned(), copied: 0, bytes: 0 }))
    }
}

impl ChangeShown {
    fn take(&self, step: ReshardProgress) {
        let mut seen = self.0.lock();
        match step {
            ReshardProgress::At(what) => {
                seen.bar.set_message(what.clone());
                seen.at = what;
            }
            ReshardProgress::Copying(bytes) => seen.bytes = bytes,
            ReshardProgress::Copied(bytes) => {
                seen.copied += bytes;
                seen.bar.inc(bytes);
            }
        }
    }

    /// Says where it is, for as long as it is polled.
    async fn tell(&self) -> Infallible {
        loop {
            tokio::time::sleep(TOLD_EVERY).await;
            let seen = self.0.lock();
            if seen.bar.is_hidden() {
                match seen.bytes {
                    0 => eprintln!("esker: {}", seen.at),
                    bytes => eprintln!("esker: {} ({} of {bytes} bytes are copied)", seen.at, seen.copied),
                }
            }
        }
    }
}

fn print_change(report: &ReshardReport) {
    let ReshardReport { state, from, to, total, copied, .. } = report;
    if !report.transfers.is_empty() {
        println!(
            "{:<6} {:<6} {:>10} {:>8} {:>10} {:>8} {:>14}",
            "from", "to", "keys", "jobs", "segments", "files", "bytes"
        );
    }
    for transfer in &report.transfers {
        let counts = &transfer.counts;
        println!(
            "{:<6} {:<6} {:>10} {:>8} {:>10} {:>8} {:>14}",
            transfer.from, transfer.to, counts.keys, counts.jobs, counts.segments, counts.files, counts.bytes
        );
    }
    for placed in &report.placed {
        println!(
            "job {} goes to shard {}: with what it has claimed, or what its coordinator has there",
            placed.job, placed.shard
        );
    }
    report.missing.iter().for_each(|missing| println!("MISSING: {missing}"));
    report.notes.iter().for_each(|note| println!("note: {note}"));
    let seconds = report.seconds;
    match state {
        ReshardState::Planned => println!(
            "from {from} to {to}: {} keys, {} jobs, {} segments with {} bytes would be copied. Nothing was changed: --run does it, with all \
             daemons stopped",
            total.keys, total.jobs, total.segments, total.bytes
        ),
        ReshardState::Begun => {
            println!("the change from {from} to {to} has begun, and has not ended: --run goes on with it")
        }
        ReshardState::ToBeDeleted => {
            println!("the store has {to}; --run deletes what is left of before, when it had {from}")
        }
        ReshardState::NothingToDo => println!("the store has {to} already"),
        ReshardState::Done => println!(
            "the store has {to}: {} segments with {} bytes were copied, {} files of before deleted, in {seconds:.1} s. Start the daemons, \
             with cluster.enabled = true",
            copied.segments, copied.bytes, report.deleted_files
        ),
        ReshardState::Abandoned => println!("the change to {to} was given up: the store has {from}, as before"),
    }
}
