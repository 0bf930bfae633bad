//! `esker put`, `get` and `ls`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use esker_client::wire::PutParams;
use esker_client::{Client, ClientOptions, TlsOptions};

use super::NotTried;
use super::storage::StorageArgs;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::model::{Handle, Location, crc32c};
use crate::store::{StoreError, open_data};

/// How to reach a daemon.
#[derive(Debug, Args)]
pub(super) struct ApiArgs {
    /// The daemon's native API: http://HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL", env = "ESKER_API", default_value = "http://127.0.0.1:9001")]
    api: String,
    /// A token of auth.tokens
    #[arg(long, value_name = "TOKEN", env = "ESKER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// With https: PEM file of the authorities that sign the daemon's certificate; default: those that the machine trusts
    #[arg(long, value_name = "FILE", env = "ESKER_CA")]
    ca: Option<PathBuf>,
    /// With https: PEM file of one's own certificate, for a daemon that asks for one
    #[arg(long, value_name = "FILE", env = "ESKER_CERT", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// With https: PEM file of that certificate's private key
    #[arg(long, value_name = "FILE", env = "ESKER_CERT_KEY", requires = "cert")]
    cert_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct PutArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The job; created if it is not known
    #[arg(long)]
    job: String,
    /// The checkpoint
    #[arg(long)]
    checkpoint: u64,
    /// `shared` or `exclusive`
    #[arg(long, default_value = "exclusive")]
    scope: String,
    /// The operator whose state it is, with --subtask and --parallelism
    #[arg(long, requires_all = ["subtask", "parallelism"])]
    operator: Option<String>,
    /// The index of the subtask, from 0
    #[arg(long, value_name = "INDEX", requires = "operator")]
    subtask: Option<u32>,
    /// How many subtasks the operator has
    #[arg(long, value_name = "COUNT", requires = "operator")]
    parallelism: Option<u32>,
    /// The task manager that the subtask runs on
    #[arg(long, value_name = "ID")]
    task_manager: Option<String>,
    /// What the worker calls it; default: the file's name
    #[arg(long)]
    name: Option<String>,
    /// A repeat with the same key gets the same segment
    #[arg(long)]
    idempotency_key: Option<String>,
    /// The file, or - for standard input
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The segment
    #[arg(required_unless_present = "handle", conflicts_with = "handle")]
    segment: Option<String>,
    /// A handle instead of the segment
    #[arg(long)]
    handle: Option<String>,
    /// Reads the handle's place on storage instead of asking a daemon
    #[command(flatten)]
    storage: StorageArgs,
    /// Where to; default: standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Lists the segments of this job instead of all jobs
    #[arg(long)]
    job: Option<String>,
    /// Only segments of this checkpoint
    #[arg(long, requires = "job")]
    checkpoint: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl ApiArgs {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|error| NotTried::file(path, &error));
        let ca = self.ca.as_ref().map(read).transpose()?;
        let cert = self.cert.as_ref().map(read).transpose()?;
        let cert_key = self.cert_key.as_ref().map(read).transpose()?;
        let tls = TlsOptions { ca, identity: cert.zip(cert_key) };
        let options = ClientOptions { token: self.token.clone(), tls, ..ClientOptions::default() };
        Ok(Client::with_options(&self.api, options)?)
    }
}

pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?.block_on(work)
}

pub(super) fn put(args: &PutArgs) -> anyhow::Result<ExitCode> {
    let mut data = vec![];
    if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut data).context("standard input")?;
    } else {
        data = std::fs::read(&args.file).map_err(|error| NotTried::file(&args.file, &error))?;
    }
    let file_name = args.file.file_name().filter(|name| *name != "-").map(|name| name.to_string_lossy().into_owned());
    let params = PutParams {
        checkpoint: Some(args.checkpoint),
        scope: Some(args.scope.clone()),
        operator: args.operator.clone(),
        subtask: args.subtask,
        parallelism: args.parallelism,
        task_manager: args.task_manager.clone(),
        name: args.name.clone().or(file_name),
    };
    let client = args.api.client()?;
    let info = block_on(async {
        client.create_job(&args.job).await?;
        Ok(client.put(&args.job, &params, args.idempotency_key.as_deref(), data.into()).await?)
    })?;
    println!("{}", info.handle);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn get(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let bytes = match (&args.handle, args.storage.stopped()?, &args.segment) {
        (Some(handle), Some(settings), _) => block_on(read_place(handle.parse()?, settings))?,
        (None, Some(_), _) => {
            bail!(NotTried("without a daemon only a handle says where its bytes are: --handle".to_owned()))
        }
        (Some(handle), None, _) => {
            let client = args.api.client()?;
            block_on(async { Ok(client.get_handle(handle).await?) })?
        }
        (None, _, Some(segment)) => {
            let client = args.api.client()?;
            block_on(async { Ok(client.get(segment).await?) })?
        }
        (None, _, None) => bail!(NotTried("name a segment or a handle".to_owned())),
    };
    match &args.output {
        Some(path) => std::fs::write(path, &bytes).with_context(|| path.display().to_string())?,
        None => std::io::stdout().write_all(&bytes)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the bytes of a handle from storage with one request, without a daemon.
async fn read_place(handle: Handle, settings: Settings) -> anyhow::Result<Bytes> {
    let Location::File(place) = &handle.location else {
        bail!(NotTried("the segment is inside the catalog: only a daemon can read it".to_owned()));
    };
    let store = open_data(&settings.store, &Metrics::new())?;
    let bytes = match store.read(&place.file, place.offset..place.end()).await {
        Err(error @ StoreError::NotFound(_)) => {
            return Err(error).context("the segment was freed or moved, or the handle is not of this store");
        }
        Err(error @ StoreError::Short { .. }) => {
            return Err(error).context("the handle is not of this store");
        }
        other => other?,
    };
    if crc32c(&bytes) != handle.crc32c {
        bail!("{} holds other bytes than the handle says", place.file);
    }
    Ok(bytes)
}

pub(super) fn ls(args: &LsArgs) -> anyhow::Result<ExitCode> {
    let client = args.api.client()?;
    block_on(async {
        match &args.job {
            None => {
                for job in client.jobs().await? {
                    if args.json {
                        println!("{}", serde_json::to_string(&job)?);
                    } else {
                        println!("{:>8} segments  {}", job.segments, job.job);
                    }
                }
            }
            Some(job) => list_segments(&client, job, args).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list_segments(client: &Client, job: &str, args: &LsArgs) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let page = client.segments(job, args.checkpoint, after.as_deref()).await?;
        for segment in &page.segments {
            if args.json {
                println!("{}", serde_json::to_string(segment)?);
            } else {
                let checkpoint = segment.checkpoint.map_or_else(|| "-".to_owned(), |n| n.to_string());
                let name = segment.name.as_deref().unwrap_or("-");
                println!(
                    "{} {:>12} chk {checkpoint:>6} {:<9} {name}",
                    segment.info.segment, segment.info.len, segment.scope
                );
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}
