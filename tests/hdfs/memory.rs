//! Open files for which there is no memory: what they held comes back, place and memory.

use std::time::Duration;

use esker_test_support::pattern;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::task::JoinSet;

use super::{TAKES_AT_MOST, TURN, Watchdog, World, Writers, client};

/// Longer than two tries of a group may take (`World::spawn`): what the first one held is not back when the second one asks for
/// as much.
const STANDS: Duration = Duration::from_secs(11);
/// More often than there are places: were one lost each time, none would be left.
const ROUNDS: usize = 5;
const PUTS: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn files_that_end_for_want_of_memory_give_back_their_place_and_memory() {
    let _turn = TURN.lock().await;
    let Some(world) = World::new("memory") else { return };
    let mut world = world
        .with_catalog_on_disk()
        .with("ESKER__MERGING__GROUP_BYTES_MAX", "1mb")
        .with("ESKER__STORE__HDFS__OPEN_MEMORY", "4mb")
        .with("ESKER__STORE__HDFS__MAX_WRITERS", "4");
    let _watchdog = Watchdog::watch("memory".to_owned(), TAKES_AT_MOST, world.log());
    let (mut daemon, ready) = world.start().await;
    let writers = Writers::begin(&ready, "memory");

    for round in 0..ROUNDS {
        writers.answers(20).await;
        for node in ["dn0", "dn1", "dn2"] {
            world.cluster.run("kill", &[node, "STOP"]).await;
        }
        // More at once than there is memory for.
        let mut puts = JoinSet::new();
        for number in 0..PUTS {
            let (store, key) = (client(&ready), format!("jobs/job-{}/{round}/{number}", number % 3));
            puts.spawn(async move {
                let bytes = pattern(number as u64, 900_000);
                let put = store.put(&Path::from(key.as_str()), bytes.clone().into()).await;
                put.is_ok().then_some((key, bytes))
            });
        }
        tokio::time::sleep(STANDS).await;
        for node in ["dn0", "dn1", "dn2"] {
            world.cluster.run("kill", &[node, "CONT"]).await;
        }
        world.answered.extend(puts.join_all().await.into_iter().flatten());
    }
    writers.answers(60).await;
    writers.end(&mut world).await;

    assert!(!daemon.has_ended(), "{}", daemon.log());
    let log = std::fs::read_to_string(world.log()).unwrap();
    assert!(log.contains("no open file ended within"), "there was memory all the time, so this shows nothing");
    world.check(&ready).await;
    world.check_after_the_end(daemon).await;
}
