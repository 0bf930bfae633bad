//! The catalog's log on HDFS: who writes it, who may read it, and what it costs the NameNode.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;

use super::*;

/// A successor of a daemon, on the same store and in a folder of its own.
fn successor_of(world: World) -> (World, TempDir) {
    let World { cluster, folder, url, answered, environment } = world;
    (World { cluster, folder: tempfile::tempdir().unwrap(), url, answered, environment }, folder)
}

/// The output of one of Hadoop's own tools.
async fn hadoop(cluster: &Cluster, arguments: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hdfs/cluster");
    let mut command = Command::new(script);
    command.args(["sh", &cluster.folder]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The store's folder, without the NameNode.
fn path_of(world: &World) -> String {
    format!("/{}", world.url.rsplit_once('/').unwrap().1)
}

/// The files below a folder of the store that are open.
async fn open_files(world: &World, below: &str) -> Vec<String> {
    let said = hadoop(&world.cluster, &["fsck", &path_of(world), "-files", "-openforwrite"]).await;
    let open = said.lines().filter(|line| line.contains("OPENFORWRITE"));
    let names = open.filter_map(|line| line.split_whitespace().next().map(str::to_owned));
    names.filter(|name| name.contains(below)).collect()
}

async fn names_below(world: &World, below: &str) -> Vec<String> {
    let folder = format!("{}/{below}", path_of(world));
    let said = hadoop(&world.cluster, &["fs", "-ls", &folder]).await;
    said.lines().filter_map(|line| line.rsplit_once('/').map(|(_, name)| name.to_owned())).collect()
}

/// A number that the daemon counts.
async fn counted(ready: &Ready, name: &'static str) -> f64 {
    let address = ready.api.trim_start_matches("http://").trim_end_matches('/').to_owned();
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&address).unwrap();
        let mut request = String::new();
        write!(request, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} in {answer}")).trim().parse().unwrap()
    })
    .await
    .unwrap()
}

async fn put(store: &AmazonS3, world: &mut World, key: String, bytes: Vec<u8>) -> bool {
    let answered = store.put(&Path::from(key.as_str()), bytes.clone().into()).await.is_ok();
    if answered {
        world.answered.insert(key, bytes);
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stood_still_while_another_took_over_answers_nothing_that_is_lost() {
    let _turn = TURN.lock().await;
    let Some(world) = World::new("stood-still") else { return };
    let _watchdog = Watchdog::watch("stood-still".to_owned(), TAKES_AT_MOST, world.log());
    let mut world = world;
    for round in 0..3 {
        let (first, ready) = world.start().await;
        let writers = Writers::begin(&ready, &format!("first-{round}"));
        writers.answers(30).await;
        // In the middle of commits: calls are on their way, and leases are held.
        first.signal("STOP");

        let (mut successor, _first_folder) = successor_of(world);
        let (second, second_ready) = successor.start().await;
        let next = Writers::begin(&second_ready, &format!("second-{round}"));
        next.answers(20).await;
        first.signal("CONT");
        let (status, log) = tokio::task::spawn_blocking(move || first.wait_end()).await.unwrap();
        assert!(!status.success(), "it noticed that it was shut out: {status}\n{log}");
        next.answers(20).await;

        // Whatever the first one answered, before it stood still or after it went on.
        writers.end(&mut successor).await;
        next.end(&mut successor).await;
        successor.check(&second_ready).await;
        tokio::task::spawn_blocking(move || second.terminate()).await.unwrap();
        world = successor;
    }
    let (daemon, ready) = world.start().await;
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
    assert_eq!(open_files(&world, "/").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_the_storage_of_a_daemon_that_was_killed_recovers_no_lease_and_says_what_it_cannot_see() {
    let _turn = TURN.lock().await;
    let Some(mut world) = World::new("look") else { return };
    let _watchdog = Watchdog::watch("look".to_owned(), TAKES_AT_MOST, world.log());
    let (daemon, ready) = world.start().await;
    let writers = Writers::begin(&ready, "look");
    writers.answers(40).await;
    drop(daemon);
    writers.end(&mut world).await;
    let open = open_files(&world, "/catalog/log/").await;
    assert_eq!(open.len(), 1, "{open:?}");

    let mut verify = esker();
    verify.args(["verify", "--store", &world.url]);
    let output = tokio::task::spawn_blocking(move || verify.output()).await.unwrap().unwrap();

    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = open[0].rsplit_once('/').unwrap().1;
    assert!(said.contains(&format!("note: file {name} of the catalog's log is open")), "{said}");
    assert_eq!(open_files(&world, "/catalog/log/").await, open, "the lease is as it was");
    let (daemon, ready) = world.start().await;
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_one_call_and_no_file() {
    const COMMITS: u32 = 200;
    let _turn = TURN.lock().await;
    let Some(mut world) = World::new("calls") else { return };
    let _watchdog = Watchdog::watch("calls".to_owned(), TAKES_AT_MOST, world.log());
    let (daemon, ready) = world.start().await;
    let store = client(&ready);
    assert!(put(&store, &mut world, "jobs/a/first".to_owned(), vec![1; 4096]).await);
    let (before, begun) = (counted(&ready, "esker_hdfs_namenode_calls_total").await, Instant::now());

    for number in 0..COMMITS {
        assert!(put(&store, &mut world, format!("jobs/a/{number}"), vec![1; 4096]).await);
    }

    let calls = counted(&ready, "esker_hdfs_namenode_calls_total").await - before;
    let (a_commit, took) = (calls / f64::from(COMMITS), begun.elapsed() / COMMITS);
    let log_files = names_below(&world, "catalog/log").await;
    println!("{a_commit:.2} calls for an answer, {took:?} each; below catalog/log: {log_files:?}");
    // One for the group of data and one for the commit, and a few for files that end meanwhile.
    assert!(a_commit < 3.0, "{a_commit} calls for an answer");
    assert!(log_files.len() <= 3, "{log_files:?}");
    assert_eq!(names_below(&world, "catalog/wal").await, Vec::<String>::new());
    world.check_after_the_end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_whose_lease_somebody_takes_away_costs_nothing_that_was_answered() {
    let _turn = TURN.lock().await;
    let Some(mut world) = World::new("lease") else { return };
    let _watchdog = Watchdog::watch("lease".to_owned(), TAKES_AT_MOST, world.log());
    let (mut daemon, ready) = world.start().await;
    let writers = Writers::begin(&ready, "lease");
    writers.answers(20).await;

    for _ in 0..3 {
        for path in open_files(&world, "/catalog/log/").await {
            hadoop(&world.cluster, &["debug", "recoverLease", "-path", &path, "-retries", "5"]).await;
        }
        writers.answers(30).await;
    }

    assert!(!daemon.has_ended(), "it goes on in another file:\n{}", daemon.log());
    assert!(names_below(&world, "catalog/log").await.len() >= 4, "a mark, and a file for each lease");
    writers.end(&mut world).await;
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
}
