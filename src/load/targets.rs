//! The targets of a bench: the bare sink, the doors of a daemon, other S3 servers; and the requests for each.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use esker_client::wire::CRC_HEADER;
use esker_client::{Client, ClientError};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;

use super::connection::Connection;
use super::options::{BenchOptions, Door, External};
use super::process::{Ready, Server};
use super::sign::{Payload, Signer};
use super::workload::{Bodies, Cell, LoadShape, PreparedBody, file_name, job_id};

/// Credentials of the daemons that the bench starts on loopback addresses.
pub(super) const KEYS: (&str, &str) = ("esker-bench", "esker-bench-secret");
pub(super) const REGION: &str = "us-east-1";
pub(super) const BUCKET: &str = "bench";

/// Starts the targets of one cell.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The options of the bench.
    pub options: &'a BenchOptions,
    /// Where the targets' folders go.
    pub folder: &'a Path,
    /// The cell.
    pub cell: Cell,
}

/// One server that is driven. Dropping it ends it, unless it is someone else's.
#[derive(Debug)]
pub struct Target {
    name: String,
    /// `HOST:PORT`, as requests name it.
    authority: String,
    /// Where its clients connect, in turn.
    addresses: Vec<String>,
    kind: TargetKind,
    pids: Vec<u32>,
    server: Option<Server>,
    /// The daemon's metrics and checkpoints.
    api: Option<Client>,
    shape: LoadShape,
    seed: u64,
    cell: Cell,
}

#[derive(Debug)]
enum TargetKind {
    Sink,
    Native,
    S3 { signer: Arc<Signer>, bucket: String, door: Door },
}

impl Launch<'_> {
    /// The bare sink.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn sink(&self) -> anyhow::Result<Target> {
        let (server, ready) = self.start("sink", vec!["bench-sink".to_owned()]).await?;
        Ok(self.target("sink", authority(&ready, "sink")?, TargetKind::Sink, Some(server), None))
    }

    /// A daemon of its own, of which this door is driven.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn door(&self, door: Door) -> anyhow::Result<Target> {
        let first = [("telemetry.log-filter", "warn")];
        let arguments = serve_arguments(&first, &self.options.set, &[("store.url", &self.store_url(door))]);
        let (access_key, secret_key) = KEYS;
        let (server, ready) = self.start(door.name(), arguments).await?;
        let api = Client::new(ready.get("api").context("the daemon does not say where its API is")?, None)?;
        let (authority, kind) = match door {
            Door::Native => (authority(&ready, "api")?, TargetKind::Native),
            Door::S3 | Door::S3Sha256 => {
                let authority = authority(&ready, "s3")?;
                let signer = Signer::new(&authority, REGION, access_key, secret_key);
                (authority, TargetKind::S3 { signer: Arc::new(signer), bucket: BUCKET.to_owned(), door })
            }
        };
        let target = self.target(door.name(), authority, kind, Some(server), Some(api));
        target.prepare().await?;
        Ok(target)
    }

    /// A server that runs already.
    ///
    /// # Errors
    /// When an address is not `HOST:PORT`.
    pub fn external(&self, external: &External) -> anyhow::Result<Target> {
        let addresses: Vec<String> =
            external.urls.iter().map(|url| authority_of(url)).collect::<anyhow::Result<_>>()?;
        let authority = addresses.first().context("it has no address")?.clone();
        let signer = Arc::new(Signer::new(&authority, REGION, &external.access_key, &external.secret_key));
        let kind = TargetKind::S3 { signer, bucket: external.bucket.clone(), door: Door::S3 };
        let target = self.target(&external.name, authority, kind, None, None);
        Ok(Target { addresses, pids: external.pids.clone(), ..target })
    }

    async fn start(&self, name: &str, arguments: Vec<String>) -> anyhow::Result<(Server, Ready)> {
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).with_context(|| format!("the folder {}", folder.display()))?;
        Server::start(&self.options.program, &arguments, &folder).await
    }

    /// A store that no other daemon of the bench uses: a new folder, or a place below the one that was set.
    fn store_url(&self, door: Door) -> String {
        let set = self.options.set.iter().rev().find(|(key, _)| key == "store.url");
        match set {
            None => format!("file:{}", self.folder.join(door.name()).join("store").display()),
            Some((_, url)) => {
                let Cell { bytes, clients } = self.cell;
                let unique = format!("bench-{}-{bytes}-{clients}-{}", std::process::id(), door.name());
                format!("{}/{unique}", url.trim_end_matches('/'))
            }
        }
    }

    fn target(
        &self,
        name: &str,
        authority: String,
        kind: TargetKind,
        server: Option<Server>,
        api: Option<Client>,
    ) -> Target {
        let (shape, seed) = (self.options.shape, self.options.seed);
        let pids = server.iter().map(Server::pid).collect();
        let (addresses, cell) = (vec![authority.clone()], self.cell);
        Target { name: name.to_owned(), authority, addresses, kind, pids, server, api, shape, seed, cell }
    }
}

