//! `esker verify`: the catalog of a stopped daemon against its files.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::folder::Folder;
use crate::catalog::record::{FileState, RecordKey, SegmentRecord};
use crate::catalog::slate::Journal;
use crate::catalog::state::State;
use crate::merge::format::{self, Entry, ReadAt};
use crate::model::{Location, PhysicalFileId, SegmentHasher, SegmentId};
use crate::reclaim::sweep::unnamed;
use crate::store::{DataStore, LocalStore};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The folder of the stopped daemon
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Reads so many of the segments and checks their bytes
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_data: u8,
}

/// What was looked at, and what was wrong.
#[derive(Default)]
struct Report {
    files: usize,
    segments: usize,
    read: usize,
    /// Files that the next start deletes: what a crash leaves, nobody was answered for them.
    unnamed: Vec<String>,
    faults: Vec<String>,
}

pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
    match runtime.block_on(look(args)) {
        Ok(report) => {
            report.faults.iter().for_each(|fault| println!("fault: {fault}"));
            report
                .unnamed
                .iter()
                .for_each(|file| println!("note: {file} is not in the catalog; the next start deletes it"));
            let Report { files, segments, read, faults, .. } = &report;
            println!("{files} files, {segments} segments, {read} of them read: {} faults", faults.len());
            Ok(ExitCode::from(u8::from(!faults.is_empty())))
        }
        Err(error) => {
            eprintln!("esker: {}", crate::error::chain(&*error));
            Ok(ExitCode::from(2))
        }
    }
}

async fn look(args: &VerifyArgs) -> anyhow::Result<Report> {
    let Folder { state, store, journal } = Folder::open(&args.data_dir).await?;
    let listed = unnamed(&state, DataStore::Local(store.clone()).list().await?);
    let foreign = listed.foreign.iter().map(|name| format!("{name} is no physical file, and nothing deletes it"));
    let mut report = Report { faults: state.check(), ..Report::default() };
    report.faults.extend(foreign);
    report.unnamed = listed.unnamed.iter().map(ToString::to_string).collect();
    check_files(&state, &store, &mut report);
    check_segments(args.read_data, &state, &store, &journal, &mut report).await?;
    journal.close().await.context("the catalog cannot be closed")?;
    Ok(report)
}

/// Every closed file is there, as long as the catalog says, and lists the segments that live in it.
fn check_files(state: &State, store: &LocalStore, report: &mut Report) {
    let mut living: HashMap<PhysicalFileId, Vec<(SegmentId, &SegmentRecord)>> = HashMap::new();
    for (id, record) in state.all_segments() {
        if let Some(file) = record.location.file() {
            living.entry(file.clone()).or_default().push((id, record));
        }
    }
    for view in state.files() {
        report.files += 1;
        if let FileState::Closed { len } = view.state
            && let Some(living) = living.get(&view.id)
            && let Err(fault) = check_file(store, &view.id, len, living)
        {
            report.faults.push(format!("{}: {fault}", view.id));
        }
    }
}

fn check_file(
    store: &LocalStore,
    id: &PhysicalFileId,
    len: u64,
    living: &[(SegmentId, &SegmentRecord)],
) -> Result<(), String> {
    let file = store.open(id).map_err(|error| error.to_string())?;
    let there = file.metadata().map_err(|error| error.to_string())?.len();
    if there < len {
        return Err(format!("has {there} bytes, the catalog says {len}"));
    }
    // A file that was not closed yet when the daemon was killed has no footer: its frames were walked.
    let Ok((_, entries)) = format::read_index(&file, there) else {
        let scan = format::scan(&file, 0, there).map_err(|error| error.to_string())?;
        let whole = |segment: &SegmentRecord| match &segment.location {
            Location::File(place) => place.end() <= scan.valid_len,
            Location::Inline { .. } => true,
        };
        return match living.iter().find(|(_, record)| !whole(record)) {
            Some((id, _)) => Err(format!("segment {id} is beyond the last whole frame")),
            None => Ok(()),
        };
    };
    let entries: HashMap<SegmentId, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
    for (id, record) in living {
        let Location::File(place) = &record.location else { continue };
        match entries.get(id) {
            None => return Err(format!("its footer does not list segment {id}")),
            Some(entry) if (entry.offset, entry.len, entry.crc32c) != (place.offset, place.len, record.crc.whole) => {
                return Err(format!("its footer places segment {id} elsewhere than the catalog"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Reads a share of the segments. Which ones depends on their identity alone.
async fn check_segments(
    percent: u8,
    state: &State,
    store: &LocalStore,
    journal: &Journal,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (id, record) in state.all_segments() {
        report.segments += 1;
        if (id.0 % 100) as u8 >= percent {
            continue;
        }
        report.read += 1;
        let place = record.location.file().map_or("the catalog", PhysicalFileId::as_str);
        let crc = match &record.location {
            Location::Inline { .. } => {
                let bytes = journal.get(&RecordKey::Data(id).encode()).await?;
                bytes.map(|bytes| crate::model::crc32c(&bytes))
            }
            Location::File(segment) => crc_in_file(store, segment).ok(),
        };
        match crc {
            Some(crc) if crc == record.crc.whole => {}
            Some(crc) => {
                let stored = record.crc.whole;
                report.faults.push(format!("segment {id} in {place} has CRC-32C {crc:08x}, {stored:08x} was stored"))
            }
            None => report.faults.push(format!("segment {id} in {place} cannot be read")),
        }
    }
    Ok(())
}

fn crc_in_file(store: &LocalStore, place: &crate::model::Segment) -> std::io::Result<u32> {
    let file = store.open(&place.file)?;
    let mut hasher = SegmentHasher::default();
    let mut buffer = vec![0; 1 << 20];
    let mut at = place.offset;
    while at < place.end() {
        let want = usize::try_from(place.end() - at).unwrap_or(buffer.len()).min(buffer.len());
        if ReadAt::read_at(&file, at, &mut buffer[..want])? < want {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(hasher.finish().whole)
}
