//! The clients: each writes numbers under a key of its own and reads them back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::future::try_join_all;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::members::Balancer;
use crate::load::connection::{Connection, WholeAnswer};
use crate::load::sign::{Payload, Signer};
use crate::load::targets::{BUCKET, KEYS, REGION};
use crate::runtime::Clock;

/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for a member that takes connections.
const PAUSE: Duration = Duration::from_millis(10);
/// Clients end after the requests that they have begun.
const END_PATIENCE: Duration = Duration::from_secs(90);

/// A request that came to its end.
#[derive(Debug, Clone, Copy)]
struct TimedRequest {
    member: usize,
    begun: Instant,
    took: Duration,
    answered: bool,
}

/// What a client has seen.
#[derive(Debug, Default)]
struct ClientHistory {
    asked: Vec<TimedRequest>,
    /// When the request that it waits for began, and whom it asked.
    waits: Option<(usize, Instant)>,
    writes: u64,
    reads: u64,
    /// Requests whose member went away before it answered.
    cut: u64,
    refused: Vec<String>,
    wrong: Vec<String>,
}

/// What all clients have seen in the end.
#[derive(Debug, Default)]
pub struct SeenByAll {
    /// Writes that were answered.
    pub writes: u64,
    /// Reads likewise.
    pub reads: u64,
    /// Requests whose member went away before it answered: as many as were on their way to one that was killed.
    pub cut: u64,
    /// Requests that were answered with an error, and how.
    pub refused: Vec<String>,
    /// Reads that were older than what was answered before.
    pub wrong: Vec<String>,
}

/// All clients. Dropped, they stop.
#[derive(Debug)]
pub struct Clients {
    seen: Vec<Arc<Mutex<ClientHistory>>>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
    over: CancellationToken,
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.over.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Clients {
    /// Starts `count` of them.
    ///
    /// # Errors
    /// When the first write of one is refused.
    pub async fn start(balancer: Balancer, count: usize) -> anyhow::Result<Self> {
        let over = CancellationToken::new();
        let starting = (0..count).map(|number| {
            let client = BenchClient {
                balancer: balancer.clone(),
                key: format!("/{BUCKET}/failover/{number}"),
                last: number,
                number: 0,
            };
            client.begun()
        });
        let (mut seen, mut tasks) = (vec![], vec![]);
        for client in try_join_all(starting).await? {
            let its = Arc::<Mutex<ClientHistory>>::default();
            seen.push(Arc::clone(&its));
            #[expect(clippy::disallowed_methods, reason = "they end with the value that owns them")]
            tasks.push(tokio::spawn(client.run(its, over.clone())));
        }
        Ok(Self { seen, tasks, over })
    }

    /// Whether each was answered what it asked another member than `besides` after `begun`. Who waits for that one still does not count.
    pub fn all_answered_since(&self, besides: usize, begun: Instant) -> bool {
        self.seen.iter().all(|seen| {
            let seen = seen.lock();
            if seen.waits.is_some_and(|(member, _)| member == besides) {
                return true;
            }
            let later = seen.asked.iter().rev().take_while(|asked| asked.begun + asked.took > begun);
            later.filter(|asked| asked.member != besides && asked.begun > begun).any(|asked| asked.answered)
        })
    }

    /// The longest that a client has waited for another member than `besides` in the time since `begun`.
    pub fn longest_wait(&self, besides: usize, begun: Instant) -> Duration {
        let waits = self.seen.iter().map(|seen| {
            let seen = seen.lock();
            let over = seen.asked.iter().rev().take_while(|asked| asked.begun + asked.took > begun);
            let over = over.filter(|asked| asked.member != besides).map(|asked| asked.took);
            let waits = seen.waits.filter(|(member, _)| *member != besides).map(|(_, since)| since.elapsed());
            over.chain(waits).max().unwrap_or_default()
        });
        waits.max().unwrap_or_default()
    }

    /// Ends them, each after what it asks now, and looks once more whether everything is there.
    ///
    /// # Errors
    /// When one does not end.
    pub async fn end(mut self) -> anyhow::Result<SeenByAll> {
        self.over.cancel();
        for task in self.tasks.drain(..) {
            tokio::time::timeout(END_PATIENCE, task).await.context("a client does not end")???;
        }
        let mut all = SeenByAll::default();
        for seen in &self.seen {
            let seen = std::mem::take(&mut *seen.lock());
            all.writes += seen.writes;
            all.reads += seen.reads;
            all.cut += seen.cut;
            all.refused.extend(seen.refused);
            all.wrong.extend(seen.wrong);
        }
        Ok(all)
    }
}

struct BenchClient {
    balancer: Balancer,
    key: String,
    /// The member that was asked last.
    last: usize,
    /// The number that was answered last.
    number: u64,
}

/// How a request ended.
enum RequestEnd {
    Answered(WholeAnswer),
    /// The member went away.
    Cut,
}

impl BenchClient {
    /// With a first write.
    async fn begun(mut self) -> anyhow::Result<Self> {
        let seen = Mutex::default();
        self.write(&seen).await?;
        let refused = seen.lock().refused.first().cloned();
        match refused {
            None => Ok(self),
            Some(why) => anyhow::bail!("a first write was refused: {why}"),
        }
    }

