//! The load: sizes, numbers of clients, subtasks of jobs, bodies. The same seed sends the same. Pure.

use std::fmt;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::Serialize;

use crate::config::MemorySize;
use crate::model::{StateScope, crc32c};

/// Bytes of the segments of `--big`.
pub const BIG_BYTES: u64 = 64 << 20;
/// Numbers of clients that send them.
pub const BIG_CLIENTS: [usize; 2] = [1, 4];
/// Bodies that differ, for segments up to 1 MiB; larger ones have [`LARGE_BODIES`].
const BODIES: usize = 16;
const LARGE_BODIES: usize = 2;
/// Bytes between the beginnings of two bodies, which overlap: no multiple of a block or page.
const BODY_STRIDE: usize = 4099;

/// One combination that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Bytes of a segment.
    pub bytes: u64,
    /// Clients, each with one connection and one request on its way.
    pub clients: usize,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = if self.clients == 1 { "client" } else { "clients" };
        write!(f, "{}, {} {clients}", size_text(self.bytes), self.clients)
    }
}

/// A size as Flink writes it: `4 kb`.
pub fn size_text(bytes: u64) -> String {
    let text = format!("{bytes} b");
    text.parse::<MemorySize>().map_or(text, |size| size.to_string())
}

/// Every size with every number of clients, and the large ones if wanted. Zeros are left out.
pub fn cells(sizes: &[u64], clients: &[usize], big: bool) -> Vec<Cell> {
    let small = sizes.iter().flat_map(|bytes| clients.iter().map(|clients| Cell { bytes: *bytes, clients: *clients }));
    let large = BIG_CLIENTS.into_iter().map(|clients| Cell { bytes: BIG_BYTES, clients });
    let all = small.chain(large.filter(|_| big));
    all.filter(|cell| cell.bytes > 0 && cell.clients > 0).collect()
}

/// The order in which the targets are driven in a round: another begins each time, so that none always follows the
/// same one.
pub fn round_order(round: usize, targets: usize) -> impl Iterator<Item = usize> {
    (0..targets).map(move |index| (index + round) % targets)
}

/// The owners of the segments that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LoadShape {
    /// The scope of all of them.
    pub scope: StateScope,
    /// Jobs, at least 1; the clients are dealt out to them.
    pub jobs: usize,
    /// Task managers of each job, at least 1; its clients are dealt out to them.
    pub task_managers: usize,
    /// Subtasks of each task manager, at least 1; its clients are dealt out to them. The clients of one subtask write at
    /// the same time, as its operators and their transfer threads do.
    pub subtasks: usize,
}

/// A client's place: a subtask of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSubtask {
    /// The job's number, from 0.
    pub job: usize,
    /// Its subtask in the job.
    pub subtask: usize,
    /// Number of subtasks that the job has.
    pub parallelism: usize,
    /// The task manager of the job that it is in.
    pub task_manager: usize,
}

impl LoadShape {
    /// The place of the client with this index.
    pub fn place(&self, client: usize) -> ClientSubtask {
        let (jobs, task_managers, subtasks) = (self.jobs.max(1), self.task_managers.max(1), self.subtasks.max(1));
        let task_manager = client / jobs % task_managers;
        let of_task_manager = client / jobs / task_managers % subtasks;
        ClientSubtask {
            job: client % jobs,
            subtask: task_manager * subtasks + of_task_manager,
            parallelism: task_managers * subtasks,
            task_manager,
        }
    }
}

/// The id of a job, as Flink writes one: 32 hex digits.
pub fn job_id(seed: u64, job: usize) -> String {
    format!("{:016x}{:016x}", mix(seed), mix(mix(seed) ^ job as u64))
}

