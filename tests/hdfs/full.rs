//! DataNodes whose disks are full: disks of their own, which are filled from outside.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use object_store::ObjectStoreExt;
use object_store::path::Path;
use rustix::fs::statvfs;

use super::{Cluster, Kind, RIDES_OUT, TAKES_AT_MOST, TURN, Watchdog, World, Writers, client, world_survives};

/// How long all disks are full.
const FULL: Duration = Duration::from_secs(20);
/// Bytes of a disk that are filled by writing.
const LAST_BYTES: u64 = 16 << 20;

impl World {
    /// With small blocks: a NameNode gives a file only to who has room for a whole one.
    fn on_own_disks(name: &str) -> Option<Self> {
        let world = Self::on(Kind::Full, name)?.with("ESKER__STORE__HDFS__BLOCK_SIZE", "4mb");
        Some(world.with("ESKER__MERGING__GROUP_BYTES_MAX", "1mb"))
    }
}

impl Cluster {
    fn ballast(&self, node: usize) -> PathBuf {
        PathBuf::from(format!("{}/data-dn{node}/ballast", self.folder))
    }

    /// Fills the disk of a DataNode, to the last byte.
    async fn fill(&self, node: usize) {
        let path = self.ballast(node);
        let filled = tokio::task::spawn_blocking(move || {
            let disk = statvfs(path.parent().unwrap()).unwrap();
            let room = disk.f_bavail * disk.f_frsize;
            // Most of it takes no time, since nothing is written: the disk is a file with holes.
            let most = room.saturating_sub(LAST_BYTES).to_string();
            let allocated = Command::new("fallocate").args(["-l", &most]).arg(&path).status().unwrap();
            assert!(allocated.success(), "fallocate of {most} bytes: {allocated}");
            let mut ballast = fs::File::options().append(true).open(path).unwrap();
            for len in [1 << 20, 4096, 1] {
                let bytes = vec![0; len];
                while ballast.write_all(&bytes).is_ok() {}
            }
        });
        filled.await.unwrap();
    }

    fn empty(&self, node: usize) {
        fs::remove_file(self.ballast(node)).unwrap();
    }
}

impl Writers {
    /// Waits until so many more puts were refused.
    async fn refusals(&self, more: usize) {
        let (begun, before) = (Instant::now(), self.refusals.load(Ordering::SeqCst));
        while self.refusals.load(Ordering::SeqCst) < before + more {
            assert!(begun.elapsed() < RIDES_OUT, "nothing was refused on full disks");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datanode_without_room_costs_nothing_that_was_answered() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on_own_disks("one-full") else { return };
    world_survives(world, "one-full", async |cluster, writers| {
        cluster.fill(0).await;
        writers.answers(100).await;
        cluster.empty(0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_anywhere_writes_are_refused_and_go_on_by_themselves_when_there_is_some() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on_own_disks("all-full") else { return };
    let mut world = world.with_catalog_on_disk();
    let _watchdog = Watchdog::watch("all-full".to_owned(), TAKES_AT_MOST, world.log());
    let (mut daemon, ready) = world.start().await;
    let writers = Writers::begin(&ready, "all-full");
    writers.answers(50).await;

    for node in 0..3 {
        world.cluster.fill(node).await;
    }
    writers.refusals(10).await;
    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < FULL {
        // What is refused may be repeated, and says so.
        let put = client(&ready).put(&Path::from("jobs/job-9/one"), vec![7; 70_000].into()).await;
        if let Err(error) = put {
            let text = format!("{error:?}");
            assert!(text.contains("503"), "{text}");
            refused += 1;
        }
    }
    assert!(refused > 0, "puts were answered on full disks");
    assert!(!daemon.has_ended(), "the daemon ended because disks are full:\n{}", daemon.log());
    for node in 0..3 {
        world.cluster.empty(node);
    }
    writers.answers(50).await;
    writers.end(&mut world).await;

    assert!(!daemon.has_ended(), "{}", daemon.log());
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_the_catalog_either_nothing_that_was_answered_is_lost() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on_own_disks("catalog-full") else { return };
    world_survives(world, "catalog-full", async |cluster, writers| {
        for node in 0..3 {
            cluster.fill(node).await;
        }
        writers.refusals(5).await;
        for node in 0..3 {
            cluster.empty(node);
        }
    })
    .await;
}
