//! Fail-over: for how long clients wait while the members of a cluster are killed, stopped and ended, one after the other.
//!
//! Each member is a process of its own on this machine, all on one store. Clients write numbers, each under a key of its own,
//! and read them back, each request at the next member that takes connections. A client's wait is measured at the client: what it has asked
//! since its round began, whichever member it asked.
//!
//! - [`members`]: the processes, and where they listen.
//! - [`clients`]: what is asked of them, and for how long that takes.
//! - [`report`]: the table and the JSON.
//!
//! It fails if an answered write is gone, or a read is older than what was answered before it. What it writes to an object store stays there.

pub mod clients;
pub mod members;
mod options;
pub mod report;

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use self::clients::Clients;
use self::members::Members;
pub use self::options::{FailoverOptions, MemberFate};
use self::report::{FailoverReport, RoundReport};
use super::process::Scratch;
use crate::runtime::Clock;

/// A round in which nobody takes over within this time is a failure.
const TAKE_OVER_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether all clients are answered again.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Clients are at work for so long before the first round.
const WARM_UP: Duration = Duration::from_secs(2);

/// The progress of the bench.
#[derive(Debug)]
pub enum FailoverProgress<'a> {
    /// Something the reader of the figures should know.
    Note(&'a str),
    /// A round is over.
    Round(&'a RoundReport),
}

/// Measures every round, one after the other.
///
/// # Errors
/// When a member does not start or stop, nobody takes over, or something is lost or stale.
///
/// # Cancel safety
/// Dropped, it ends its members and removes its folder.
pub async fn failover(
    options: &FailoverOptions,
    mut tell: impl FnMut(FailoverProgress<'_>),
) -> anyhow::Result<FailoverReport> {
    if options.members < 2 || options.clients == 0 || options.rounds == 0 || options.fates.is_empty() {
        bail!("there must be at least two members, one client, one round and one kind of it");
    }
    if cfg!(debug_assertions) {
        tell(FailoverProgress::Note("this is a debug build: its figures say nothing about speed"));
    }
    let scratch = Scratch::below(&options.data_dir)?;
    let mut members = Members::start(options, scratch.path()).await?;
    let clients = Clients::start(members.balancer(), options.clients).await?;
    tokio::time::sleep(WARM_UP).await;
    let mut rounds = vec![];
    for (number, fate) in (1..=options.rounds).zip(options.fates.iter().copied().cycle()) {
        let owner = members.owner().await.context("no member says who has the catalog")?;
        let begun = Clock::instant();
        members.meet(owner, fate).await?;
        await_answers(&clients, owner, begun).await.with_context(|| {
            let logs = members.logs_end();
            format!("round {number}: {} was {}, and nobody took over; {logs}", members.name(owner), fate.name())
        })?;
        let round = RoundReport::new(number, members.name(owner), fate, clients.longest_wait(owner, begun));
        members.bring_back(owner).await?;
        tell(FailoverProgress::Round(&round));
        rounds.push(round);
        tokio::time::sleep(options.pause).await;
    }
    let end = clients.end().await?;
    let report = FailoverReport::new(rounds, &end);
    members.end().await?;
    if let Some(wrong) = end.wrong.first() {
        bail!("{} reads were wrong, the first: {wrong}", end.wrong.len());
    }
    Ok(report)
}

/// Waits until each client that does not wait for `owner` was answered what it asked another member after `begun`.
async fn await_answers(clients: &Clients, owner: usize, begun: Instant) -> anyhow::Result<()> {
    let answered = async {
        while !clients.all_answered_since(owner, begun) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(TAKE_OVER_MAX, answered).await.with_context(|| format!("no answers within {TAKE_OVER_MAX:?}"))
}
