//! `esker bench`: durable answers a second beside a server that stores nothing. `esker bench churn`: space. `esker bench failover`:
//! how long clients wait when a member of a cluster goes away.

use std::fs::File;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::key_value;
use crate::config::MemorySize;
use crate::load::churn::workload::{Heat, SEGMENT_BYTES_MAX, Sizes};
use crate::load::churn::{self, ChurnStore, Preset};
use crate::load::failover::{FailoverOptions, FailoverProgress, MemberFate, failover};
use crate::load::workload::LoadShape;
use crate::load::{BenchOptions, BenchProgress, Door, External, bench as measure, sink};
use crate::model::StateScope;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    other: Option<OtherBench>,
    /// A look in less than half a minute: 4kb,64kb of 1,64 clients, 3 rounds of 0.5 s, no 64 MiB; options win over it
    #[arg(long)]
    quick: bool,
    /// Sizes of segments [default: 4kb,64kb,1mb]
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',')]
    sizes: Option<Vec<MemorySize>>,
    /// Numbers of clients, each with one connection and one request on its way [default: 1,16,64]
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    clients: Option<Vec<usize>>,
    /// Doors of the daemon to drive
    #[arg(long, value_enum, value_name = "DOOR,..", value_delimiter = ',', default_value = "native,s3")]
    doors: Vec<DoorArg>,
    /// Rounds of each combination; in every round all targets are driven, one after the other [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds that one target is driven in one round [default: 1]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,
    /// Where the daemons' folders are made, and removed in the end; should be on the disk that is meant
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Another S3 server to put beside, with a bucket that exists; with its process id its CPU time is read, too. Of several
    /// that are one, all addresses and ids: the clients are dealt out to them
    #[arg(long, value_name = "NAME=URL[+URL..],ACCESS,SECRET,BUCKET[,PID[+PID..]]", value_parser = external)]
    against: Vec<External>,
    /// Whether to add segments of 64 MiB, of 1 and 4 clients [default: true]
    #[arg(long, value_name = "BOOL")]
    big: Option<bool>,
    /// Scope of the segments
    #[arg(long, value_enum, default_value_t = ScopeArg::Exclusive)]
    scope: ScopeArg,
    /// Jobs that the clients are dealt out to
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Task managers of each job that its clients are dealt out to; 1 is a daemon beside its worker
    #[arg(long, value_name = "N", default_value_t = 1)]
    task_managers: usize,
    /// Subtasks of each task manager that its clients are dealt out to
    #[arg(long, value_name = "N", default_value_t = 4)]
    subtasks: usize,
    /// One target in one round gets no more bytes than this, so that the disk does not fill up
    #[arg(long, value_name = "SIZE", default_value = "1gb")]
    run_bytes_max: MemorySize,
    /// Seed of bodies and names
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Sets one key of the daemon; store.url is the place below which each daemon gets its own, and what it writes to
    /// an object store stays there
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Also writes everything, every round of it, into a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum OtherBench {
    /// Measures the space that incremental checkpoints take while their segments come and go, and what it costs to get it
    /// back, beside Flink's own merging; figures depend on the seed alone, but for seconds
    Churn(ChurnArgs),
    /// Measures how long clients wait while members of a cluster are killed, stopped and ended, one after the other
    Failover(FailoverArgs),
}

#[derive(Debug, Args)]
struct FailoverArgs {
    /// Daemons on this machine, all on one store
    #[arg(long, value_name = "N", default_value_t = 3)]
    members: usize,
    /// Clients, each with one request on its way
    #[arg(long, value_name = "N", default_value_t = 8)]
    clients: usize,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 12)]
    rounds: usize,
    /// What happens to the owner of the catalog, in turn
    #[arg(long, value_enum, value_name = "KIND,..", value_delimiter = ',', default_value = "killed,silent,ended")]
    kinds: Vec<FateArg>,
    /// Seconds between two rounds; an owner that is only silent is left alone for 5 s after it came to the catalog
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "6")]
    pause: f64,
    /// Where the daemons' logs go, and are removed in the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Sets one key of all daemons. store.url is needed: an object store; what is written below it stays there
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Also writes everything into a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FateArg {
    /// SIGKILL
    Killed,
    /// SIGSTOP, and SIGCONT when the others have taken over
    Silent,
    /// SIGTERM
    Ended,
}

