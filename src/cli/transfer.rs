//! `esker import` and `esker export` of a checkpoint: through the S3 door of a running daemon.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::segments::block_on;
use super::space::bytes;
use super::storage::{BYTES, bar};
use super::{NotTried, key_value};
use crate::config::{Config, ConfigErrors, StoreSettings};
use crate::store::azure_account;
use crate::transfer::{
    StorageLocation, StorageRoot, TransferControl, TransferNote, TransferOptions, TransferReport, TransferSide,
    copy_checkpoint, interrupted,
};

/// Who interrupts a transfer waits so long at most for it to give up what it has begun.
const GIVE_UP_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The folder with the checkpoint's _metadata, e.g. hdfs://namenode:8020/flink/JOB/chk-42; or s3://.., gs://..,
    /// abfss://.., az://.. or file:/..
    #[arg(value_name = "URL")]
    checkpoint: String,
    /// Where it goes in Esker: below s3://BUCKET/PREFIX, as JOB/chk-42, with the files beside it. Paths in _metadata get this
    /// scheme (s3, s3a, s3n or s3p)
    #[arg(long, value_name = "S3-URL")]
    to: String,
    /// Sets a key of [store] for the storage it comes from, e.g. endpoint=https://minio:9000, region=.., allow-http=true,
    /// gcs.service-account=FILE, azure.account=NAME, hdfs.conf-dir=DIR, hdfs.user=NAME. Otherwise the variables of the
    /// environment hold that AWS's, Google's, Azure's and Hadoop's clients read
    #[arg(long = "source", value_name = "KEY=VALUE", value_parser = key_value)]
    source: Vec<(String, String)>,
    #[command(flatten)]
    how: TransferArgs,
    /// Says what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// The door of the daemon, and how to go about it.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// The daemon's S3 door, for a checkpoint
    #[arg(long, value_name = "URL", env = "ESKER_S3", default_value = "http://127.0.0.1:9000")]
    endpoint: String,
    /// An access key of it
    #[arg(long, value_name = "KEY", env = "ESKER__AUTH__ACCESS_KEY", default_value = "esker")]
    access_key: String,
    /// The secret key that belongs to it
    #[arg(
        long,
        value_name = "KEY",
        env = "ESKER__AUTH__SECRET_KEY",
        hide_env_values = true,
        default_value = "esker-secret"
    )]
    secret_key: String,
    /// The region that the door answers
    #[arg(long, value_name = "NAME", default_value = "us-east-1")]
    region: String,
    /// With https: PEM file of authorities that sign the door's certificate, besides those that the machine trusts
    #[arg(long, value_name = "FILE", env = "ESKER_CA")]
    endpoint_ca: Option<PathBuf>,
    /// Files of the checkpoint copied at a time; each takes 8 MiB of memory
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_once)]
    at_once: usize,
    /// Looks whether the checkpoint is whole, what there is of it at its new place, and writes nothing
    #[arg(long)]
    pub dry_run: bool,
}

fn at_once(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=256).contains(number));
    number.ok_or_else(|| "must be a number from 1 to 256".to_owned())
}

pub(super) fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let from = outside(&args.checkpoint, &args.source)?;
    let to = args.how.door(&args.to)?;
    run(&from, &to, &args.how, args.json)
}

/// Brings a checkpoint out again.
pub(super) fn export_checkpoint(
    checkpoint: &str,
    to: &str,
    target: &[(String, String)],
    how: &TransferArgs,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let from = how.door(checkpoint)?;
    let to = outside(to, target)?;
    run(&from, &to, how, json)
}

