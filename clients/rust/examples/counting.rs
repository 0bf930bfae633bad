//! One task of a job that counts words. Start one process for each task; kill any of them, or the daemon, whenever you like, and start
//! it again: each word counts once.
//!
//! `cargo run -p esker-client --example counting -- create [--api ADDRESS] [--job JOB]`, then for each of the five tasks
//! `cargo run -p esker-client --example counting -- --subtask N [--api ADDRESS] [--job JOB] [--words W] [--out FOLDER]`
//!
//! `examples/python/count.py --rust target/debug/examples/counting` starts five of them, kills them and the daemon, and compares.
//! Its own workers read and write the same state: tasks of both kinds make one job.

mod arguments;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use arguments::GivenArguments;
use bytes::Bytes;
use esker_client::wire::{AckRequest, AckState, BatchHead, JobOperator, NewJob, TaskStateInfo};
use esker_client::{Client, Worker, WorkerEvent};

type Failure = Box<dyn std::error::Error>;

const OPERATOR: &str = "count";
const TASKS: u32 = 5;
const PARTITIONS: u32 = 20;
const WORDS: [&str; 12] =
    ["ridge", "melt", "water", "stream", "carry", "sand", "gravel", "ice", "tunnel", "bed", "valley", "lake"];

/// The word at a position of a partition.
fn word(partition: u32, position: u64) -> &'static str {
    let mixed = (position.wrapping_mul(2_654_435_761) + u64::from(partition) * 40503) >> 9;
    WORDS[(mixed % 12) as usize]
}

/// How far a partition was read, and what was counted in it: `[number, position, counts]` as JSON.
#[derive(serde::Serialize, serde::Deserialize)]
struct Partition(u32, u64, BTreeMap<String, u64>);

impl Partition {
    fn read(&mut self, records: u64, end: u64) {
        let Self(number, position, counts) = self;
        for at in *position..(*position + records).min(end) {
            *counts.entry(word(*number, at).to_owned()).or_default() += 1;
            *position = at + 1;
        }
    }
}

struct Arguments {
    api: String,
    job: String,
    subtask: u32,
    words: u64,
    out: PathBuf,
    creates: bool,
}

impl Arguments {
    fn read() -> Result<Self, Failure> {
        let (creates, mut given) = GivenArguments::read("create")?;
        let arguments = Self {
            api: given.take("--api", Some("http://127.0.0.1:9001"))?,
            job: given.take("--job", Some("counting"))?,
            creates,
            subtask: given.take("--subtask", creates.then_some("0"))?,
            words: given.take("--words", Some("8000"))?,
            out: given.take("--out", Some("."))?,
        };
        given.finish()?;
        Ok(arguments)
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    let client = Client::new(&arguments.api, None)?;
    if arguments.creates {
        // The same job again changes nothing.
        return Ok(client.create(&job(&arguments.job)).await.map(drop)?);
    }
    count(Worker::new(client, &arguments.job, OPERATOR, arguments.subtask), &arguments).await
}

fn job(name: &str) -> NewJob {
    let settings = [
        ("execution.checkpointing.interval", "200 ms"),
        ("heartbeat.interval", "500 ms"),
        ("heartbeat.timeout", "5 s"),
    ];
    NewJob {
        job: name.to_owned(),
        coordinated: true,
        settings: Some(settings.map(|(key, value)| (key.to_owned(), value.into())).into()),
        operators: Some(vec![JobOperator { id: OPERATOR.to_owned(), parallelism: TASKS, ..JobOperator::default() }]),
        iterative: None,
    }
}

async fn count(mut worker: Worker, arguments: &Arguments) -> Result<(), Failure> {
    let end = arguments.words;
    let mut partitions: Vec<Partition> = vec![];
    // Whether it has its state; whether all was read and told, and the checkpoints since then.
    let (mut begun, mut over, mut last) = (false, false, vec![]);
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    loop {
        let event = tokio::select! {
            event = worker.next() => event?,
            _ = pace.tick(), if begun && !over => {
                partitions.iter_mut().for_each(|partition| partition.read(5, end));
                if partitions.iter().all(|Partition(_, position, _)| *position == end) {
                    over = true;
                    worker.end_of_data().await?;
                }
                continue;
            }
        };
        match event {
            WorkerEvent::Start(state) if state.finished => {
                (over, last) = (true, vec![]);
                worker.finished().await?;
            }
            WorkerEvent::Start(state) => {
                partitions = read(&worker, &state).await?;
                (begun, over, last) = (true, false, vec![]);
                worker.running().await?;
            }
            WorkerEvent::Snapshot(trigger) => {
                if acknowledge(&worker, trigger.checkpoint, &partitions).await? && over {
                    last.push(trigger.checkpoint);
                }
            }
            // The counts are published once a checkpoint that has all of them is complete. Who does so twice writes the same. The
            // process stays: another task may fail before it has finished, and all begin anew.
            WorkerEvent::Complete(checkpoint) if last.contains(&checkpoint) => {
                publish(arguments, &partitions)?;
                worker.finished().await?;
            }
            WorkerEvent::Complete(_) | WorkerEvent::Abort(_) | WorkerEvent::Subsume(_) => {}
            WorkerEvent::Stop(_) => worker.finished().await?,
            WorkerEvent::End(end) => {
                println!("the job has ended: {}", end.state);
                return Ok(());
            }
        }
    }
}

/// The partitions of the task: those that were dealt out to it, or at the first start each fifth.
async fn read(worker: &Worker, state: &TaskStateInfo) -> Result<Vec<Partition>, Failure> {
    if worker.restored().is_none() {
        let own = (0..PARTITIONS).filter(|number| number % state.parallelism == state.subtask);
        return Ok(own.map(|number| Partition(number, 0, BTreeMap::new())).collect());
    }
    let mut partitions = vec![];
    for state in &state.state {
        for element in worker.elements(state).await? {
            partitions.push(serde_json::from_slice(&element)?);
        }
    }
    Ok(partitions)
}

/// Each partition is an element, so that they can be dealt out anew. Returns whether the checkpoint took it.
async fn acknowledge(worker: &Worker, checkpoint: u64, partitions: &[Partition]) -> Result<bool, Failure> {
    let (mut bytes, mut offsets) = (vec![], vec![]);
    for partition in partitions {
        offsets.push(bytes.len() as u64);
        serde_json::to_writer(&mut bytes, partition)?;
    }
    if partitions.is_empty() {
        return Ok(worker.acknowledge(checkpoint, vec![]).await?.is_some());
    }
    let name = Some("partitions".to_owned());
    let state = AckState { name: name.clone(), part: Some(0), offsets: Some(offsets), ..AckState::default() };
    let ack = AckRequest { state: vec![state], ..AckRequest::default() };
    let parts = vec![(BatchHead { name, ..BatchHead::default() }, Bytes::from(bytes))];
    Ok(worker.acknowledge_with(checkpoint, ack, parts).await?.is_some())
}

fn publish(arguments: &Arguments, partitions: &[Partition]) -> Result<(), Failure> {
    let counts: BTreeMap<String, &BTreeMap<String, u64>> =
        partitions.iter().map(|Partition(number, _, counts)| (number.to_string(), counts)).collect();
    let part = arguments.out.join(format!("part-{}.json", arguments.subtask));
    let written = part.with_extension("tmp");
    std::fs::write(&written, serde_json::to_vec(&counts)?)?;
    Ok(std::fs::rename(&written, &part)?)
}
