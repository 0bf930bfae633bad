//! `esker rebuild`: a new catalog, from the physical files alone.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::storage::{BYTES, COUNT, StorageArgs, bar};
use crate::engine::rebuild::{LOST_AND_FOUND, RebuildOptions, RebuildProgress, Rebuilt, rebuild};

/// Lines of a kind that are printed; JSON has all.
const LINES_MAX: usize = 100;

#[derive(Debug, Args)]
pub(super) struct RebuildArgs {
    #[command(flatten)]
    storage: StorageArgs,
    /// Moves the catalog that is there aside, to `catalog.old-..`
    #[arg(long)]
    replace: bool,
    /// Reads every segment and checks its bytes
    #[arg(long)]
    read_data: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RebuildArgs) -> anyhow::Result<ExitCode> {
    let rebuilt = || {
        let settings = args.storage.settings()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
        let options = RebuildOptions { replace: args.replace, read_data: args.read_data };
        let shown = Shown::default();
        let rebuilt = runtime.block_on(rebuild(&settings, options, &|step| shown.step(&step)));
        shown.0.lock().finish_and_clear();
        anyhow::Ok(rebuilt?)
    };
    match rebuilt() {
        Ok(rebuilt) => {
            if args.json {
                println!("{}", serde_json::to_string_pretty(&rebuilt)?)
            } else {
                print(&rebuilt)
            }
            Ok(ExitCode::from(u8::from(!rebuilt.faults.is_empty())))
        }
        Err(error) => {
            eprintln!("esker: {}", crate::error::chain(&*error));
            Ok(ExitCode::from(2))
        }
    }
}

/// Progress on a terminal.
struct Shown(Mutex<ProgressBar>);

impl Default for Shown {
    fn default() -> Self {
        Self(Mutex::new(ProgressBar::hidden()))
    }
}

impl Shown {
    fn step(&self, step: &RebuildProgress) {
        let begin = |template, what: &'static str, len: u64| {
            let next = bar(template).with_message(what);
            next.set_length(len);
            std::mem::replace(&mut *self.0.lock(), next).finish_and_clear();
        };
        match step {
            RebuildProgress::Listed(files) => begin(COUNT, "footers", *files as u64),
            RebuildProgress::Reading(bytes) => begin(BYTES, "data", *bytes),
            RebuildProgress::RoomMade(_) => begin("{spinner} catalog, {pos} batches {elapsed}", "", 0),
            RebuildProgress::Looked | RebuildProgress::Wrote => self.0.lock().inc(1),
            RebuildProgress::Read(bytes) => self.0.lock().inc(*bytes),
            RebuildProgress::Begun | RebuildProgress::Written => {}
        }
    }
}

fn print(rebuilt: &Rebuilt) {
    let Rebuilt { files, segments, bytes, jobs, objects, .. } = rebuilt;
    lines("note", &rebuilt.notes);
    lines("fault", &rebuilt.faults);
    if let Some(old) = &rebuilt.moved_aside {
        println!("the old catalog is in {old}");
    }
    println!(
        "{files} files, {segments} segments with {bytes} bytes, {jobs} jobs, {objects} objects; {} segments were given back, \
         {} were older copies, {} are under the job {LOST_AND_FOUND}; {} bytes were read and checked",
        rebuilt.given_back, rebuilt.copies, rebuilt.lost_and_found, rebuilt.read_bytes
    );
    println!(
        "lost with the old catalog: segments inside it, objects of 0 bytes, headers, tags and copies of objects, idempotency keys, \
         uploads in progress; what was freed, deleted or overwritten by something small may be back"
    );
    println!("{} faults", rebuilt.faults.len());
}

fn lines(kind: &str, lines: &[String]) {
    lines.iter().take(LINES_MAX).for_each(|line| println!("{kind}: {line}"));
    if lines.len() > LINES_MAX {
        println!("{kind}: and {} more, see --json", lines.len() - LINES_MAX);
    }
}
