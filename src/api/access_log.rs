//! The access log: a line of JSON for each request.
//!
//! Requests hand their lines to a queue and never wait for it; a task of its own writes them. What the queue does not hold, and
//! what cannot be written, is dropped and counted.
//!
//! Where nobody takes them (a pipe without a reader, a terminal that was stopped) the writer waits on a thread of its own, and the
//! end of the daemon does not wait for it.
//!
//! # Crash
//! The lines in the queue are gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::Method;
use serde::{Serialize, Serializer};
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::AccessLogPlace;
use crate::metrics::Metrics;
use crate::metrics::labels::AccessLogLoss;
use crate::model::Millis;
use crate::runtime::Clock;

/// Lines that wait to be written. With the longest of everything that clients send they take 50 MiB, most often two.
const LINES_WAITING_MAX: usize = 4096;
/// Lines that are written at once.
const LINES_AT_ONCE: usize = 256;
/// Between two warnings.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Takes lines. Clones write to the same place.
#[derive(Clone)]
pub struct AccessLog {
    lines: Sender<AccessLine>,
    reopen: Arc<Notify>,
    metrics: Metrics,
}

crate::runtime::opaque_debug!(AccessLog);

/// Writes the lines.
pub struct AccessLogWriter {
    place: AccessLogPlace,
    lines: Receiver<AccessLine>,
    output: Arc<File>,
    /// The last line there is a part of one: what follows must not go on in it.
    torn: bool,
    reopen: Arc<Notify>,
    metrics: Metrics,
    warned: Option<Instant>,
}

crate::runtime::opaque_debug!(AccessLogWriter);

/// One request, as it is told. `null` and what is not known are left out.
#[derive(Debug, Serialize)]
pub(super) struct AccessLine {
    #[serde(serialize_with = "as_time")]
    pub time: Millis,
    pub request_id: String,
    pub door: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    #[serde(serialize_with = "as_text")]
    pub method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Not there if the client was gone before there was an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_micros: Option<u64>,
    pub micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_request_id: Option<String>,
}

fn as_time<S: Serializer>(time: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time.0)))
}

fn as_text<S: Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(method.as_str())
}

impl AccessLog {
    /// Opens the place where lines go.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(place: AccessLogPlace, metrics: Metrics) -> io::Result<(Self, AccessLogWriter)> {
        let output = Arc::new(open(&place)?);
        let (sender, lines) = channel(LINES_WAITING_MAX);
        let reopen = Arc::<Notify>::default();
        let log = Self { lines: sender, reopen: Arc::clone(&reopen), metrics: metrics.clone() };
        Ok((log, AccessLogWriter { place, lines, output, torn: false, reopen, metrics, warned: None }))
    }

    /// Has the file opened again, which somebody may have moved away.
    pub fn reopen(&self) {
        self.reopen.notify_one();
    }

    pub(super) fn push(&self, line: AccessLine) {
        if self.lines.try_send(line).is_err() {
            self.metrics.access_log_dropped.of(AccessLogLoss::Behind).inc();
        }
    }
}

fn open(place: &AccessLogPlace) -> io::Result<File> {
    let path = match place {
        // Of its own: a write that waits for a reader must not hold the lock of everybody else's.
        AccessLogPlace::Stdout => return Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        AccessLogPlace::File(path) => path,
    };
    // A pipe is opened to read, too: otherwise opening it waits for a reader.
    let is_pipe = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    OpenOptions::new().read(is_pipe).append(true).create(true).mode(0o640).open(path)
}

impl AccessLogWriter {
    /// Writes until `stop`, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(LINES_AT_ONCE);
        loop {
            tokio::select! {
                biased;
                () = self.reopen.notified() => {
                    self = self.opened_again().await;
                    continue;
                }
                received = self.lines.recv_many(&mut batch, LINES_AT_ONCE) => {
                    if received == 0 {
                        return;
                    }
                }
                () = stop.cancelled() => {
                    // What is there is still taken, and then there is no more.
                    self.lines.close();
                    if self.lines.recv_many(&mut batch, LINES_AT_ONCE).await == 0 {
                        return;
                    }
                }
            }
            self = self.write(&mut batch).await;
        }
    }

    async fn write(mut self, batch: &mut Vec<AccessLine>) -> Self {
        let (count, lines, output) = (batch.len(), std::mem::take(batch), Arc::clone(&self.output));
        let mut text = if self.torn { b"\n".to_vec() } else { vec![] };
        let begin = text.len();
        let done = beside(move || {
            encode(&lines, &mut text);
            let (written, error) = write_most(&output, &text);
            text.truncate(written);
            Ok((text, error))
        });
        let (text, error) = done.await.unwrap_or_else(|error| (vec![], Some(error)));
        if let Some(last) = text.last() {
            self.torn = *last != b'\n';
        }
        if let Some(error) = error {
            let whole = text.iter().skip(begin).filter(|byte| **byte == b'\n').count();
            self.metrics.access_log_dropped.of(AccessLogLoss::Failed).inc_by(count.saturating_sub(whole) as u64);
            self.warn(&error, "lines of the access log cannot be written and are dropped");
        }
        self
    }

    async fn opened_again(mut self) -> Self {
        let place = self.place.clone();
        match beside(move || open(&place)).await {
            Ok(output) => {
                // A new file has no line that is torn.
                self.torn &= output.metadata().is_ok_and(|found| found.len() > 0);
                self.output = Arc::new(output);
            }
            Err(error) => self.warn(&error, "the access log cannot be opened again, the old file stays in use"),
        }
        self
    }

    fn warn(&mut self, error: &io::Error, what: &str) {
        let now = Clock::instant();
        if self.warned.is_none_or(|warned| now.duration_since(warned) >= TELL_EVERY) {
            self.warned = Some(now);
            tracing::warn!(%error, place = ?self.place, "{what}");
        }
    }
}

