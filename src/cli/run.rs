//! `esker dev` and `esker serve`: run a daemon until a signal.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use rustix::fs::Access;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::storage::check_user;
use super::{DevArgs, NotTried, ServeArgs, load};
use crate::catalog::slate::Quiet;
use crate::config::{AccessLogPlace, DeleteDurability, LogFormat, Settings, TelemetrySettings, TlsDoors};
use crate::daemon::{Addresses, Daemon, DaemonSummary};
use crate::runtime::descriptors::{Descriptors, raise_limit};

/// Credentials of `esker dev`, unless the environment sets others. They guard a loopback address.
const DEV_KEYS: [(&str, &str, &str); 2] = [
    ("auth.access-key", "ESKER__AUTH__ACCESS_KEY", "esker"),
    ("auth.secret-key", "ESKER__AUTH__SECRET_KEY", "esker-secret"),
];

/// A daemon on a local folder, without a configuration file.
pub(super) fn dev(args: &DevArgs) -> anyhow::Result<ExitCode> {
    let mut flags = args.doors.flags();
    flags.push(("store.url".to_owned(), format!("file:{}", args.data_dir.display())));
    for (key, variable, value) in DEV_KEYS {
        if std::env::var_os(variable).is_none() {
            flags.push((key.to_owned(), value.to_owned()));
        }
    }
    let (_, settings) = load(None, &flags)?;
    run(settings, args.doors.ready_file.as_deref(), RunKind::Dev)
}

/// A daemon as its configuration says.
pub(super) fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let flags: Vec<_> = args.set.iter().cloned().chain(args.doors.flags()).collect();
    let (_, settings) = load(args.config.as_deref(), &flags)?;
    run(settings, args.doors.ready_file.as_deref(), RunKind::Serve)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunKind {
    Dev,
    Serve,
}

/// Descriptors for the catalog, the log, listeners, and reads of files.
const DESCRIPTORS_BESIDE: usize = 256;

/// Lowers the number of connections, and of open files, to what the limit on descriptors leaves beside the store.
fn fit_descriptors(settings: &mut Settings) -> Result<(), NotTried> {
    let (limits, files) = (&mut settings.limits, &mut settings.merging.open_files_max);
    let others = DESCRIPTORS_BESIDE + limits.connections_reserved + settings.store.concurrent_requests_max;
    let wanted = Descriptors { connections: limits.connections_max, files: *files };
    let limit = raise_limit();
    let fits = wanted.below(limit, others).map_err(|needed| {
        NotTried(format!(
            "the limit on open files (`ulimit -n`, LimitNOFILE= of systemd) is {}, and at least {needed} are needed: raise it, or \
             set store.max-concurrent-requests lower",
            limit.unwrap_or_default()
        ))
    })?;
    if fits != wanted {
        tracing::warn!(
            descriptors = limit.unwrap_or_default(),
            wanted = wanted.connections,
            connections = fits.connections,
            wanted_files = wanted.files,
            files = fits.files,
            "the limit on open files (ulimit -n) leaves fewer connections, or fewer physical files that are open at a time"
        );
    }
    (limits.connections_max, *files) = (fits.connections, fits.files);
    Ok(())
}

/// Finds a folder for the ledger of deletes, if one is wanted and none is named.
fn place_delete_ledger(settings: &mut Settings, variable: impl Fn(&str) -> Option<OsString>) {
    let (merging, catalog) = (&mut settings.merging, settings.catalog.url.as_ref().unwrap_or(&settings.store.url));
    let wanted = merging.delete_durability == DeleteDurability::Ledger && settings.cluster.is_none();
    if !wanted || merging.delete_ledger.is_some() || !catalog.is_service() {
        return;
    }
    // Nothing else says that it outlives the process and comes back to it: a home may be a part of a container.
    let directory = variable("STATE_DIRECTORY").map(PathBuf::from).filter(|path| path.is_absolute());
    let Some(folder) = directory.map(|directory| directory.join("deletes")) else {
        tracing::info!("no folder for merging.delete-ledger: deletes are durable on storage before they are answered");
        return;
    };
    let usable = std::fs::create_dir_all(&folder)
        .and_then(|()| rustix::fs::access(&folder, Access::WRITE_OK | Access::EXEC_OK).map_err(Into::into));
    match usable {
        Ok(()) => {
            tracing::info!(folder = %folder.display(), "deletes of state are noted here, see merging.delete-ledger");
            merging.delete_ledger = Some(folder);
        }
        Err(error) => tracing::info!(
            folder = %folder.display(), %error,
            "no folder for merging.delete-ledger: deletes are durable on storage before they are answered"
        ),
    }
}

/// Threads that read and write files. Each costs memory that nobody pays for, its stack and its part of the allocator;
/// more than this many have no disk to keep busy.
const FILE_THREADS_MAX: usize = 64;

