//! Changes the number of shards of a store whose daemons are all stopped.
//!
//! The new shards are filled beside the old ones, in folders of a generation of their own, and nobody reads them before all of it is there.
//! Then one write of the marker at the root makes them the store. Only after that what was there before is deleted.
//!
//! 1. The map says that the number is being changed: no member joins, or goes on. The number of that map is the generation.
//! 2. The marker at the root says so, and that of each shard: no daemon by itself opens them, and no command.
//! 3. Each catalog is taken over for the last time, which shuts out whoever still has it, and settled.
//! 4. The new catalogs are made and filled: every byte that lives is read, checked and written.
//! 5. **The marker at the root names the new shards**, on the condition that it still says what this command wrote in step 2, and after a
//!    look whether anybody has opened an old catalog since.
//! 6. The map names them. Daemons may start.
//! 7. The physical files that the old catalogs know are deleted, then the old catalogs.
//!
//! Whoever runs the command again goes on, and shuts out the one before: with its name in the marker, and with the epochs of all catalogs.
//!
//! - [`report`]: what is wanted, and what comes of it.
//! - `jobs`: which jobs have to be where.
//! - `steps`: the steps. `giving_up`: what becomes of them when somebody gives them up, or is faster.
//!
//! # Crash
//! Before step 5 the old shards are the store, and after it the new ones. `docs/cluster.md` has a table.

mod giving_up;
mod jobs;
pub mod report;
mod steps;

use crate::config::Settings;
use crate::runtime::Clock;
pub use report::{OnReshard, ReshardError, ReshardOptions, ReshardProgress, ReshardReport, ReshardState};
use steps::Reshard;

/// What a change would do. Changes nothing, and shuts nobody out.
///
/// # Errors
/// [`ReshardError`]: what would be in the way of it.
pub async fn plan(settings: &Settings, shards: u32, on: OnReshard<'_>) -> Result<ReshardReport, ReshardError> {
    let begun = Clock::instant();
    let reshard = Reshard::open(settings, shards).await?;
    Ok(Box::pin(reshard.plan(shards, on)).await?.took(begun))
}

/// Changes the number of shards, or goes on with that.
///
/// # Errors
/// [`ReshardError`]. Unless it says otherwise, it goes on when it is called again.
///
/// # Cancel safety
/// A dropped call leaves what a crash leaves.
pub async fn run(
    settings: &Settings,
    options: ReshardOptions,
    on: OnReshard<'_>,
) -> Result<ReshardReport, ReshardError> {
    let begun = Clock::instant();
    let reshard = Reshard::open(settings, options.shards).await?;
    Ok(Box::pin(reshard.run(options, on)).await?.took(begun))
}

/// Gives a change up that has begun and has not come so far that the new shards are the store.
///
/// # Errors
/// [`ReshardError`]; it goes on when it is called again.
pub async fn abandon(settings: &Settings) -> Result<ReshardReport, ReshardError> {
    let begun = Clock::instant();
    let reshard = Reshard::open(settings, 1).await?;
    Ok(Box::pin(reshard.abandon()).await?.took(begun))
}
