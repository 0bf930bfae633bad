//! The command line.
//!
//! Exit codes: 0 all is well; 1 it was tried and went wrong, or faults were found; 2 it could not be tried, see
//! [`could_not_be_tried`]. Commands that compare or copy keep 1 for what they find: whatever stops them before is 2.

mod audit;
mod bench;
mod cluster;
mod coordinator;
mod destination;
mod inspect;
mod rebuild;
mod restore;
mod run;
mod segments;
mod space;
mod storage;
mod transfer;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use esker_client::ClientError;
use esker_client::wire::ErrorKind;

use crate::cluster::reshard::ReshardError;
use crate::cluster::upkeep::UpkeepError;
use crate::config::{Config, ConfigErrors, Loaded, Settings};
use crate::daemon::{StartError, check_files};
use crate::engine::StopError;
use crate::engine::stopped::StoppedError;
use crate::metrics::Metrics;
use crate::model::{InvalidHandle, InvalidId};
use crate::store::{OpenError, check_services};
use crate::transfer::{LocationError, TransferError};

/// The exit codes, as text at the end of a help.
const CODES: &str = "Exit codes:
  0  all is well
  1  something went wrong
  2  it could not be tried: wrong arguments or configuration, no daemon to talk to, not the right store";
const CODES_OF_A_DAEMON: &str = "Exit codes:
  0  a signal ended it
  1  it could not start, or not go on: a restart may help
  2  it could not be tried: wrong arguments or configuration, not the store that it should be, a damaged catalog. A restart
     changes nothing";
const CODES_OF_A_CHECK: &str = "Exit codes:
  0  all is well
  1  faults were found
  2  it could not be tried, or not to the end: wrong arguments or configuration, no daemon, no catalog, a store in use";
const CODES_OF_A_COPY: &str = "On a stopped daemon's storage a daemon of its own runs for so long. On an object store it shuts out one that runs.

Exit codes:
  0  all is written
  1  something could not be written
  2  it could not be tried: wrong arguments or configuration, no daemon to talk to, no catalog, a folder that is not empty";
const CODES_OF_A_TRANSFER: &str = "Its _metadata comes last, with the paths of the new place in it. A repeat goes on where one ended. Nothing is overwritten,
and nothing is deleted at the source.

Exit codes:
  0  all is copied
  1  a file that it names is missing, other content is there, or something could not be copied
  2  it could not be tried: wrong arguments, no checkpoint there, a storage that does not answer";