#[derive(Debug, Args)]
struct ChurnArgs {
    /// What is stored; options win over it
    #[arg(long, value_enum, default_value_t = PresetArg::Mixed)]
    preset: PresetArg,
    /// Checkpoints
    #[arg(long, value_name = "N", default_value_t = 1000)]
    checkpoints: u64,
    /// Subtasks [default: 64]
    #[arg(long, value_name = "N")]
    subtasks: Option<usize>,
    /// Segments of one checkpoint of a subtask [default: mixed 48, flink 10]
    #[arg(long, value_name = "N")]
    segments: Option<usize>,
    /// Bytes of a segment [default: mixed 1kb to 4mb, log-normal around 16kb; flink 64kb]
    #[arg(long, value_name = "SIZE")]
    size: Option<MemorySize>,
    /// Part of the segments that each checkpoint replaces [default: 0.3]
    #[arg(long, value_name = "PART", value_parser = part)]
    replaced: Option<f64>,
    /// Which segments are replaced [default: mixed skewed, flink even]
    #[arg(long, value_enum)]
    heat: Option<HeatArg>,
    /// Checkpoints that are retained
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    retain: u64,
    /// Limits of the space amplification; a run each
    #[arg(long, value_name = "X,..", value_delimiter = ',', default_value = "1.5,2.0")]
    limit: Vec<f64>,
    /// Where physical files go
    #[arg(long, value_enum, default_value_t = PlaceArg::Memory)]
    store: PlaceArg,
    /// Where the folders of `--store local` are made, and removed in the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Seed of everything
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also writes everything into a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PresetArg {
    /// Sizes and lives of all kinds
    Mixed,
    /// The churn that Flink's own merging was measured with: 64 kb, each segment as likely to be replaced as any other
    Flink,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HeatArg {
    /// Each as likely as any other
    Even,
    /// Some in almost every checkpoint, some in hardly any
    Skewed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlaceArg {
    /// An object store in memory
    Memory,
    /// A local disk; once with holes punched, once without
    Local,
}

#[derive(Debug, Args)]
pub(super) struct SinkArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Written once it listens: its address as JSON
    #[arg(long, value_name = "PATH")]
    ready_file: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DoorArg {
    /// The native API
    Native,
    /// The S3 door, UNSIGNED-PAYLOAD
    S3,
    /// The S3 door, SHA-256 of the body signed
    S3Sha256,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// Merged within a subtask
    Shared,
    /// Merged across the subtasks of a task manager
    Exclusive,
}

/// Measures, and prints what came of it.
pub(super) fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match &args.other {
        Some(OtherBench::Churn(args)) => return bench_churn(args),
        Some(OtherBench::Failover(args)) => return bench_failover(args),
        None => {}
    }
    let options = options(args)?;
    let json = args.json.as_deref().map(create).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
    let report = runtime.block_on(interruptible(measure(&options, |progress| tell(&progress))))?;
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("the JSON file")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever interrupts drops the bench, and with it its servers and folders.
async fn interruptible<T>(bench: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    tokio::select! {
        report = bench => report,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

/// Measures space, and prints what came of it.
fn bench_churn(args: &ChurnArgs) -> anyhow::Result<ExitCode> {
    let options = churn_options(args)?;
    let json = args.json.as_deref().map(create).transpose()?;
    // One thread, so that everything happens in the same order every time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    let report = runtime.block_on(interruptible(churn::churn(&options, |progress| tell_churn(&progress))))?;
    print!("{}", report.flink_table());
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("the JSON file")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures fail-over, and prints what came of it. A request that was answered with an error is a failure.
fn bench_failover(args: &FailoverArgs) -> anyhow::Result<ExitCode> {
    let fate = |kind: &FateArg| match kind {
        FateArg::Killed => MemberFate::Killed,
        FateArg::Silent => MemberFate::Silent,
        FateArg::Ended => MemberFate::Ended,
    };
    let options = FailoverOptions {
        program: std::env::current_exe().context("where this program is")?,
        members: args.members,
        clients: args.clients,
        fates: args.kinds.iter().map(fate).collect(),
        rounds: args.rounds,
        pause: Duration::from_secs_f64(args.pause),
        set: args.set.clone(),
        data_dir: args.data_dir.clone(),
    };
    let json = args.json.as_deref().map(create).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
    let measuring = failover(&options, |progress| match progress {
        FailoverProgress::Note(text) => eprintln!("note: {text}"),
        FailoverProgress::Round(round) => eprintln!(
            "round {}: {} was {}, longest wait {:.2} s",
            round.round,
            round.member,
            round.fate.name(),
            round.longest_wait_seconds
        ),
    });
    let report = runtime.block_on(interruptible(measuring))?;
    println!("{}", report.table());
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("the JSON file")?;
    }
    Ok(if report.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell_churn(progress: &churn::ChurnProgress<'_>) {
    let terminal = std::io::stderr().is_terminal();
    match progress {
        churn::ChurnProgress::Note(text) => eprintln!("note: {text}"),
        churn::ChurnProgress::Step(name, checkpoint) if terminal => eprint!("\r\x1b[K{name}: checkpoint {checkpoint}"),
        churn::ChurnProgress::Step(..) => {}
        churn::ChurnProgress::Done(run) => {
            if terminal {
                eprint!("\r\x1b[K");
            }
            println!("{}", run.table());
        }
    }
}

fn churn_options(args: &ChurnArgs) -> anyhow::Result<churn::ChurnOptions> {
    let preset = match args.preset {
        PresetArg::Mixed => Preset::Mixed,
        PresetArg::Flink => Preset::Flink,
    };
    let mut shape = preset.shape();
    shape.subtasks = args.subtasks.unwrap_or(shape.subtasks);
    shape.segments = args.segments.unwrap_or(shape.segments);
    shape.replaced = args.replaced.unwrap_or(shape.replaced);
    shape.sizes = args.size.map_or(shape.sizes, |size| Sizes::Same(size.bytes()));
    shape.heat = match args.heat {
        Some(HeatArg::Even) => Heat::Even,
        Some(HeatArg::Skewed) => Heat::Skewed,
        None => shape.heat,
    };
    if shape.subtasks == 0 || shape.segments == 0 {
        bail!("there must be a subtask, and a segment of each");
    }
    if let Sizes::Same(bytes) = shape.sizes
        && !(1..=SEGMENT_BYTES_MAX).contains(&bytes)
    {
        bail!("--size must be 1 byte to 4 mb");
    }
    if let Some(limit) = args.limit.iter().find(|limit| !(1.0..=1000.0).contains(*limit)) {
        bail!("--limit must be 1 to 1000, is {limit}");
    }
    let place = match args.store {
        PlaceArg::Memory => ChurnStore::Memory,
        PlaceArg::Local => ChurnStore::Local,
    };
    Ok(churn::ChurnOptions {
        preset,
        shape,
        checkpoints: args.checkpoints,
        retain: args.retain,
        limits: args.limit.clone(),
        seed: args.seed,
        place,
        data_dir: args.data_dir.clone(),
    })
}

/// Before anything is measured, so that a wrong path is known at once.
fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("the JSON file {}", path.display()))
}

/// The baseline server, until it is killed.
pub(super) fn bench_sink(args: &SinkArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.address).await.context("the sink cannot listen")?;
        let address = listener.local_addr()?;
        let ready = serde_json::json!({ "sink": format!("http://{address}") }).to_string();
        write_whole(&args.ready_file, &ready)?;
        sink::serve(listener).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes a file so that a reader sees all of it or nothing.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path).with_context(|| format!("the ready file {}", path.display()))
}

/// Figures go to standard output, everything else to standard error.
fn tell(progress: &BenchProgress<'_>) {
    let terminal = std::io::stderr().is_terminal();
    match progress {
        BenchProgress::Note(text) => eprintln!("note: {text}"),
        BenchProgress::Begins(time) => eprintln!("this takes about {} s\n{LEGEND}", time.as_secs().max(1)),
        BenchProgress::Drives(target, cell, round) if terminal => eprint!("\r\x1b[K{cell}: round {round}, {target}"),
        BenchProgress::Drives(..) => {}
        BenchProgress::Done(cell) => {
            if terminal {
                eprint!("\r\x1b[K");
            }
            println!("{}", cell.table());
        }
    }
}

/// The legend of the tables' columns.
const LEGEND: &str = "\
medians over the rounds (min..max); of sink: answers/s over those of the bare server in the same round;
cpu, client: CPU seconds of server and clients for 1,000 answers; /data, /sync: answers for each sync of a file,
for each sync at all
";

fn options(args: &BenchArgs) -> anyhow::Result<BenchOptions> {
    let (sizes, clients, rounds, seconds) = if args.quick {
        (vec![4 << 10, 64 << 10], vec![1, 64], 3, 0.5)
    } else {
        (vec![4 << 10, 64 << 10, 1 << 20], vec![1, 16, 64], 5, 1.0)
    };
    let bytes = |sizes: &Vec<MemorySize>| sizes.iter().map(|size| size.bytes()).collect();
    let scope = match args.scope {
        ScopeArg::Shared => StateScope::Shared,
        ScopeArg::Exclusive => StateScope::Exclusive,
    };
    let door = |door: &DoorArg| match door {
        DoorArg::Native => Door::Native,
        DoorArg::S3 => Door::S3,
        DoorArg::S3Sha256 => Door::S3Sha256,
    };
    Ok(BenchOptions {
        program: std::env::current_exe().context("where this program is")?,
        sizes: args.sizes.as_ref().map_or(sizes, bytes),
        clients: args.clients.clone().unwrap_or(clients),
        doors: args.doors.iter().map(door).collect(),
        against: args.against.clone(),
        rounds: args.rounds.unwrap_or(rounds) as usize,
        run: Duration::from_secs_f64(args.seconds.unwrap_or(seconds)),
        run_bytes_max: args.run_bytes_max.bytes(),
        big: args.big.unwrap_or(!args.quick),
        shape: LoadShape { scope, jobs: args.jobs, task_managers: args.task_managers, subtasks: args.subtasks },
        seed: args.seed,
        data_dir: args.data_dir.clone(),
        set: args.set.clone(),
    })
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    if (0.01..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("must be 0.01 to 3600".to_owned()) }
}

fn part(text: &str) -> Result<f64, String> {
    let part: f64 = text.parse().map_err(|_| "must be a number")?;
    if (0.0..=1.0).contains(&part) { Ok(part) } else { Err("must be 0 to 1".to_owned()) }
}

fn external(text: &str) -> Result<External, String> {
    const FORM: &str =
        "must be NAME=URL,ACCESS,SECRET,BUCKET or NAME=URL,ACCESS,SECRET,BUCKET,PID; URL+URL and PID+PID of several";
    let (name, rest) = text.split_once('=').ok_or(FORM)?;
    let parts: Vec<&str> = rest.split(',').collect();
    let (urls, access_key, secret_key, bucket, pids) = match parts[..] {
        [urls, access_key, secret_key, bucket] => (urls, access_key, secret_key, bucket, None),
        [urls, access_key, secret_key, bucket, pids] => (urls, access_key, secret_key, bucket, Some(pids)),
        _ => return Err(FORM.to_owned()),
    };
    let urls = urls.split('+').map(|url| url.trim().to_owned()).collect();
    let pids = pids.into_iter().flat_map(|pids| pids.split('+')).map(str::parse).collect::<Result<_, _>>();
    let pids = pids.map_err(|_| "the PID must be a number")?;
    let [name, access_key, secret_key, bucket] =
        [name, access_key, secret_key, bucket].map(|part| part.trim().to_owned());
    Ok(External { name, urls, access_key, secret_key, bucket, pids })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_named_with_address_keys_and_bucket() {
        let minio = external("minio=http://127.0.0.1:9100,AK,S=K,b").unwrap();

        assert_eq!((&*minio.name, minio.urls), ("minio", vec!["http://127.0.0.1:9100".to_owned()]));
        assert_eq!((&*minio.access_key, &*minio.secret_key, &*minio.bucket), ("AK", "S=K", "b"));
        assert_eq!((minio.pids, external("m=u,a,s,b,77").unwrap().pids), (vec![], vec![77]));
        let three = external("m=u+v+w,a,s,b,1+2+3").unwrap();
        assert_eq!((three.urls.join(" "), three.pids), ("u v w".to_owned(), vec![1, 2, 3]));
        for bad in ["", "minio", "m=u,a,s", "m=u,a,s,b,p", "m=u,a,s,b,1,2"] {
            assert!(external(bad).is_err(), "{bad:?}");
        }
    }
}
