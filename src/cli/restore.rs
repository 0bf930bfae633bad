//! `esker restore` and `esker export`: plain files back out of a running daemon, or of the folder of a stopped one. A
//! checkpoint of Flink's is exported by `transfer`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use esker_client::wire::{ListedSegment, ObjectInfo, RestoreRequest};
use esker_client::{Client, ClientError, Restore};
use http::StatusCode;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::destination::{Destination, Writing};
use super::segments::{ApiArgs, block_on};
use super::storage::{StorageArgs, WRITTEN, bar};
use super::transfer::{TransferArgs, export_checkpoint};
use super::{NotTried, could_not_be_tried, key_value};
use crate::config::{AuthSettings, KeyAccess, ReclaimMode, S3Key, Secret};
use crate::daemon::Daemon;
use crate::engine::stopped::Stopped;
use crate::runtime::{Clock, Entropy};

/// Segments that an export asks for at a time.
const SEGMENTS_AT_ONCE: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The job
    #[arg(long)]
    job: String,
    /// A completed checkpoint of it
    #[arg(long)]
    checkpoint: u64,
    #[command(flatten)]
    to: ToArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["checkpoint", "bucket", "job"]))]
pub(super) struct ExportArgs {
    /// Copies this checkpoint or savepoint of Flink's out of Esker, s3://BUCKET/../chk-N, so that Flink can resume from the
    /// copy. Here --to is the folder below which it goes, hdfs://.., s3://.. or file:/..
    #[arg(value_name = "S3-URL", conflicts_with_all = ["bucket", "job", "data_dir", "store", "config", "set"])]
    checkpoint: Option<String>,
    /// Sets a key of [store] for the storage that a checkpoint goes to, as `esker import --source` does
    #[arg(long = "target", value_name = "KEY=VALUE", value_parser = key_value)]
    target: Vec<(String, String)>,
    #[command(flatten)]
    how: TransferArgs,
    #[command(flatten)]
    from: FromArgs,
    /// Writes the objects of this bucket of the S3 door
    #[arg(long)]
    bucket: Option<String>,
    /// Only objects whose keys begin so
    #[arg(long, requires = "bucket", default_value = "")]
    prefix: String,
    /// Writes the segments of this job, of all its checkpoints
    #[arg(long)]
    job: Option<String>,
    #[command(flatten)]
    to: ToArgs,
}

/// Where from.
#[derive(Debug, Args)]
pub(super) struct FromArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    storage: StorageArgs,
}

/// A daemon to ask; one of its own ends with it.
pub(super) struct RestoreSource {
    pub client: Client,
    daemon: Option<Daemon>,
}

impl FromArgs {
    pub(super) async fn open(&self) -> anyhow::Result<RestoreSource> {
        let Some(mut settings) = self.storage.stopped()? else {
            return Ok(RestoreSource { client: self.api.client()?, daemon: None });
        };
        Stopped::exists(&settings).await?;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        (settings.server.s3, settings.server.api) = (any_port, any_port);
        // Nobody but this process asks it, with keys of its own: those of a file are read later, and may have no token.
        (settings.server.api_unix_socket, settings.tls, settings.telemetry.access_log) = (None, None, None);
        let (auth, token) = keys_of_its_own();
        settings.auth = auth;
        (settings.reclaim.mode, settings.reclaim.sweep_interval) = (ReclaimMode::Off, None);
        let daemon = Daemon::start(settings).await?;
        let client = Client::new(&format!("http://{}", daemon.addresses().api), Some(token))?;
        Ok(RestoreSource { client, daemon: Some(daemon) })
    }
}

/// Keys that were drawn for one daemon, and its token.
fn keys_of_its_own() -> (AuthSettings, String) {
    let drawn = Entropy::from_os(Clock::System);
    let key = S3Key {
        access_key: drawn.hex(16),
        secret_key: Secret::new(drawn.hex(32)),
        prefixes: vec![],
        access: KeyAccess::Read,
    };
    let token = drawn.hex(32);
    (AuthSettings { keys: vec![key], tokens: vec![Secret::new(token.clone())], keys_file: None }, token)
}

impl RestoreSource {
    pub(super) async fn close(self) -> anyhow::Result<()> {
        drop(self.client);
        match self.daemon {
            Some(daemon) => daemon.shut_down().await.map(|_| ()).map_err(Into::into),
            None => Ok(()),
        }
    }
}