/// Packs the small state files of stream workers into large physical files on an object store, HDFS or local disk.
#[derive(Debug, Parser)]
#[command(name = "esker", version, about, propagate_version = true, after_help = CODES)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Runs a daemon on a local folder, with nothing to configure, and prints what clients have to set
    #[command(after_help = CODES_OF_A_DAEMON)]
    Dev(DevArgs),
    /// Runs a daemon as its configuration says
    #[command(after_help = CODES_OF_A_DAEMON)]
    Serve(ServeArgs),
    /// Stores a file as one segment
    #[command(after_help = CODES)]
    Put(segments::PutArgs),
    /// Reads a segment
    #[command(after_help = CODES)]
    Get(segments::GetArgs),
    /// Lists jobs, or the segments of one
    #[command(after_help = CODES)]
    Ls(segments::LsArgs),
    /// Writes the segments of a checkpoint as plain files into a folder
    #[command(after_help = CODES_OF_A_COPY)]
    Restore(restore::RestoreArgs),
    /// Copies a checkpoint or savepoint of Flink's from HDFS, S3 or a disk into Esker, so that Flink can resume from it there
    #[command(after_help = CODES_OF_A_TRANSFER)]
    Import(transfer::ImportArgs),
    /// Copies a checkpoint of Flink's out of Esker; or writes the objects of a bucket or the segments of a job as plain files
    #[command(after_help = CODES_OF_A_COPY)]
    Export(restore::ExportArgs),
    /// Shows what is in a physical file; needs no daemon
    Inspect(inspect::InspectArgs),
    /// Checks the catalog of a stopped daemon against its files
    #[command(after_help = CODES_OF_A_CHECK)]
    Verify(verify::VerifyArgs),
    /// Makes a new catalog from the physical files of a stopped daemon
    #[command(after_help = CODES_OF_A_CHECK)]
    Rebuild(rebuild::RebuildArgs),
    /// Shows how much space jobs, lanes or checkpoints take
    Du(space::DuArgs),
    /// Reclaims space now, or shows what the next round would do
    Reclaim(space::ReclaimArgs),
    /// Deletes what nobody needs now, or shows what is waiting to be deleted
    Gc(space::GcArgs),
    /// Says whether the checkpoints and savepoints of Flink can be restored: what they name, and what of it is missing
    #[command(after_help = CODES_OF_A_CHECK)]
    Audit(audit::AuditArgs),
    /// Finds objects of Flink's jobs that no checkpoint and no savepoint names, and deletes them if told to
    #[command(after_help = CODES)]
    Orphans(audit::OrphansArgs),
    /// Lists jobs whose checkpoints the daemon coordinates, and how they stand
    #[command(after_help = CODES)]
    Jobs(coordinator::JobsArgs),
    /// Shows the last checkpoints of such a job: how long, how large, who was late
    #[command(after_help = CODES)]
    Checkpoints(coordinator::CheckpointsArgs),
    /// Takes a savepoint of such a job, and prints where it is
    #[command(after_help = CODES)]
    Savepoint(coordinator::SavepointArgs),
    /// Stops such a job with a savepoint, and prints where that is
    #[command(after_help = CODES)]
    Stop(coordinator::StopArgs),
    /// Several daemons as one: shows them, moves the catalog from one to another
    #[command(after_help = CODES)]
    Cluster(cluster::ClusterArgs),
    /// Checks or shows the configuration
    Config(ConfigArgs),
    /// Measures durable answers a second beside a server that stores nothing
    Bench(Box<bench::BenchArgs>),
    /// The server that stores nothing
    #[command(hide = true)]
    BenchSink(bench::SinkArgs),
    /// Prints the OpenAPI description of the native API
    Openapi,
}

/// Where to listen, and where to say so.
#[derive(Debug, Args)]
struct DoorArgs {
    /// Address of the S3 door; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    s3: Option<SocketAddr>,
    /// Address of the native API, health and metrics; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    api: Option<SocketAddr>,
    /// Written once everything answers: addresses and credentials as JSON
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DevArgs {
    /// Folder for everything
    #[arg(long, value_name = "DIR", default_value = "./esker-data")]
    data_dir: PathBuf,
    #[command(flatten)]
    doors: DoorArgs,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "ESKER_CONFIG")]
    config: Option<PathBuf>,
    /// Sets one key over file and environment, e.g. --set store.url=s3://bucket/prefix
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    doors: DoorArgs,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// What to do
    #[arg(value_enum)]
    action: ConfigAction,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "ESKER_CONFIG")]
    config: Option<PathBuf>,
    /// Sets one key over file and environment
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ConfigAction {
    /// Exit code 0 if a daemon would start with it
    Check,
    /// Every key with its value and where that came from
    Show,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("esker: {}", crate::error::chain(&*error));
            ExitCode::from(if could_not_be_tried(&error) { 2 } else { 1 })
        }
    }
}

/// Nothing was tried: the arguments do not go together, or name nothing that is there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotTried(String);

impl NotTried {
    /// A file that is named cannot be read.
    fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self(format!("{}: {error}", path.display()))
    }
}