fn run(mut settings: Settings, ready_file: Option<&Path>, kind: RunKind) -> anyhow::Result<ExitCode> {
    start_logging(&settings.telemetry);
    settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    // It may be meant: a store moves to another user with all its files.
    if let Err(other_user) = check_user(&settings.store.url) {
        tracing::warn!("{other_user}");
    }
    fit_descriptors(&mut settings)?;
    place_delete_ledger(&mut settings, |name| std::env::var_os(name));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(FILE_THREADS_MAX).build().context("the runtime")?;
    let started = runtime.block_on(async {
        // Before the start, so that a signal during it is not lost.
        let mut signals = Signals::listen()?;
        // On a thread of its own, and none of those that serve the doors: it may wait for a disk that does not answer.
        let (handle, of_start) = (tokio::runtime::Handle::current(), settings.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends here, and a panic in it is told")]
        let starting = tokio::task::spawn_blocking(move || handle.block_on(Daemon::start(of_start)));
        let daemon = tokio::select! {
            started = starting => started.context("the start failed by a bug")??,
            why = signals.next() => anyhow::bail!("{why} during the start: nothing was answered yet"),
        };
        anyhow::Ok((daemon, signals))
    });
    let ended = started.and_then(|(daemon, mut signals)| {
        runtime.block_on(serve_until_end(&settings, daemon, &mut signals, ready_file, kind))
    });
    // What still waits for a disk, a store or a reader of the access log must not keep the process: what has to be closed is.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Says that the daemon is ready, and stops it when it is to end.
async fn serve_until_end(
    settings: &Settings,
    daemon: Daemon,
    signals: &mut Signals,
    ready_file: Option<&Path>,
    kind: RunKind,
) -> anyhow::Result<()> {
    let addresses = *daemon.addresses();
    let client = ClientSettings::new(settings, addresses);
    tracing::info!(s3 = %addresses.s3, api = %addresses.api, store = %settings.store.url, "ready");
    if let Some(path) = ready_file {
        write_whole(path, &client.ready_json()).with_context(|| format!("the ready file {}", path.display()))?;
    }
    // Where lines of JSON go, nothing else does.
    let stdout_is_free = !matches!(settings.telemetry.access_log, Some(AccessLogPlace::Stdout));
    if kind == RunKind::Dev {
        match stdout_is_free {
            true => print!("{}", client.snippets()),
            false => eprint!("{}", client.snippets()),
        }
        std::io::stdout().flush()?;
    }
    let lost = daemon.lost();
    let failed = daemon.failed();
    let why = tokio::select! {
        why = signals.end(|| daemon.reload()) => why,
        () = lost.cancelled() => "the catalog is lost",
        () = failed.cancelled() => "a part of the daemon failed",
    };
    tracing::info!(why, "shutting down");
    let summary = daemon.shut_down().await?;
    match stdout_is_free {
        true => println!("{}", farewell(&summary)),
        false => tracing::info!("{}", farewell(&summary)),
    }
    Ok(())
}

/// The signals that end a daemon, and the one that has it look at its files.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// Without somebody who takes it, it ends the process when a file grows beyond the limit (`ulimit -f`); with somebody, the
    /// write fails, and that is told.
    _file_too_large: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?,
            terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?,
            hangup: signal(SignalKind::hangup()).context("SIGHUP cannot be listened for")?,
            _file_too_large: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))
                .context("SIGXFSZ cannot be listened for")?,
        })
    }

    /// Waits for the next signal that ends the daemon, and names it. Until then `reload` has a look at each SIGHUP.
    async fn end(&mut self, reload: impl Fn()) -> &'static str {
        loop {
            let ended = tokio::select! {
                _ = self.interrupt.recv() => "interrupted",
                _ = self.terminate.recv() => "terminated",
                _ = self.hangup.recv() => {
                    reload();
                    continue;
                }
            };
            return ended;
        }
    }

    /// Waits for the next signal that ends the daemon, and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}

