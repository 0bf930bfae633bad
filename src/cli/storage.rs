//! The storage of a stopped daemon, for commands that need no daemon: a local folder, or what a configuration names.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{key_value, load};
use crate::catalog::slate::{JournalError, Snapshot};
use crate::catalog::state::State;
use crate::config::{Config, DirectIo, Settings};
use crate::daemon::identity::{self, Standing};
use crate::daemon::{imagine, journal_settings};
use crate::metrics::Metrics;
use crate::model::Millis;
use crate::store::{DataStore, open_data, place_of_catalog};

/// Where the storage is.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StorageArgs {
    /// The folder of the stopped daemon
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The configuration of the stopped daemon, whatever store it names
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, e.g. --set store.url=s3://bucket/prefix
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value, conflicts_with = "data_dir")]
    pub set: Vec<(String, String)>,
}

impl StorageArgs {
    /// Whether any storage is named.
    pub(super) fn is_given(&self) -> bool {
        self.data_dir.is_some() || self.config.is_some() || !self.set.is_empty()
    }

    /// The settings of a daemon on the storage that is named, if one is: else a running daemon is meant.
    pub(super) fn stopped(&self) -> anyhow::Result<Option<Settings>> {
        if self.is_given() { self.settings().map(Some) } else { Ok(None) }
    }

    /// The settings of a daemon on that storage. Nothing is written beside it: no local copy, no trial files.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.data_dir {
            Some(folder) if !folder.is_dir() => bail!("{} is no folder, so it holds no catalog", folder.display()),
            Some(folder) => {
                let url = ("store.url".to_owned(), format!("file:{}", folder.display()));
                Config::load_with(None, [], &[url])?.settings()?
            }
            None if self.is_given() => load(self.config.as_deref(), &self.set)?.1,
            None => bail!("name the storage: --data-dir DIR, or --config FILE"),
        };
        settings.store.local_copy = None;
        settings.store.direct_io = DirectIo::Off;
        Ok(settings)
    }
}

/// What a stopped daemon left.
pub(super) struct Stopped {
    /// What exists, as the next start would see it.
    pub state: State,
    /// The files.
    pub data: DataStore,
    /// The catalog. Close it.
    pub catalog: Snapshot,
}

impl Stopped {
    /// Opens the catalog; nothing changes but the epoch of one on a local disk.
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        if identity::look(settings, &metrics).await? == Standing::New {
            bail!("{} holds no catalog", settings.store.url);
        }
        let mut state = State::default();
        let placement = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &metrics)?;
        let journal = journal_settings(&placement, &settings.catalog);
        let catalog = Snapshot::open(placement, journal, |key, value| state.load(&key, &value)).await;
        let catalog = match catalog {
            Err(JournalError::Nothing) => bail!("{} holds no catalog", settings.store.url),
            other => other.context("the catalog cannot be opened")?,
        };
        let data = open_data(&settings.store, &metrics)?;
        imagine(&mut state, &data, Millis(0)).await?;
        Ok(Self { state, data, catalog })
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.catalog.close().await.context("the catalog cannot be closed")
    }
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
