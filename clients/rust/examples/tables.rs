//! A task of the job of `tests/python/growing.py`, which it is a worker of beside those in Python: `--rust target/debug/examples/tables`.
//!
//! Each key group has its own input, which never ends, and a table of numbers in ten blocks. A record adds to one number. A
//! checkpoint stores the blocks that have changed and names those of completed checkpoints again. An example of incremental keyed
//! state.

mod arguments;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use arguments::GivenArguments;
use bytes::Bytes;
use esker_client::wire::{AckRequest, AckState, AssignedStateInfo, BatchHead, KeyGroups, TaskStateInfo, TriggerData};
use esker_client::{Client, ClientError, Worker, WorkerEvent};

type Failure = Box<dyn std::error::Error>;

const OPERATOR: &str = "tables";
const GROUPS: u64 = 128;
const BLOCKS: u64 = 10;
/// Records of a key group that go to the same block before the next one's turn.
const RUN: u64 = 400;
const PACE: Duration = Duration::from_millis(20);
/// For so many rounds the same key groups are hot.
const HOT: u32 = 40;

fn slot_of(group: u64, record: u64, slots: u64) -> (u64, u64) {
    let mixed = u128::from(record) * 2_654_435_761 + u128::from(group) * 40503;
    (record / RUN % BLOCKS, ((mixed >> 7) % u128::from(slots)) as u64)
}

fn added_by(group: u64, record: u64) -> u64 {
    record.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(group) | 1
}

/// Not zeros: bytes of another block would be noticed.
fn new_block(group: u64, block: u64, slots: u64) -> Vec<u64> {
    vec![(group * BLOCKS + block + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15); slots as usize]
}

/// The numbers of a key group, and how far its input was read.
struct Table {
    group: u64,
    position: u64,
    blocks: BTreeMap<u64, Vec<u64>>,
    /// How often each block was changed.
    changes: BTreeMap<u64, u64>,
    /// Blocks as they are stored in a completed checkpoint, with the number of changes at that time.
    stored: BTreeMap<u64, (u64, String)>,
}

impl Table {
    fn new(group: u64) -> Self {
        let (blocks, changes, stored) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { group, position: 0, blocks, changes, stored }
    }

    fn fill(mut self, slots: u64) -> Self {
        self.blocks = (0..BLOCKS).map(|block| (block, new_block(self.group, block, slots))).collect();
        self
    }

    fn read(&mut self, records: u64, slots: u64) {
        for record in self.position..self.position + records {
            let (block, slot) = slot_of(self.group, record, slots);
            if let Some(number) = self.blocks.get_mut(&block).and_then(|numbers| numbers.get_mut(slot as usize)) {
                *number = number.wrapping_add(added_by(self.group, record));
                *self.changes.entry(block).or_default() += 1;
            }
        }
        self.position += records;
    }

    fn changes_of(&self, block: u64) -> u64 {
        self.changes.get(&block).copied().unwrap_or_default()
    }

    fn groups(&self) -> KeyGroups {
        KeyGroups { start: self.group as u32, end: self.group as u32 + 1 }
    }
}

/// What a checkpoint that is not over was given: key group, block, its changes, its segment.
type Given = Vec<(u64, u64, u64, String)>;

struct Task {
    worker: Worker,
    arguments: Arguments,
    tables: BTreeMap<u64, Table>,
    key_groups: KeyGroups,
    given: BTreeMap<u64, Given>,
    hot: Vec<u64>,
    hot_for: u32,
}

impl Task {
    async fn work(mut self) -> Result<(), Failure> {
        let mut pace = tokio::time::interval(PACE);
        let mut stops_with = None;
        loop {
            let event = tokio::select! {
                event = self.worker.next() => event?,
                // Nothing is read behind the savepoint that the job stops with, unless that fails.
                _ = pace.tick(), if stops_with.is_none() && !self.tables.is_empty() => {
                    self.read();
                    continue;
                }
            };
            match event {
                WorkerEvent::Start(state) => {
                    self.begin(&state).await?;
                    stops_with = None;
                }
                WorkerEvent::Snapshot(trigger) => {
                    self.snapshot(&trigger).await?;
                    stops_with = trigger.stop.is_some().then_some(trigger.checkpoint).or(stops_with);
                }
                WorkerEvent::Complete(checkpoint) => self.completed(checkpoint)?,
                WorkerEvent::Abort(checkpoint) => {
                    self.given.remove(&checkpoint);
                    stops_with = stops_with.filter(|stop| *stop != checkpoint);
                }
                WorkerEvent::Subsume(_) => {}
                WorkerEvent::Stop(_) => self.worker.finished().await?,
                WorkerEvent::End(_) => return Ok(()),
            }
        }
    }