/// Where to.
#[derive(Debug, Args)]
struct ToArgs {
    /// An empty folder, or one to create: gets a file for each segment or object, and manifest.jsonl
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Says what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// The result of a restore.
#[derive(Debug, Default, Serialize)]
struct RestoreReport {
    files: u64,
    bytes: u64,
    /// Segments that were listed and deleted before their turn.
    gone: u64,
    faults: Vec<String>,
}

/// Why nothing more is done.
enum Failed {
    /// Nothing was begun.
    NotTried(anyhow::Error),
    Fault(anyhow::Error),
}

/// A file to write: a segment, or an object of several.
struct RestoreItem {
    id: String,
    name: Option<String>,
    bucket: Option<String>,
    segments: Vec<String>,
}

/// Why an item was not written.
enum NotWritten {
    /// The answer broke off.
    BrokenOff(ClientError),
    Fault(anyhow::Error),
}

impl From<anyhow::Error> for NotWritten {
    fn from(error: anyhow::Error) -> Self {
        Self::Fault(error)
    }
}

pub(super) fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    run(&args.to, restore_checkpoint(args))
}

pub(super) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    if let Some(checkpoint) = &args.checkpoint {
        let to = args.to.to.to_str().ok_or_else(|| NotTried("--to is not in UTF-8".to_owned()))?;
        return export_checkpoint(checkpoint, to, &args.target, &args.how, args.to.json);
    }
    if args.how.dry_run || !args.target.is_empty() {
        bail!(NotTried("--dry-run and --target are for a checkpoint: name it, s3://BUCKET/..".to_owned()));
    }
    run(&args.to, export_all(args))
}

/// Runs it until it ends or is interrupted, and tells what came of it.
fn run(to: &ToArgs, work: impl Future<Output = Result<RestoreReport, Failed>>) -> anyhow::Result<ExitCode> {
    let done = block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
        // Whoever interrupts drops the work, and with it what is half-written.
        Ok(tokio::select! {
            done = work => done,
            _ = tokio::signal::ctrl_c() => Err(Failed::Fault(anyhow::anyhow!("interrupted"))),
            _ = terminate.recv() => Err(Failed::Fault(anyhow::anyhow!("terminated"))),
        })
    })?;
    let (code, error) = match done {
        Ok(report) => {
            if to.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                report.faults.iter().for_each(|fault| println!("fault: {fault}"));
                let gone = if report.gone > 0 { format!(", {} gone meanwhile", report.gone) } else { String::new() };
                println!("{} files, {} bytes in {}{gone}", report.files, report.bytes, to.to.display());
            }
            return Ok(ExitCode::from(u8::from(!report.faults.is_empty())));
        }
        Err(Failed::NotTried(error)) => (2, error),
        Err(Failed::Fault(error)) => (1, error),
    };
    let text = crate::error::chain(&*error);
    if to.json {
        println!(
            "{}",
            serde_json::to_string(&RestoreReport { faults: vec![text.clone()], ..RestoreReport::default() })?
        );
    }
    eprintln!("esker: {text}");
    Ok(ExitCode::from(code))
}

/// Why the first request failed.
fn refused(error: ClientError) -> Failed {
    let error = anyhow::Error::from(error);
    if could_not_be_tried(&error) { Failed::NotTried(error) } else { Failed::Fault(error) }
}

fn not_tried(error: impl Into<anyhow::Error>) -> Failed {
    Failed::NotTried(error.into())
}

fn fault(error: impl Into<anyhow::Error>) -> Failed {
    Failed::Fault(error.into())
}

async fn restore_checkpoint(args: &RestoreArgs) -> Result<RestoreReport, Failed> {
    let source = args.from.open().await.map_err(not_tried)?;
    let client = &source.client;
    let mut folder = Destination::take(&args.to.to).map_err(not_tried)?;
    let wanted = RestoreRequest { segments: None, job: Some(args.job.clone()), checkpoint: Some(args.checkpoint) };
    let mut arriving = client.restore(&wanted).await.map_err(refused)?;
    let (mut report, bar) = (RestoreReport::default(), bar(WRITTEN));
    while let Some(segment) = arriving.next().await.map_err(fault)? {
        let id = &segment.info.segment;
        let mut writing = folder.begin(id, segment.name.as_deref(), None).map_err(fault)?;
        while let Some(bytes) = arriving.bytes().await.map_err(fault)? {
            writing.write(&bytes).map_err(fault)?;
            bar.inc(bytes.len() as u64);
        }
        let line = folder.keep(writing).map_err(fault)?;
        report.files += 1;
        report.bytes += line.len;
        bar.set_message(format!("{} files", report.files));
    }
    bar.finish_and_clear();
    drop(arriving);
    source.close().await.map_err(fault)?;
    folder.finish().map_err(fault)?;
    Ok(report)
}