fn start_logging(settings: &TelemetrySettings) {
    let filter = EnvFilter::try_new(&settings.log_filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let quiet = Quiet::new(&settings.log_filter);
    // A second daemon in the same process logs through the first one's subscriber.
    let set = match settings.log_format {
        LogFormat::Json => logs.json().finish().with(quiet).try_init(),
        LogFormat::Text => logs.finish().with(quiet).try_init(),
    };
    drop(set);
}

/// The settings that a client needs.
struct ClientSettings {
    addresses: Addresses,
    /// Of both doors: `http` or `https`.
    schemes: (&'static str, &'static str),
    access_key: String,
    secret_key: String,
    region: String,
    /// A bucket that exists.
    bucket: Option<String>,
}

impl ClientSettings {
    fn new(settings: &Settings, addresses: Addresses) -> Self {
        let key = settings.auth.keys.first();
        let doors = settings.tls.as_ref().map(|tls| tls.doors);
        let scheme = |other| if doors.is_some_and(|doors| doors != other) { "https" } else { "http" };
        Self {
            addresses,
            schemes: (scheme(TlsDoors::Api), scheme(TlsDoors::S3)),
            access_key: key.map(|key| key.access_key.clone()).unwrap_or_default(),
            secret_key: key.map(|key| key.secret_key.expose().to_owned()).unwrap_or_default(),
            region: settings.server.region.clone(),
            bucket: settings.server.buckets.first().cloned(),
        }
    }

    fn ready_json(&self) -> String {
        serde_json::json!({
            "s3": format!("{}://{}", self.schemes.0, self.addresses.s3),
            "api": format!("{}://{}", self.schemes.1, self.addresses.api),
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "bucket": self.bucket,
        })
        .to_string()
    }

    fn snippets(&self) -> String {
        let Self { addresses: Addresses { s3, api }, schemes, access_key, secret_key, region, .. } = self;
        let (s3, api) = (format!("{}://{s3}", schemes.0), format!("{}://{api}", schemes.1));
        let bucket = self.bucket.as_deref().unwrap_or("BUCKET");
        format!(
            "
Esker is ready. S3 door {s3}, native API and metrics {api}, bucket '{bucket}'.

# Flink (config.yaml; plugin flink-s3-fs-native, -hadoop or -presto)
s3.endpoint: {s3}
s3.path-style-access: true
s3.region: {region}
s3.access-key: {access_key}
s3.secret-key: {secret_key}
execution.checkpointing.dir: s3://{bucket}/jobs

# Spark (S3A)
spark.hadoop.fs.s3a.endpoint           {s3}
spark.hadoop.fs.s3a.path.style.access  true
spark.hadoop.fs.s3a.endpoint.region    {region}
spark.hadoop.fs.s3a.access.key         {access_key}
spark.hadoop.fs.s3a.secret.key         {secret_key}
# checkpointLocation: s3a://{bucket}/q1

# boto3
s3 = boto3.client('s3', endpoint_url='{s3}', region_name='{region}',
                  aws_access_key_id='{access_key}', aws_secret_access_key='{secret_key}')

Ctrl-C ends it; everything that was answered is on disk.
"
        )
    }
}

/// Writes a file so that a reader sees all of it or nothing. It holds a secret: nobody else may read it.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&temporary, path)
}

fn farewell(summary: &DaemonSummary) -> String {
    let DaemonSummary { segments, bytes, files } = summary;
    format!("esker: {segments} segments ({bytes} bytes) went into {files} physical files")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::Config;

    fn ledger(flags: &[(&str, &str)], environment: &[(&str, &Path)]) -> Option<PathBuf> {
        let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut settings = Config::load_with(None, [], &flags).unwrap().settings().unwrap();
        let environment: HashMap<&str, &Path> = environment.iter().copied().collect();
        place_delete_ledger(&mut settings, |name| environment.get(name).map(|path| path.as_os_str().to_owned()));
        settings.merging.delete_ledger
    }

    #[test]
    fn a_folder_for_the_ledger_of_deletes_is_found_where_state_of_services_is() {
        let folder = tempfile::tempdir().unwrap();
        let [service, home, elsewhere] = ["service", "home", "elsewhere"].map(|name| folder.path().join(name));
        let s3 = ("store.url", "s3://bucket/prefix");
        let all = [("STATE_DIRECTORY", &*service), ("HOME", &*home), ("XDG_STATE_HOME", &*home)];

        assert_eq!(ledger(&[s3], &all), Some(service.join("deletes")));
        assert!(service.join("deletes").is_dir());
        assert_eq!(ledger(&[s3], &all[1..]), None, "it may be gone with its container");
        assert_eq!(ledger(&[s3], &[("STATE_DIRECTORY", Path::new("relative"))]), None);
        let named = ("merging.delete-ledger", elsewhere.to_str().unwrap());
        assert_eq!(ledger(&[s3, named], &all), Some(elsewhere));
    }

    #[test]
    fn nothing_is_made_where_the_ledger_of_deletes_has_no_use_or_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let service = [("STATE_DIRECTORY", folder.path())];
        let s3 = ("store.url", "s3://bucket/prefix");

        assert_eq!(ledger(&[], &service), None, "a local disk");
        assert_eq!(ledger(&[s3, ("catalog.url", "file:/var/lib/catalog")], &service), None);
        assert_eq!(ledger(&[s3, ("merging.delete-durability", "commit")], &service), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(ledger(&[s3], &[("STATE_DIRECTORY", &file)]), None, "no folder");
    }
}