    /// A few key groups at a time, as keys come that are hot for a while.
    fn read(&mut self) {
        self.hot_for = self.hot_for.saturating_sub(1);
        if self.hot_for == 0 {
            let mut own: Vec<u64> = self.tables.keys().copied().collect();
            self.hot = (0..own.len().min(2)).map(|_| own.swap_remove(chance(own.len()))).collect();
            self.hot_for = HOT;
        }
        let records = (self.arguments.rate * PACE.as_secs_f64() / self.hot.len() as f64).max(1.0) as u64;
        let slots = self.arguments.slots();
        for group in &self.hot {
            self.tables.get_mut(group).into_iter().for_each(|table| table.read(records, slots));
        }
    }

    fn note(&self, word: &str, checkpoint: Option<u64>) -> Result<(), Failure> {
        let Arguments { job, journal, subtask, .. } = &self.arguments;
        let line = serde_json::json!({
            "word": word, "checkpoint": checkpoint, "job": job, "attempt": self.worker.attempt(), "subtask": subtask,
        });
        let mut journal = std::fs::OpenOptions::new().append(true).open(journal)?;
        Ok(journal.write_all(format!("{line}\n").as_bytes())?)
    }

    async fn begin(&mut self, state: &TaskStateInfo) -> Result<(), Failure> {
        (self.key_groups, self.given, self.hot_for) = (state.key_groups, BTreeMap::new(), 0);
        let own = u64::from(state.key_groups.start)..u64::from(state.key_groups.end);
        self.tables = own.map(|group| (group, Table::new(group))).collect();
        if self.worker.restored().is_none() {
            let (slots, tables) = (self.arguments.slots(), std::mem::take(&mut self.tables));
            self.tables = tables.into_iter().map(|(group, table)| (group, table.fill(slots))).collect();
        } else {
            for part in &state.state {
                self.take_in(part).await?;
            }
            self.check_whole()?;
        }
        self.note("restored", self.worker.restored())?;
        Ok(self.worker.running().await?)
    }

