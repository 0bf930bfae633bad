//! The engine of a daemon, on a clock that is set, doing only what it is told.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{ChurnSetting, ChurnStore};
use crate::catalog::Catalog;
use crate::config::{Config, Settings};
use crate::engine::{Background, Engine, EngineOptions, Running};
use crate::runtime::Clock;

/// When the clock begins: 2026-01-01, in milliseconds since 1970.
const BEGINNING: u64 = 1_767_225_600_000;
/// No real time is spent on keeping to a rate.
const NO_RATE_BYTES: u64 = 1 << 50;

/// An engine on an empty store. `reclaim.copy-rate` and `reclaim.delete-rate` are out of effect.
pub struct Instance {
    running: Running,
    /// `reclaim.copy-rate`, as it would be in effect.
    pub copied_bytes_per_second: u64,
    clock: Arc<AtomicU64>,
}

crate::runtime::opaque_debug!(Instance);

impl Instance {
    /// Starts one; `folder` is where [`ChurnStore::Local`] goes.
    ///
    /// # Errors
    /// When store or catalog cannot be opened.
    pub async fn start(setting: ChurnSetting, folder: Option<&Path>, seed: u64) -> anyhow::Result<Self> {
        let (settings, copied_bytes_per_second) = settings(setting, folder)?;
        let time = Arc::new(AtomicU64::new(BEGINNING));
        let clock = Clock::Manual(Arc::clone(&time));
        let opening =
            EngineOptions { clock, seed: Some(seed), background: Background::OnCall, ..EngineOptions::default() };
        let running = Engine::open(settings, opening).await?;
        Ok(Self { running, copied_bytes_per_second, clock: time })
    }

    /// The engine that does the work.
    pub fn engine(&self) -> &Engine {
        self.running.engine()
    }

    /// The catalog, for those who make up what no client could store.
    pub fn catalog(&self) -> &Catalog {
        self.running.catalog()
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
        Ok(self.running.stop().await?)
    }
}

/// The defaults, but for what is measured; and the rate of copies that is taken out of effect.
fn settings(setting: ChurnSetting, folder: Option<&Path>) -> anyhow::Result<(Settings, u64)> {
    let url = match (setting.place, folder) {
        (ChurnStore::Local, Some(folder)) => format!("file:{}", folder.display()),
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