impl TransferArgs {
    /// The daemon's side.
    fn door(&self, url: &str) -> anyhow::Result<TransferSide> {
        let location = StorageLocation::of(url)?;
        if !matches!(location.root(), StorageRoot::Bucket(_)) {
            return Err(NotTried(format!("{url} is not in Esker: that must be s3://BUCKET/..")).into());
        }
        let ca = self.endpoint_ca.as_ref();
        let ca = ca.map(|path| std::fs::read(path).map_err(|error| NotTried::file(path, &error))).transpose()?;
        let keys = [
            ("endpoint", &self.endpoint),
            ("region", &self.region),
            ("access-key", &self.access_key),
            ("secret-key", &self.secret_key),
        ];
        let mut keys: Vec<_> = keys.map(|(key, value)| (key.to_owned(), value.clone())).into();
        // Its door without TLS is where its clients go: no more is shown here than they show.
        keys.push(("allow-http".to_owned(), "true".to_owned()));
        let settings = settings(location.root(), &keys)?;
        Ok(TransferSide::door(location, settings, ca))
    }
}

/// The side that is not Esker's.
fn outside(url: &str, keys: &[(String, String)]) -> anyhow::Result<TransferSide> {
    let location = StorageLocation::of(url)?;
    let settings = settings(location.root(), keys)?;
    // Flink knows no container without its account, and the new `_metadata` is for Flink.
    let location = match azure_account(&settings) {
        Some(account) => location.in_account(&account),
        None => location,
    };
    Ok(TransferSide::plain(location, settings))
}

/// Settings of a store with these keys of `[store]`. What the environment says of the daemon's own store is not about it.
fn settings(root: &StorageRoot, keys: &[(String, String)]) -> Result<StoreSettings, ConfigErrors> {
    let url = match root {
        StorageRoot::Disk => "file:/".to_owned(),
        // A store has a folder; here the whole is meant.
        StorageRoot::Hdfs(_) => format!("{root}/any"),
        StorageRoot::Bucket(_) | StorageRoot::Gcs(_) | StorageRoot::Azure { .. } => root.to_string(),
    };
    let keys = keys.iter().map(|(key, value)| (format!("store.{key}"), value.clone()));
    let flags: Vec<_> = std::iter::once(("store.url".to_owned(), url)).chain(keys).collect();
    Ok(Config::load_with(None, [], &flags)?.settings()?.store)
}

fn run(from: &TransferSide, to: &TransferSide, how: &TransferArgs, json: bool) -> anyhow::Result<ExitCode> {
    let bar = bar(BYTES);
    let options = TransferOptions { at_once: how.at_once, dry_run: how.dry_run };
    let report = block_on(async {
        let mut signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let control = TransferControl::default();
        let tell = |note| match note {
            TransferNote::Planned { files, bytes } => {
                bar.set_length(bytes);
                bar.set_message(format!("{files} files"));
            }
            TransferNote::Bytes(bytes) => bar.inc(bytes),
        };
        let mut copied = pin!(copy_checkpoint(from, to, options, &control, &tell));
        tokio::select! {
            done = &mut copied => return Ok(done?),
            () = arrives(&mut signals) => {}
        }
        control.stop();
        bar.set_message("interrupted, gives up what it has begun");
        tokio::select! {
            done = &mut copied => Ok(done?),
            () = arrives(&mut signals) => Err(interrupted(&control).into()),
            () = tokio::time::sleep(GIVE_UP_MAX) => Err(interrupted(&control).into()),
        }
    });
    bar.finish_and_clear();
    let report = report?;
    match json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => tell(&report),
    }
    Ok(ExitCode::SUCCESS)
}

async fn arrives((interrupt, terminate): &mut (Signal, Signal)) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn tell(report: &TransferReport) {
    let TransferReport { checkpoint, to, files, bytes: of_all, there, dry_run } = report;
    let size = bytes(*of_all);
    match dry_run {
        true => println!("checkpoint {checkpoint}: {files} files, {size}, {there} of them there; would go to {to}"),
        false => {
            println!("checkpoint {checkpoint}: {files} files, {size}, {there} of them were there; is at {to}");
            println!("resume with: flink run -s {to} ..");
        }
    }
}
