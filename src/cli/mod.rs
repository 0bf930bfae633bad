//! The command line.
//!
//! Exit codes: 0 done, 1 it went wrong or faults were found, 2 it could not be tried (wrong arguments, wrong
//! configuration, nothing there, another store there).

mod bench;
mod destination;
mod inspect;
mod rebuild;
mod restore;
mod run;
mod segments;
mod space;
mod storage;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, Loaded, Settings};
use crate::daemon::{StartError, StopError};

/// Packs the small state files of stream workers into large physical files on S3 or local disk.
#[derive(Debug, Parser)]
#[command(name = "esker", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a daemon on a local folder, with nothing to configure, and prints what clients have to set
    Dev(DevArgs),
    /// Runs a daemon as its configuration says
    Serve(ServeArgs),
    /// Stores a file as one segment
    Put(segments::PutArgs),
    /// Reads a segment
    Get(segments::GetArgs),
    /// Lists jobs, or the segments of one
    Ls(segments::LsArgs),
    /// Writes the segments of a checkpoint as plain files into a folder
    Restore(restore::RestoreArgs),
    /// Writes the objects of a bucket or the segments of a job as plain files into a folder
    Export(restore::ExportArgs),
    /// Shows what is in a physical file; needs no daemon
    Inspect(inspect::InspectArgs),
    /// Checks the catalog of a stopped daemon against its files
    Verify(verify::VerifyArgs),
    /// Makes a new catalog from the physical files of a stopped daemon
    Rebuild(rebuild::RebuildArgs),
    /// Shows how much space jobs, lanes or checkpoints take
    Du(space::DuArgs),
    /// Reclaims space now, or shows what the next round would do
    Reclaim(space::ReclaimArgs),
    /// Deletes what nobody needs now, or shows what is waiting to be deleted
    Gc(space::GcArgs),
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
            let wrong_place = error.downcast_ref::<StartError>().is_some_and(StartError::is_refusal)
                || error.downcast_ref::<StopError>().is_some_and(StopError::is_refusal);
            ExitCode::from(if wrong_place || error.is::<ConfigErrors>() { 2 } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => run::dev(&args),
        Command::Serve(args) => run::serve(&args),
        Command::Put(args) => segments::put(&args),
        Command::Get(args) => segments::get(&args),
        Command::Ls(args) => segments::ls(&args),
        Command::Restore(args) => restore::restore(&args),
        Command::Export(args) => restore::export(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Rebuild(args) => rebuild::run(&args),
        Command::Du(args) => Ok(or_could_not(space::du(&args))),
        Command::Reclaim(args) => Ok(or_could_not(space::reclaim(&args))),
        Command::Gc(args) => Ok(or_could_not(space::gc(&args))),
        Command::Config(args) => config(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::BenchSink(args) => bench::bench_sink(&args),
        Command::Openapi => {
            use utoipa::OpenApi;
            println!("{}", crate::api::native::ApiDoc::openapi().to_pretty_json()?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// For commands that find nothing wrong or cannot look: an error is exit code 2.
fn or_could_not(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("esker: {}", crate::error::chain(&*error));
        ExitCode::from(2)
    })
}

fn config(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let (loaded, settings) = load(args.config.as_deref(), &args.set)?;
    match args.action {
        ConfigAction::Show => print!("{}", loaded.show()),
        ConfigAction::Check => {
            settings.warnings.iter().for_each(|warning| println!("warning: {warning}"));
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
