//! `esker cluster`: several daemons as one.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use esker_client::wire::ClusterStatus;

use super::segments::{ApiArgs, block_on};
use super::storage::StorageArgs;
use crate::cluster::upkeep;

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