    async fn take_in(&mut self, part: &AssignedStateInfo) -> Result<(), Failure> {
        let elements = self.worker.elements(part).await?;
        let groups = part.key_groups.ok_or("state that is not keyed")?;
        for (group, data) in (u64::from(groups.start)..u64::from(groups.end)).zip(elements) {
            let table = self.tables.get_mut(&group).ok_or_else(|| format!("key group {group} is not this task's"))?;
            if part.name == "positions" {
                table.position = std::str::from_utf8(&data)?.parse()?;
                continue;
            }
            let block = part.name.parse()?;
            let numbers = data.chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().unwrap_or_default()));
            if table.blocks.insert(block, numbers.collect()).is_some() {
                return Err(format!("block {block} of key group {group} was given twice").into());
            }
            table.stored.insert(block, (0, part.segment.clone()));
        }
        Ok(())
    }

    fn check_whole(&self) -> Result<(), Failure> {
        match self.tables.values().find(|table| table.blocks.len() as u64 != BLOCKS) {
            Some(Table { group, blocks, .. }) => {
                Err(format!("key group {group} has {} of {BLOCKS} blocks", blocks.len()).into())
            }
            None => Ok(()),
        }
    }

    async fn snapshot(&mut self, trigger: &TriggerData) -> Result<(), Failure> {
        match self.put(trigger, trigger.incremental && !trigger.full).await {
            Err(ClientError::Refused { field: Some(field), message, .. }) if field == "state" => {
                self.note(&format!("refused: {message}"), Some(trigger.checkpoint))?;
                self.put(trigger, false).await?;
            }
            put => put?,
        }
        Ok(())
    }

    /// A block as it is stored in a completed checkpoint, if it may be used `again` and has not changed.
    async fn put(&mut self, trigger: &TriggerData, again: bool) -> Result<(), ClientError> {
        let (mut states, mut parts, mut given) = (vec![], vec![], vec![]);
        let mut add = |state: AckState, bytes: Vec<u8>, scope: &str| {
            let part = u32::try_from(parts.len()).ok();
            let (name, scope) = (state.name.clone(), Some(scope.to_owned()));
            states.push(AckState { part, kind: Some("keyed".to_owned()), ..state });
            parts.push((BatchHead { name, scope, ..BatchHead::default() }, Bytes::from(bytes)));
        };
        let (mut positions, mut offsets) = (vec![], vec![]);
        for table in self.tables.values() {
            offsets.push(positions.len() as u64);
            positions.extend_from_slice(table.position.to_string().as_bytes());
        }
        let (name, key_groups) = (Some("positions".to_owned()), Some(self.key_groups));
        add(AckState { name, key_groups, offsets: Some(offsets), ..AckState::default() }, positions, "exclusive");
        let mut reused = vec![];
        for table in self.tables.values() {
            for (block, numbers) in &table.blocks {
                let (name, key_groups) = (Some(block.to_string()), Some(table.groups()));
                let state = AckState { name, key_groups, offsets: Some(vec![0]), ..AckState::default() };
                let changes = table.changes_of(*block);
                match table.stored.get(block).filter(|(of, _)| again && *of == changes) {
                    Some((_, segment)) => {
                        given.push((table.group, *block, changes, segment.clone()));
                        reused.push(AckState {
                            segment: Some(segment.clone()),
                            kind: Some("keyed".to_owned()),
                            ..state
                        });
                    }
                    None => {
                        given.push((table.group, *block, changes, String::new()));
                        add(state, numbers.iter().flat_map(|number| number.to_le_bytes()).collect(), "shared");
                    }
                }
            }
        }
        states.extend(reused);
        let ack = AckRequest { state: states, ..AckRequest::default() };
        let Some(answer) = self.worker.acknowledge_with(trigger.checkpoint, ack, parts).await? else { return Ok(()) };
        if trigger.kind == "checkpoint" {
            let mut stored = answer.segments.into_iter().skip(1).map(|info| info.segment);
            let is_new = |(.., segment): &&mut (u64, u64, u64, String)| segment.is_empty();
            given.iter_mut().filter(is_new).for_each(|(.., segment)| *segment = stored.next().unwrap_or_default());
            self.given.insert(trigger.checkpoint, given);
        }
        Ok(())
    }

    fn completed(&mut self, checkpoint: u64) -> Result<(), Failure> {
        self.note("completed", Some(checkpoint))?;
        for (group, block, changes, segment) in self.given.remove(&checkpoint).unwrap_or_default() {
            if !segment.is_empty() {
                self.tables.get_mut(&group).map(|table| table.stored.insert(block, (changes, segment)));
            }
        }
        Ok(())
    }
}

/// A number below `end`.
fn chance(end: usize) -> usize {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(end) as usize % end
}

struct Arguments {
    api: String,
    job: String,
    journal: PathBuf,
    subtask: u32,
    megabytes: f64,
    rate: f64,
}

impl Arguments {
    fn read() -> Result<Self, Failure> {
        let (_, mut given) = GivenArguments::read("")?;
        let arguments = Self {
            api: given.take("--api", None)?,
            job: given.take("--job", None)?,
            journal: given.take("--journal", None)?,
            subtask: given.take("--subtask", None)?,
            megabytes: given.take("--megabytes", None)?,
            rate: given.take("--rate", None)?,
        };
        given.finish()?;
        Ok(arguments)
    }

    /// Numbers in a block, so that each of five tasks has the megabytes that were asked for.
    fn slots(&self) -> u64 {
        let bytes = (self.megabytes * f64::from(1 << 20)) as u64;
        (bytes * 5 / GROUPS / BLOCKS / 8).max(1)
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    let client = Client::new(&arguments.api, None)?;
    let worker = Worker::new(client, &arguments.job, OPERATOR, arguments.subtask);
    let task = Task {
        worker,
        arguments,
        tables: BTreeMap::new(),
        key_groups: KeyGroups::default(),
        given: BTreeMap::new(),
        hot: vec![],
        hot_for: 0,
    };
    task.work().await
}