/// The name of a state file, as Flink writes one: a UUID. Another for every run, client and count.
pub fn file_name(seed: u64, run: u64, client: usize, count: u64) -> String {
    let high = mix(mix(seed) ^ run);
    let low = mix(high ^ ((client as u64) << 40) ^ count);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// SplitMix64, a permutation of the numbers.
///
/// # Source
/// Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// One body, made before anything is measured.
#[derive(Debug, Clone)]
pub struct PreparedBody {
    /// Its bytes.
    pub data: Bytes,
    /// Their CRC-32C as 8 hex digits.
    pub crc32c: String,
}

/// Bodies of one size: random bytes, which nothing compresses. They share their memory.
#[derive(Debug)]
pub struct Bodies(Vec<PreparedBody>);

impl Bodies {
    /// Bodies of `bytes` bytes.
    pub fn new(bytes: u64, seed: u64) -> Self {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX - BODIES * BODY_STRIDE);
        let count = if bytes <= 1 << 20 { BODIES } else { LARGE_BODIES };
        let mut pool = vec![0; len + count * BODY_STRIDE];
        StdRng::seed_from_u64(seed ^ bytes).fill_bytes(&mut pool);
        let pool = Bytes::from(pool);
        let body = |index: usize| {
            let data = pool.slice(index * BODY_STRIDE..index * BODY_STRIDE + len);
            let crc32c = format!("{:08x}", crc32c(&data));
            PreparedBody { data, crc32c }
        };
        Self((0..count).map(body).collect())
    }

    /// All of them.
    pub fn all(&self) -> &[PreparedBody] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_size_meets_every_number_of_clients_and_zeros_are_left_out() {
        let all = cells(&[4096, 0, 65536], &[1, 16], true);

        let pairs: Vec<_> = all.iter().map(|cell| (cell.bytes, cell.clients)).collect();
        assert_eq!(pairs, [(4096, 1), (4096, 16), (65536, 1), (65536, 16), (BIG_BYTES, 1), (BIG_BYTES, 4)]);
        assert_eq!(all[1].to_string(), "4 kb, 16 clients");
    }

    #[test]
    fn every_round_drives_every_target_once_and_begins_with_another() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| round_order(round, 3).collect()).collect();

        assert_eq!(rounds, [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1], vec![0, 1, 2]]);
    }

    #[test]
    fn clients_are_dealt_out_to_jobs_task_managers_and_subtasks() {
        let shape = LoadShape { scope: StateScope::Exclusive, jobs: 2, task_managers: 2, subtasks: 2 };

        let places: Vec<ClientSubtask> = (0..9).map(|client| shape.place(client)).collect();

        let of = |place: &ClientSubtask| (place.job, place.task_manager, place.subtask);
        let expected =
            [(0, 0, 0), (1, 0, 0), (0, 1, 2), (1, 1, 2), (0, 0, 1), (1, 0, 1), (0, 1, 3), (1, 1, 3), (0, 0, 0)];
        assert_eq!(places.iter().map(of).collect::<Vec<_>>(), expected);
        assert!(places.iter().all(|place| place.parallelism == 4));
    }

    #[test]
    fn names_look_like_those_of_flink_and_never_repeat() {
        let mut names = HashSet::new();
        for run in 0..3 {
            for client in 0..64 {
                for count in 0..100 {
                    assert!(names.insert(file_name(1, run, client, count)));
                }
            }
        }
        let lens: Vec<usize> = file_name(1, 2, 3, 4).split('-').map(str::len).collect();
        assert_eq!(lens, [8, 4, 4, 4, 12]);
        assert_eq!((job_id(7, 0).len(), job_id(7, 0) == job_id(7, 1)), (32, false));
    }

    #[test]
    fn the_same_seed_makes_the_same_bodies_and_they_differ_among_each_other() {
        let (one, two) = (Bodies::new(4096, 9), Bodies::new(4096, 9));

        let data = |bodies: &Bodies| bodies.all().iter().map(|body| body.data.clone()).collect::<Vec<_>>();
        assert_eq!(data(&one), data(&two));
        assert_eq!(data(&one).into_iter().collect::<HashSet<_>>().len(), BODIES);
        assert!(one.all().iter().all(|body| body.data.len() == 4096 && body.crc32c.len() == 8));
        assert_ne!(data(&one), data(&Bodies::new(4096, 10)));
    }
}
