//! A DataNode that never comes back, and alone had what a file needs to be closed.

use std::fs;
use std::time::Instant;

use esker_test_support::pattern;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt};

use super::{Kind, RIDES_OUT, TAKES_AT_MOST, TURN, Watchdog, World, Writers, client};

impl World {
    /// The DataNode with the last block of a file that is open.
    async fn node_of_an_open_file(&self) -> String {
        let root = self.url.splitn(4, '/').nth(3).unwrap();
        let shown = [&format!("/{root}/data"), "-openforwrite", "-files", "-blocks", "-locations"];
        let shown = self.cluster.run("sh", &[&["fsck"][..], &shown].concat()).await;
        let open = shown.split_once("OPENFORWRITE").unwrap_or_else(|| panic!("nothing is open: {shown}")).1;
        let ports = fs::read_to_string(format!("{}/ports", self.cluster.folder)).unwrap();
        let node = ports.lines().filter_map(|line| line.split_once("_xfer=")).find_map(|(node, port)| {
            let first = open.split("DatanodeInfoWithStorage[127.0.0.1:").nth(1)?;
            first.starts_with(&format!("{port},")).then_some(node)
        });
        node.unwrap_or_else(|| panic!("it is nowhere: {open}")).to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_for_ever_is_named_and_dropped_when_that_is_asked_for_and_the_rest_stays() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Lost, "lost") else { return };
    let mut world = world.with_catalog_on_disk();
    let _watchdog = Watchdog::watch("lost".to_owned(), TAKES_AT_MOST, world.log());
    // What a store says of itself has three replicas, and so have files that are closed; those that are open have one.
    let (daemon, ready) = world.start().await;
    let writers = Writers::begin(&ready, "closed");
    writers.answers(40).await;
    writers.end(&mut world).await;
    tokio::task::spawn_blocking(move || daemon.terminate()).await.unwrap();
    let closed = world.answered.len();
    world = world
        .with("ESKER__STORE__HDFS__REPLICATION", "1")
        .with("ESKER__MERGING__IDLE_CLOSE", "1 h")
        .with("ESKER__EXECUTION__CHECKPOINTING__FILE_MERGING__MAX_FILE_SIZE", "64mb");
    let (daemon, ready) = world.start().await;
    // What it says of itself stays readable.
    let owners = format!("/{}/owners", world.url.splitn(4, '/').nth(3).unwrap());
    world.cluster.run("sh", &["fs", "-setrep", "-w", "3", &owners]).await;
    for number in 0..30_usize {
        let (key, bytes) = (format!("jobs/job-{}/open/{number}", number % 3), pattern(number as u64, 20_000));
        client(&ready).put(&Path::from(key.as_str()), bytes.clone().into()).await.unwrap();
        world.answered.insert(key, bytes);
    }
    let node = world.node_of_an_open_file().await;
    drop(daemon);
    world.cluster.run("kill", &[&node]).await;
    fs::remove_dir_all(format!("{}/data-{node}", world.cluster.folder)).unwrap();

    // It may come back for all that a start knows. One that begins before the NameNode knows that it is dead may be given a
    // file on it, and ends sooner.
    let begun = Instant::now();
    loop {
        let daemon = world.spawn();
        let (status, log) = tokio::task::spawn_blocking(move || daemon.wait_end()).await.unwrap();
        assert!(!status.success(), "it started without {node}:\n{log}");
        if log.contains("--drop-lost") {
            break;
        }
        assert!(begun.elapsed() < RIDES_OUT, "no start says what to do:\n{log}");
    }
    let (code, said) = world.esker(&["verify", "--repair", "--drop-lost"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("done: "), "{said}");

    let (daemon, ready) = world.start().await;
    let (mut there, mut lost) = (0, vec![]);
    for (key, bytes) in &world.answered {
        let read = async { client(&ready).get(&Path::from(key.as_str())).await?.bytes().await };
        match read.await {
            Ok(read) => {
                assert!(read == bytes[..], "{key} was answered with other bytes");
                there += 1;
            }
            Err(Error::NotFound { .. }) => lost.push(key.clone()),
            Err(error) => panic!("{key} is neither there nor dropped: {error}"),
        }
    }
    println!("{there} objects are there, {} were on {node} alone", lost.len());
    assert!(there >= closed && !lost.is_empty(), "{there} are there, {closed} were closed, lost are {lost:?}");
    assert!(lost.iter().all(|key| key.contains("/open/")), "what has other replicas was dropped: {lost:?}");
    lost.iter().for_each(|key| drop(world.answered.remove(key)));
    let writers = Writers::begin(&ready, "next");
    writers.answers(20).await;
    writers.end(&mut world).await;
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
    world.cluster.run("up", &[&node]).await;
}
