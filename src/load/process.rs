//! A server in a process of its own: started, measured from outside, ended.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a server to say that it is ready.
const START_MAX: Duration = Duration::from_secs(30);
/// Time between two looks whether it is.
const START_POLL: Duration = Duration::from_millis(10);
/// Bytes of a server's log that an error shows.
const LOG_BYTES_SHOWN: usize = 2000;

/// A folder that goes away with its value.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder.
    ///
    /// # Errors
    /// When it exists, or cannot be created.
    pub fn new(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&path).with_context(|| format!("the folder {} cannot be created", path.display()))?;
        Ok(Self(path))
    }

    /// A new folder below `parent`, which is created if need be and stays.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn below(parent: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("the folder {} cannot be created", parent.display()))?;
        let parent = std::path::absolute(parent)?;
        Self::new(parent.join(format!("esker-bench-{}", std::process::id())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.0.display(), %error, "a folder of the bench could not be removed");
        }
    }
}

/// Whether a folder is in memory, where a sync costs nothing.
///
/// # Source
/// statfs(2): `TMPFS_MAGIC`, `RAMFS_MAGIC`.
pub fn file_system_in_memory(path: &Path) -> bool {
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::statfs(path).is_ok_and(|statfs| IN_MEMORY.contains(&(statfs.f_type as u64)))
}

/// A running server. Dropping it kills it: its data are thrown away anyhow.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
}

/// The lines that a server prints when it is ready: addresses, credentials.
pub type Ready = HashMap<String, String>;

impl Server {
    /// Starts `program` with `arguments` and `--ready-file`, and waits until it is ready. It logs into `folder`.
    ///
    /// It does not see this process's own configuration of a daemon, so that defaults are defaults.
    ///
    /// # Errors
    /// When it ends or is silent for too long, with the end of its log.
    pub async fn start(program: &Path, arguments: &[String], folder: &Path) -> anyhow::Result<(Self, Ready)> {
        let (ready_file, log) = (folder.join("ready.json"), folder.join("log"));
        let file = File::create(&log).with_context(|| format!("the log {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--ready-file").arg(&ready_file);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let configuration = std::env::vars_os().map(|(name, _)| name);
        for name in configuration.filter(|name| name.to_string_lossy().starts_with("ESKER_")) {
            command.env_remove(name);
        }
        let child = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
        let mut server = Self { child, log };
        let waiting = tokio::time::timeout(START_MAX, server.ready(&ready_file)).await;
        let ready = waiting.unwrap_or_else(|_| bail!("it was not ready within {START_MAX:?}"));
        let ready = ready.with_context(|| format!("a server did not start; its log ends in:\n{}", server.log_end()))?;
        Ok((server, ready))
    }

    /// Looks for the file until it is there: a process of another program tells in no other way.
    async fn ready(&mut self, file: &Path) -> anyhow::Result<Ready> {
        loop {
            match fs::read(file) {
                Ok(text) => return serde_json::from_slice(&text).context("its ready file"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context("its ready file"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended: {status}");
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("its process id")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to process {}", self.pid()))
    }

    /// Tells it to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// When it ends with another status than 0, or not within `patience`; with the end of its log.
    pub async fn end(mut self, patience: Duration) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    return Ok::<_, io::Error>(status);
                }
                tokio::time::sleep(START_POLL).await;
            }
        };
        match tokio::time::timeout(patience, ended).await {
            Ok(status) => match status? {
                status if status.success() => Ok(()),
                status => bail!("it ended: {status}; its log ends in:\n{}", self.log_end()),
            },
            Err(_) => bail!("it did not end within {patience:?}; its log ends in:\n{}", self.log_end()),
        }
    }

    /// The end of its log.
    pub fn log_end(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_BYTES_SHOWN)..]).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It fails only for a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// CPU seconds, user and system, that all threads of a process used so far.
///
/// The daemon's own `process_cpu_seconds_total` has whole seconds alone, which is too coarse for a run of a few seconds.
///
/// # Source
/// proc(5): `stat`, fields 14 and 15.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = process(pid)?.stat().ok()?;
    Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

/// The most memory that a process had resident so far, in bytes.
///
/// # Source
/// proc(5): `status`, `VmHWM`.
pub fn rss_peak_bytes(pid: u32) -> Option<u64> {
    process(pid)?.status().ok()?.vmhwm.map(|kib| kib << 10)
}

fn process(pid: u32) -> Option<procfs::process::Process> {
    procfs::process::Process::new(i32::try_from(pid).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_goes_with_its_value() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::below(parent.path()).unwrap();
        let inner = Scratch::new(scratch.path().join("cell")).unwrap();
        fs::write(inner.path().join("file"), b"x").unwrap();

        assert!(Scratch::new(inner.path().to_owned()).is_err());
        let path = scratch.path().to_owned();
        drop(inner);
        assert!(path.is_dir());
        drop(scratch);

        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_server_that_ends_is_told_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["-c".to_owned(), "echo no such door >&2; exit 3".to_owned()];

        let error = Server::start(Path::new("sh"), &arguments, folder.path()).await.unwrap_err();

        let text = format!("{error:#}");
        assert!(text.contains("no such door") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pid = std::process::id();

        assert!(cpu_seconds(pid).is_some() && rss_peak_bytes(pid).unwrap() > 1 << 20);
        assert_eq!((cpu_seconds(u32::MAX), rss_peak_bytes(u32::MAX)), (None, None));
    }
}
