//! The storage of a stopped daemon, for commands that need no daemon: a local folder, a store by its URL, or what a
//! configuration names. All these commands take the same arguments.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{NotTried, key_value, load};
use crate::catalog::slate::{Journal, JournalError};
use crate::config::{Config, DirectIo, Settings, StoreUrl};
use crate::metrics::Metrics;
use crate::model::StoreShards;
use crate::store::{DATA_SIDE, place_of_catalog};

/// Where the storage is.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StorageArgs {
    /// The folder of the stopped daemon
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The store of the stopped daemon by its URL, e.g. s3://bucket/prefix, with what the environment says of it
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "config"])]
    pub store: Option<String>,
    /// The configuration of the stopped daemon, whatever store it names
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, e.g. --set store.url=s3://bucket/prefix
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value, conflicts_with = "data_dir")]
    pub set: Vec<(String, String)>,
    /// One shard of a store that is divided into shards, by its number
    #[arg(long, value_name = "N", conflicts_with = "data_dir")]
    pub shard: Option<u32>,
}

impl StorageArgs {
    /// Whether any storage is named.
    pub(super) fn is_given(&self) -> bool {
        self.data_dir.is_some() || self.store.is_some() || self.config.is_some() || !self.set.is_empty()
    }

    /// The settings of a daemon on the storage that is named, if one is: else a running daemon is meant.
    pub(super) fn stopped(&self) -> anyhow::Result<Option<Settings>> {
        if self.is_given() { self.settings().map(Some) } else { Ok(None) }
    }

    /// The settings of a daemon on that storage. Nothing is written beside it: no local copy, no trial files.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.data_dir {
            Some(folder) if !folder.is_dir() => {
                bail!(NotTried(format!("{} is no folder, so it holds no catalog", folder.display())))
            }
            Some(folder) => {
                let url = ("store.url".to_owned(), format!("file:{}", folder.display()));
                Config::load_with(None, [], &[url])?.settings()?
            }
            None if self.is_given() => {
                let url = self.store.iter().map(|url| ("store.url".to_owned(), url.clone()));
                let flags: Vec<_> = self.set.iter().cloned().chain(url).collect();
                load(self.config.as_deref(), &flags)?.1
            }
            None => bail!(NotTried("name the storage: --data-dir DIR, --store URL, or --config FILE".to_owned())),
        };
        check_user(&settings.store.url)?;
        settings.store.local_copy = None;
        // A command is no member of a cluster.
        settings.cluster = None;
        // What the daemon has noted it does itself, and as its own user.
        settings.merging.delete_ledger = None;
        settings.store.direct_io = DirectIo::Off;
        let Some(shard) = self.shard else { return Ok(settings) };
        let shards = shards_of(&settings)?;
        if shard >= shards.count {
            bail!(NotTried(format!(
                "--shard is {shard}, and the store has {shards}: {}",
                match shards.count {
                    1 => "leave it out, or say 0".to_owned(),
                    count => format!("0 to {} are there", count - 1),
                }
            )));
        }
        Ok(settings.at_shard(shards.shard(shard)))
    }
}

/// The shards of a store. While their number is changed, those that it had before.
fn shards_of(settings: &Settings) -> anyhow::Result<StoreShards> {
    let place = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &Metrics::new())?;
    let asking = async {
        match Journal::shards(&place).await {
            Ok(shards) => Ok(shards),
            Err(JournalError::Resharding { .. }) => Ok(Journal::root_mark(&place).await?.map(|mark| mark.shards)),
            Err(error) => Err(error),
        }
    };
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
        anyhow::Ok(runtime.block_on(asking)?)
    };
    // On a thread of its own: some who ask are in a runtime, and cannot wait for another one there.
    let asked = std::thread::scope(|scope| scope.spawn(ask).join());
    let shards = asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(shards.unwrap_or(StoreShards::UNDIVIDED))
}

/// Refuses the folder of a daemon that runs as another user: what a command makes there, that one could not open.
pub(super) fn check_user(store: &StoreUrl) -> anyhow::Result<()> {
    let StoreUrl::File(folder) = store else { return Ok(()) };
    // Without it nothing is there yet, or it is told what is wrong.
    let Ok(identity) = std::fs::metadata(folder.join(DATA_SIDE)) else { return Ok(()) };
    let (owner, user) = (identity.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        bail!(NotTried(format!(
            "{} is of user {owner}, and this is user {user}: what this one makes there, the other one's daemon cannot open. \
             Run it as that user, e.g. `sudo -u '#{owner}' esker ..`",
            folder.display()
        )));
    }
    Ok(())
}

/// A bar on a terminal; nothing elsewhere.
pub(super) fn bar(template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The shape of a bar that counts bytes.
pub(super) const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
/// The shape of a bar that counts things.
pub(super) const COUNT: &str = "{msg} {wide_bar} {pos}/{len} {eta}";
/// The shape of a bar that counts bytes of which nobody knows how many there will be.
pub(super) const WRITTEN: &str = "{spinner} {bytes} {bytes_per_sec} {elapsed} {msg}";