    /// Writes and reads in turn. The last of all is a read.
    async fn run(mut self, seen: Arc<Mutex<ClientHistory>>, over: CancellationToken) -> anyhow::Result<()> {
        while !over.is_cancelled() {
            self.write(&seen).await?;
            self.read(&seen).await?;
        }
        self.read(&seen).await
    }

    async fn write(&mut self, seen: &Mutex<ClientHistory>) -> anyhow::Result<()> {
        let number = self.number + 1;
        if self.ask(Method::PUT, Bytes::from(number.to_string()), seen).await?.is_some() {
            self.number = number;
            seen.lock().writes += 1;
        }
        Ok(())
    }

    async fn read(&mut self, seen: &Mutex<ClientHistory>) -> anyhow::Result<()> {
        let Some(answer) = self.ask(Method::GET, Bytes::new(), seen).await? else { return Ok(()) };
        let (text, mut seen) = (answer.text(), seen.lock());
        seen.reads += 1;
        if text.parse::<u64>().map_or(true, |found| found < self.number) {
            seen.wrong.push(format!("{}: read {text:?} after {} was answered", self.key, self.number));
        }
        Ok(())
    }

    /// Asks the next member. `None` if it was not answered as it should be.
    async fn ask(
        &mut self,
        method: Method,
        body: Bytes,
        seen: &Mutex<ClientHistory>,
    ) -> anyhow::Result<Option<WholeAnswer>> {
        let begun = Clock::instant();
        let asking = self.ask_next(&method, body, begun, seen);
        let ended = tokio::time::timeout(PATIENCE, asking).await;
        let took = begun.elapsed();
        let mut seen = seen.lock();
        seen.waits = None;
        let (answer, error) = match ended {
            Ok(ended) => match ended? {
                RequestEnd::Answered(answer) if answer.status.is_success() => (Some(answer), None),
                // A write that was cut off may not have been the first.
                RequestEnd::Answered(answer) if answer.status == StatusCode::NOT_FOUND && self.number == 0 => {
                    (None, None)
                }
                RequestEnd::Answered(answer) => {
                    let text = answer.text();
                    (None, Some(format!("{method} {} after {took:.2?}: {} {text}", self.key, answer.status)))
                }
                RequestEnd::Cut => {
                    seen.cut += 1;
                    (None, None)
                }
            },
            Err(_) => (None, Some(format!("{method} {}: no answer within {PATIENCE:?}", self.key))),
        };
        seen.asked.push(TimedRequest { member: self.last, begun, took, answered: answer.is_some() });
        seen.refused.extend(error);
        Ok(answer)
    }

    async fn ask_next(
        &mut self,
        method: &Method,
        body: Bytes,
        begun: Instant,
        seen: &Mutex<ClientHistory>,
    ) -> anyhow::Result<RequestEnd> {
        let (access_key, secret_key) = KEYS;
        loop {
            let Some((member, authority)) = self.balancer.next(self.last) else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.last = member;
            seen.lock().waits = Some((member, begun));
            // Where nobody listens, a balancer asks the next one.
            let Ok(mut connection) = Connection::open(&authority).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let signer = Signer::new(&authority, REGION, access_key, secret_key);
            let mut request = Request::new(Full::new(body.clone()));
            *request.headers_mut() = signer.headers(method, &self.key, &Payload::Unsigned)?;
            *request.method_mut() = method.clone();
            *request.uri_mut() = self.key.parse()?;
            return Ok(match connection.send(request).await {
                Ok(answer) => RequestEnd::Answered(answer),
                Err(error) => {
                    tracing::debug!(%error, member, "a request was cut off");
                    RequestEnd::Cut
                }
            });
        }
    }
}
