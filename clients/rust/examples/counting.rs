//! One task of a job that counts. Start one process for each task; kill any of them, or the daemon, whenever you like, and start it
//! again: the sum that the tasks have committed grows by what they have counted, each number once.
//!
//! `cargo run -p esker-client --example counting SUBTASK TASKS [http://HOST:PORT [TOKEN]]`

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use esker_client::wire::{AckState, JobOperator, NewJob, TaskStateInfo};
use esker_client::{Client, Worker, WorkerEvent};

const JOB: &str = "counting";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "counting SUBTASK TASKS [ADDRESS [TOKEN]]";
    let subtask: u32 = arguments.next().ok_or(usage)?.parse()?;
    let tasks: u32 = arguments.next().ok_or(usage)?.parse()?;
    let address = arguments.next().unwrap_or_else(|| "http://127.0.0.1:9001".to_owned());
    let client = Client::new(&address, arguments.next())?;

    let settings = BTreeMap::from([("execution.checkpointing.interval".to_owned(), "1 s".into())]);
    let count = JobOperator { id: "count".to_owned(), parallelism: tasks, ..JobOperator::default() };
    let job = NewJob {
        job: JOB.to_owned(),
        coordinated: true,
        settings: Some(settings),
        operators: Some(vec![count]),
        iterative: None,
    };
    client.create(&job).await?;

    let mut worker = Worker::new(client, JOB, "count", subtask);
    let mut count = 0_u64;
    let mut taken = BTreeMap::new();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    loop {
        let event = tokio::select! {
            event = worker.next() => event?,
            _ = pace.tick() => {
                count += 1;
                continue;
            }
        };
        match event {
            WorkerEvent::Start(state) => {
                count = read(&worker, &state).await?;
                taken.clear();
                println!("attempt {}: begins at {count}", worker.attempt());
                worker.running().await?;
            }
            WorkerEvent::Snapshot(trigger) => {
                taken.insert(trigger.checkpoint, count);
                let state = AckState { name: Some("count".to_owned()), ..AckState::default() };
                worker.acknowledge(trigger.checkpoint, vec![(state, Bytes::from(count.to_string()))]).await?;
            }
            WorkerEvent::Complete(checkpoint) => {
                if let Some(count) = taken.remove(&checkpoint) {
                    println!("checkpoint {checkpoint}: {count} is committed");
                }
            }
            WorkerEvent::Abort(checkpoint) => drop(taken.remove(&checkpoint)),
            WorkerEvent::Subsume(_) => {}
            WorkerEvent::Stop(_) => worker.finished().await?,
            WorkerEvent::End(end) => {
                println!("the job has ended: {}", end.state);
                return Ok(());
            }
        }
    }
}

/// At another parallelism a task may get the counts of several, or none.
async fn read(worker: &Worker, state: &TaskStateInfo) -> Result<u64, Box<dyn std::error::Error>> {
    let mut sum = 0;
    for state in &state.state {
        for element in worker.elements(state).await? {
            sum += std::str::from_utf8(&element)?.parse::<u64>()?;
        }
    }
    Ok(sum)
}
