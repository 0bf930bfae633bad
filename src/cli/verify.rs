//! `esker verify`: a catalog against its files, of a stopped daemon or a running one.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::segments::ApiArgs;
use super::storage::{BYTES, COUNT, StorageArgs, bar};
use crate::engine::recover::Missing;
use crate::engine::stopped::Stopped;
use crate::engine::verify::{VerifyProgress, VerifyReport, verify as compare};

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
            let VerifyReport { files, segments, read, faults, .. } = &verified;
            println!("{files} files, {segments} segments, {read} of them read: {} faults", faults.len());
            Ok(ExitCode::from(u8::from(!faults.is_empty())))
        }
        Err(error) => {
            eprintln!("esker: {}", crate::error::chain(&*error));
            Ok(ExitCode::from(2))
        }
    }
}

async fn look(args: &VerifyArgs) -> anyhow::Result<VerifyReport> {
    let Some(settings) = args.storage.stopped()? else { return ask(args).await };
    let missing = if args.drop_lost { Missing::Drop } else { Missing::Keep };
    let actions = if args.repair { Stopped::repair(&settings, missing).await? } else { vec![] };
    let stopped = Stopped::open(&settings).await?;
    let shown = Mutex::new(ProgressBar::hidden());
    let show = |progress: VerifyProgress| match progress {
        VerifyProgress::Files(files) => begin(&shown, COUNT, "files", files as u64),
        VerifyProgress::Reading(bytes) => begin(&shown, BYTES, "data", bytes),
        VerifyProgress::Looked => shown.lock().inc(1),
        VerifyProgress::Read(bytes) => shown.lock().inc(bytes),
    };
    let verified = compare(&stopped.state, &stopped.data, &stopped.catalog, args.read_data, &show).await?;
    shown.lock().finish_and_clear();
    let notes = stopped.notes().into_iter().chain(verified.notes).collect();
    stopped.close().await?;
    Ok(VerifyReport { actions, notes, ..verified })
}

fn begin(shown: &Mutex<ProgressBar>, template: &str, what: &'static str, len: u64) {
    let next = bar(template).with_message(what);
    next.set_length(len);
    std::mem::replace(&mut *shown.lock(), next).finish_and_clear();
}

/// A running daemon counts for itself.
async fn ask(args: &VerifyArgs) -> anyhow::Result<VerifyReport> {
    if args.repair || args.read_data > 0 {
        bail!(
            "a running daemon counts its catalog and no more: stop it and name its storage with --data-dir or --config"
        );
    }
    let answer = args.api.client()?.verify().await?;
    Ok(VerifyReport {
        files: usize::try_from(answer.files)?,
        segments: usize::try_from(answer.segments)?,
        faults: answer.faults,
        ..VerifyReport::default()
    })
}
