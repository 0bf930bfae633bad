//! A daemon inside the test, and what it has to say of itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esker::config::{Config, Settings};
use esker::daemon::{Daemon, StartError};
use esker_client::Client;
use esker_client::wire::PutParams;
use tempfile::TempDir;

/// A daemon on a folder of its own.
#[derive(Debug)]
pub struct TestDaemon {
    pub client: Client,
    daemon: Daemon,
    folder: TempDir,
    flags: Vec<(String, String)>,
}

impl TestDaemon {
    /// Starts one with these keys of the configuration set.
    pub async fn start(flags: &[(&str, &str)]) -> Self {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::start_on(tempfile::tempdir().unwrap(), flags).await
    }

    async fn start_on(folder: TempDir, flags: Vec<(String, String)>) -> Self {
        Self::try_start_on(folder, flags).await.map_err(|(_, error)| error).unwrap()
    }

    /// Starts one on a folder that is there, which may be refused; then the folder comes back.
    pub async fn try_start_on(folder: TempDir, flags: Vec<(String, String)>) -> Result<Self, (TempDir, StartError)> {
        let daemon = match Box::pin(Daemon::start(settings(folder.path(), &flags))).await {
            Ok(daemon) => daemon,
            Err(error) => return Err((folder, error)),
        };
        let client = Client::new(&format!("http://{}", daemon.addresses().api), None).unwrap();
        Ok(Self { client, daemon, folder, flags })
    }

    /// Ends it in order and starts it again on the same folder.
    pub async fn restart(self) -> Self {
        let Self { daemon, folder, flags, .. } = self;
        daemon.shut_down().await.unwrap();
        Self::start_on(folder, flags).await
    }

    /// The same with some keys of the configuration set otherwise.
    pub async fn restart_with(mut self, flags: &[(&str, &str)]) -> Self {
        for (key, value) in flags {
            self.flags.retain(|(known, _)| known != key);
            self.flags.push(((*key).to_owned(), (*value).to_owned()));
        }
        self.restart().await
    }

    /// Ends it in order. Returns its folder.
    pub async fn shut_down(self) -> TempDir {
        self.daemon.shut_down().await.unwrap();
        self.folder
    }

    /// Has it look at its files.
    pub fn reload(&self) {
        self.daemon.reload();
    }

    pub fn api(&self) -> std::net::SocketAddr {
        self.daemon.addresses().api
    }

    pub fn s3(&self) -> std::net::SocketAddr {
        self.daemon.addresses().s3
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The value of a metric, with its labels as they are written; 0 if it was never counted.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.client.metrics().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has this value.
    pub async fn metric_becomes(&self, name: &str, wanted: f64) {
        let begun = Instant::now();
        while self.metric(name).await != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "{name} is {}, not {wanted}", self.metric(name).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The physical files on disk.
    pub fn files(&self) -> Vec<PathBuf> {
        files(&self.folder.path().join("data"))
    }
}

fn settings(folder: &Path, flags: &[(String, String)]) -> Settings {
    let base = [
        ("store.url", format!("file:{}", folder.display())),
        ("server.s3", "127.0.0.1:0".to_owned()),
        ("server.api", "127.0.0.1:0".to_owned()),
    ];
    let base = base.map(|(key, value)| (key.to_owned(), value));
    let all: Vec<_> = base.into_iter().chain(flags.iter().cloned()).collect();
    Config::load_with(None, [], &all).unwrap().settings().unwrap()
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// What a put says that says no more than it must.
pub fn checkpoint(n: u64) -> PutParams {
    PutParams { checkpoint: Some(n), ..PutParams::default() }
}