/// Starts a daemon on free ports, with the bench's keys: these settings first, then what its user has set, then those.
pub(super) fn serve_arguments(first: &[(&str, &str)], set: &[(String, String)], last: &[(&str, &str)]) -> Vec<String> {
    let (access_key, secret_key) = KEYS;
    let keys = [("auth.access-key", access_key), ("auth.secret-key", secret_key)];
    let set = set.iter().map(|(key, value)| (&**key, &**value)).filter(|(key, _)| *key != "store.url");
    let all = keys.iter().chain(first).copied().chain(set).chain(last.iter().copied());
    let addresses = ["serve", "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0"].map(str::to_owned);
    addresses.into_iter().chain(all.flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")])).collect()
}

fn authority(ready: &Ready, door: &str) -> anyhow::Result<String> {
    authority_of(ready.get(door).with_context(|| format!("the server does not say where its {door} door is"))?)
}

/// `HOST:PORT` of `http://HOST:PORT`.
pub(super) fn authority_of(url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse().with_context(|| format!("the address {url:?}"))?;
    match (uri.scheme_str(), uri.authority(), uri.path()) {
        (Some("http"), Some(authority), "/") if authority.port().is_some() => Ok(authority.to_string()),
        _ => bail!("the address {url:?} must be http://HOST:PORT"),
    }
}

impl Target {
    /// Its name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where a client connects.
    pub fn address(&self, client: usize) -> &str {
        &self.addresses[client % self.addresses.len()]
    }

    /// Its processes, if they are on this machine and known.
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Whether it stores what it is sent.
    pub fn stores(&self) -> bool {
        !matches!(self.kind, TargetKind::Sink)
    }

    /// A text that says why driving it failed.
    pub fn fault(&self) -> String {
        let log = self.server.as_ref().map(Server::log_end).filter(|log| !log.is_empty());
        log.map_or_else(|| self.name.clone(), |log| format!("{} (its log ends in: {log})", self.name))
    }

    fn jobs(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.shape.jobs.clamp(1, self.cell.clients)).map(|job| job_id(self.seed, job))
    }

    /// Creates the jobs or the bucket.
    async fn prepare(&self) -> anyhow::Result<()> {
        match (&self.kind, &self.api) {
            (TargetKind::Native, Some(api)) => {
                for job in self.jobs() {
                    api.create_job(&job).await?;
                }
            }
            (TargetKind::S3 { signer, bucket, .. }, _) => {
                let path = format!("/{bucket}");
                let mut request = Request::put(&path).body(Full::default())?;
                *request.headers_mut() = signer.put(&path, &Payload::Unsigned)?;
                let answer = Connection::open(&self.authority).await?.send(request).await?;
                if !answer.status.is_success() {
                    bail!("the bucket was not created: {} {}", answer.status, answer.text());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells the target that everything of a run was written.
    ///
    /// # Errors
    /// When the daemon refuses it.
    pub async fn end_checkpoint(&self, run: u64) -> anyhow::Result<()> {
        let (TargetKind::Native, Some(api)) = (&self.kind, &self.api) else { return Ok(()) };
        for job in self.jobs() {
            match api.complete(&job, run).await {
                // A job that no segment reached does not know its checkpoint.
                Err(ClientError::Refused { status, .. }) if status == http::StatusCode::NOT_FOUND => {}
                other => other.with_context(|| self.fault())?,
            }
        }
        Ok(())
    }

    /// Number of times that its daemon has synced a file or put an object so far.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn writes(&self) -> anyhow::Result<Option<Writes>> {
        let Some(api) = &self.api else { return Ok(None) };
        Ok(Some(Writes::in_metrics(&api.metrics().await?)))
    }

    /// The requests of every client in one run.
    ///
    /// # Errors
    /// When a signature cannot be made.
    pub fn requests(&self, run: u64, bodies: &Bodies) -> anyhow::Result<Vec<Requests>> {
        let bodies: Arc<[PreparedBody]> = bodies.all().into();
        let payloads: Arc<[Payload]> = match &self.kind {
            TargetKind::S3 { signer, door: Door::S3Sha256, .. } => {
                bodies.iter().map(|body| signer.digest(&body.data)).collect::<anyhow::Result<_>>()?
            }
            _ => Arc::new([Payload::Unsigned]),
        };
        let requests = (0..self.cell.clients).map(|client| {
            let heads = self.heads(client, run, &bodies, &payloads)?;
            Ok(Requests { heads, bodies: Arc::clone(&bodies), client, run, seed: self.seed, count: 0 })
        });
        requests.collect()
    }

    fn heads(
        &self,
        client: usize,
        run: u64,
        bodies: &[PreparedBody],
        payloads: &Arc<[Payload]>,
    ) -> anyhow::Result<Heads> {
        let place = self.shape.place(client);
        let job = job_id(self.seed, place.job);
        let host: HeaderValue = self.authority.parse()?;
        Ok(match &self.kind {
            TargetKind::Sink => Heads::Ready {
                method: Method::PUT,
                uri: format!("/{job}/{client}").parse()?,
                headers: vec![HeaderMap::from_iter([(header::HOST, host)])],
            },
            TargetKind::Native => {
                let (scope, subtask, parallelism) = (self.shape.scope, place.subtask, place.parallelism);
                let writer = format!("operator=bench&subtask={subtask}&parallelism={parallelism}");
                let writer = format!("{writer}&task_manager=tm-{}", place.task_manager);
                let uri = format!("/v1/jobs/{job}/segments?checkpoint={run}&scope={scope}&{writer}");
                let headers = bodies.iter().map(|body| {
                    let mut headers = HeaderMap::from_iter([(header::HOST, host.clone())]);
                    headers.insert(CRC_HEADER, body.crc32c.parse()?);
                    Ok(headers)
                });
                let headers = headers.collect::<anyhow::Result<_>>()?;
                Heads::Ready { method: Method::POST, uri: uri.parse()?, headers }
            }
            TargetKind::S3 { signer, bucket, .. } => {
                let folder = match self.shape.scope {
                    crate::model::StateScope::Shared => "shared".to_owned(),
                    crate::model::StateScope::Exclusive => format!("chk-{run}"),
                };
                let folder = format!("/{bucket}/bench-{}/{job}/{folder}", std::process::id());
                Heads::Signed { signer: Arc::clone(signer), folder, payloads: Arc::clone(payloads) }
            }
        })
    }
}

/// The requests of one client.
#[derive(Debug)]
pub struct Requests {
    heads: Heads,
    bodies: Arc<[PreparedBody]>,
    client: usize,
    run: u64,
    seed: u64,
    count: u64,
}

#[derive(Debug)]
enum Heads {
    /// The same every time, but for headers that depend on the body.
    Ready { method: Method, uri: Uri, headers: Vec<HeaderMap> },
    /// A new key every time, and so a new signature.
    Signed { signer: Arc<Signer>, folder: String, payloads: Arc<[Payload]> },
}

impl Requests {
    /// Makes the next one. The clients begin with different bodies.
    ///
    /// # Errors
    /// When a signature cannot be made.
    pub fn make(&mut self) -> anyhow::Result<Request<Full<Bytes>>> {
        let index = (self.client + usize::try_from(self.count).unwrap_or_default()) % self.bodies.len();
        let mut request = Request::new(Full::new(self.bodies[index].data.clone()));
        match &self.heads {
            Heads::Ready { method, uri, headers } => {
                *request.method_mut() = method.clone();
                *request.uri_mut() = uri.clone();
                *request.headers_mut() = headers[index % headers.len()].clone();
            }
            Heads::Signed { signer, folder, payloads } => {
                let path = format!("{folder}/{}", file_name(self.seed, self.run, self.client, self.count));
                *request.method_mut() = Method::PUT;
                *request.headers_mut() = signer.put(&path, &payloads[index % payloads.len()])?;
                *request.uri_mut() = path.parse()?;
            }
        }
        self.count += 1;
        Ok(request)
    }
}

/// Syncs of files and puts of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// Writes of physical files.
    pub data: u64,
    /// Writes of the catalog's log.
    pub catalog: u64,
}

impl Writes {
    /// Reads them from a daemon's metrics.
    fn in_metrics(metrics: &str) -> Self {
        const WRITES: [&str; 3] = ["append", "put", "multipart_complete"];
        let requests =
            |of, operation| metric(metrics, "esker_store_requests_total", &[("of", of), ("operation", operation)]);
        Self {
            data: WRITES.into_iter().map(|operation| requests("data", operation)).sum(),
            // Puts are the database's own, of tables and manifests: nobody waits for them.
            catalog: requests("catalog", "append"),
        }
    }

    /// The writes since `before`.
    pub fn since(self, before: Self) -> Self {
        Self { data: self.data.saturating_sub(before.data), catalog: self.catalog.saturating_sub(before.catalog) }
    }
}

/// One sample of a metric in Prometheus' text format, whose labels are exactly these, in order; 0 if there is none.
fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> u64 {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(&*labels)?.strip_prefix(' '));
    sample.and_then(|value| value.parse::<f64>().ok()).map_or(0, |value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::{Purpose, StoreOperation};

    #[test]
    fn syncs_are_counted_from_the_metrics_of_the_daemon() {
        let metrics = crate::metrics::Metrics::new();
        metrics.store_requests.of((StoreOperation::Append, Purpose::Data)).inc_by(7);
        metrics.store_requests.of((StoreOperation::Put, Purpose::Data)).inc_by(2);
        metrics.store_requests.of((StoreOperation::Get, Purpose::Data)).inc_by(100);
        metrics.store_requests.of((StoreOperation::Append, Purpose::Catalog)).inc_by(5);

        let writes = Writes::in_metrics(&metrics.render());

        assert_eq!(writes, Writes { data: 9, catalog: 5 });
        assert_eq!(writes.since(Writes { data: 2, catalog: 1 }), Writes { data: 7, catalog: 4 });
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(authority_of("http://127.0.0.1:9000").unwrap(), "127.0.0.1:9000");
        for bad in ["127.0.0.1:9000", "https://h:1", "http://h", "http://h:1/path", ""] {
            assert!(authority_of(bad).is_err(), "{bad:?}");
        }
    }
}
