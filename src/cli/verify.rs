//! `esker verify`: a catalog against its files, of a stopped daemon or a running one.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::segments::ApiArgs;
use super::storage::{BYTES, COUNT, Stopped, StorageArgs, bar};
use crate::catalog::slate::Journal;
use crate::catalog::state::State;
use crate::config::Settings;
use crate::daemon::identity::{self, Taker};
use crate::daemon::verify::{Progress, Verified, repair, verify as compare};
use crate::daemon::{Missing, journal_settings, write};
use crate::metrics::Metrics;
use crate::runtime::Entropy;
use crate::store::{open_data, place_of_catalog};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    storage: StorageArgs,
    /// Reads so many of the segments and checks their bytes
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_data: u8,
    /// Does what the next start would do, moves foreign files to lost+found/, and prints each action. Shuts out a daemon
    #[arg(long)]
    repair: bool,
    /// Forgets segments whose file is gone or too short, and objects made of them; a start is refused while there are any
    #[arg(long, requires = "repair")]
    drop_lost: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
    match runtime.block_on(look(args)) {
        Ok(verified) if args.json => {
            println!("{}", serde_json::to_string_pretty(&verified)?);
            Ok(ExitCode::from(u8::from(!verified.faults.is_empty())))
        }
        Ok(verified) => {
            verified.actions.iter().for_each(|action| println!("done: {action}"));
            verified.faults.iter().for_each(|fault| println!("fault: {fault}"));
            verified.notes.iter().for_each(|note| println!("note: {note}"));
            let Verified { files, segments, read, faults, .. } = &verified;
            println!("{files} files, {segments} segments, {read} of them read: {} faults", faults.len());
            Ok(ExitCode::from(u8::from(!faults.is_empty())))
        }
        Err(error) => {
            eprintln!("esker: {}", crate::error::chain(&*error));
            Ok(ExitCode::from(2))
        }
    }
}

async fn look(args: &VerifyArgs) -> anyhow::Result<Verified> {
    let Some(settings) = args.storage.stopped()? else { return ask(args).await };
    let actions = if args.repair { put_right(args, &settings).await? } else { vec![] };
    let stopped = Stopped::open(&settings).await?;
    let shown = Mutex::new(ProgressBar::hidden());
    let show = |progress: Progress| match progress {
        Progress::Files(files) => begin(&shown, COUNT, "files", files as u64),
        Progress::Reading(bytes) => begin(&shown, BYTES, "data", bytes),
        Progress::Looked => shown.lock().inc(1),
        Progress::Read(bytes) => shown.lock().inc(bytes),
    };
    let verified = compare(&stopped.state, &stopped.data, &stopped.catalog, args.read_data, &show).await?;
    shown.lock().finish_and_clear();
    stopped.close().await?;
    Ok(Verified { actions, ..verified })
}

fn begin(shown: &Mutex<ProgressBar>, template: &str, what: &'static str, len: u64) {
    let next = bar(template).with_message(what);
    next.set_length(len);
    std::mem::replace(&mut *shown.lock(), next).finish_and_clear();
}

/// A running daemon counts for itself.
async fn ask(args: &VerifyArgs) -> anyhow::Result<Verified> {
    if args.repair || args.read_data > 0 {
        bail!(
            "a running daemon counts its catalog and no more: stop it and name its storage with --data-dir or --config"
        );
    }
    let answer = args.api.client()?.verify().await?;
    Ok(Verified {
        files: usize::try_from(answer.files)?,
        segments: usize::try_from(answer.segments)?,
        faults: answer.faults,
        ..Verified::default()
    })
}

async fn put_right(args: &VerifyArgs, settings: &Settings) -> anyhow::Result<Vec<String>> {
    let metrics = Metrics::new();
    // Opened and closed first: there must be a catalog, and a new one is not wanted.
    Stopped::open(settings).await?.close().await?;
    let standing = identity::look(settings, &metrics).await?;
    let placement = place_of_catalog(&settings.store, settings.catalog.url.as_ref(), &metrics)?;
    let opened = journal_settings(&placement, &settings.catalog);
    let clock = opened.clock.clone();
    let entropy = Entropy::from_os(clock.clone());
    let taker = Taker { settings, entropy: &entropy, metrics: &metrics, clock: &clock };
    let mut state = State::default();
    let data = open_data(&settings.store, &metrics)?;
    let known = identity::begin(standing, &data, &placement, || taker.new_identity()).await?;
    let slot = placement.identity_slot();
    let journal = Journal::open(placement, opened, |key, value| state.load(&key, &value)).await;
    let journal = journal.context("the catalog cannot be opened")?;
    let missing = if args.drop_lost { Missing::Drop } else { Missing::Keep };
    // As any owner: what is put right here is what a daemon would do.
    let owned = taker.take(known, &mut state, &journal, data, &slot).await?;
    let mut actions = repair(&mut state, &owned.data, journal.epoch(), clock.now(), missing).await?;
    let mutations = state.take_mutations();
    if !mutations.is_empty() {
        actions.push(format!("wrote {} changes of the catalog", mutations.len()));
        write(&journal, mutations).await?;
    }
    journal.close().await.context("the catalog cannot be closed")?;
    Ok(actions)
}