/// Works with a file on a thread that may wait for the disk.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    #[expect(clippy::disallowed_methods, reason = "awaited at once, and a panic becomes the error")]
    let done = tokio::task::spawn_blocking(work);
    done.await.unwrap_or_else(|_| Err(io::Error::other("it failed by a bug")))
}

/// Writes as much as can be. Returns the number of bytes, and what kept it from the others.
fn write_most(mut output: &File, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut done = 0;
    while done < bytes.len() {
        match output.write(&bytes[done..]) {
            Ok(0) => return (done, Some(io::ErrorKind::WriteZero.into())),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// JSON escapes every character that could end a line or colour a terminal.
fn encode(lines: &[AccessLine], text: &mut Vec<u8>) {
    text.reserve(lines.len() * 512);
    for line in lines {
        // Of plain values, into memory.
        if serde_json::to_writer(&mut *text, line).is_ok() {
            text.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    fn line(key: &str) -> AccessLine {
        AccessLine {
            time: Millis(1_767_323_045_006),
            request_id: "ID".to_owned(),
            door: "s3",
            remote: None,
            method: Method::PUT,
            operation: Some("PutObject".to_owned()),
            bucket: Some("b".to_owned()),
            key: Some(key.to_owned()),
            job: None,
            status: Some(200),
            code: None,
            bytes_in: 1,
            bytes_out: 0,
            first_byte_micros: Some(7),
            micros: 8,
            key_id: None,
            user_agent: None,
            audit: None,
            proxy_request_id: None,
        }
    }

    #[test]
    fn a_line_is_one_line_whatever_stands_in_it() {
        let evil = "a\r\n{\"time\":0}\u{1b}[2J\u{0}\"";

        let mut text = vec![];
        encode(&[line(evil), line("plain")], &mut text);
        let text = String::from_utf8(text).unwrap();

        assert_eq!(text.lines().count(), 2);
        assert!(!text.trim_end_matches('\n').replace('\n', "").chars().any(char::is_control), "{text:?}");
        let json: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((json["key"].as_str(), json["time"].as_str()), (Some(evil), Some("2026-01-02T03:04:05.006Z")));
        assert!(json.get("job").is_none());
    }

    #[tokio::test]
    async fn lines_that_nobody_writes_are_dropped_and_counted() {
        let metrics = Metrics::new();
        let (log, _writer) = AccessLog::open(AccessLogPlace::Stdout, metrics.clone()).unwrap();

        (0..LINES_WAITING_MAX + 3).for_each(|_| log.push(line("k")));

        assert_eq!(metrics.access_log_dropped.of(AccessLogLoss::Behind).get(), 3);
    }

    #[tokio::test]
    async fn a_file_that_was_moved_away_is_followed_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let (log, writer) = AccessLog::open(AccessLogPlace::File(path.clone()), Metrics::new()).unwrap();
        let mut batch = vec![line("first")];
        let writer = writer.write(&mut batch).await;
        std::fs::rename(&path, &moved).unwrap();
        let writer = writer.opened_again().await;

        log.push(line("second"));
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop).await;

        assert!(std::fs::read_to_string(moved).unwrap().contains("\"first\""));
        assert!(std::fs::read_to_string(path).unwrap().contains("\"second\""));
    }

    #[tokio::test]
    async fn lines_that_cannot_be_written_are_counted() {
        let metrics = Metrics::new();
        let place = AccessLogPlace::File("/dev/full".into());
        let (_log, writer) = AccessLog::open(place, metrics.clone()).unwrap();

        writer.write(&mut vec![line("a"), line("b")]).await;

        assert_eq!(metrics.access_log_dropped.of(AccessLogLoss::Failed).get(), 2);
    }

    #[tokio::test]
    async fn a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next() {
        let metrics = Metrics::new();
        let (_log, mut writer) = AccessLog::open(AccessLogPlace::Stdout, metrics.clone()).unwrap();
        // Full after a part of a batch, like a disk, and empty again once it is read.
        let (mut reader, pipe) = io::pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&pipe).unwrap() | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&pipe, flags).unwrap();
        writer.output = Arc::new(File::from(OwnedFd::from(pipe)));
        let long = "k".repeat(5000);

        let writer = writer.write(&mut (0..100).map(|_| line(&long)).collect()).await;
        let mut text = vec![0; 1 << 20];
        let len = reader.read(&mut text).unwrap();
        text.truncate(len);
        let writer = writer.write(&mut vec![line("next")]).await;
        drop(writer);
        reader.read_to_end(&mut text).unwrap();

        let text = String::from_utf8(text).unwrap();
        let good = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        let lines: Vec<&str> = text.lines().collect();
        let (torn, last) = (lines.iter().filter(|line| !good(line)).count(), lines.last().unwrap());
        assert!(torn == 1 && good(last) && last.contains("\"next\""), "{torn} {last}");
        let whole = lines.len() as u64 - 2;
        assert_eq!(metrics.access_log_dropped.of(AccessLogLoss::Failed).get(), 100 - whole);
    }
}
