//! The members: processes on this machine, and where they listen.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use esker_client::Client;
use parking_lot::Mutex;
use rustix::process::Signal;

use super::options::{FailoverOptions, MemberFate};
use crate::load::process::{Ready, Server};
use crate::load::targets::{BUCKET, authority_of, serve_arguments};

/// A member that is told to end has so long.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// A member that is asked who owns what has so long.
const STATUS_PATIENCE: Duration = Duration::from_secs(3);

/// Where the S3 doors of the members are, as a balancer before them knows it: none of one that does not answer. Clones share it.
#[derive(Debug, Clone)]
pub struct Balancer(Arc<Mutex<Vec<Option<String>>>>);

impl Balancer {
    /// The member after `last` that takes connections, and its `HOST:PORT`.
    pub fn next(&self, last: usize) -> Option<(usize, String)> {
        let known = self.0.lock();
        let order = (1..=known.len()).map(|step| (last + step) % known.len());
        order.filter_map(|member| Some((member, known[member].clone()?))).next()
    }

    fn set(&self, member: usize, address: Option<String>) {
        self.0.lock()[member] = address;
    }
}

/// All members. Dropped, they are killed.
#[derive(Debug)]
pub struct Members {
    program: PathBuf,
    members: Vec<BenchMember>,
    balancer: Balancer,
}

#[derive(Debug)]
struct BenchMember {
    arguments: Vec<String>,
    folder: PathBuf,
    starts: usize,
    running: Option<RunningMember>,
}

#[derive(Debug)]
struct RunningMember {
    server: Server,
    s3: String,
    api: Client,
}

impl Members {
    /// Starts them on one store, below the place of `store.url`. Their logs go into `folder`.
    ///
    /// # Errors
    /// When there is no `store.url`, or one does not start.
    pub async fn start(options: &FailoverOptions, folder: &Path) -> anyhow::Result<Self> {
        let url = options.set.iter().rev().find(|(key, _)| key == "store.url");
        let (_, url) = url.context("--set store.url=s3://.. is missing: several daemons need an object store")?;
        let url = format!("{}/failover-{}", url.trim_end_matches('/'), std::process::id());
        let members = (0..options.members).map(|number| {
            let first = [("server.buckets", BUCKET), ("cluster.enabled", "true")];
            let last = [("cluster.daemon-id", &*name(number)), ("store.url", &*url)];
            let arguments = serve_arguments(&first, &options.set, &last);
            BenchMember { arguments, folder: folder.join(name(number)), starts: 0, running: None }
        });
        let (program, members) = (options.program.clone(), members.collect());
        let balancer = Balancer(Arc::new(Mutex::new(vec![None; options.members])));
        let mut members = Self { program, members, balancer };
        for number in 0..options.members {
            members.begin(number).await?;
        }
        Ok(members)
    }

    /// Where they listen.
    pub fn balancer(&self) -> Balancer {
        self.balancer.clone()
    }

    /// The name of one, as the cluster knows it.
    pub fn name(&self, number: usize) -> String {
        name(number)
    }

    async fn begin(&mut self, number: usize) -> anyhow::Result<()> {
        let member = &mut self.members[number];
        member.starts += 1;
        let folder = member.folder.join(member.starts.to_string());
        std::fs::create_dir_all(&folder).with_context(|| format!("the folder {}", folder.display()))?;
        let (server, ready) = Server::start(&self.program, &member.arguments, &folder).await?;
        let place = |door: &str, ready: &Ready| {
            ready.get(door).cloned().with_context(|| format!("{} does not say where its {door} door is", name(number)))
        };
        let s3 = authority_of(&place("s3", &ready)?)?;
        let api = Client::new(&place("api", &ready)?, None)?;
        self.balancer.set(number, Some(s3.clone()));
        member.running = Some(RunningMember { server, s3, api });
        Ok(())
    }

    /// The member that has the first shard, as any of them says.
    ///
    /// # Errors
    /// When none says so.
    pub async fn owner(&self) -> anyhow::Result<usize> {
        for member in self.members.iter().filter_map(|member| member.running.as_ref()) {
            let Ok(Ok(status)) = tokio::time::timeout(STATUS_PATIENCE, member.api.cluster()).await else { continue };
            let owner = status.shards.first().and_then(|shard| shard.owner.clone());
            let number = owner.and_then(|owner| (0..self.members.len()).find(|number| name(*number) == owner));
            if let Some(number) = number {
                return Ok(number);
            }
        }
        bail!("nobody has the catalog")
    }

    /// Has a member meet its fate. A balancer takes it out when it does not answer any more.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn meet(&mut self, number: usize, fate: MemberFate) -> anyhow::Result<()> {
        let member = &mut self.members[number];
        match fate {
            MemberFate::Killed => {
                self.balancer.set(number, None);
                member.running = None;
            }
            MemberFate::Silent => {
                let running = member.running.as_ref().context("it does not run")?;
                running.server.signal(Signal::STOP)?;
                self.balancer.set(number, None);
            }
            MemberFate::Ended => {
                let running = member.running.take().context("it does not run")?;
                // Whoever reads its /readyz takes it out first.
                self.balancer.set(number, None);
                running.server.end(END_PATIENCE).await.with_context(|| format!("{} was told to end", name(number)))?;
            }
        }
        Ok(())
    }

    /// Has it go on, or starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn bring_back(&mut self, number: usize) -> anyhow::Result<()> {
        match &self.members[number].running {
            Some(running) => {
                running.server.signal(Signal::CONT)?;
                self.balancer.set(number, Some(running.s3.clone()));
                Ok(())
            }
            None => self.begin(number).await,
        }
    }

    /// The ends of their logs.
    pub fn logs_end(&self) -> String {
        let running = self.members.iter().enumerate();
        let running = running.filter_map(|(number, member)| Some((number, member.running.as_ref()?)));
        running
            .map(|(number, member)| format!("the log of {} ends in:\n{}\n", name(number), member.server.log_end()))
            .collect()
    }

    /// Ends all of them.
    ///
    /// # Errors
    /// When one does not end as it should.
    pub async fn end(self) -> anyhow::Result<()> {
        for (number, member) in self.members.into_iter().enumerate() {
            if let Some(running) = member.running {
                running.server.end(END_PATIENCE).await.with_context(|| format!("{} was told to end", name(number)))?;
            }
        }
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("member-{number}")
}
