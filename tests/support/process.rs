//! The real program, started and ended from outside.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use serde::Deserialize;

use crate::clock;

/// The program under test. Cargo builds it for every test that runs, one folder above the test.
pub fn esker() -> Command {
    let test = std::env::current_exe().expect("the system tells which program this is");
    let folder = test.parent().and_then(Path::parent).expect("a test is in target/*/deps");
    Command::new(folder.join("esker"))
}

/// What a daemon says once it answers.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    pub s3: String,
    pub api: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
}

impl Ready {
    /// For clients of the S3 door that work in the bucket that exists.
    pub fn s3_builder(&self, options: ClientOptions) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(&self.s3)
            .with_bucket_name(&self.bucket)
            .with_region("us-east-1")
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(&self.secret_key)
            .with_client_options(options.with_allow_http(true))
    }
}

/// A running `esker dev`. Dropping it is `kill -9`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ready_file: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts a daemon on `folder/data`, with free ports; its log goes to `folder/log`, what it prints to `folder/stdout`.
    pub fn spawn(folder: &Path, environment: &[(&str, String)]) -> Self {
        let (ready_file, log) = (folder.join("ready.json"), folder.join("log"));
        drop(std::fs::remove_file(&ready_file));
        let mut command = esker();
        command.args(["dev", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir"]).arg(folder.join("data"));
        command.arg("--ready-file").arg(&ready_file).envs(environment.iter().map(|(key, value)| (key, value)));
        let printed = append_to(&folder.join("stdout"));
        let child = command.stdin(Stdio::null()).stdout(printed).stderr(append_to(&log)).spawn();
        Self { child: child.expect("the program starts"), ready_file, log }
    }

    /// Starts a daemon on the store `url`, with free ports and a bucket; its log goes to `folder/log`.
    pub fn serve(folder: &Path, url: &str, environment: &[(&str, String)]) -> Self {
        let (ready_file, log) = (folder.join("ready.json"), folder.join("log"));
        drop(std::fs::remove_file(&ready_file));
        let mut command = esker();
        command.args(["serve", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0", "--ready-file"]).arg(&ready_file);
        let store = format!("store.url={url}");
        let set =
            [store.as_str(), "auth.access-key=esker", "auth.secret-key=esker-secret", r#"server.buckets=["esker"]"#];
        command.args(set.iter().flat_map(|set| ["--set", set]));
        command.env_remove("STATE_DIRECTORY");
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(append_to(&log)).spawn();
        Self { child: child.expect("the program starts"), ready_file, log }
    }

    /// Waits until the daemon answers.
    pub fn wait_ready(&mut self) -> Ready {
        let begun = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&self.ready_file) {
                return serde_json::from_str(&text).expect("the ready file is JSON");
            }
            let ended = self.child.try_wait().expect("the daemon is our child");
            assert!(ended.is_none(), "the daemon ended with {ended:?} instead of starting:\n{}", self.log());
            assert!(begun.elapsed() < Duration::from_secs(60), "the daemon does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the daemon is our child").is_some()
    }

    /// Sends a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.id());
        let told = Command::new("sh").args(["-c", &kill]).status().expect("there is a shell");
        assert!(told.success(), "the daemon had ended before:\n{}", self.log());
    }

    /// `kill -TERM`, and waits for the end, which has to be a good one.
    pub fn terminate(self) {
        self.signal("TERM");
        let (status, log) = self.wait_end();
        assert!(status.success(), "SIGTERM ended the daemon with {status}:\n{log}");
    }

    /// Waits until it ends by itself. Returns how, and the last lines of its log.
    pub fn wait_end(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the daemon is our child") {
                return (status, self.log());
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        let all = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
        clock::forget(self.child.id());
    }
}

fn append_to(log: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(log).expect("the log can be written")
}
