//! The parts of a daemon that space depends on, on a clock that is set.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{Place, Setting};
use crate::catalog::Catalog;
use crate::catalog::slate::Journal;
use crate::catalog::state::State;
use crate::config::{Config, Settings};
use crate::daemon::journal_settings;
use crate::merge::{Merger, MergerParts};
use crate::metrics::Metrics;
use crate::read::Reader;
use crate::reclaim::ReclaimControl;
use crate::runtime::{ByteBudget, Clock, Entropy, TaskGroup};
use crate::store::{DataStore, open};

/// When the clock begins: 2026-01-01, in milliseconds since 1970.
const BEGINNING: u64 = 1_767_225_600_000;
/// No real time is spent on keeping to a rate.
const NO_RATE_BYTES: u64 = 1 << 50;

/// A daemon without doors.
pub struct Instance {
    /// What the daemon goes by; `reclaim.copy-rate` and `reclaim.delete-rate` are out of effect.
    pub settings: Arc<Settings>,
    /// `reclaim.copy-rate`, as it would be in effect.
    pub copied_bytes_per_second: u64,
    /// What exists.
    pub catalog: Catalog,
    /// Stores.
    pub merger: Merger,
    /// Reads.
    pub reader: Reader,
    /// Gets space back.
    pub reclaim: ReclaimControl,
    /// Where physical files are.
    pub store: DataStore,
    /// Everything that is counted.
    pub metrics: Metrics,
    clock: Arc<AtomicU64>,
    catalog_tasks: TaskGroup,
}

impl Instance {
    /// Starts one on an empty store; `folder` is where [`Place::Local`] goes.
    ///
    /// # Errors
    /// When store or catalog cannot be opened.
    pub async fn start(setting: Setting, folder: Option<&Path>, seed: u64) -> anyhow::Result<Self> {
        let (settings, copied_bytes_per_second) = settings(setting, folder)?;
        let time = Arc::new(AtomicU64::new(BEGINNING));
        let clock = Clock::Manual(Arc::clone(&time));
        let (metrics, entropy) = (Metrics::new(), Entropy::from_seed(seed, clock.clone()));
        let opened = open(&settings.store, None, &metrics, &entropy).await?;
        let mut state = State::default();
        let journal = journal_settings(&opened.catalog, &settings.catalog);
        let journal = Journal::open(opened.catalog, journal, |key, value| state.load(&key, &value)).await;
        let group = || TaskGroup::new(CancellationToken::new());
        let catalog_tasks = group();
        let catalog = Catalog::start(state, journal.context("the catalog")?, clock, &metrics, &catalog_tasks);
        let budget = ByteBudget::new(settings.limits.memory_bytes, metrics.in_flight_bytes.clone());
        let store = opened.data;
        let patience = settings.limits.admission_timeout;
        let lease = settings.limits.read_lease;
        let reader =
            Reader::new(store.clone(), catalog.clone(), budget.clone(), patience, metrics.clone(), group(), lease);
        let settings = Arc::new(settings);
        let parts = MergerParts::new(
            Arc::clone(&settings),
            store.clone(),
            catalog.clone(),
            budget,
            entropy,
            metrics.clone(),
            group(),
        );
        let merger = Merger::new(parts.clone());
        let reclaim = ReclaimControl::new(parts, reader.leases(), CancellationToken::new());
        Ok(Self {
            settings,
            copied_bytes_per_second,
            catalog,
            merger,
            reader,
            reclaim,
            store,
            metrics,
            clock: time,
            catalog_tasks,
        })
    }

    /// The time since it was started.
    pub fn elapsed(&self) -> Duration {
        Duration::from_millis(self.clock.load(Ordering::Relaxed) - BEGINNING)
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(0);
        self.clock.fetch_add(millis, Ordering::Relaxed);
    }

    /// Closes everything.
    ///
    /// # Errors
    /// When the catalog cannot be written to its end.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.merger.close();
        self.merger.tasks().wait().await;
        self.catalog.close().await?;
        drop(self.catalog_tasks);
        Ok(())
    }
}

/// The defaults, but for what is measured; and the rate of copies that is taken out of effect.
fn settings(setting: Setting, folder: Option<&Path>) -> anyhow::Result<(Settings, u64)> {
    let url = match (setting.place, folder) {
        (Place::Local, Some(folder)) => format!("file:{}", folder.display()),
        _ => "memory:".to_owned(),
    };
    let flags = [
        ("store.url", url),
        ("execution.checkpointing.file-merging.max-space-amplification", setting.limit.to_string()),
        ("reclaim.punch-holes", setting.punch_holes.to_string()),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value));
    let mut settings = Config::load_with(None, [], &flags)?.settings()?;
    // All segments of a checkpoint are there before the first group goes, so there is nothing to wait for.
    settings.merging.linger.min = Duration::ZERO;
    settings.merging.linger.max = Duration::ZERO;
    // Everything goes into files: the space of what is inline is the catalog's.
    settings.merging.inline_group_bytes_max = 0;
    settings.checkpointing.inline_bytes_max = 0;
    settings.reclaim.deletes_per_second_max = u32::MAX;
    let rate = std::mem::replace(&mut settings.reclaim.copied_bytes_per_second_max, NO_RATE_BYTES);
    Ok((settings, rate))
}