/// Writes everything that can be written: what is damaged is told of, and the rest goes on.
async fn export_all(args: &ExportArgs) -> Result<RestoreReport, Failed> {
    let source = args.from.open().await.map_err(not_tried)?;
    let folder = Destination::take(&args.to.to).map_err(not_tried)?;
    let mut export =
        Export { client: source.client.clone(), folder, report: RestoreReport::default(), bar: bar(WRITTEN) };
    let mut after: Option<String> = None;
    let mut begun = false;
    let failed = |begun: bool, error: ClientError| if begun { fault(error) } else { refused(error) };
    if let Some(job) = &args.job {
        loop {
            let page = export.client.segments(job, None, after.as_deref()).await;
            let page = page.map_err(|error| failed(begun, error))?;
            begun = true;
            export.items(page.segments.into_iter().map(RestoreItem::from).collect()).await.map_err(fault)?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    if let Some(bucket) = &args.bucket {
        loop {
            let page = export.client.objects(bucket, &args.prefix, after.as_deref()).await;
            let page = page.map_err(|error| failed(begun, error))?;
            begun = true;
            let items = page.objects.into_iter().map(|object| RestoreItem::of_object(bucket, object));
            export.items(items.collect()).await.map_err(fault)?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    export.bar.finish_and_clear();
    drop(export.client);
    source.close().await.map_err(fault)?;
    export.folder.finish().map_err(fault)?;
    Ok(export.report)
}

impl From<ListedSegment> for RestoreItem {
    fn from(segment: ListedSegment) -> Self {
        let id = segment.info.segment;
        Self { id: id.clone(), name: segment.name, bucket: None, segments: vec![id] }
    }
}

impl RestoreItem {
    fn of_object(bucket: &str, object: ObjectInfo) -> Self {
        let ObjectInfo { key, etag, segments, .. } = object;
        Self { id: etag, name: Some(key), bucket: Some(bucket.to_owned()), segments }
    }

    fn shown(&self) -> String {
        match (&self.name, &self.bucket) {
            (Some(key), Some(bucket)) => format!("{bucket}/{key}"),
            (Some(name), None) => format!("{name} ({})", self.id),
            _ => self.id.clone(),
        }
    }
}

struct Export {
    client: Client,
    folder: Destination,
    report: RestoreReport,
    bar: ProgressBar,
}

impl Export {
    async fn items(&mut self, items: Vec<RestoreItem>) -> anyhow::Result<()> {
        let mut waiting = vec![];
        let mut group: Vec<RestoreItem> = vec![];
        for item in items {
            let segments: usize = group.iter().map(|item| item.segments.len()).sum();
            if segments + item.segments.len() > SEGMENTS_AT_ONCE && !group.is_empty() {
                waiting.push(std::mem::take(&mut group));
            }
            group.push(item);
        }
        waiting.push(group);
        waiting.reverse();
        // The group in front is the last. One that breaks off comes back without what it has done and the culprit; one
        // with something that is gone comes back in halves, until it is found.
        while let Some(mut group) = waiting.pop() {
            let segments: Vec<String> = group.iter().flat_map(|item| item.segments.clone()).collect();
            let wanted = RestoreRequest { segments: Some(segments), ..RestoreRequest::default() };
            match self.client.restore(&wanted).await {
                Ok(arriving) => {
                    if let Some(rest) = self.group(arriving, group).await? {
                        waiting.push(rest);
                    }
                }
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(_) if group.len() > 1 => {
                    let half = group.split_off(group.len() / 2);
                    waiting.push(half);
                    waiting.push(group);
                }
                Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => self.report.gone += 1,
                Err(error) => self.note(&group[0], &error),
            }
        }
        Ok(())
    }

    /// Writes what arrives. Returns what is left behind an item that could not be written.
    async fn group(
        &mut self,
        mut arriving: Restore,
        group: Vec<RestoreItem>,
    ) -> anyhow::Result<Option<Vec<RestoreItem>>> {
        let mut items = group.into_iter();
        while let Some(item) = items.next() {
            let mut writing = self.folder.begin(&item.id, item.name.as_deref(), item.bucket.as_deref())?;
            match self.item(&mut arriving, &item, &mut writing).await {
                Ok(()) => {
                    let line = self.folder.keep(writing)?;
                    self.report.files += 1;
                    self.report.bytes += line.len;
                    self.bar.set_message(format!("{} files", self.report.files));
                }
                Err(NotWritten::BrokenOff(error)) => {
                    self.folder.discard(writing)?;
                    self.note(&item, &error);
                    return Ok(Some(items.collect()));
                }
                Err(NotWritten::Fault(error)) => return Err(error),
            }
        }
        arriving.next().await?;
        Ok(None)
    }

    async fn item(
        &mut self,
        arriving: &mut Restore,
        item: &RestoreItem,
        writing: &mut Writing,
    ) -> Result<(), NotWritten> {
        for expected in &item.segments {
            let segment = arriving.next().await.map_err(NotWritten::BrokenOff)?;
            if segment.is_none_or(|segment| segment.info.segment != *expected) {
                return Err(NotWritten::Fault(anyhow::anyhow!("the daemon sent another segment than {expected}")));
            }
            while let Some(bytes) = arriving.bytes().await.map_err(NotWritten::BrokenOff)? {
                writing.write(&bytes)?;
                self.bar.inc(bytes.len() as u64);
            }
        }
        Ok(())
    }

    fn note(&mut self, item: &RestoreItem, error: &ClientError) {
        self.report.faults.push(format!("{}: {}", item.shown(), crate::error::chain(error)));
    }
}