/// Whether a command ended before it did anything: exit code 2. The arguments or the configuration are wrong, there is no
/// daemon to talk to, or no store, or not the one that is meant. Once a daemon or a store was asked, and the question made
/// sense, it is 1.
fn could_not_be_tried(error: &anyhow::Error) -> bool {
    error.is::<NotTried>()
        || error.is::<ConfigErrors>()
        || error.is::<InvalidId>()
        || error.is::<InvalidHandle>()
        || error.is::<OpenError>()
        || error.is::<StoppedError>()
        || error.is::<LocationError>()
        || error.is::<UpkeepError>()
        || error.downcast_ref::<ReshardError>().is_some_and(ReshardError::is_refusal)
        || error.downcast_ref::<TransferError>().is_some_and(TransferError::is_refusal)
        || error.downcast_ref::<StartError>().is_some_and(StartError::is_refusal)
        || error.downcast_ref::<StopError>().is_some_and(StopError::is_refusal)
        || error.downcast_ref::<ClientError>().is_some_and(|error| match error {
            ClientError::Address(_) | ClientError::Tls(_) | ClientError::Request(_) => true,
            error => error.is_unreached() || error.kind() == Some(ErrorKind::Invalid),
        })
}

fn run(command: CliCommand) -> anyhow::Result<ExitCode> {
    match command {
        CliCommand::Dev(args) => run::dev(&args),
        CliCommand::Serve(args) => run::serve(&args),
        CliCommand::Put(args) => segments::put(&args),
        CliCommand::Get(args) => segments::get(&args),
        CliCommand::Ls(args) => segments::ls(&args),
        CliCommand::Restore(args) => restore::restore(&args),
        CliCommand::Import(args) => transfer::import(&args),
        CliCommand::Export(args) => restore::export(&args),
        CliCommand::Inspect(args) => inspect::inspect(&args),
        CliCommand::Verify(args) => verify::verify(&args),
        CliCommand::Rebuild(args) => rebuild::run(&args),
        CliCommand::Du(args) => space::du(&args),
        CliCommand::Reclaim(args) => space::reclaim(&args),
        CliCommand::Gc(args) => space::gc(&args),
        CliCommand::Audit(args) => Ok(audit::audit(&args)),
        CliCommand::Orphans(args) => audit::orphans(&args),
        CliCommand::Jobs(args) => coordinator::jobs(&args),
        CliCommand::Checkpoints(args) => coordinator::checkpoints(&args),
        CliCommand::Savepoint(args) => coordinator::savepoint(&args),
        CliCommand::Stop(args) => coordinator::stop(&args),
        CliCommand::Cluster(args) => cluster::cluster(&args),
        CliCommand::Config(args) => config(&args),
        CliCommand::Bench(args) => bench::bench(&args),
        CliCommand::BenchSink(args) => bench::bench_sink(&args),
        CliCommand::Openapi => {
            println!("{}", crate::api::native::openapi().to_pretty_json()?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn config(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let (loaded, settings) = load(args.config.as_deref(), &args.set)?;
    match args.action {
        ConfigAction::Show => print!("{}", loaded.show()),
        ConfigAction::Check => {
            let of_files = check_files(&settings)?;
            let of_services = check_services(&settings.store, settings.catalog.url.as_ref(), &Metrics::new())?;
            settings
                .warnings
                .iter()
                .chain(&of_files)
                .chain(&of_services)
                .for_each(|warning| println!("warning: {warning}"));
            println!("the configuration is good");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the configuration and checks it.
fn load(file: Option<&std::path::Path>, flags: &[(String, String)]) -> Result<(Loaded, Settings), ConfigErrors> {
    let loaded = Config::load(file, flags)?;
    let settings = loaded.settings()?;
    Ok((loaded, settings))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((pair.0.trim().to_owned(), pair.1.trim().to_owned()))
}

impl DoorArgs {
    /// The same as keys of the configuration.
    fn flags(&self) -> Vec<(String, String)> {
        let flag = |key: &str, address: Option<SocketAddr>| Some((key.to_owned(), address?.to_string()));
        [flag("server.s3", self.s3), flag("server.api", self.api)].into_iter().flatten().collect()
    }
}
